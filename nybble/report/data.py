"""The plain data that tables and the HTML page are drawn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nybble.limits import kind_of
from nybble.report import units
from nybble.report.parity import ParityReport
from nybble.runtime.manifest import Device, Layer, Manifest, Timed, Tuned
from nybble.runtime.session import LayerTime


@dataclass(frozen=True)
class Variant:
    """One form of the network in the comparison.

    Attributes:
        name: ``float``, ``simulated``, ``deployed``.
        accuracy: top-1 as a share of 1, None where it was not measured.
        size: bytes of the file, None for a form that is no file.
        seconds: median latency of one call, None where it was not measured.
    """

    name: str
    accuracy: float | None = None
    size: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """One layer of the deployed library as a reader sees it; ``seconds`` None: not measured.

    ``rate`` is the most multiply-adds a second for the layer's weights, `Manifest.rates`; ``tuned``
    says where its kernel's decisions are from, None for the defaults.
    """

    name: str
    op: str
    widths: str
    kernel: str
    macs: int
    seconds: float | None
    refusals: tuple[str, ...] = ()
    size: int = 0
    timed: tuple[Timed, ...] = ()
    rate: float | None = None
    tuned: Tuned | None = None

    @property
    def share(self) -> float | None:
        """The chosen kernel's multiply-adds as a share of what the machine can do at most."""
        if self.chosen is None or not self.rate or not self.macs:
            return None
        return self.macs / self.chosen["seconds"] / self.rate

    @property
    def chosen(self) -> Timed | None:
        """The kernel taken, as measured when the library was compiled."""
        return next((t for t in self.timed if (t["kernel"], t["size"]) == self._taken), None)

    @property
    def _taken(self) -> tuple[str, int]:
        return self.kernel, self.size

    def best(self, weights: str) -> Timed | None:
        """The fastest candidate that stores the weights in this dtype."""
        found = [timed for timed in self.timed if timed["weights"] == weights]
        return min(found, key=lambda timed: timed["seconds"], default=None)


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title: the network's name.
        facts: (what, value) pairs about target, machine, recipe, versions.
        variants: the forms compared; the first one is the baseline.
        layers: in call order.
        float_ops: float ops between the quantized borders.
        kept_float: layers that stayed float, each with its reason.
        parity: the comparison with the law; None where it was not made.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    variants: tuple[Variant, ...]
    layers: tuple[LayerRow, ...]
    float_ops: tuple[str, ...] = ()
    kept_float: tuple[str, ...] = ()
    parity: ParityReport | None = field(default=None)


def widths(layer: Layer) -> str:
    """``int8 x uint8``: weights (as they are stored) times activations, or those alone."""
    if layer["weights"] is None:
        return layer["activations"]
    kept = "" if layer["stored"] == layer["weights"] else f" (as {layer['stored']})"
    return f"{layer['weights']}{kept} x {layer['activations']}"


def layer_rows(
    manifest: Manifest, times: Sequence[LayerTime] | None = None
) -> tuple[LayerRow, ...]:
    """The manifest's layers joined with their measured times.

    Args:
        manifest: of the library.
        times: from `Session.profile`; None where the library was not run.
    """
    called = iter(times or ())
    rows = []
    for layer in manifest.layers:
        runs = times is not None and layer["symbol"] is not None
        rows.append(
            LayerRow(
                name=layer["name"],
                op=layer["op"],
                widths=widths(layer),
                kernel=layer["kernel"],
                macs=layer["macs"],
                seconds=next(called).seconds if runs else None,
                refusals=tuple(layer["refusals"]),
                size=layer["size"],
                timed=tuple(layer["timed"]),
                rate=_rate(manifest, layer),
                tuned=layer.get("tuned"),
            )
        )
    return tuple(rows)


def _rate(manifest: Manifest, layer: Layer) -> float | None:
    if manifest.rates is None or layer["stored"] is None:
        return None
    return manifest.rates.get(kind_of(layer["stored"]))


def facts(manifest: Manifest, threads: int | None = None) -> tuple[tuple[str, str], ...]:
    """What the manifest says of the whole library, as (what, value) pairs."""
    pairs: list[tuple[str, Any]] = [
        ("inputs", ", ".join(f"{p.name}: {p}" for p in manifest.inputs)),
        ("outputs", ", ".join(f"{p.name}: {p}" for p in manifest.outputs)),
        ("target", f"{manifest.target} ({manifest.arch})"),
        ("CPU features needed", ", ".join(manifest.features) or "none"),
        ("GPUs", _gpu(manifest)),
        ("parameters", _parameters(manifest)),
        ("recipe", _recipe(manifest)),
        ("kernels' decisions", _decided(manifest)),
        ("rounding", manifest.rounding),
        ("threads", threads),
        ("versions", ", ".join(f"{k} {v}" for k, v in (manifest.versions or {}).items())),
        ("hash", manifest.hash[:16]),
    ]
    return tuple((what, str(value)) for what, value in pairs if value)


def gpus(device: Device) -> str:
    """``sm_80, sm_89 and later``: which GPUs run a library."""
    later = " and later" if device["portable"] is not None else ""
    return ", ".join(device["archs"]) + later


def _parameters(manifest: Manifest) -> str:
    """Where the constants are, if they are not inside."""
    stored = manifest.parameters
    return f"{stored['file']}, {units.size(stored['size'])}" if stored else ""


def _gpu(manifest: Manifest) -> str:
    device = manifest.device
    if device is None:
        return ""
    launched = "CUDA graphs" if device["graphed"] else "single launches"
    return f"{gpus(device)}; CUDA {device['toolkit']}, {launched}"


def _decided(manifest: Manifest) -> str:
    """How many layers have recorded decisions; nothing where none has."""
    kinds = Counter(tuned["kind"] for layer in manifest.layers if (tuned := layer.get("tuned")))
    if not kinds:
        return ""
    called = sum(layer["symbol"] is not None for layer in manifest.layers)
    rest = called - kinds.total()
    return (
        f"{kinds['exact']} layers by records of their own, {kinds['nearest']} by those of the "
        f"nearest layer, {rest} by default"
    )


def _recipe(manifest: Manifest) -> str:
    if manifest.recipe is None:
        return "none: " + ("a float model" if manifest.rounding is None else "imported as it was")
    said = {k: v for k, v in manifest.recipe.items() if v not in ((), [], {}, None)}
    if manifest.recipe.get("activations") != "float":
        said.pop("symmetric", None)
    return ", ".join(f"{k}={v}" for k, v in said.items())
