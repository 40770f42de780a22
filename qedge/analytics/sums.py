"""Where clients' vectors are summed, and noised: the one narrow place between those who hold rows and whoever reads answers.

A vector leaves a client's node as part of a sum. What is released is that sum with noise, whoever adds it: a trusted coordinator, once, or
in secure sums the clients themselves, each its share.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qedge.analytics.encoding import Encoder
from qedge.data.client_columns import ClientColumns
from qedge.federated.secure_node import Said, SecureNode, SecureParty, Session
from qedge.job import SecureAggregation
from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.identity import EnrolmentAuthority, Roster

Integers = npt.NDArray[np.int64]


class VectorSums(SecureParty, Protocol):
    """Stands for all clients, wherever they live."""

    def vector_sum(self, encoder: Encoder, deadline_s: float) -> Integers:
        """The exact sum over all clients of what each sends, [dimensions] int64.

        Raises:
            RoundFailed: it could not be had by the deadline, however often the lost part was run again.
        """

    def secure_open(self, encoder: Encoder, sessions: Sequence[Session], share: NoiseShare | None, deadline_s: float) -> list[Said]:
        """Have clients join secure sums of what each sends, to which it adds its share; see `SecureNode.open`."""


class LocalSums:
    """All clients in this process."""

    def __init__(self, columns: ClientColumns, secure: SecureAggregation | None = None) -> None:
        self.columns, self.clients = columns, range(len(columns.offsets) - 1)
        if secure is not None:
            self.authority = EnrolmentAuthority("simulated", os.urandom(32), kind=secure.signatures)
            self.authority.enrol_simulated(len(self.clients))
            self.node = SecureNode(self.authority.provision(), secure)

    def vector_sum(self, encoder: Encoder, deadline_s: float) -> Integers:
        """See `VectorSums.vector_sum`; who sums by itself waits for nobody: the deadline does not bind."""
        return encoder.total(self.columns, self.clients)

    def roster(self, clients: Sequence[int]) -> Roster:
        """See `SecureParty.roster`."""
        return self.authority.roster(clients)

    def secure_open(self, encoder: Encoder, sessions: Sequence[Session], share: NoiseShare | None, deadline_s: float) -> list[Said]:
        """See `VectorSums.secure_open`."""
        return self.node.open(encoder.each(self.columns, self.clients), sessions, share)

    def secure_step(self, name: str, messages: Mapping[int, bytes], deadline_s: float) -> list[Said]:
        """See `SecureParty.secure_step`."""
        return self.node.step(name, messages)


def noised_sum(sums: VectorSums, encoder: Encoder, variance: int, source: NoiseSource, deadline_s: float) -> Integers:
    """What a round releases, [dimensions] int64: the sum of what clients send, with discrete Gaussian noise on every coordinate.

    Raises:
        RoundFailed: as `VectorSums.vector_sum`.
    """
    return noised(sums.vector_sum(encoder, deadline_s), variance, source)


def noised(exact: Integers, variance: int, source: NoiseSource) -> Integers:
    """A sum with discrete Gaussian noise on every coordinate, [dimensions] int64; with a variance of 0 as it is."""
    return exact + DiscreteGaussian(variance).sample(len(exact), source) if variance else exact
