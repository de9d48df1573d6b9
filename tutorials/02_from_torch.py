"""Lesson 2: a torch network, without an ONNX file in between.

Run it from the repository: ``.venv/bin/python tutorials/02_from_torch.py``. It needs the extra
``nybble[torch]``, which ``make install`` brings.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nybble

torch.manual_seed(0)


class Net(nn.Module):
    """A convolution, a residual block, pooling, a classifier: what most CNNs are made of."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU6())
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        """(N, 3, 32, 32) -> (N, 10)."""
        x = self.stem(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(y)))
        return self.fc(torch.flatten(self.pool(x), 1))


# 1. A network as after training: a few batches settle the statistics of the batch norms.
net = Net()
with torch.no_grad():
    for _ in range(20):
        net(torch.randn(16, 3, 32, 32))
net.eval()

# 2. Import. The example inputs are for tracing; the batch stays dynamic. Batch norms are folded
#    into the convolutions when the network is quantized.
model = nybble.load_torch(net, (torch.randn(1, 3, 32, 32),))
images = torch.randn(8, 3, 32, 32)
with torch.no_grad():
    expected = net(images).numpy()
np.testing.assert_allclose(model.run(images.numpy()), expected, rtol=1e-4, atol=1e-4)

# 3. Quantize with what the network will see. A recipe is a frozen record; it travels as JSON.
recipe = nybble.Recipe(calibrator="percentile", percentile=99.99)
assert nybble.Recipe.from_json(recipe.to_json()) == recipe
calibration = [torch.randn(8, 3, 32, 32).numpy() for _ in range(4)]
quantized = nybble.quantize(model, calibration, recipe)
law = quantized.run(images.numpy())
error = np.abs(law - expected).max() / np.abs(expected).max()
print(f"largest error of 8 bits: {error:.1%} of the largest logit")
assert error < 0.2, f"quantization error {error:.1%}"

# 4. Compile for another machine than this one: any x86-64 with AVX2. The bits stay the same.
with tempfile.TemporaryDirectory() as folder:
    path = nybble.compile(quantized, target="x86-64-v3").save(Path(folder) / "net.so")
    session = nybble.load(path)
    np.testing.assert_array_equal(session(images.numpy()), law)
print("the shared library and the law agree in every bit")
