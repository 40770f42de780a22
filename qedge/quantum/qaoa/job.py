"""What a QAOA run is asked with."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part
from qedge.quantum.asked import QuantumJob
from qedge.quantum.backend import Backend
from qedge.quantum.method import Method
from qedge.quantum.qaoa.instances import Edges, RandomRegular, Terms
from qedge.quantum.qaoa.reading import as_edges, as_terms


class Optimiser(Part):
    """How angles are found.

    L-BFGS and Adam follow exact gradients, which only a simulation has: with shots or noise they train there, and the backend measures
    the circuit in the end. SPSA trains on the backend itself.
    """

    kind: Literal["lbfgs", "adam", "spsa"] = "lbfgs"
    steps: int = Field(default=100, ge=1, le=100_000, description="at most, for each number of layers")
    learning_rate: float | None = Field(default=None, gt=0, description="adam: 0.03; spsa: length of the first step, 0.1")
    perturbation: float = Field(default=0.1, gt=0, description="spsa: first shift of the angles")
    restarts: int = Field(default=3, ge=1, le=1000, description="beginnings, the best of which counts; after the first they are random")

    @property
    def method(self) -> Method:
        """How the optimiser goes about it; slopes are of values in standard deviations of a random bitstring."""
        rate = self.learning_rate or (0.03 if self.kind == "adam" else 0.1)
        return Method(self.kind, self.steps, rate, perturbation=self.perturbation, flat=0.5)


class QAOA(QuantumJob):
    """A bitstring that makes a quadratic cost large or small: exactly one of `graph`, `random_regular` and `qubo`.

    `graph` takes a networkx graph, edges or a JSON file; `qubo` a dict, matrix, networkx graph or JSON file.
    """

    FILES: ClassVar = ("graph", "qubo")

    graph: Edges | None = Field(default=None, description="MaxCut of this graph")
    random_regular: RandomRegular | None = Field(default=None, description="MaxCut of such a graph")
    qubo: Terms | None = Field(default=None, description="a quadratic cost of bits, made as small as possible")
    layers: int = Field(default=3, ge=1, le=100, description="p, each of a cost and a mixer")
    start: Literal["interpolate", "ramp", "random"] = Field(
        default="interpolate",
        description="interpolate: angles of fewer layers, one more at a time; ramp: straight lines, as in annealing; random",
    )
    warm_start: bool = Field(default=False, description="begin near a solution of a greedy search")
    optimiser: Optimiser = Field(default_factory=Optimiser)
    backend: Backend = Field(default_factory=Backend)
    seed: int = Field(default=0, ge=0, description="of random beginnings, perturbations and the classical searches")

    @field_validator("graph", mode="before")
    @classmethod
    def _graph(cls, given: object) -> object:
        return None if given is None else as_edges(given)

    @field_validator("qubo", mode="before")
    @classmethod
    def _qubo(cls, given: object) -> object:
        return None if given is None else as_terms(given)

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        given = [name for name in ("graph", "random_regular", "qubo") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidJob(
                f"a QAOA job takes exactly one of graph, random_regular and qubo; given: {', '.join(given) or 'none'}", given=given
            )
        if self.backend.shots == 1:
            raise InvalidJob(
                "backend.shots: one shot has no error bar; accepted: at least 2, or none for exact values", given=1, accepted=2
            )
        return self

    @property
    def on_backend(self) -> bool:
        """Whether the backend measures: analytic simulators answer what the fast path does, and it answers for them."""
        quiet = self.backend.shots is None and self.backend.noise is None
        return not (quiet and self.backend.name in ("statevector", "lightning.qubit", "default.qubit"))
