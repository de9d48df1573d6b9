"""The GPU benchmark's peers on this machine, and its table of goals from made-up results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cuda_goals, cuda_op_peers, cuda_peers, cuda_show, cuda_work
from benchmarks.cuda_clock import compared, race
from benchmarks.cuda_peers import Layer, PeerError, Torch
from nybble.runtime.events import singly

# ---------------------------------------------------------------- peers


def by_calls(launch: Any) -> float:
    launch()
    return 1.0


def test_peers_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_peers, "COLD", 1)
    here = Torch(torch, "cpu")
    about = {"inputs": [[[4, 5, 16], "int8"]], "output": [[4, 5, 24], "int8"]}
    layer = Layer.of({"weights": [[24, 16], "int8"], **about})
    assert (layer.rows, layer.channels, layer.depth, layer.is_half) == (20, 24, 16, False)
    ready, missing = cuda_peers.peers(here, cuda_peers.variants(here, layer, tmp_path), by_calls)
    assert {"cuBLAS float16", "torch._int_mm"} <= ready.keys()
    assert "headers were not there" in missing["CUTLASS"]
    half = Layer(2, 24, 128, "int4", True)
    made = cuda_peers.variants(here, half, tmp_path, few=True)
    ready, missing = cuda_peers.peers(here, made, by_calls)
    assert ready.keys() | missing.keys() == {"cuBLAS float16", "torch int4"}
    with pytest.raises(PeerError, match="more than 16 rows"):
        cuda_peers.int_mm(here, replace(layer, rows=3))
    if not torch.cuda.is_available():
        with pytest.raises(PeerError, match="torch sees no GPU"):
            cuda_peers.found()


@pytest.mark.parametrize("op", [*cuda_op_peers.PEERS, "quantize_rows"])
def test_peers_of_ops_on_rows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_peers, "COLD", 1)
    here = Torch(torch, "cpu")
    shapes = [[2, 3, 8], [2, 5, 8]] if op == "matmul" else [[2, 3, 8]]
    about = {"op": op, "inputs": [[shape, "int8"] for shape in shapes],
             "output": [[2, 3, 5], "int8"], "attrs": {"transpose_b": True}}  # fmt: skip
    made = cuda_op_peers.variants(here, about)
    ready, missing = cuda_peers.peers(here, made, by_calls)
    assert not missing
    assert [*ready] == ([] if op == "quantize_rows" else [cuda_op_peers.PEERS[op][0]])


def test_a_peer_that_is_wrong_is_no_peer() -> None:
    wanted = torch.tensor([1.0, 2.0])
    cuda_peers._agree(torch.tensor([2, 2], dtype=torch.int8), wanted)
    with pytest.raises(PeerError, match="wrong: 2 apart"):
        cuda_peers._agree(torch.tensor([3, 2], dtype=torch.int8), wanted)
    with pytest.raises(PeerError, match="wrong: nan apart"):
        cuda_peers._agree(torch.tensor([float("nan"), 2]), wanted)


def test_a_network_beside_torch() -> None:
    seconds = cuda_work.torch_network(Torch(torch, "cpu"), {"batch": 1, "size": 32})
    assert seconds() > 0


def test_medians_of_turns() -> None:
    times = iter([9, 9, 1, 2, 1, 3, 2, 4])  # both once before; then three turns
    found = race({"own": singly(id, 1), "peer": singly(id, 2)}, lambda _: float(next(times)), 3)
    assert found == {"own": [1, 1, 2], "peer": [2, 3, 4]}
    made = compared(found, "own")
    assert (made["seconds"], made["ratios"], made["peers"]) == (1, {"peer": 2}, {"peer": 3})


# ---------------------------------------------------------------- the table


def result() -> dict[str, Any]:
    """What a GPU might have found."""
    fast = {"right": True, "macs": 1, "kernel": "cuda.w4", "default": True, "spread": 0.01}
    names = sorted(cuda_goals.needed())
    made = [
        {**fast, "row": name, "seconds": 1e-5 if "int4" in name else 1.5e-5, "bytes": 45e6,
         "ratios": {"cuBLAS float16": 3.6, "torch._int_mm": 0.5}}
        for name in names
    ]  # fmt: skip
    made.append({**made[0], "kernel": "cuda.other", "default": False, "seconds": 5e-6})
    made.append({"row": "ResNet-50, batch 1", "operands": "x", "right": False, "macs": 0,
                 "why": "y differ from the CPU's"})  # fmt: skip
    made.append({"row": "small", "right": None, "why": "not reached", "macs": 0, "usage": [
        {"spills": 0, "stack": 0}], "missing": {"Triton": "ImportError: no triton"}})  # fmt: skip
    return {
        "gpu": "a GPU", "driver": 13000, "date": "2026-01-01", "target": "cuda:sm_90",
        "before": {}, "after": {}, "machine": {"peak": 4.8e12, "copy": 4.4e12},
        "sanitizer": {"memcheck": {"right": True, "why": "", "kernels": 9}}, "rows": made,
    }  # fmt: skip


def test_the_table_of_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {one.what: one for one in cuda_goals.verdicts(result())}
    words = {what: one.word for what, one in found.items()}
    assert words["numerics on the GPU"] == "missed"
    assert words[f"{cuda_goals.SQUARE} beside torch._int_mm"] == "missed"
    assert words[f"{cuda_goals.SQUARE} beside cuBLAS float16"] == "met"
    assert words["1 x 11008 x 4096 int4 x float16 beside cuBLAS float16"] == "met"
    assert words["1 x 11008 x 4096 int4 x float16, bandwidth"] == "met"
    assert words["64 x 11008 x 4096 int4 x int8 beside our int8 x int8"] == "met"
    assert words["64 x 11008 x 4096 int4 on two levels x int8 beside our int8 x int8"] == "met"
    assert words["softmax 8 x 12 x 512 x 512, bandwidth"] == "missed"
    assert words["mixed 8 x 12 x 128 x 64 x 128 beside cuBLAS float16"] == "met"
    assert words["ResNet-50, batch 1"] == "missed"
    assert words["ResNet-50, batch 64"] == "not measured"
    assert words["compute-sanitizer memcheck"] == "met"
    assert words["compute-sanitizer racecheck"] == "not measured"
    first = sorted(cuda_goals.needed())[0]
    beside = next(one.found for what, one in found.items() if what.startswith(f"{first} beside"))
    assert "cuda.other takes 0.50 of it" in beside
    text = cuda_goals.text(result())
    assert "missed        ResNet-50, batch 1 " in text
    assert "WRONG ResNet-50, batch 1 : y differ" in text
    assert "peer Triton missing somewhere: ImportError: no triton (e.g. small)" in text

    (tmp_path / "results.json").write_text(json.dumps(result()))
    plots: list[Path] = []
    monkeypatch.setattr(cuda_show, "_plot", lambda _timed, path: plots.append(path))
    cuda_show.show(tmp_path / "results.json")
    assert plots == [tmp_path / "results.png"]
