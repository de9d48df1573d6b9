"""Which of ONNX's own operator tests pass: writes docs/onnx_support.md.

    python -m benchmarks.onnx_support              all of them, some minutes on one core
    python -m benchmarks.onnx_support --only Resize --jobs 2 --no-table

Every case of ``onnx.backend.test`` runs in another process, through the whole walk (import, float,
compile, run) and, beside it, through TVM's own ONNX importer and its default pipeline.
Operands that decide shapes (axes, pads, a Reshape's target …) become constants of the model for
both, since a compiled network has fixed shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import re
import signal
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import nybble
from nybble.errors import NybbleError, UnsupportedOpError

SECONDS = 30  # of CPU time for a case: a busy machine changes no outcome
WAIT = 40 * SECONDS  # for one that sleeps
TOGETHER = 10  # cases that one process runs, unless one ends it
TABLE = Path(__file__).resolve().parent.parent / "docs" / "onnx_support.md"
SHAPING: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CastLike": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (1,),
    "ConstantOfShape": (0,), "CumProd": (1,), "CumSum": (1,), "DFT": (1, 2), "Dropout": (1, 2),
    "Expand": (1,), "GRU": (1, 2, 3, 4), "LSTM": (1, 2, 3, 4, 7), "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "RNN": (1, 2, 3, 4), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3),
    "STFT": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,),
    "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    "ConvTranspose": (1, 2), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 3, 4, 5, 6, 7, 8), "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (1, 2, 3), "MatMulInteger": (2, 3),
    **{f"Reduce{kind}": (1,) for kind in (
        "L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare",
    )},
}  # fmt: skip
"""Operands by operator that decide shapes, or that are weights in every real network."""


Item = tuple[str, str, Any]
"""Engine, operator, case."""


# ---------------------------------------------------------------- cases


def cases(only: str = ".*") -> Iterator[tuple[str, Any]]:
    """(operator, case) of every operator test that a pattern allows."""
    from onnx.backend.test.case.node import collect_testcases  # noqa: PLC0415  (takes seconds)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    operators = {c.name: c.model.graph.node[-1].op_type for c in found if "_expanded" not in c.name}
    for case in found:
        base = re.sub(r"_expanded.*$", "", case.name)
        operator = operators.get(base, case.model.graph.node[-1].op_type)
        if re.fullmatch(only, operator):
            yield operator, case


def with_constants(model: onnx.ModelProto, inputs: list[Any]) -> tuple[onnx.ModelProto, list[Any]]:
    """The model with shaping operands as initializers, and the inputs that are left."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    shaping = {
        node.input[index]
        for node in copy.graph.node
        for index in SHAPING.get(node.op_type, ())
        if index < len(node.input) and (node.op_type != "CastLike" or len(copy.graph.node) == 1)
    }
    names = [info.name for info in copy.graph.input]
    rest, bound = [], set()
    for name, value in zip(names, inputs, strict=True):
        if name in shaping and isinstance(value, np.ndarray | np.generic) and len(names) > 1:
            copy.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            bound.add(name)
        else:
            rest.append(held(value))
    kept = [info for info in copy.graph.input if info.name not in bound]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    return copy, rest


# ---------------------------------------------------------------- engines


def ours(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    """The outputs by way of this compiler."""
    import tvm  # noqa: PLC0415  (after nybble)
    from tvm import relax  # noqa: PLC0415

    artifact = nybble.compile(nybble.load_onnx(model))
    machine = relax.VirtualMachine(artifact.executable, tvm.cpu())
    return _arrays(machine["main"](*[tvm.runtime.tensor(np.asarray(x)) for x in inputs]))


def stock(model: onnx.ModelProto, inputs: list[Any]) -> list[Any]:
    """The outputs by way of TVM's importer and default pipeline."""
    import tvm  # noqa: PLC0415
    from tvm import relax  # noqa: PLC0415
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

    module = from_onnx(model)
    executable = tvm.compile(module, target="llvm")
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return _arrays(machine["main"](*[tvm.runtime.tensor(np.asarray(x)) for x in inputs]))


ENGINES: dict[str, Callable[[onnx.ModelProto, list[Any]], list[Any]]] = {
    "nybble": ours,
    "tvm": stock,
}


def _arrays(result: Any) -> list[Any]:
    return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]


# ---------------------------------------------------------------- one case


def outcome(engine: str, case: Any) -> tuple[str, str]:
    """(passed, refused, wrong or failed; why), in the process of the caller."""
    try:
        for inputs, wanted in case.data_sets:
            values = [numpy_of(x) for x in inputs]
            model, rest = with_constants(case.model, values)
            got = ENGINES[engine](model, rest)
            differs = difference(got, [held(numpy_of(x)) for x in wanted], case)
            if differs:
                return "wrong", differs
    except UnsupportedOpError as error:
        return "refused", str(error)
    except NybbleError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:  # noqa: BLE001  any failure of an engine is a result here
        return "failed", f"{type(error).__name__}: {error}"
    return "passed", ""


