"""Lesson 7: mending what rounding broke.

Run it from the repository: ``.venv/bin/python tutorials/07_corrections.py``. It needs the extra
``nybble[torch]``, which ``make install`` brings.
"""

import tempfile
from pathlib import Path

import numpy as np

import nybble

EXAMPLE = Path(nybble.__file__).resolve().parent.parent / "examples" / "fashion_mnist"


def pixels(file):
    """Images as the network takes them, (N, 1, 28, 28) in 0..1."""
    return np.load(EXAMPLE / file)["images"][:, None].astype(np.float32) / np.float32(255)


# 1. A small ResNet for Fashion-MNIST. Corrections learn from calibration images without labels.
model = nybble.load_onnx(EXAMPLE / "resnet.onnx")
calibration = pixels("calibration.npz")[:64]
images = pixels("test_images.npz")[:200]
labels = np.load(EXAMPLE / "test_images.npz")["labels"][:200]


def deployed(quantized):
    """Percent of right answers of the compiled library, and whether it is the law to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        session = nybble.load(nybble.compile(quantized).save(Path(folder) / "net.so"))
        answers = session(images)
    same = np.array_equal(answers[:4], quantized.run(images[:4]))
    return 100 * np.mean(answers.argmax(-1) == labels), same


# 2. Weights of 2 bits, rounded to nearest: nothing is left of the network.
rounded, same = deployed(nybble.quantize(model, calibration, nybble.Recipe(weights=2)))
print(f"2 bits, rounded to nearest: {rounded:.1f} %")
assert rounded < 60
assert same

# 3. Stages of correction run in the order given, each with its options. Here: scales of least error
#    in the layers' outputs; GPTQ, where later weights make up for earlier ones; last, mean and
#    deviation of every channel as they were.
stages = ({"scales": {"by": "output"}}, "gptq", "statistics")
mended, same = deployed(nybble.quantize(model, calibration, nybble.Recipe(2, correct=stages)))
print(f"with scales, gptq and statistics: {mended:.1f} %")
assert mended > 85
assert same

# 4. Stages travel with the recipe, and the same recipe gives the same bits.
recipe = nybble.Recipe(2, correct=stages)
assert nybble.Recipe.from_json(recipe.to_json()) == recipe
print("the shared library and the law agree in every bit")
