"""What a variational ground energy is asked with."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part
from qedge.quantum.asked import QuantumJob
from qedge.quantum.backend import Backend
from qedge.quantum.hamiltonians.problem import Molecule, Problem
from qedge.quantum.method import Method

STEPS = {"lbfgs": 500, "adam": 500, "spsa": 200}
OF_ELECTRONS = ("givens", "uccsd", "adapt")


class Ansatz(Part):
    """The circuit whose parameters are optimised."""

    kind: Literal["givens", "uccsd", "hardware-efficient", "adapt"] | None = Field(
        default=None,
        description="givens: all single and double excitations; uccsd: those of fermions; adapt: excitations chosen one at a time by their "
        "gradient; default: adapt for molecules, else hardware-efficient",
    )
    layers: int | None = Field(default=None, ge=1, le=1000, description="hardware-efficient; default: as many as wires, 10 at most")
    operators: int = Field(default=100, ge=1, description="adapt: at most so many")
    threshold: float = Field(default=1e-4, gt=0, description="adapt: stops when no excitation's gradient is larger, in hartree")


class Optimiser(Part):
    """How parameters are found.

    L-BFGS and Adam follow exact gradients, which only a simulation has: on a backend with shots or noise they train there and the backend
    measures the energy in the end. SPSA trains on the backend itself.
    """

    kind: Literal["lbfgs", "adam", "spsa"] | None = Field(default=None, description="default: spsa with shots or noise, else lbfgs")
    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="at most; default: 500, spsa 200; for adapt, of every operator")
    tolerance: float = Field(default=1e-9, ge=0, description="lbfgs, adam: stops when the energy changes by less, in its unit")
    learning_rate: float | None = Field(default=None, gt=0, description="adam: 0.05; spsa: first step, 0.1 radians")
    perturbation: float = Field(default=0.1, gt=0, description="spsa: first shift of the parameters, in radians")
    restarts: int = Field(default=3, ge=1, le=1000, description="hardware-efficient by gradients: random beginnings; the best counts")


class VQE(QuantumJob):
    """A ground energy by a variational circuit."""

    problem: Problem = Field(default_factory=Molecule)
    ansatz: Ansatz = Field(default_factory=Ansatz)
    optimiser: Optimiser = Field(default_factory=Optimiser)
    backend: Backend = Field(default_factory=Backend)
    seed: int = Field(default=0, ge=0, description="of beginnings and perturbations")

    @property
    def ansatz_kind(self) -> str:
        """The one that was named, else what suits the problem."""
        return self.ansatz.kind or ("adapt" if isinstance(self.problem, Molecule) else "hardware-efficient")

    @property
    def on_backend(self) -> bool:
        """Whether the backend measures: analytic simulators answer what the fast path does, and it answers for them."""
        quiet = self.backend.shots is None and self.backend.noise is None
        return not (quiet and self.backend.name in ("statevector", "lightning.qubit", "default.qubit"))

    @property
    def optimiser_kind(self) -> Literal["lbfgs", "adam", "spsa"]:
        """The one that was named, else what the backend's answers allow."""
        return self.optimiser.kind or ("spsa" if self.on_backend else "lbfgs")

    def method(self, kind: Literal["lbfgs", "adam", "spsa"]) -> Method:
        """How an optimiser of this kind goes about it."""
        asked = self.optimiser
        rate = asked.learning_rate or (0.05 if kind == "adam" else 0.1)
        return Method(kind, asked.steps or STEPS[kind], rate, asked.tolerance, asked.perturbation)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.ansatz_kind in OF_ELECTRONS and not isinstance(self.problem, Molecule):
            raise InvalidJob(
                f"ansatz.kind: '{self.ansatz_kind}' excites electrons, of which the problem has none; accepted: hardware-efficient",
                given=self.ansatz_kind,
            )
        return self
