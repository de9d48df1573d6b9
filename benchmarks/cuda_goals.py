"""What GPUs must show, and whether a run has shown it; plain Python, for both machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]
FP16, INT_MM, TORCH = "cuBLAS float16", "torch._int_mm", "torch float16"
WIDE = ((11008, 4096), (28672, 8192))  # channels and depth of what is wanted of weight-only layers
TALL = (64, 128, 256)  # rows of products with narrow weights
LEVELS = "int4 on two levels"
TOKENS = (128, 512)
OPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "scores": tuple((8, 12, t, t, 64) for t in TOKENS),
    "scores of keys by row": tuple((8, 12, t, t, 64) for t in TOKENS),
    "mixed": tuple((8, 12, t, 64, t) for t in TOKENS),
    "softmax": tuple((8, 12, t, t) for t in TOKENS),
    "layer_norm": ((1024, 768), (4096, 768)),
    "rms_norm": ((1, 4096), (64, 4096), (2048, 4096)),
    "row_tops": ((1024, 768), (2048, 4096)),
    "quantize_rows": ((1024, 768), (2048, 4096)),
    "rescale_rows": ((1024, 3072), (2048, 11008)),
}
"""Of attention and norms of BERT-base, eight sequences, and of Llama-7B; of products images, rows,
columns and depth.
"""
RACED = {
    "scores": FP16, "scores of keys by row": FP16, "mixed": FP16, "softmax": TORCH,
    "layer_norm": TORCH, "rms_norm": TORCH,
}  # fmt: skip
"""Ops that are to be as fast as others' in half precision."""
STREAMED = (
    ("softmax", (8, 12, 512, 512)), ("rms_norm", (2048, 4096)), ("quantize_rows", (2048, 4096)),
    ("rescale_rows", (2048, 11008)),
)  # fmt: skip
"""Ops that nothing but memory should hold up."""
NARROW = (11008, 4096)
SQUARE = "8192 x 8192 x 8192 int8 x int8"
NETWORK = "ResNet-50"
NO_GPU = "pytest -m 'slow or not slow' tests/cuda (needs no GPU)"


@dataclass(frozen=True)
class Verdict:
    """A line of the table.

    Attributes:
        what: is measured.
        goal: in words.
        found: the figure.
        met: None where it was not measured.
    """

    what: str
    goal: str
    found: str
    met: bool | None

    @property
    def word(self) -> str:
        """``met``, ``missed`` or ``not measured``."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def product(m: int, size: tuple[int, int], weights: str, activations: str) -> str:
    """The name of a product's row."""
    return f"{m} x {size[0]} x {size[1]} {weights} x {activations}"


def shaped(op: str, shape: Sequence[int]) -> str:
    """The name of another op's row."""
    return f"{op} {' x '.join(map(str, shape))}"


def needed() -> set[str]:
    """Names of the rows that goals are about."""
    halves = {product(m, size, "int4", "float16") for m in (1, 16) for size in WIDE}
    narrow = {product(m, NARROW, w, "int8") for m in TALL for w in ("int4", LEVELS, "int8")}
    raced = {shaped(op, shape) for op in RACED for shape in OPS[op]}
    return {*halves, *narrow, *raced, *(shaped(*one) for one in STREAMED), SQUARE}


def verdicts(result: Result) -> list[Verdict]:
    """Every goal."""
    return [
        Verdict("machine code of every template", "no spills, no local memory", *_code(result)),
        Verdict("interpreter", "all families bit-exact", NO_GPU, None),
        Verdict("numerics on the GPU", "every kernel and network right", *_numerics(result)),
        *_sanitizer(result),
        *_halves(result),
        _ratio(result, SQUARE, INT_MM, 0.9),
        _ratio(result, SQUARE, FP16, 1.6),
        *_narrow(result),
        *(_ratio(result, shaped(op, s), peer, 1.0) for op, peer in RACED.items() for s in OPS[op]),
        *(_bandwidth(result, shaped(*one)) for one in STREAMED),
        *_networks(result),
    ]


def text(result: Result) -> str:
    """The goals as a table, and what is wrong, in plain text."""
    found = verdicts(result)
    lines = [
        f"{result['gpu']}, driver {result['driver']}, {result['date']}, {result['target']}",
        f"before {result['before']}", f"after {result['after']}", "",
    ]  # fmt: skip
    width = max(len(one.what) for one in found)
    lines += [
        f"{one.word:12}  {one.what:{width}}  {one.found}  (goal: {one.goal})" for one in found
    ]
    wrong = [row for row in result["rows"] if row["right"] is False]
    lines += ["", *(f"WRONG {row['row']} {row.get('kernel', '')}: {row['why']}" for row in wrong)]
    gone: dict[str, str] = {}
    for row in result["rows"]:
        gone |= {name: f"{why} (e.g. {row['row']})" for name, why in row.get("missing", {}).items()}
    lines += [f"peer {name} missing somewhere: {why}" for name, why in gone.items()]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- parts


