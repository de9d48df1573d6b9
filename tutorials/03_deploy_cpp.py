"""Lesson 3: a network in a C++ program, on a machine without Python.

Run it from the repository: ``.venv/bin/python tutorials/03_deploy_cpp.py``. It needs a C++ compiler
and takes some seconds, most of them the compiler's.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tvm_ffi

import nybble
from nybble.runtime import bundle

EXAMPLE = Path(nybble.__file__).resolve().parent.parent / "examples" / "fashion_mnist"

# A program of one's own. `nybble.h` is all that it includes; the network says what it takes.
PROGRAM = r"""
#include <algorithm>
#include <fstream>
#include <iostream>

#include "nybble.h"

int main(int, char** argv) {
  try {
    const nybble::Network network(argv[1]);  // checked byte by byte, then loaded
    const nybble::Port& port = network.manifest().inputs.at(0);
    std::cout << port.name << ": " << port.dtype << " " << nybble::Show(port.shape) << "\n";

    constexpr int64_t kImages = 20, kPixels = 28 * 28, kClasses = 10;
    const nybble::Tensor images = nybble::Empty("float32", {kImages, 1, 28, 28});
    std::ifstream file(argv[2], std::ios::binary);
    for (int64_t i = 0; i < kImages * kPixels; ++i) {
      nybble::Data<float>(images)[i] = static_cast<float>(file.get()) / 255;
    }
    const nybble::Tensor logits = network.Run({images}).at(0);
    for (int64_t i = 0; i < kImages; ++i) {
      const float* row = nybble::Data<float>(logits) + i * kClasses;
      std::cout << std::max_element(row, row + kClasses) - row << " ";
    }
    network.Run({nybble::Empty("float32", {1, 3, 28, 28})});  // colours: refused in words
  } catch (const nybble::Error& error) {
    std::cout << "\n" << error.what() << "\n";
  }
}
"""

# 1. A network, quantized and compiled. Large ones are better off with their parameters outside the
#    library: mapped, not copied, and shared by all processes that run it.
model = nybble.load_onnx(EXAMPLE / "resnet.onnx")
pixels = np.load(EXAMPLE / "calibration.npz")["images"][:32, None]
quantized = nybble.quantize(model, pixels.astype(np.float32) / np.float32(255))
artifact = nybble.compile(quantized, parameters="outside")

test = np.load(EXAMPLE / "test_images.npz")["images"][:20, None]
images = test.astype(np.float32) / np.float32(255)
law = quantized.run(images)

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    net = artifact.save(folder / "net.so")
    print("saved:", ", ".join(f"{p.name} {p.stat().st_size:,}" for p in sorted(folder.iterdir())))

    # 2. A bundle: the network, the TVM runtime, a program that runs it. `nybble bundle net.so -o b`
    #    does the same. The folder may be copied to any Linux machine of this architecture.
    made = bundle.bundle(net, folder / "b")
    print(f"bundle: network {made.network:,} bytes, everything else {made.runtime:,}")
    assert made.runtime < 7_000_000

    # 3. Its program takes and writes .npy files. Nothing in the environment helps it.
    np.save(folder / "images.npy", images)
    command = [folder / "b" / "run", folder / "b" / "net.so", folder / "images.npy", "-o", folder]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    print(done.stdout.strip())
    np.testing.assert_array_equal(np.load(folder / "logits.npy"), law)

    # 4. The program of one's own: tvm_ffi's headers, `nybble.h`, two libraries of the bundle.
    (folder / "mine.cc").write_text(PROGRAM)
    (folder / "images.raw").write_bytes(test.tobytes())
    include, libraries = Path(tvm_ffi.__file__).parent / "include", folder / "b" / "lib"
    subprocess.run(
        [
            "c++", "-std=c++17", "-O1", folder / "mine.cc", "-o", folder / "mine",
            f"-I{bundle.CSRC}", f"-isystem{include}",
            f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-Wl,--disable-new-dtags",
            "-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime",
        ],
        check=True,
    )  # fmt: skip
    mine = [folder / "mine", folder / "b" / "net.so", folder / "images.raw"]
    said = subprocess.run(mine, env={}, capture_output=True, text=True, check=True).stdout
    print(said.strip())
    _, classes, refusal = said.strip().splitlines()
    assert classes.split() == [str(label) for label in law.argmax(1)]
    assert "got float32 (1, 3, 28, 28)" in refusal
print("the shared library and the law agree in every bit")
