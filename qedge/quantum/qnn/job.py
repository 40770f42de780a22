"""What a study of a quantum neural network is asked: which table, which circuit, how it is trained, and how often it is split."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from qedge.errors import InvalidJob
from qedge.quantum.asked import QuantumJob
from qedge.quantum.backend import Backend

Rate = Annotated[float, Field(gt=0, le=10)]


class QNN(QuantumJob):
    """A classifier with a quantum layer on a table, beside an MLP of the same number of parameters, tuned with the same effort."""

    FILES: ClassVar = ("data",)

    data: str = Field(default="digits", description="digits, wine, breast-cancer, or a .csv, .npz or .parquet file")
    label: str = Field(default="label", description="the file's column of classes; all others are features")
    drop: tuple[str, ...] = Field(default=(), description="columns that are no features, such as whose row it is")
    qubits: int = Field(default=4, ge=1, le=12)
    layers: int = Field(default=2, ge=1, le=100, description="of rotations and CNOT ring")
    embedding: Literal["ry", "rx"] = Field(default="ry", description="the rotation that takes a number to its wire")
    reupload: bool = Field(default=False, description="embed the numbers before every layer, not only the first")
    epochs: int = Field(default=30, ge=1, le=10_000)
    batch_size: int = Field(default=32, ge=1)
    learning_rates: tuple[Rate, ...] = Field(default=(0.01, 0.03, 0.1), min_length=1, description="of Adam; both models choose among them")
    splits: int = Field(default=10, ge=2, le=1000, description="times that the rows are split anew")
    test: float = Field(default=0.25, gt=0, lt=1, description="share of the rows that a split tests on")
    seed: int = Field(default=0, ge=0, lt=2**63)
    backend: Backend | None = Field(default=None, description="asked about the first split's held-out rows as well; none: only exact")
    most_rows: int = Field(default=200, ge=1, description="of these, how many `backend` is asked about")

    @model_validator(mode="after")
    def _distinct(self) -> QNN:
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise InvalidJob(f"learning_rates: each once; given: {list(self.learning_rates)}")
        return self
