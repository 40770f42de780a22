"""Backends by name: what runs circuits, with how many shots, under which noise.

A backend is described by values alone, since devices do not pickle: every worker builds its own. Names are those of PennyLane's devices,
of any plugin that is installed, and `statevector`: where a job has a torch simulator of its own it runs on that, and circuits on
`default.qubit`, which gives the same answers.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue, field_validator, model_validator

from qedge.errors import BackendUnavailable, UnknownBackend, nearest
from qedge.quantum.asked import Asked
from qedge.quantum.noise import Noise
from qedge.quantum.state_size import refuse_too_many

if TYPE_CHECKING:
    from pennylane.devices import Device

STATEVECTOR, MIXED, AER, REMOTE = "statevector", "default.mixed", "qiskit.aer", "qiskit.remote"
STATE_GIVEN = frozenset({STATEVECTOR, "lightning.qubit", "default.qubit", "reference.qubit"})
TOKEN = "QISKIT_IBM_TOKEN"  # noqa: S105 - the name of a variable
_FIRST = (STATEVECTOR, "lightning.qubit", "default.qubit", MIXED, AER, REMOTE)
_NO_QUBITS = frozenset({"default.gaussian", "default.qutrit", "default.qutrit.mixed", "null.qubit"})  # nor states
_ANALYTIC_ONLY = frozenset({"default.tensor"})
HARDWARE = frozenset({REMOTE})
_PACKAGES = {"default.tensor": "quimb", "default.clifford": "stim"}  # that PennyLane itself does not bring
_GROUP = "pennylane.plugins"


class Backend(Asked):
    """What runs circuits."""

    name: str = Field(default="lightning.qubit", description="one of `qedge quantum backends`")
    shots: int | None = Field(default=None, ge=1, le=1_000_000, description="measurements of each circuit; none: exact expectation values")
    seed: int = Field(default=0, ge=0, description="of the shots")
    noise: Noise | None = Field(default=None, description="of every gate and of the readout, on `default.mixed`")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments for the device")

    @field_validator("options")
    @classmethod
    def _no_secret(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """A job is kept, signed and shown; a token in it would be too."""
        if secret := sorted({"token", "api_token", "password"} & set(options)):
            raise BackendUnavailable(f"backend.options: '{secret[0]}' is a secret and has no place in a job; set {TOKEN} instead")
        return options

    @model_validator(mode="after")
    def _noise_where_there_is(self) -> Backend:
        if self.noise is not None and self.name != MIXED:
            raise BackendUnavailable(
                f"noise: '{self.name}' knows no noise models; accepted: name '{MIXED}', or no noise", given=self.name, accepted=MIXED
            )
        return self


@dataclass(frozen=True)
class Available:
    """A backend and what it can do. missing: what to install or set before it runs anything, "" where nothing is."""

    name: str
    installed: bool
    noise: bool
    shots: bool
    hardware: bool
    missing: str = ""


def available() -> list[Available]:
    """Every backend that is known or installed; what a plugin of others can do beyond shots, it says itself."""
    installed = _installed()
    names = [*_FIRST, *sorted(set(installed) - set(_FIRST))]
    return [
        Available(
            name,
            installed=name in installed,
            noise=name == MIXED,
            shots=name not in _ANALYTIC_ONLY,
            hardware=name in HARDWARE,
            missing=_missing(name, installed),
        )
        for name in names
    ]


def device(backend: Backend, wires: int | Sequence[object] | None, seed: int) -> Device:
    """The device that a backend describes, with so many wires, with these, or (None) with whatever a circuit has.

    seed: of its shots, where it can be told.

    Raises:
        UnknownBackend: nothing of that name is installed.
        BackendUnavailable: it lacks a token or a package, or takes no such option.
        TooManyQubits: the state would not fit in memory.
    """
    import pennylane as qml

    refuse_unknown(backend)
    if wires is not None:
        refuse_too_many(backend.name, wires if isinstance(wires, int) else len(wires))
    name = "default.qubit" if backend.name == STATEVECTOR else backend.name
    arguments: dict[str, object] = dict(backend.options)
    if seeded := seed_argument(backend.name):
        arguments[seeded] = seed % 2**32 if backend.name == AER else seed
    if backend.name == REMOTE:
        arguments["backend"] = _machine(arguments.pop("backend", None))
    try:
        return qml.device(name, wires=wires, **arguments)
    except (TypeError, ValueError, ImportError, NotImplementedError, qml.exceptions.DeviceError) as error:
        options = ", ".join(sorted(backend.options)) or "none"
        raise BackendUnavailable(f"backend '{backend.name}' cannot be made with the options given ({options}): {error}") from error


def refuse_unknown(backend: Backend) -> None:
    """Check that a backend is there, before anything is built.

    Raises:
        UnknownBackend: nothing of that name is installed; those that are, are listed.
        BackendUnavailable: it lacks a package or a token.
    """
    installed = _installed()
    known = sorted(set(installed) - _NO_QUBITS)
    if backend.name in installed or backend.name in (AER, REMOTE):
        if missing := _missing(backend.name, installed):
            raise BackendUnavailable(f"backend '{backend.name}' needs {missing}", given=backend.name, missing=missing)
        return
    near = nearest(backend.name, {*known, AER, REMOTE})
    hint = f"{near} " if near.startswith("did") else ""
    raise UnknownBackend(f"unknown backend '{backend.name}'; {hint}installed: {', '.join(known)}", given=backend.name, accepted=known)


def seed_argument(name: str) -> str | None:
    """What the device of that name calls the seed of its shots; None where it cannot be told one."""
    if name == AER:
        return "seed_simulator"
    return "seed" if name == STATEVECTOR or "seed" in _arguments(name) else None


@cache
def _arguments(name: str) -> frozenset[str]:
    entry = _installed()[name]
    return frozenset(inspect.signature(entry.load()).parameters) if entry else frozenset()


@cache
def _installed() -> Mapping[str, EntryPoint | None]:
    """Every backend for qubits that is installed, and where its device is to be found; `statevector` has none of its own.

    Looked for once: that takes longer than a small circuit.
    """
    return {STATEVECTOR: None, **{entry.name: entry for entry in entry_points(group=_GROUP) if entry.name not in _NO_QUBITS}}


def _missing(name: str, installed: Mapping[str, EntryPoint | None]) -> str:
    if name not in installed:
        return "the extra qedge[qiskit] (pip install 'qedge[qiskit]')"
    if (package := _PACKAGES.get(name)) and find_spec(package) is None:
        return f"the package {package} (pip install {package})"
    if name == REMOTE and not os.environ.get(TOKEN) and not _saved_account():
        return f"a token of IBM Quantum: set {TOKEN}, or save an account (QiskitRuntimeService.save_account)"
    return ""


def _saved_account() -> bool:
    try:
        return bool(json.loads((Path.home() / ".qiskit" / "qiskit-ibm.json").read_bytes()))
    except (OSError, ValueError, RuntimeError):
        return False


def _machine(name: object) -> object:
    """The machine of that name, or the least busy one.

    Raises:
        BackendUnavailable: the account is refused, or has no such machine.
    """
    from qiskit_ibm_runtime import QiskitRuntimeService
    from qiskit_ibm_runtime.exceptions import IBMError

    token = os.environ.get(TOKEN)
    try:
        service = QiskitRuntimeService(token=token) if token else QiskitRuntimeService()
        return service.backend(str(name)) if name else service.least_busy(operational=True, simulator=False)
    except (IBMError, OSError, ValueError) as error:
        raise BackendUnavailable(f"IBM Quantum refuses: {error}", given=name) from error
