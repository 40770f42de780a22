"""How much memory a simulated state takes, and the refusal of one that would not fit, before anything of it is allocated.

A statevector of n qubits is 16 * 2^n bytes in complex128, a density matrix 16 * 4^n. Simulators hold several at once while they apply a
gate or measure: how many was measured as peak resident memory over one state (22 qubits, 11 for the density matrix; expectation of a
sum of Pauli words, which takes the most).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from qedge.errors import TooManyQubits

STATEVECTOR_QUBITS = 12  # of the torch simulator that jobs with this backend train on
_SHARE = 0.8  # of what is free: others need some too
_AMPLITUDE_BYTES = 16
_REAL_BYTES = 4  # of each of an amplitude's two parts, in float32
_COPIES = {"lightning.qubit": 5, "default.qubit": 8, "statevector": 8, "reference.qubit": 8, "qiskit.aer": 5, "default.mixed": 18}
_GRADIENT_COPIES = 3  # adjoint differentiation: the bra, what a generator makes of the ket, the state that is kept
_CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(name: str, qubits: int, *, batch: int = 1, gradient: bool = False) -> int | None:
    """The most memory that a circuit takes on a backend, in bytes; None for one that holds no such state, or of which nothing is known.

    batch: circuits that are simulated at once; gradient: with adjoint differentiation.
    """
    copies = _COPIES.get(name)
    if copies is None:
        return None
    amplitudes: int = (4 if name == "default.mixed" else 2) ** qubits
    return batch * (copies + (_GRADIENT_COPIES if gradient else 0)) * _AMPLITUDE_BYTES * amplitudes


def limit_bytes() -> int:
    """How much of this machine's, or this container's, memory a state may take now."""
    free = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # no container, or none with a limit
        free.append(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    return int(_SHARE * max(0, min(free)))


def refuse_too_many(name: str, qubits: int, *, batch: int = 1, gradient: bool = False, limit: int | None = None) -> None:
    """Check that a circuit fits in memory. limit: bytes; default: `limit_bytes`.

    Raises:
        TooManyQubits: it does not, or there are more qubits than the backend takes; says what it would need and what there is.
    """
    if name == "statevector" and qubits > STATEVECTOR_QUBITS:
        raise TooManyQubits(
            f"backend 'statevector' takes at most {STATEVECTOR_QUBITS} qubits, given {qubits}; 'lightning.qubit' takes more",
            given=qubits,
            accepted=STATEVECTOR_QUBITS,
        )
    needed, allowed = needed_bytes(name, qubits, batch=batch, gradient=gradient), limit_bytes() if limit is None else limit
    if needed is None or needed <= allowed:
        return
    fits = max((fewer for fewer in range(qubits) if (needed_bytes(name, fewer, batch=batch, gradient=gradient) or 0) <= allowed), default=0)
    raise TooManyQubits(
        f"{qubits} qubits on '{name}' take an estimated {_readable(needed)}, the limit is {_readable(allowed)} ({_SHARE:.0%} of the memory "
        f"that is free); at most {fits} qubits fit",
        given=qubits,
        accepted=fits,
        needed_bytes=needed,
        limit_bytes=allowed,
    )


def refuse_too_deep(qubits: int, layers: int, rows: int, *, limit: int | None = None) -> None:
    """Check that the states of all layers for so many rows at once, which a gradient needs, fit in memory. limit: as `refuse_too_many`.

    Raises:
        TooManyQubits: they do not.
    """
    needed, allowed = 2 * layers * rows * 2 * _REAL_BYTES * 2**qubits, limit_bytes() if limit is None else limit
    if needed > allowed:
        raise TooManyQubits(
            f"{qubits} qubits and {layers} layers, for {rows} rows at once, take an estimated {_readable(needed)}, the limit is "
            f"{_readable(allowed)}; accepted: fewer qubits or layers, or smaller batches",
            given=qubits,
            needed_bytes=needed,
            limit_bytes=allowed,
        )


def _readable(size: int) -> str:
    """With a binary prefix and three digits."""
    power = max(0, (size.bit_length() - 1) // 10)
    prefixes = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    if power >= len(prefixes):
        return f"2^{size.bit_length() - 1} B"
    return f"{size / 1024**power:.3g} {prefixes[power]}B"
