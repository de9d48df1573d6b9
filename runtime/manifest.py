"""The manifest inside a Nybble `.so`, and the file format that carries it.

A file is an ELF shared library with a trailer that the dynamic linker never looks at::

    ELF | manifest, UTF-8 JSON | length of the JSON, 8 bytes LE | SHA-256 | b"NYBBLE01"

The digest covers everything before it. All of it is checked before the library is opened, because
``dlopen`` of a damaged file runs damaged code.

Several variants of one network, for CPUs of one architecture and for GPUs beside them, share a
file: the first is its ELF, the others stand behind it, each a whole ELF that starts on a page, and
the JSON is an index::

    ELF | ELF | … | {"schema": 2, "variants": [{"target", "features", "device", "offset", "size"}…],
                     "manifests": [manifest, …]} | length | SHA-256 | b"NYBBLE01"
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from nybble.errors import ArtifactError
from nybble.runtime import typed
from nybble.runtime.parameters import Parameters

SCHEMA = 1
INDEX_SCHEMA = 2  # a reader of single libraries takes it for a newer manifest, and says so
MAGIC = b"NYBBLE01"
ELF_MAGIC = b"\x7fELF"
_LENGTH = struct.Struct("<Q")
_DIGEST_SIZE = 32
TRAILER_SIZE = _LENGTH.size + _DIGEST_SIZE + len(MAGIC)
_ELF64_HEADER = 64
_LATER = ("device", "parameters")  # fields that older files do not have


@dataclass(frozen=True)
class Port:
    """One input or output of the network.

    Attributes:
        name: the source model's name.
        shape: extents; a string such as ``"n"`` names a symbolic one.
        dtype: NumPy's name of the element type at the interface.
        scale: of the quantization at this border; None for a float model.
        zero_point: of the quantization at this border; None for a float model.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Timed(TypedDict):
    """A kernel that could have compiled a layer, as measured when it was compiled."""

    kernel: str
    """The kernel family."""
    weights: str | None
    """The dtype in which it stores the weights; ``float32`` for the layer's float form."""
    size: int
    """Bytes of its packed constants."""
    seconds: float
    """Of one call, one image, one thread."""


class Tuned(TypedDict):
    """Where the decisions of a kernel are from that did not get its defaults."""

    kind: str
    """``exact``: measured for this layer on such a machine; ``nearest``: for one like it."""
    decisions: dict[str, Any]
    """The kernel's knobs; empty where the defaults were measured and nothing beat them."""
    ratio: float
    """Of its time to the layer's default kernel with default decisions, as recorded."""
    noise: float
    """Relative spread of the ratio."""
    threads: int | None
    """That it was measured with."""
    layer: str
    """The layer that was measured, in words."""
    machine: str
    """The CPU that it was measured on."""
    date: str
    """Of the measurement."""


class Layer(TypedDict):
    """One kernel call of the deployed library, or one structural op that calls none."""

    name: str
    """The source model's node name."""
    op: str
    """The op it implements, ``conv2d``."""
    output: str
    """The binding of the integer module whose values the call writes."""
    dtype: str
    """The type of these values, which is their width."""
    form: str
    """How they lie in memory: ``values``, one an element, or ``packed`` or ``planes`` of bits."""
    symbol: str | None
    """The TensorIR function's symbol; None when the runtime merely reinterprets memory."""
    kernel: str
    """The kernel family, ``cpu.int8.avx2``."""
    weights: str | None
    """The dtype of the weights, which is their width; None without weights."""
    stored: str | None
    """The dtype that the kernel stores them in: ``int8`` where that is faster than their own."""
    size: int
    """Bytes of the packed constants."""
    activations: str
    """The dtype of the (first) activation."""
    macs: int
    """Multiply-adds for one image."""
    refusals: list[str]
    """Faster families that declined, each with its reason."""
    timed: list[Timed]
    """The candidates' times; empty where nothing was measured."""
    tuned: NotRequired[Tuned | None]
    """Where its kernel's decisions are from; None for the defaults."""


class KernelUse(TypedDict):
    """What a kernel takes of a GPU's resources on one architecture."""

    symbol: str
    """The device function; layers' symbols with a suffix."""
    arch: str
    """``sm_80``, ``sm_90a``."""
    registers: int
    """Of a thread."""
    spills: int
    """Bytes that a thread stores and loads for want of registers."""
    shared: int
    """Bytes of a block's shared memory, all in all."""


