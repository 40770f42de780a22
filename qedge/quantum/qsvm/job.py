"""What a study of quantum kernels is asked: which table, which feature map and kernel, and what is tried."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part
from qedge.quantum.asked import QuantumJob
from qedge.quantum.backend import Backend

Positive = Annotated[float, Field(gt=0)]


class FeatureMap(Part):
    """A circuit that takes a row to a state, one wire for each feature."""

    kind: Literal["zz", "iqp", "angle"] = "zz"
    repetitions: int = Field(default=2, ge=1, le=20, description="of zz and iqp")
    entanglement: Literal["full", "linear"] = Field(default="full", description="which wires act on each other: all pairs, or neighbours")
    bandwidth: float = Field(default=1.0, gt=0, description="factor of every feature")


class Kernel(Part):
    """How alike two states are."""

    kind: Literal["fidelity", "projected"] = Field(
        default="fidelity", description="|<x|y>|²; or of the states of single wires, exp(-gamma Σ ||ρ_k(x) - ρ_k(y)||²)"
    )
    gamma: float = Field(default=1.0, gt=0, description="projected: how fast it falls")


class QSVM(QuantumJob):
    """A support vector machine on a quantum kernel, beside an RBF SVM and logistic regression tuned with the same effort."""

    FILES: ClassVar = ("data",)

    data: str = Field(default="wine", description="digits, wine, breast-cancer, or a .csv, .npz or .parquet file")
    label: str = Field(default="label", description="the file's column of classes; all others are features")
    drop: tuple[str, ...] = Field(default=(), description="columns that are no features, such as whose row it is")
    qubits: int | None = Field(
        default=None, ge=1, le=16, description="principal components that are encoded; default: all features, 8 at most"
    )
    feature_map: FeatureMap = Field(default_factory=FeatureMap, description="its bandwidth is what `bandwidths` says")
    kernel: Kernel = Field(default_factory=Kernel)
    bandwidths: tuple[Positive, ...] = Field(
        default=(0.003, 0.01, 0.03, 0.1, 0.3), min_length=1, description="of standardised components; tried"
    )
    costs: tuple[Positive, ...] = Field(default=(0.1, 1.0, 10.0, 100.0), min_length=1, description="C of the SVM; tried")
    chosen_by: Literal["validation", "alignment"] = Field(
        default="validation",
        description="the bandwidth: with the cost by cross-validation, or first by the kernel's alignment with the labels",
    )
    splits: int = Field(default=10, ge=2, le=1000, description="times that the rows are split anew")
    test: float = Field(default=0.25, gt=0, lt=1, description="share of the rows that a split tests on")
    folds: int = Field(default=3, ge=2, le=20, description="of the training rows, for what is tried")
    most_rows: int = Field(default=400, ge=10, le=5000, description="of the table, drawn with its shares of classes")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the rows that are drawn and of the splits")
    backend: Backend | None = Field(default=None, description="asked for some entries of the kernel as well; none: only exact")
    backend_rows: int = Field(default=12, ge=2, description="among which `backend` is asked for the kernel")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("bandwidths", "costs"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise InvalidJob(f"{name}: each once; given: {list(values)}")
        return self