def numpy_of(value: Any) -> Any:
    """A test's tensor as an array; sequences and strings as they are."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def held(array: Any) -> Any:
    """A tensor as callers hold it: integers below 8 bits one in a byte."""
    name = str(getattr(array, "dtype", ""))
    if name in ("int2", "int4", "uint2", "uint4"):
        return np.asarray(array).astype("int8" if name.startswith("int") else "uint8")
    return array


def difference(got: list[Any], wanted: list[Any], case: Any) -> str:
    """What is wrong with outputs, in words; "" when nothing is."""
    if len(got) != len(wanted):
        return f"{len(got)} outputs instead of {len(wanted)}"
    for index, (ours_, theirs) in enumerate(zip(got, wanted, strict=True)):
        if not isinstance(theirs, np.ndarray | np.generic):
            return f"output {index} is no tensor"
        if ours_.shape != theirs.shape or ours_.dtype != theirs.dtype:
            return (f"output {index}: {ours_.dtype}{ours_.shape} instead of "
                    f"{theirs.dtype}{theirs.shape}")  # fmt: skip
        close = np.allclose(
            ours_.astype(np.float64), theirs.astype(np.float64), rtol=max(case.rtol or 0, 1e-3),
            atol=max(case.atol or 0, 1e-5), equal_nan=True,
        )  # fmt: skip
        if not close:
            return f"output {index}: values differ"
    return ""


def _child(work: Sequence[Item], pipe: Any) -> None:
    with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for engine, _, case in work:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # CPU time; its signal ends the process
        pipe.send(outcome(engine, case))
    pipe.close()
    os._exit(0)  # without the interpreter's farewell, which takes longer than the cases


def isolated(work: Sequence[Item]) -> list[tuple[str, str]]:
    """The `outcome` of every case, in another process: crashed and timed out are outcomes too.

    One process runs them in order; where a case ends it, another one goes on with the next.
    """
    context, found = mp.get_context("fork"), list[tuple[str, str]]()
    while len(found) < len(work):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(work[len(found) :], send))
        child.start()
        send.close()
        try:
            while len(found) < len(work) and receive.poll(WAIT):
                found.append(receive.recv())
            is_ended = len(found) < len(work)
        except EOFError:
            is_ended = True
        if is_ended:
            child.kill()
            child.join()
            is_late = child.exitcode in (-signal.SIGPROF, -signal.SIGKILL)
            late = ("timeout", f"after {SECONDS} s")
            found.append(late if is_late else ("crashed", f"exit code {child.exitcode}"))
        child.kill()
        child.join()
    return found


# ---------------------------------------------------------------- the table

Results = dict[str, dict[str, Counter[str]]]


def table(measured: Results, available: int) -> str:
    """The page, in Markdown: the operators that all engines have been through.

    Args:
        measured: outcomes by operator and engine.
        available: how many cases there are.
    """
    counts = {op: {sum(r[e].values()) for e in ENGINES} for op, r in measured.items()}
    results = {op: measured[op] for op, numbers in counts.items() if len(numbers) == 1}
    totals = {e: sum((r[e] for r in results.values()), Counter()) for e in ENGINES}
    count = sum(totals["nybble"].values())
    ratio = totals["nybble"]["passed"] / max(1, totals["tvm"]["passed"])
    missing = available - count
    partly = f" {missing} further cases have not been run yet." if missing else ""
    lines = [
        "# ONNX operators", "",
        "Generated by `python -m benchmarks.onnx_support`: ONNX's own operator tests"
        f" (onnx {onnx.__version__}), compiled as float networks and run.", "",
        f"Of {count} cases {totals['nybble']['passed']} pass, {totals['nybble']['refused']} are"
        f" refused with the reason, {totals['nybble']['wrong']} give something else. TVM's own"
        f" importer passes {totals['tvm']['passed']}: {ratio:.2f} times as many pass"
        f" here.{partly}", "",
        "| operator | passed | refused | wrong | failed | TVM passes |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for operator, found in sorted(results.items()):
        mine = found["nybble"]
        failed = mine["failed"] + mine["crashed"] + mine["timeout"]
        cells = (operator, mine["passed"], mine["refused"], mine["wrong"], failed,
                 found["tvm"]["passed"])  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) if cell else '' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def known(log: Path | None) -> dict[tuple[str, str], tuple[str, str]]:
    """(engine, case) -> (operator, outcome) of an earlier run that was interrupted."""
    if log is None or not log.exists():
        return {}
    rows = (line.split("\t") for line in log.read_text().splitlines())
    return {(engine, name): (op, kind) for engine, kind, op, name, *_ in rows}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=".*", help="operators, a regular expression")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", type=Path, help="a line for every case; a second run goes on")
    parser.add_argument("--no-table", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Runs the cases and writes the table."""
    args = options()
    import tvm.relax.frontend.onnx  # noqa: F401, PLC0415

    import nybble.walk  # noqa: F401, PLC0415  (once, before the forks)

    done = known(args.log)
    results: Results = defaultdict(lambda: {engine: Counter() for engine in ENGINES})
    for (engine, _), (op, kind) in done.items():
        results[op][engine][kind] += 1
    everything = list(cases(".*"))
    work = [
        (engine, op, case)
        for op, case in everything for engine in args.engines
        if re.fullmatch(args.only, op) and (engine, case.name) not in done
    ]  # fmt: skip
    with (
        ThreadPoolExecutor(args.jobs) as pool,
        (args.log or Path(os.devnull)).open("a") as log,
    ):
        runs = [work[start : start + TOGETHER] for start in range(0, len(work), TOGETHER)]
        found = (outcome for run in pool.map(isolated, runs) for outcome in run)
        for count, ((engine, op, case), (kind, why)) in enumerate(zip(work, found, strict=True), 1):
            results[op][engine][kind] += 1
            short = " ".join(why.split())[:300]
            print(engine, kind, op, case.name, short, sep="\t", file=log, flush=True)
            print(f"\r{count} of {len(work)}", end="", flush=True)  # noqa: T201
    print()  # noqa: T201
    for engine in args.engines:
        total = sum((r[engine] for r in results.values()), Counter())
        print(engine, dict(total))  # noqa: T201
    if not args.no_table:
        TABLE.write_text(table(results, len(everything)))


if __name__ == "__main__":
    main()
