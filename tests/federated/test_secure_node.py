"""What the clients of a node refuse whoever coordinates them, and that an honest coordinator is answered all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qedge.errors import MessageRefused
from qedge.federated.secure_node import Said, SecureNode, Session
from qedge.job import SecureAggregation
from qedge.privacy.noise_share import NoiseShare
from qedge.secure_aggregation.identity import EnrolmentAuthority
from qedge.secure_aggregation.server import SecureServer
from qedge.secure_aggregation.terms import Terms

CLIENTS, LENGTH = 12, 3
SECURE = SecureAggregation()
VECTORS = {place: np.arange(LENGTH) + 10 * place for place in range(CLIENTS)}


class Coordinator:
    """Sums the vectors of some clients of a node as the protocol says; what a client refuses is kept."""

    def __init__(
        self, node: SecureNode, authority: EnrolmentAuthority, share: NoiseShare | None = None, members: int = CLIENTS, **named: Any
    ) -> None:
        places = range(members)
        self.node, self.places, self.share, self.refusals = node, tuple(places), share, list[str]()
        roster, (group,) = authority.roster(places), SECURE.groups(len(places))
        terms = Terms(
            run="run",
            round=1,
            attempt=1,
            group=0,
            roster=roster.digest(),
            members=group.members,
            threshold=group.threshold,
            colluders=group.colluders,
            server=SECURE.server,
            bits=24,
            length=LENGTH,
            survivors=group.survivors,
            noise=share.words if share is not None else "",
        )
        self.server = SecureServer(replace(terms, **named), roster)

    def open(self) -> Coordinator:
        session = Session(0, self.places, self.server.announcement())
        self._take(self.node.open({place: VECTORS[place] for place in self.places}, [session], self.share))
        return self

    def total(self) -> list[int]:
        """From sealing to the sum."""
        self._step("seal", self._to_all(self.server.directory()))
        self._step("mask", {self.places[member]: message for member, message in self.server.deliveries().items()})
        self._step("agree", self._to_all(self.server.survivors()))
        self._step("reveal", self._to_all(self.server.agreements()))
        return self.server.total()[0].tolist()

    def _to_all(self, message: bytes) -> dict[int, bytes]:
        return dict.fromkeys(self.places, message)

    def _step(self, name: str, messages: dict[int, bytes]) -> None:
        self._take(self.node.step(name, messages))

    def _take(self, said: Sequence[Said]) -> None:
        for one in said:
            if one.refused:
                self.refusals.append(one.refused)
            else:
                self.server.take(one.message)


@pytest.fixture
def authority() -> EnrolmentAuthority:
    found = EnrolmentAuthority("simulated", bytes(32))
    found.enrol_simulated(CLIENTS)
    return found


@pytest.mark.parametrize("name", ["_seal", "_agree", "_reveal", "_shares", "_join", "join", "step", "__init__", "open", ""])
def test_a_client_is_asked_the_protocol_s_steps_and_nothing_else_of_it(authority: EnrolmentAuthority, name: str):
    """A second, unguarded `_seal` would seal its secrets to keys of the coordinator's choice; what it was asked changes nothing."""
    node = SecureNode(authority.provision(), SECURE)
    coordinator = Coordinator(node, authority).open()
    with pytest.raises(MessageRefused, match="accepted: seal, mask, agree, reveal"):
        node.step(name, {7: b"\x90"})
    assert coordinator.total() == sum(VECTORS.values()).tolist()


def test_a_client_adds_its_share_of_noise_to_no_sum_with_fewer_shares_than_it_is_one_of(authority: EnrolmentAuthority):
    """A group of three satisfies every threshold as a share of its members; two shares of noise would hide what six were sized for."""
    (group,) = SECURE.groups(CLIENTS)
    share = NoiseShare("discrete-gaussian", 100, honest=group.honest)
    planned = Coordinator(SecureNode(authority.provision(), SECURE), authority, share).open()
    assert planned.refusals == []
    planned.total()
    small = Coordinator(SecureNode(authority.provision(), SECURE), authority, share, members=3).open()
    assert small.refusals == ["survivors that do not collude: 2 announced; this client's policy accepts 6 at least"] * 3


def test_the_clients_of_a_run_are_in_as_many_sums_as_it_has_rounds_whatever_it_is_called(authority: EnrolmentAuthority):
    node = SecureNode(authority.provision(), SECURE, run="run", rounds=2)
    for number in (1, 2):
        assert Coordinator(node, authority, round=number).open().total() == sum(VECTORS.values()).tolist()
    more = Coordinator(node, authority, round=3).open()
    renamed = Coordinator(node, authority, run="other").open()
    assert more.refusals == ["round 3 announced; this client takes part in 2"] * CLIENTS
    assert renamed.refusals == ["run: 'other' announced; this client takes part in 'run'"] * CLIENTS
