"""How a job trains: clients' steps and the server's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from qedge.errors import InvalidJob
from qedge.job.part import Part, function_path, known

ADAPTIVE = {"fedadagrad", "fedadam", "fedyogi"}
ADAPTIVE_RATE = 0.01  # of the server, where a job names none: within the best found by Reddi et al. (2021), 10^-2.5 to 1


class Algorithm(Part):
    """Local training and the server's step."""

    kind: str = "fedavg"
    local_epochs: int = Field(default=1, ge=1, le=1000)
    batch_size: int | None = Field(default=32, ge=1, description="rows a step; null: all of a client's rows")
    learning_rate: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of the clients' SGD")
    weight_decay: float = Field(default=0.0, ge=0, description="of the clients' SGD")
    proximal: float = Field(default=0.0, ge=0, description="fedprox: weight of the term that holds clients near the global model")
    server_learning_rate: float | None = Field(default=None, gt=0, description="default: 1, or 0.01 for fedadagrad, fedadam, fedyogi")
    server_momentum: float = Field(default=0.0, ge=0, lt=1)
    server_second_momentum: float = Field(default=0.99, ge=0, lt=1, description="fedadam, fedyogi: decay of the squared updates")
    server_adaptivity: float = Field(default=1e-3, gt=0, description="fedadagrad, fedadam, fedyogi: added to the root of the squares")
    server_averaging: float = Field(default=0.0, ge=0, lt=1, description="decay of the moving average that is served; 0: the last weights")
    buffer: int | None = Field(default=None, ge=1, description="fedbuff: updates a server step; 'cohort.size' clients train at once")
    shuffle: bool = Field(default=True, description="draw mini-batches anew each epoch; false: in the order of the rows")
    layers: Literal["all", "body"] = Field(
        default="all", description="what is trained: all, or all but the last layer, for `personalisation` of the head"
    )
    loop: str | None = Field(default=None, description="your own training of a client, 'package.module:function'")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="arguments for your own loop")
    kernel: Literal["auto", "sequential", "stacked", "gram", "convolutional", "vmapped", "book-keeping", "hooks"] = Field(
        default="auto", description="auto: the fastest that trains the model, measured once on public shapes"
    )
    max_rows: int = Field(default=4096, ge=1, description="public cap on a client's rows a round")
    max_steps: int = Field(default=1000, ge=1, description="public cap on a client's steps a round")
    max_weight: int = Field(default=1_000_000, ge=1, description="without privacy: cap on a client's weight (its rows)")

    @property
    def server_rate(self) -> float:
        """The server's learning rate: the one that was named, else what its kind takes."""
        if self.server_learning_rate is not None:
            return self.server_learning_rate
        return ADAPTIVE_RATE if self.kind in ADAPTIVE else 1.0

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        return known("algorithm.kind", value)

    @field_validator("loop")
    @classmethod
    def _loop(cls, value: str | None) -> str | None:
        return value if value is None else function_path("algorithm.loop", value)

    @model_validator(mode="after")
    def _fits(self) -> Algorithm:
        if (self.kind == "fedprox") != (self.proximal > 0):
            raise InvalidJob(f"algorithm: 'kind: fedprox' and 'proximal', above 0, go together; given: {self.kind}, {self.proximal}")
        for key in ("server_second_momentum", "server_adaptivity"):
            takers = ADAPTIVE - {"fedadagrad"} if key == "server_second_momentum" else ADAPTIVE
            if getattr(self, key) != Algorithm.model_fields[key].default and self.kind not in takers:
                raise InvalidJob(f"algorithm: '{self.kind}' takes no '{key}'; accepted with {', '.join(sorted(takers))}")
        if (self.kind == "fedbuff") != (self.buffer is not None):
            given = f"{self.kind}, {self.buffer}"
            raise InvalidJob(f"algorithm: 'kind: fedbuff' and 'buffer', the updates a server step, go together; given: {given}")
        if self.kind == "scaffold" and self.momentum:
            raise InvalidJob("algorithm: 'scaffold' corrects plain SGD; accepted: 'momentum: 0' (the server may have momentum)")
        if self.kind == "scaffold" and self.layers != "all":
            raise InvalidJob("algorithm: 'scaffold' corrects every layer; accepted: 'layers: all', or another algorithm")
        if self.loop is not None:
            mine = [key for key in ("momentum", "weight_decay", "proximal") if getattr(self, key)]
            mine += ["layers"] if self.layers != "all" else []
            if mine or self.kind == "scaffold" or self.kernel != "auto":
                what = mine[0] if mine else "kind: scaffold" if self.kind == "scaffold" else f"kernel: {self.kernel}"
                raise InvalidJob(f"algorithm: a loop of your own takes its steps by itself, so '{what}' would change nothing; leave it out")
        elif self.options:
            raise InvalidJob("algorithm: 'options' are arguments for 'loop', which is not given")
        return self