class Device(TypedDict):
    """The GPUs that a library is for, and its code for them."""

    kind: str
    """``cuda``."""
    archs: list[str]
    """That it holds machine code for: ``sm_80``, ``sm_90a``."""
    portable: int | None
    """From which compute capability on drivers compile its portable code, 89; None without."""
    toolkit: str
    """The version of ``nvcc``."""
    graphed: bool
    """Whether calls launch CUDA graphs."""
    usage: list[KernelUse]
    """By kernel and architecture."""


@dataclass(frozen=True, repr=False)
class Manifest:
    """What a deployed library is, and what it needs to run.

    Attributes:
        inputs: in the order of the call.
        outputs: in the order of the result.
        layers: in call order.
        recipe: the fields of `nybble.Recipe`; None for a float model, and for one that another
            tool has quantized.
        target: the name that was compiled for, ``x86-64-v3``.
        arch: ``x86_64``, ``aarch64``.
        features: CPU features that the code needs, as Linux spells them.
        versions: of nybble, tvm, tvm-ffi and numpy at compile time.
        rounding: the requantization convention; None for a float model.
        kept_float: layers that stayed float, each with its reason.
        float_ops: float ops between the quantized borders; empty is integer-only.
        rates: multiply-adds a second that one thread of the compiling machine can do at most, by
            kind of weights; None where nothing was measured.
        hash: SHA-256 of the ELF part in hex, set on export.
        device: the GPUs that run the layers; None where the CPU does.
        parameters: the constants in a file beside the library; None where they are inside.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    target: str
    arch: str
    features: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    versions: Mapping[str, str] | None = None
    rounding: str | None = None
    kept_float: tuple[str, ...] = ()
    float_ops: tuple[str, ...] = ()
    rates: Mapping[str, float] | None = None
    hash: str = ""
    device: Device | None = None
    parameters: Parameters | None = None

    def __repr__(self) -> str:
        ports = (", ".join(f"{p.name}: {p}" for p in side) for side in (self.inputs, self.outputs))
        return f"Manifest({self.target}; {' -> '.join(ports)}; {len(self.layers)} layers)"

    def to_json(self) -> str:
        """The manifest as one JSON object with its schema number."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads what `to_json` wrote.

        Raises:
            ArtifactError: no JSON object, a newer schema, or missing or unknown fields.
        """
        return cls.from_dict(typed.parsed(text))

    @classmethod
    def from_dict(cls, values: Any) -> Manifest:
        """`from_json` on what the JSON says.

        Raises:
            ArtifactError: a newer schema, missing or unknown fields, or values of another kind.
        """
        schema = values.get("schema") if isinstance(values, dict) else None
        if isinstance(schema, int) and schema > INDEX_SCHEMA:
            raise ArtifactError(
                f"Written by a newer Nybble (manifest schema {schema}, this one reads up to "
                f"{INDEX_SCHEMA}). Update Nybble, or compile the model again with this version."
            )
        known = {"schema", *(f.name for f in fields(cls))}
        if schema == SCHEMA:
            values = {**dict.fromkeys(_LATER), **values}
        if schema != SCHEMA or values.keys() != known:
            raise ArtifactError(f"The manifest is no Nybble manifest of schema {SCHEMA}.")
        values = {name: value for name, value in values.items() if name != "schema"}
        typed.check(values, cls, "manifest")
        for side in ("inputs", "outputs"):
            values[side] = tuple(_port(port) for port in values[side])
        for name in ("layers", "features", "kept_float", "float_ops"):
            values[name] = tuple(values[name])
        return cls(**values)


class Place(TypedDict):
    """Where a variant lies in a file, and what it needs."""

    target: str
    features: list[str]
    device: str | None
    offset: int
    size: int


def _port(values: dict[str, Any]) -> Port:
    return Port(**{**values, "shape": tuple(values["shape"])})


@dataclass(frozen=True)
class Variant:
    """One library of a file.

    Attributes:
        manifest: what it is.
        offset: of its first byte in the file.
        size: its bytes.
    """

    manifest: Manifest
    offset: int
    size: int


def seal(variants: Sequence[Variant], digest: Any) -> bytes:
    """The trailer to append to the ELF files.

    Args:
        variants: what stands before it, every manifest's hash already set.
        digest: the running ``hashlib.sha256`` object over all of it; it is not changed.
    """
    text = _index(variants).encode()
    head = text + _LENGTH.pack(len(text))
    whole = digest.copy()
    whole.update(head)
    return head + bytes(whole.digest()) + MAGIC


def _index(variants: Sequence[Variant]) -> str:
    """The JSON of a file: the manifest itself where there is one variant."""
    if len(variants) == 1:
        return variants[0].manifest.to_json()
    places = [
        {
            "target": variant.manifest.target,
            "features": variant.manifest.features,
            "device": variant.manifest.device and variant.manifest.device["kind"],
            "offset": variant.offset,
            "size": variant.size,
        }
        for variant in variants
    ]
    manifests = [json.loads(variant.manifest.to_json()) for variant in variants]
    index = {"schema": INDEX_SCHEMA, "variants": places, "manifests": manifests}
    return json.dumps(index, indent=1)


def read(path: str | Path) -> Manifest:
    """The manifest of a file's first variant; raises what `read_all` raises."""
    return read_all(path)[0].manifest


