"""Federated clients on Ray: an actor that stands for many."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import ray

from actors.direct_line import Errand, listen
from actors.reservation import CPUS_OF_AN_ACTOR
from qedge.data.federation import Rows
from qedge.errors import QEdgeError, RoundFailed
from qedge.federated.client import FederatedClient
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum
from qedge.federated.secure_node import Said, Session
from qedge.federated.secure_training import SecureTraining
from qedge.job import Personalisation
from qedge.secure_aggregation.identity import Provision


@ray.remote(num_cpus=CPUS_OF_AN_ACTOR, max_restarts=0)
class FederatedClientActor:
    """A `FederatedClient` on some node, one thing at a time: what comes by a direct line does on another thread than calls."""

    def __init__(self, spec: ClientSpec, train: Rows, test: Rows | None, provision: Provision | None) -> None:
        self.client = FederatedClient(spec, train, test)
        self.secure = SecureTraining(self.client, spec.secure, provision) if provision is not None else None
        self.turn = threading.Lock()

    def ready(self) -> float | None:
        """Answers once the actor has started, with `FederatedClient.kernel_difference`."""
        return self.client.kernel_difference()

    def partial_sum(self, broadcast: Broadcast, chunks: Sequence[Chunk]) -> PartialSum:
        """See `FederatedClient.partial_sum`."""
        with self.turn:
            return self.client.partial_sum(broadcast, chunks)

    def prepare(self, round_number: int, chunks: Sequence[Chunk]) -> None:
        """See `FederatedClient.prepare`."""
        with self.turn:
            self.client.prepare(round_number, chunks)

    def listen(self, node: str) -> str | None:
        """Where to reach this actor by a direct line, for a coordinator on the same node; None for another."""
        return listen(self._answer) if node == ray.get_runtime_context().get_node_id() else None

    def _answer(self, errand: Errand) -> PartialSum | QEdgeError | None:
        try:
            if errand.broadcast is not None:
                return self.partial_sum(errand.broadcast, errand.chunks)
            self.prepare(errand.round, errand.chunks)
        except Exception as error:  # noqa: BLE001 - the edge of the process: the coordinator raises it
            if errand.broadcast is not None:
                return told(error, f"round {errand.round}")
        return None  # what could not be made ready, the round itself will say

    def secure_open(self, broadcast: Broadcast, chunks: Sequence[Chunk], sessions: Sequence[Session]) -> tuple[list[Said], dict[int, str]]:
        """See `SecureTraining.open`."""
        with self.turn:
            return self.secure.open(broadcast, chunks, sessions)

    def secure_step(self, name: str, messages: Mapping[int, bytes]) -> list[Said]:
        """See `SecureNode.step`."""
        with self.turn:
            return self.secure.node.step(name, messages)

    def correct_counts(self, weights: np.ndarray, clients: np.ndarray, cap: int) -> np.ndarray:
        """See `ClientEvaluation.correct_counts`."""
        with self.turn:
            return self.client.evaluation.correct_counts(weights, clients, cap)

    def losses(self, broadcast: Broadcast, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whose they are, and `ClientEvaluation.losses`."""
        with self.turn:
            return clients, self.client.evaluation.losses(broadcast, clients)

    def accuracies(
        self, weights: np.ndarray, clients: np.ndarray, personalisation: Personalisation | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whose they are, and `ClientEvaluation.accuracies`."""
        with self.turn:
            return clients, self.client.evaluation.accuracies(weights, clients, personalisation)


def told(cause: BaseException, what: str) -> QEdgeError:
    """What an actor raised as others hear it; of what is not ours its type alone: its text may hold values of private rows."""
    if isinstance(cause, QEdgeError):
        return cause
    return RoundFailed(f"{what}: a client actor raised {type(cause).__name__}", cause=type(cause).__name__)
