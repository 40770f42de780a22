"""Whatever is lost, late, repeated, reordered, forged or altered on its way: the sum is that of the survivors, or there is none."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qedge.errors import MessageRefused, SumAborted
from qedge.secure_aggregation.groups import MALICIOUS, SERVERS
from qedge.secure_aggregation.terms import Terms
from tests.secure_aggregation.sessions import STEPS, Session, fields, packed, terms_of

DOWN, UP = "to a client", "to the server"
KINDS = ("lost", "late", "repeated", "flipped", "cut", "of another session", "of another version", "of another step", "forged", "too large")


@dataclass(frozen=True)
class Fault:
    """What happens to a member's message of a step, one way."""

    step: str
    way: str
    member: int
    kind: str
    salt: int


FAULTS = st.builds(
    Fault, st.sampled_from(STEPS), st.sampled_from([DOWN, UP, UP]), st.integers(0, 7), st.sampled_from(KINDS), st.integers(0, 2**16)
)
TERMS = st.builds(
    lambda members, server, bits, length, more: _terms(members, server, bits, length, more),
    st.sampled_from([3, 3, 4, 4, 5, 5, 8]),
    st.sampled_from([MALICIOUS, *SERVERS]),
    st.sampled_from([16, 19, 24, 32, 64]),
    st.integers(1, 9),
    st.integers(0, 1),
)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(terms=TERMS, faults=st.lists(FAULTS, max_size=7), order=st.integers(0, 2**16))
def test_the_sum_is_that_of_the_survivors_or_the_session_is_aborted_in_2000_schedules(terms, faults, order):
    Run(terms, faults, order).check()


@settings(max_examples=60, deadline=None)
@given(terms=TERMS, faults=st.lists(FAULTS, max_size=5), order=st.integers(0, 2**16))
@example(terms=terms_of(4), faults=[Fault("mask", UP, 3, "lost", 0), Fault("reveal", UP, 0, "late", 0)], order=0)
@example(terms=terms_of(5), faults=[Fault(step, UP, at, "lost", 0) for at, step in enumerate(STEPS[:2])], order=0)
@example(terms=terms_of(4), faults=[Fault(step, UP, 1, "too large", 0) for step in STEPS], order=0)
def test_the_sum_is_that_of_the_survivors_or_the_session_is_aborted(terms, faults, order):
    Run(terms, faults, order).check()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("members", [3, 5])
def test_who_is_lost_after_its_vector_came_is_in_the_sum(members: int, server: str):
    session = Session.of(terms_of(members, server=server)).run(lost={"agree": [1]})
    total, survivors = session.total()
    assert survivors == tuple(range(members))
    assert (total == session.vectors.sum(axis=0)).all()


def test_nothing_is_taken_after_a_session_ended_or_was_aborted():
    done = Session.of(terms_of(3)).run()
    done.total()
    aborted = Session.of(terms_of(3))
    with pytest.raises(SumAborted):
        aborted.run(lost={"join": [1, 2]})
    for session in (done, aborted):
        with pytest.raises(MessageRefused, match="over"):
            session.server.take(session.said["join"][0])


