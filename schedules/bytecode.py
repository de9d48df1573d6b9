"""Relax functions made ready for the virtual machine, whatever their kernels run on."""

from __future__ import annotations

import tvm
from tvm import relax


def lowered(mod: tvm.IRModule, has_graphs: bool = False) -> tvm.IRModule:
    """Calls of kernels with memory planned: reshapes are views, tensors share memory.

    Args:
        mod: stage ``scheduled``.
        has_graphs: capture what is static as CUDA graphs.
    """
    steps = relax.transform
    passes = [
        steps.ToNonDataflow(),
        steps.RemovePurityChecking(),
        steps.CallTIRRewrite(),
        steps.StaticPlanBlockMemory(),
        *([steps.RewriteCUDAGraph()] if has_graphs else []),
        steps.LowerAllocTensor(),
        steps.KillAfterLastUse(),
        steps.LowerRuntimeBuiltin(),
        steps.ComputePrimValue(),
        steps.VMShapeLower(),
        steps.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(mod)
