"""What a pass is: a function of a module, wrapped so that TVM's own pass machinery can run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec

import tvm

from nybble.errors import NybbleError

P = ParamSpec("P")


@dataclass(frozen=True)
class Pass(Generic[P]):
    """A pass: call it on a module, or hand `stock` to `tvm.ir.transform.Sequential`.

    Attributes:
        function: module (and options) -> new module.
    """

    function: Callable[Concatenate[tvm.IRModule, P], tvm.IRModule]

    @property
    def name(self) -> str:
        """The function's own name, a verb phrase."""
        return str(getattr(self.function, "__name__", type(self.function).__name__))

    def __call__(self, mod: tvm.IRModule, *args: P.args, **kwargs: P.kwargs) -> tvm.IRModule:
        """Runs the pass on a copy of ``mod``; instruments of the current PassContext see it.

        Raises:
            NybbleError: whatever the pass itself raises.
        """
        failures: list[NybbleError] = []

        def run(copy: tvm.IRModule, _context: Any) -> tvm.IRModule:
            try:
                return self.function(copy, *args, **kwargs)
            except NybbleError as error:  # TVM's ffi would turn it into a RuntimeError
                failures.append(error)
                raise

        try:
            return self._wrapped(run)(mod)
        except RuntimeError:
            if failures:
                raise failures[0] from None
            raise

    def stock(self, *args: P.args, **kwargs: P.kwargs) -> tvm.ir.transform.Pass:
        """The pass with its options bound, for `tvm.ir.transform.Sequential`."""
        return self._wrapped(lambda mod, _context: self.function(mod, *args, **kwargs))

    def _wrapped(self, run: Callable[[tvm.IRModule, Any], tvm.IRModule]) -> Any:
        # A stock pass that calls `update_func` edits its caller's module; ours never can.
        on_copy = lambda mod, context: run(mod.clone(), context)  # noqa: E731  TVM asks for a function
        return tvm.ir.transform.module_pass(on_copy, opt_level=0, name=self.name)


def module_pass(
    function: Callable[Concatenate[tvm.IRModule, P], tvm.IRModule],
) -> Pass[P]:
    """The house decorator for passes."""
    return Pass(function)