@dataclass
class Run:
    """One session under a schedule; order: seeds the order in which messages arrive."""

    terms: Terms
    faults: list[Fault]
    order: int
    late: list[bytes] = field(default_factory=list)
    came: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        self.session = Session.of(self.terms, seed=self.order)
        least = {step: self.terms.survivors if step == "mask" else self.terms.threshold for step in self.session.steps}
        try:
            for step in self.session.steps:
                self.step(step)
            total, survivors = self.session.total()
        except SumAborted:
            short = any(came < least[step] for step, came in self.came.items())
            assert short or self.terms.server != MALICIOUS  # a list altered on its way is believed where nobody signs it
            return
        assert (total == self.session.vectors[list(survivors)].sum(axis=0)).all()
        assert len(survivors) >= self.terms.survivors
        assert len(survivors) == self.came["mask"]

    def step(self, step: str) -> None:
        shuffled = random.Random(f"{self.order} {step}")
        messages = list(self.session.asked(step).items())
        shuffled.shuffle(messages)
        answers = [(member, answer) for member, message in messages for answer in self.carried_down(step, member, message)]
        shuffled.shuffle(answers)
        arriving, self.late = self.late, []
        senders = {self.taken(message) for message in arriving}  # of the step before: refused
        assert senders <= {None}
        for member, answer in answers:
            senders |= {self.taken(message) for message in self.carried_up(step, member, answer)}
        self.came[step] = len(senders - {None})

    def carried_down(self, step: str, member: int, message: bytes) -> list[bytes]:
        """What a member answers to what reaches it."""
        reaching = [message]
        for fault in self.of(step, DOWN, member):
            if fault.kind in ("lost", "late"):
                return []
            reaching = [message, message] if fault.kind == "repeated" else [self.spoiled(fault, message, DOWN), *reaching]
        answers = []
        for content in reaching:
            try:
                answers.append(self.session.answer(step, member, content))
            except MessageRefused:
                continue
        if reaching == [message, message]:
            assert len(set(answers)) <= 1
        return answers[-1:]

    def carried_up(self, step: str, member: int, message: bytes) -> list[bytes]:
        """What reaches the server of a member's message."""
        reaching = [message]
        for fault in self.of(step, UP, member):
            if fault.kind in ("lost", "late"):
                self.late += [message] if fault.kind == "late" else []
                return []
            elif fault.kind == "repeated":
                reaching.append(message)
            else:
                spoiled = self.spoiled(fault, message, UP)
                reaching = [spoiled, *reaching] if fault.salt % 2 else [spoiled]
        return reaching

    def taken(self, message: bytes) -> int | None:
        try:
            return self.session.server.take(message)
        except MessageRefused:
            return None

    def of(self, step: str, way: str, member: int) -> list[Fault]:
        return [fault for fault in self.faults if (fault.step, fault.way, fault.member) == (step, way, member)]

    def spoiled(self, fault: Fault, message: bytes, way: str) -> bytes:
        if fault.kind == "flipped":
            at = (fault.salt * 7919) % (8 * len(message))
            return message[: at // 8] + bytes([message[at // 8] ^ 1 << at % 8]) + message[at // 8 + 1 :]
        if fault.kind == "cut":
            return message[: fault.salt % len(message)]
        if fault.kind == "of another version":
            return packed([2, *fields(message)[1:]])
        if fault.kind in ("of another session", "of another step"):
            other = _before(self.terms) if fault.kind == "of another session" else self.session
            step = fault.step if fault.kind == "of another session" else self.session.steps[fault.salt % len(self.session.steps)]
            known = (other.sent if way == DOWN else other.said).get(step, {})
            return known.get(fault.member, message[:-1])
        values = fields(message)
        if fault.kind == "forged" and way == UP:  # in the name of another
            values[3] = fault.salt % self.terms.members
            return packed(values) if values[3] != fault.member else message[:-1]
        large = fault.salt % len(values)
        return packed([2**40 if at == large and isinstance(value, int) else value for at, value in enumerate(values)])


def _terms(members: int, server: str, bits: int, length: int, more: int) -> Terms:
    plain = terms_of(members, server=server, bits=bits, length=length, round=2)
    return terms_of(members, server=server, bits=bits, length=length, round=2, survivors=min(plain.threshold + more, members), colluders=0)


@lru_cache(maxsize=64)
def _before(terms: Terms) -> Session:
    """A session of the round before, all of whose messages were recorded."""
    return Session.of(terms_of(terms.members, server=terms.server, bits=terms.bits, length=terms.length)).run()


def test_the_schedules_do_lead_to_sums_and_to_aborts():
    """With a seeded draw of 60 schedules; so that the properties above are about both."""
    drawn, ends = random.Random(5), []
    for order in range(60):
        faults = [
            Fault(drawn.choice(STEPS), drawn.choice([DOWN, UP]), drawn.randrange(4), drawn.choice(KINDS), drawn.randrange(2**16))
            for _ in range(drawn.randrange(7))
        ]
        run = Run(terms_of(4, round=2), faults, order)
        run.check()
        ends.append("reveal" in run.came and min(run.came.values()) >= run.terms.threshold)
    assert np.mean(ends) > 0.1
    assert np.mean(ends) < 0.9