def _code(result: Result) -> tuple[str, bool | None]:
    """Of the kernels that were packed; the tests look at all templates and architectures."""
    usage = [use for row in result["rows"] for use in row.get("usage", ())]
    bad = sum(bool(use["spills"] or use["stack"]) for use in usage)
    return f"{len(usage)} kernels packed, {bad} with local memory", not bad if usage else None


def _numerics(result: Result) -> tuple[str, bool | None]:
    rows = result["rows"]
    right = sum(row["right"] is True for row in rows)
    wrong = sum(row["right"] is False for row in rows)
    met = False if wrong else (True if right == len(rows) and rows else None)
    return f"{right} right, {wrong} wrong, {len(rows) - right - wrong} not reached", met


def _sanitizer(result: Result) -> Iterator[Verdict]:
    for tool in ("memcheck", "racecheck"):
        found = result["sanitizer"].get(tool, {})
        count = found.get("kernels", 0)
        words = found.get("why") or (f"{count} kernels" if found else "not reached")
        yield Verdict(f"compute-sanitizer {tool}", "no error", words, found.get("right"))


def _best(rows: Sequence[Row], name: str) -> Row | None:
    """The row of the kernel that a compilation takes; the fastest timed one where that has none."""
    timed = [row for row in rows if row["row"] == name and row["right"] and "seconds" in row]
    usual = [row for row in timed if row.get("default")]
    return min(usual or timed, key=lambda row: float(row["seconds"]), default=None)


def _beside(rows: Sequence[Row], row: Row) -> str:
    """Which kernel it is, and which one is faster if one is."""
    others = [
        one for one in rows
        if one["row"] == row["row"] and one["right"] and one.get("seconds", 9e9) < row["seconds"]
    ]  # fmt: skip
    best = min(others, key=lambda one: float(one["seconds"]), default=None)
    faster = (
        f"; {best['kernel']} takes {best['seconds'] / row['seconds']:.2f} of it" if best else ""
    )
    return f" ({row['kernel']}, {1e6 * row['seconds']:.1f} us{faster})"


def _ratio(result: Result, name: str, peer: str, goal: float) -> Verdict:
    what, wanted = f"{name} beside {peer}", f"at least {goal} times"
    row = _best(result["rows"], name)
    ratio = (row or {}).get("ratios", {}).get(peer)
    if row is None or ratio is None:
        return Verdict(what, wanted, "", None)
    return Verdict(what, wanted, f"{ratio:.2f} times{_beside(result['rows'], row)}", ratio >= goal)


def share(row: Row, machine: dict[str, Any]) -> float | None:
    """Of the memory's peak, or of what copies reach where that is not known."""
    peak = machine.get("peak") or machine.get("copy")
    return row["bytes"] / row["seconds"] / peak if peak and "bytes" in row else None


def _bandwidth(result: Result, name: str) -> Verdict:
    what, goal = f"{name}, bandwidth", "at least 80 % of the memory's"
    row, machine = _best(result["rows"], name), result["machine"]
    found = share(row, machine) if row else None
    if row is None or found is None:
        return Verdict(what, goal, "", None)
    copied = row["bytes"] / row["seconds"] / machine["copy"] if machine.get("copy") else 0
    words = f"{100 * found:.0f} % of the peak, {100 * copied:.0f} % of copies"
    return Verdict(what, goal, words, found >= 0.8)


def _halves(result: Result) -> Iterator[Verdict]:
    for m in (1, 16):
        for size in WIDE:
            name = product(m, size, "int4", "float16")
            yield _ratio(result, name, FP16, 3.5)
            yield _bandwidth(result, name)


def _narrow(result: Result) -> Iterator[Verdict]:
    for m, weights in ((m, weights) for weights in ("int4", LEVELS) for m in TALL):
        names = [product(m, NARROW, w, "int8") for w in (weights, "int8")]
        rows = [_best(result["rows"], name) for name in names]
        what, goal = f"{names[0]} beside our int8 x int8", "at least 1.3 times"
        if rows[0] is None or rows[1] is None:
            yield Verdict(what, goal, "", None)
            continue
        ratio = rows[1]["seconds"] / rows[0]["seconds"]
        words = f"{ratio:.2f} times{_beside(result['rows'], rows[0])}"
        yield Verdict(what, goal, words, ratio >= 1.3)


def _networks(result: Result) -> Iterator[Verdict]:
    for batch, goal in ((1, 2.0), (64, None)):
        rows = [row for row in result["rows"] if row["row"] == f"{NETWORK}, batch {batch}"]
        name = f"{NETWORK}, batch {batch}"
        row: Row = rows[0] if rows else {"row": name, "right": None, "why": "not reached"}
        yield Verdict(name, "the CPU's integers", row.get("why") or "the same", row["right"])
        ratio = row.get("ratios", {}).get(TORCH)
        words = "" if ratio is None else f"{ratio:.2f} times, {1e3 * row['seconds']:.3f} ms"
        wanted = f"at least {goal} times" if goal else "no goal"
        met = None if ratio is None else goal is None or ratio >= goal
        yield Verdict(f"{name} beside {TORCH}", wanted, words, met)
