"""Memory that the device functions of a kernel share lies among tensors: a graph may keep it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx

from nybble import simt
from nybble.ir import graph
from nybble.ir.weight_only import HALF
from nybble.schedules.cpu import loops
from nybble.schedules.cuda import build, workspace
from nybble.schedules.cuda import compile as code
from nybble.schedules.kernel import Kernel, Knobs
from tests.cuda.layers import gpu
from tests.cuda.test_weight_only import family
from tests.weight_only_cases import Case

TARGET = gpu("sm_90")
SQUARE = Case((1, 512), 512, 64, "int4", compute=HALF)
SPLIT = {"operands": 1, "along": 2, "splits": 4}


def split(case: Case) -> tuple[Kernel, tirx.PrimFunc, list[Any]]:
    """A kernel whose depth is shared among blocks, and its constants."""
    kernel, arrays = family(case), case.data()
    constants = {name: values for name, values in arrays.items() if name != "x"}
    function = kernel.build(case.problem(), TARGET, Knobs(dict(SPLIT)))
    packed = list(map(np.ascontiguousarray, kernel.constants(case.problem(), constants)))
    return kernel, function.with_attr("global_symbol", "layer"), packed


def takes_from_pool(function: Any) -> bool:
    return code._takes_workspace(code._split(function, TARGET)[0])


def test_function_with_its_workspace_as_a_parameter_computes_the_same() -> None:
    case = Case((1, 512), 24, 64, "int4", compute=HALF)
    _, function, packed = split(case)
    made, (buffer,) = workspace.lifted(function)
    assert takes_from_pool(function)
    assert not takes_from_pool(made)
    assert int(buffer.shape[0]) == SPLIT["splits"] * case.o
    x, one, other = case.data()["x"], np.zeros(case.y, np.float32), np.zeros(case.y, np.float32)
    held = np.full(int(buffer.shape[0]), np.nan, np.float32)
    simt.run(function, [x, *packed, one], target=TARGET.name)
    simt.run(made, [x, *packed, held, other], outputs=2, target=TARGET.name)
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(held).all()
    assert one.any()


def chain(functions: int) -> tvm.IRModule:
    """The same layer several times, one behind the other."""
    _, function, packed = split(SQUARE)
    symbol = relax.BlockBuilder().add_func(function, "layer")
    x = relax.Var("x", relax.TensorType([1, 512], "float32"))
    constants = list(map(graph.constant, packed))
    emitter, value = graph.Emitter([x]), x
    for number in range(functions):
        kind = relax.TensorType([1, 512], "float32")
        value = emitter.emit(relax.call_tir(symbol, [value, *constants], kind), f"l{number}")
    mod = emitter.finish([value], ["y"], "scheduled")
    mod[symbol] = function
    return mod


def test_a_graph_holds_memory_that_stays() -> None:
    found = build._to_vm(workspace.planned(chain(4)), TARGET, True)
    texts = {str(n.name_hint): f.script() for n, f in found.functions.items()}
    (captured,) = (text for name, text in texts.items() if name.endswith("_capture"))
    assert captured.count("layer(") == 2  # all but the first and the last
    size = 4 * SPLIT["splits"] * 512
    assert texts["cuda_graph_alloc"].count(f"R.shape([{size}])") == 1  # for all layers in turn
    assert "alloc_storage" not in captured
    assert f"R.shape([{size // 4}])" in captured
    layers = [f for f in found.functions.values() if isinstance(f, tirx.PrimFunc)]
    assert not any(map(takes_from_pool, layers))


def test_networks_without_workspaces_stay_as_they_are() -> None:
    plain = chain(1)
    (symbol,) = (n for n, f in plain.functions.items() if isinstance(f, tirx.PrimFunc))
    plain[symbol] = workspace.lifted(plain[symbol])[0]
    assert workspace.planned(plain) is plain


def test_schedules_with_tensors_between_their_kernels() -> None:
    x, y = (te.placeholder((64,), "float32", n) for n in "xy")
    twice = te.compute((64,), lambda i: x[i] * y[i], "twice")
    more = te.compute((64,), lambda i: twice[i] + twice[63 - i], "more")
    sch = loops.function([x, y, more])
    for name in ("twice", "more"):
        sch.bind(sch.get_loops(sch.get_sblock(name))[0], "threadIdx.x")
    function = sch.mod["main"].with_attr("global_symbol", "layer")
    made, (buffer,) = workspace.lifted(function)
    assert str(buffer.name) == "twice"
    assert takes_from_pool(function)
    assert not takes_from_pool(made)
