"""What the host does around a kernel: describes tensors, launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nybble.simt.codes import Code, Kind, Scope
from nybble.simt.strand import Strand
from nybble.simt.values import Mask


def _launch(scope: Scope, node: Any) -> Code:
    name, *rest = node.args
    tags = [str(tag) for tag in node.attrs.launch_params]
    parts = [scope.expression(part).run for part in rest]
    count = len(parts) - len(tags)

    def run(s: Strand, m: Mask) -> None:
        values = [part(s, m) for part in parts]
        if scope.launcher is None:
            raise scope.refuse("a launch by a kernel")
        scope.launcher(
            str(name.value), values[:count], dict(zip(tags, values[count:], strict=True))
        )

    return Code(run, Kind.VARYING)


def _zero(scope: Scope, node: Any) -> Code:
    return Code(lambda s, m: np.int32(0), Kind.VARYING)


CALLS: dict[str, Callable[[Scope, Any], Code]] = {
    "tirx.call_ffi_kernel": _launch,
}
