"""Lesson 1: from an ONNX file to a shared library that computes in integers.

Run it from the repository: ``.venv/bin/python tutorials/01_first_model.py``. It takes some seconds.
The network is the small ResNet of examples/fashion_mnist; its inputs are pixels / 255.
"""

import tempfile
from pathlib import Path

import numpy as np

import nybble

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion_mnist"


def pixels(images):
    """(N, 28, 28) bytes -> (N, 1, 28, 28) float32 in 0..1, as the network was trained."""
    return images[:, None].astype(np.float32) / 255


# 1. Import. A model is a Relax module; `run` evaluates it in NumPy.
model = nybble.load_onnx(EXAMPLE / "resnet.onnx")
test = np.load(EXAMPLE / "test_images.npz")
images, labels = pixels(test["images"][:100]), test["labels"][:100]
float_logits = model.run(images)
float_top1 = np.mean(float_logits.argmax(1) == labels)
print(f"float: {float_top1:.0%} of {len(labels)} images right")

# 2. Quantize. The calibration images tell how large each activation gets. They need no labels;
#    any iterable of arrays will do, for it is streamed.
calibration = pixels(np.load(EXAMPLE / "calibration.npz")["images"][:64])
recipe = nybble.Recipe(weights=8, activations=8, calibrator="minmax")
quantized = nybble.quantize(model, calibration[:, None], recipe)  # one image at a time

# 3. Run the law: the exact integers that every target will compute, on any machine.
law = quantized.run(images)
law_top1 = np.mean(law.argmax(1) == labels)
print(f"integers in NumPy: {law_top1:.0%} right")
assert law_top1 >= float_top1 - 0.03, "quantization cost more than 3 of 100 images"
# Logits are not equal to the float ones, but close: 8 bits leave an error of some percent.
error = np.abs(law - float_logits).max() / np.abs(float_logits).max()
assert error < 0.2, f"quantization error {error:.1%}"

# 4. Compile for this machine, link one shared library, load it. Loading needs the TVM runtime only.
artifact = nybble.compile(quantized, target="native")
with tempfile.TemporaryDirectory() as folder:
    path = artifact.save(Path(folder) / "net.so")
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")
    session = nybble.load(path)
    deployed = session(images)

    # 5. Compare. Not "close": the same bits, for any batch size.
    np.testing.assert_array_equal(deployed, law)
    np.testing.assert_array_equal(session(images[:1]), law[:1])
print("the shared library and the law agree in every bit")