def read_all(path: str | Path) -> tuple[Variant, ...]:
    """Verifies a file from its first to its last byte and returns its variants.

    Raises:
        ArtifactError: it cannot be read, is no ELF file, was not written by Nybble, is truncated
            or damaged, or was written by a newer Nybble.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ArtifactError(f"{path}: the file is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                text, end = _verified(data, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        return _variants(text, end)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _variants(text: str, end: int) -> tuple[Variant, ...]:
    """What the JSON says of the ``end`` bytes before it."""
    values = typed.parsed(text)
    if not isinstance(values, dict) or values.get("schema") != INDEX_SCHEMA:
        return (Variant(Manifest.from_dict(values), 0, end),)
    if values.keys() != {"schema", "variants", "manifests"}:
        raise ArtifactError(f"The index of variants is none of schema {INDEX_SCHEMA}.")
    typed.check(values["variants"], list[Place], "variants")
    typed.check(values["manifests"], list[Any], "manifests")
    manifests = [Manifest.from_dict(one) for one in values["manifests"]]
    places = [(place["offset"], place["size"]) for place in values["variants"]]
    fit = all(0 <= offset < offset + size <= end for offset, size in places)
    if not fit or not places or len(places) != len(manifests) or places[0][0]:
        raise ArtifactError(f"The index of variants does not fit {end:,} bytes of libraries.")
    return tuple(
        Variant(manifest, *place) for manifest, place in zip(manifests, places, strict=True)
    )


def _verified(data: mmap.mmap, path: Path) -> tuple[str, int]:
    """The JSON and where it starts; raises on the first thing that is not as it was written."""
    size = len(data)
    if data[:4] != ELF_MAGIC:
        start = bytes(data[:16])
        raise ArtifactError(f"{path}: not a shared library; it starts with {start!r}.")
    elf_size = _elf_size(data[:_ELF64_HEADER])
    if size < elf_size:
        raise ArtifactError(
            f"{path}: truncated: {size:,} of {elf_size:,} bytes are left. Copy it again."
        )
    if size < elf_size + TRAILER_SIZE or data[-len(MAGIC) :] != MAGIC:
        raise ArtifactError(
            f"{path}: a shared library without Nybble's trailer. It comes from another compiler, "
            "its end is cut off, or it was stripped after Nybble wrote it."
        )
    (length,) = _LENGTH.unpack_from(data, size - TRAILER_SIZE)
    start = size - TRAILER_SIZE - length
    if start < _ELF64_HEADER:
        raise ArtifactError(f"{path}: damaged: the trailer's length {length} cannot be.")
    digest = hashlib.sha256()
    with memoryview(data) as view, view[: start + length + _LENGTH.size] as covered:
        digest.update(covered)
    if digest.digest() != data[-len(MAGIC) - _DIGEST_SIZE : -len(MAGIC)]:
        raise ArtifactError(
            f"{path}: damaged: its contents do not match the checksum written at export. "
            "Copy it again from where it was made, or compile the model again."
        )
    try:
        return bytes(data[start : start + length]).decode(), start
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: the manifest is no text: {error}.") from error


def _elf_size(header: bytes) -> int:
    """Where a 64-bit little-endian ELF file ends; linkers put the section headers last."""
    if len(header) < _ELF64_HEADER:
        return _ELF64_HEADER
    (section_headers,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, entries = struct.unpack_from("<HH", header, 0x3A)
    return int(section_headers + entry_size * entries)
