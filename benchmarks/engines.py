"""Running what was prepared: each engine turns a `Job` into a call, inside its own process.

Every engine reads the input once before the clock runs, and gives its output back as an array, so
that it can be compared. Where a job asks for several copies, a run goes through all of them: then
no copy's weights are in a cache when their turn comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.problems import Array

Call = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """What one process shall time.

    Attributes:
        peer: as the tables call it.
        engine: a key of `ENGINES`.
        files: the prepared files, one per copy of the weights.
        input: an ``.npy`` of float32.
        threads: how many it may use.
        isa: what the process is held to.
        option: what else the engine must know.
    """

    peer: str
    engine: str
    files: tuple[Path, ...]
    input: Path
    threads: int = 1
    isa: str = "native"
    option: str = ""


def calls(job: Job) -> list[Call]:
    """One call per copy of the weights; each returns the output."""
    data = np.load(job.input)
    return [ENGINES[job.engine](job, path, data) for path in job.files]


def _nybble(job: Job, path: Path, data: Array) -> Call:
    import nybble  # in the worker only: the parent never loads the runtime  # noqa: PLC0415

    session = nybble.load(path, threads=job.threads)
    return lambda: session(data)


def _onnxruntime(job: Job, path: Path, data: Array) -> Call:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    if job.option == "lut":
        options.add_session_config_entry("mlas.use_lut_gemm", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: data}
    return lambda: session.run(None, feed)[0]


def _openvino(job: Job, path: Path, data: Array) -> Call:
    import openvino  # noqa: PLC0415

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # copies of a file shall not share their memory
    model = core.read_model(path)
    model.reshape(list(data.shape))
    settings = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([data], share_inputs=True, share_outputs=True)[0]


def _fbgemm(job: Job, path: Path, data: Array) -> Call:
    """Dynamic quantization of activations, as torch does for linear layers."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(job.threads)
    torch.backends.quantized.engine = "fbgemm"
    packed = _packed(torch.from_numpy(np.load(path)))
    x = torch.from_numpy(data)

    def run() -> Any:
        with torch.inference_mode():
            return torch.ops.quantized.linear_dynamic(x, packed, False).numpy()

    return run


def _packed(weights: Any) -> Any:
    """Symmetric s8 per output channel, in fbgemm's own layout."""
    import torch  # noqa: PLC0415

    scales = weights.abs().amax(1) / 127
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated, and works
        quantized = torch.quantize_per_channel(weights, scales.double(), zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(quantized, None)


def _torch(job: Job, path: Path, data: Array) -> Call:
    """TorchScript, float."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(job.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is frozen, and works
        net = torch.jit.optimize_for_inference(torch.jit.load(str(path)).eval())
    x = torch.from_numpy(data)

    def run() -> Any:
        with torch.inference_mode():
            return net(x).numpy()

    return run


def _ggml(job: Job, path: Path, data: Array) -> Call:
    from benchmarks import ggml  # noqa: PLC0415

    return ggml.product(ggml.library(job.isa), job.option, np.load(path), data, job.threads)


ENGINES: dict[str, Callable[[Job, Path, Array], Call]] = {
    "nybble": _nybble,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "fbgemm": _fbgemm,
    "torch": _torch,
    "ggml": _ggml,
}
