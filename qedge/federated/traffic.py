"""How many bytes a round is worth on a network: what each client of a cohort would be sent and would send, uncompressed.

Four bytes a number: weights and control variates are float32, and no entry of an update on the integer grid is larger than its norm, about
16√params, well within 32 bits. On one machine or cluster less travels: a worker is sent the weights once for all its clients, and sends
one sum. In a secure sum it is what its messages come to, and the weights that each client is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qedge.federated.guarantee import Guarantee
from qedge.federated.messages import Broadcast, Chunk, PartialSum

_BYTES = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of one client in one round."""

    down: int
    up: int

    @classmethod
    def of(cls, params: int, guarantee: Guarantee | None, *, controlled: bool) -> Traffic:
        """Of a model of so many parameters; controlled: with control variates, which travel beside weights and update."""
        vectors = 2 if controlled else 1
        counted = 1 if guarantee is not None and guarantee.count_weight else 0
        return cls(_BYTES * params * vectors, _BYTES * (params * vectors + counted))

    def metrics(self, cohort: float) -> dict[str, float]:
        """Of a cohort of that expected size, the public one."""
        return {"bytes_down": self.down * cohort, "bytes_up": self.up * cohort}


def carried(broadcast: Broadcast, chunks: Sequence[Chunk], partial: PartialSum) -> dict[str, float]:
    """Of the cohort of a secure sum."""
    down, up = partial.carried
    return {"bytes_down": down + broadcast.weights.nbytes * sum(len(chunk.clients) for chunk in chunks), "bytes_up": up}
