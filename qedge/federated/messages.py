"""What a coordinator and the nodes where clients live say to each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from qedge.federated.randomness import RunKey
from qedge.job import Algorithm, Model, SecureAggregation
from qedge.privacy.clipping import Grid, add_exactly
from qedge.privacy.example_sums import NoisySteps
from qedge.privacy.noise_share import NoiseShare
from qedge.privacy.rotation import Rotation


@dataclass(frozen=True)
class ClientSpec:
    """All that a node needs to stand for clients, next to their rows."""

    model: Model
    features: int
    classes: int
    algorithm: Algorithm
    kernel: str
    grid: Grid | None  # None: a run without privacy
    count_weight: int  # what a client adds to the count of those within the clipping bound; 0: nobody counts
    key: RunKey
    seed: int
    secure: SecureAggregation | None = None
    share: NoiseShare | None = None  # under secure aggregation: what each client adds to its own integers
    run: str | None = None  # under secure aggregation: the only one that clients take part in, where that is said
    rounds: int | None = None  # and in how many rounds of it at most
    rotated: bool = False  # its updates are rotated before they are rounded
    examples: NoisySteps | None = None  # what clients do in a round of DP-SGD

    def rotation(self, round_number: int) -> Rotation | None:
        """How a round's updates are rotated: another way each round, known to whoever opens the sum, and to no update before it is made."""
        if not self.rotated or self.grid is None:
            return None
        return Rotation(self.key.derive("rotation", round_number).secret, self.grid.params)


@dataclass(frozen=True)
class Chunk:
    """Clients that are trained as one piece, and whose bits are fixed by it.

    clients: [clients] int64, places in the federation; controls: their control variates, [clients, params] float32, where they have any.
    """

    clients: np.ndarray
    controls: np.ndarray | None = None

    @property
    def name(self) -> bytes:
        """What a chunk of a round is known by."""
        return self.clients.tobytes()


@dataclass(frozen=True)
class Broadcast:
    """What all clients of a round are sent.

    weights: [params] float32; control: the server's control variate, [params] float32; bound: what updates are clipped to, under privacy.
    """

    round: int
    weights: np.ndarray
    control: np.ndarray | None = None
    bound: float | None = None


@dataclass(frozen=True)
class PartialSum:
    """The integers of some clients, summed.

    total: [params] int64; weight: what they count for; failed: what the user's code raised, by client; controls: the new control
    variates, [clients, params] float32, of the clients of each chunk; seconds: what they took, by what was done; gather_s: what putting
    their batches together took, whether that was done now or ahead; carried: bytes of a secure sum's messages, to clients and from them.
    """

    total: np.ndarray
    weight: int
    failed: Mapping[int, str] = field(default_factory=dict)
    controls: Sequence[Chunk] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    gather_s: float = 0.0
    carried: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, parts: Sequence[PartialSum]) -> PartialSum:
        """The sum of parts, one at least, that were done one after another."""
        seconds: dict[str, float] = {}
        for part in parts:
            for name, took in part.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + took
        with timed(seconds, "sum"):
            total = add_exactly([part.total for part in parts])
        return cls(
            total,
            weight=sum(part.weight for part in parts),
            failed={client: reason for part in parts for client, reason in part.failed.items()},
            controls=tuple(chunk for part in parts for chunk in part.controls),
            seconds=seconds,
            gather_s=sum(part.gather_s for part in parts),
        )


def nobody(broadcast: Broadcast, spec: ClientSpec) -> PartialSum:
    """The sum over no clients."""
    return PartialSum(np.zeros(len(broadcast.weights) + (1 if spec.count_weight else 0), dtype=np.int64), 0)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Count what is done within to `seconds` under that name."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
