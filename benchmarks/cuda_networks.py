"""ResNet-50 for a machine with a GPU: weights that are carried in little space, and its outputs.

Every filter is one of 32 random ones, its channels moved along by a multiple of 64: all filters
differ, and what is packed of them repeats itself. Speed and exactness do not depend on the values.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nybble
from benchmarks import cuda_arrays
from benchmarks.cuda_goals import NETWORK
from benchmarks.output import console
from nybble.commands import random_inputs
from nybble.runtime.session import Session, load

BATCHES = (1, 64)
SIZE = 224
DIFFERENT, MOVED = 32, 64
IMAGES = 8  # that calibrate
SETTLING = 64  # size of those that statistics are of


def resnets(folder: Path, target: str, size: int = SIZE) -> Iterator[dict[str, Any]]:
    """Compiles it for GPUs and for this CPU, for each batch; entries of ``rows.json``.

    Args:
        folder: for the library and the arrays.
        target: the GPUs.
        size: of the images.
    """
    from tests import models  # noqa: PLC0415  (loads torch)

    for batch in BATCHES:
        console.print(f"{NETWORK}, batch {batch}: quantizing and compiling")
        images = models.images(batch, (3, size, size))
        imported = nybble.load_torch(_network(), _tensor(images), dynamic_batch=False)
        drawn = models.images(max(IMAGES, batch), (3, size, size), seed=7)
        whole = range(0, len(drawn) // batch * batch, batch)
        quantized = nybble.quantize(imported, [drawn[i : i + batch] for i in whole])
        name = f"resnet50-{batch}"
        nybble.compile(quantized, target).save(folder / f"{name}.so")
        here = folder / f"{name}.cpu.so"
        nybble.compile(quantized, "native").save(here)
        cpu = load(here)
        about = _with_outputs(folder, name, cpu, {cpu.manifest.inputs[0].name: images})
        here.unlink()
        row = f"{NETWORK}, batch {batch}"
        yield {
            **about,
            "row": row,
            "file": f"{name}.so",
            "peer": True,
            "batch": batch,
            "size": size,
        }


def saved(folder: Path, path: Path) -> Iterator[dict[str, Any]]:
    """Copies a library that holds code for GPUs and for this CPU, which says what is expected."""
    network = load(path)
    shutil.copy(path, folder / path.name)
    is_open = any(isinstance(extent, str) for p in network.manifest.inputs for extent in p.shape)
    for batch in BATCHES if is_open else BATCHES[:1]:
        name = f"{path.stem}, batch {batch}" if is_open else path.stem
        inputs = random_inputs(network.manifest, batch)
        about = _with_outputs(folder, f"{path.stem}-{batch}", network, inputs)
        yield {**about, "row": name, "file": path.name}


def _with_outputs(
    folder: Path, name: str, network: Session, inputs: dict[str, Any]
) -> dict[str, Any]:
    outputs: Any = network(inputs)
    names = [port.name for port in network.manifest.outputs]
    found = outputs if isinstance(outputs, dict) else {names[0]: outputs}
    arrays = {f"in_{k}": v for k, v in inputs.items()}
    arrays |= {f"out_{k}": v for k, v in found.items()}
    cuda_arrays.save(folder / f"{name}.npz", arrays)
    return {"operands": f"{name}.npz", "macs": 0}


def _network() -> Any:
    """With repeating filters, and statistics of batch norms that fit them."""
    import torch  # noqa: PLC0415

    from tests import models  # noqa: PLC0415

    made = models.resnet50(SETTLING)
    for weight in made.parameters():
        if weight.dim() > 1 and weight.shape[1] % MOVED == 0:
            _repeat(weight.data)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the average of all images
    with torch.no_grad():
        made.train()(torch.from_numpy(models.images(IMAGES, (3, SETTLING, SETTLING))))
    return made.eval()


def _repeat(weight: Any) -> None:
    """Filter o is filter o % 32, its channels moved along by 64 · (o // 32)."""
    for o in range(DIFFERENT, len(weight)):
        weight[o] = weight[o % DIFFERENT].roll(MOVED * (o // DIFFERENT), 0)


def _tensor(images: Any) -> Any:
    import torch  # noqa: PLC0415

    return torch.from_numpy(images)
