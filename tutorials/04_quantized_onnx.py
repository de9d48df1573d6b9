"""Lesson 4: a network that another tool has quantized.

Run it from the repository: ``.venv/bin/python tutorials/04_quantized_onnx.py``. It needs the extra
``nybble[torch]`` (to make a network) and ``onnxruntime`` (to quantize it), which ``make install``
brings.
"""

import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

import nybble

logging.disable(logging.WARNING)  # of the other tools
warnings.simplefilter("ignore")
torch.manual_seed(0)

# 1. A float network as ONNX.
net = nn.Sequential(
    nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
    nn.Conv2d(16, 32, 1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip
written = io.BytesIO()
torch.onnx.export(
    net.eval(), (torch.randn(1, 3, 32, 32),), written, dynamo=False, opset_version=17,
    input_names=["image"], dynamic_axes={"image": {0: "n"}},
)  # fmt: skip


class Calibration(CalibrationDataReader):
    """What ONNX Runtime's tool asks for: a few inputs, one after another."""

    def __init__(self):
        self.left = [{"image": torch.randn(1, 3, 32, 32).numpy()} for _ in range(16)]

    def get_next(self):
        """The next one, None at the end."""
        return self.left.pop() if self.left else None


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)

    # 2. ONNX Runtime quantizes it: unsigned activations with a zero point, int8 weights with a
    #    scale for each output channel, int32 biases. QDQ and QOperator files both come in.
    (folder / "float.onnx").write_bytes(written.getvalue())
    quantize_static(
        folder / "float.onnx", folder / "quantized.onnx", Calibration(),
        quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
    )  # fmt: skip

    # 3. Nybble takes the file as it is: no calibration, the same scales and zero points. What comes
    #    back is a quantized network, in integers from its first border to its last.
    model = nybble.load_onnx(folder / "quantized.onnx")
    assert isinstance(model, nybble.QuantizedModel)

    # 4. How near is it? Its simulation is what ONNX Runtime computes with nothing optimized; the
    #    integers differ by a unit here and there, where a scale becomes a dyadic number.
    options = SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = InferenceSession(folder / "quantized.onnx", options)
    images = torch.randn(32, 3, 32, 32).numpy()
    expected = reference.run(None, {"image": images})[0]
    np.testing.assert_allclose(model.simulate(images), expected, atol=1e-4)
    law = model.run(images)
    same = np.mean(law.argmax(1) == expected.argmax(1))
    print(f"answers that agree with ONNX Runtime: {same:.0%}")
    assert same >= 0.9

    # 5. Compile. `nybble compile quantized.onnx -o net.so` does the same.
    session = nybble.load(nybble.compile(model).save(folder / "net.so"))
    assert session.manifest.float_ops == ()
    np.testing.assert_array_equal(session(images), law)

    # 6. And back: what Nybble exports, others read, and so does Nybble.
    again = nybble.load_onnx(model.to_onnx())
    np.testing.assert_array_equal(again.run(images), law)
print("the shared library and the law agree in every bit")
