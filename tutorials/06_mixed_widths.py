"""Lesson 6: a width of its own for every layer.

Run it from the repository: ``.venv/bin/python tutorials/06_mixed_widths.py``. It needs the extra
``nybble[torch]``, which ``make install`` brings.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import nybble

EXAMPLE = Path(nybble.__file__).resolve().parent.parent / "examples" / "fashion_mnist"


def pixels(file):
    """Images as the network takes them, (N, 1, 28, 28) in 0..1."""
    return np.load(EXAMPLE / file)["images"][:, None].astype(np.float32) / np.float32(255)


# 1. A small ResNet for Fashion-MNIST, images to calibrate with, others to judge by.
model = nybble.load_onnx(EXAMPLE / "resnet.onnx")
calibration = pixels("calibration.npz")[:32]
images = pixels("test_images.npz")[:200]
labels = np.load(EXAMPLE / "test_images.npz")["labels"][:200]

# 2. What does each layer lose at 3, 4 and 8 bits? One layer is rounded at a time, and the change of
#    the network's answers measured. The table is plain data; it is kept in the cache folder.
measure = nybble.Measure("perturbation", remember=False)
table = nybble.sensitivity(model, calibration, measure, widths=(3, 4, 8))
worst = max(table.losses, key=lambda layer: table.losses[layer][3])
print(f"at 3 bits, {worst} loses most: {table.losses[worst][3]:.4f} nats")

# 3. The same, and the choice, inside of `quantize`: 0.3 of the way in bytes from all
#    at 3 bits to all at 8. First and last layer keep their 8 bits.
recipe = nybble.Recipe(weights="mixed", choices=(3, 4, 8), budget={"size": 0.3})
mixed = nybble.quantize(model, calibration, recipe)
chosen = mixed.allocation
print("chosen:", ", ".join(f"{layer} {width}" for layer, width in chosen.widths.items()))
assert len(set(chosen.widths.values())) > 1
assert chosen.gap == 0  # proven: no other choice of this size loses less, by the table

# 4. More bytes never lose more: the front of all sizes, for nothing, from the same table.
front = mixed.trade.front("size", points=8)
by_size = sorted(front, key=lambda one: one.costs["size"])
losses = [one.objective for one in by_size]
assert losses == sorted(losses, reverse=True)


def deployed(quantized):
    """Percent of right answers of the compiled library, and whether it is the law to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        session = nybble.load(nybble.compile(quantized).save(Path(folder) / "net.so"))
        answers = session(images)
    same = np.array_equal(answers[:4], quantized.run(images[:4]))
    return 100 * np.mean(answers.argmax(-1) == labels), same


# 5. Deployed, against all layers at 3 bits.
uniform = nybble.quantize(model, calibration, replace(recipe, weights=3, choices=(), budget={}))
(low, _), (high, same) = deployed(uniform), deployed(mixed)
print(f"all at 3 bits: {low:.1f} %, mixed: {high:.1f} %")
assert high > low
assert same
print("the shared library and the law agree in every bit")
