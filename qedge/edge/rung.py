"""The rungs of the precision ladder, and what any of them can do once it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from qedge.errors import UnknownRung, nearest

RungName = Literal["fp32", "fp16", "int8", "int4", "int2", "binary"]
RUNGS: tuple[RungName, ...] = get_args(RungName)  # from the most precise to the least
Rows = npt.NDArray[np.float32]


class Runner(Protocol):
    """A rung that is loaded: ONNX Runtime's, or our binary engine's. May be used by several threads at once."""

    def run(self, rows: Rows) -> Rows:
        """Probabilities [batch, classes] float32 of rows [batch, features] float32, as a caller has them, unscaled.

        The answer may be overwritten by this thread's next call.
        """
        ...

    def close(self) -> None:
        """Let go of everything that it holds."""
        ...


def in_order(names: Iterable[str]) -> tuple[RungName, ...]:
    """Rungs by name, each once, from the most precise to the least.

    Raises:
        UnknownRung: there is no such rung, or none is named.
    """
    asked = {name.strip() for name in names if name.strip()}
    for name in sorted(asked):
        if name not in RUNGS:
            raise UnknownRung(f"unknown rung '{name}'; {nearest(name, RUNGS)}", given=name, expected=list(RUNGS))
    if not asked:
        raise UnknownRung(f"no rung is named; accepted: some of {', '.join(RUNGS)}", expected=list(RUNGS))
    return tuple(rung for rung in RUNGS if rung in asked)
