"""Runs a prepared query from wherever it stands to its answers.

A round: ask every client for its vector → sum → add noise → write the noised sum ahead and flush it → commit its digest in the ledger →
only now is it read, by the search for heavy hitters, whose next round depends on it, or by the answers. Rounds are numbered as
the ledger's plan has them: those of the search from 1, then the one in which all other statistics are measured.

Whoever goes on with a query that was cut off reads what was released and asks only for the rest; a round that is on disk is taken up
again and never noised anew. An older coordinator that still lives can commit nothing more: the ledger has another epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from qedge.analytics.answers import COVERS, Answer, Measured, answer, read_off
from qedge.analytics.encoding import Encoder, Scale
from qedge.analytics.heavy_hitters import Hunt
from qedge.analytics.measurements import Measurement
from qedge.analytics.plan import Charge, hunting_rounds, measured_at_once
from qedge.analytics.sums import VectorSums, noised_sum
from qedge.data.client_columns import ClientColumns
from qedge.errors import CheckpointTampered, RoundFailed, SumAborted
from qedge.federated.events import Event, Phase
from qedge.federated.planning import WRAPS
from qedge.federated.run_folder import Json, RunFolder, data_digest, terms_digest
from qedge.federated.secure_node import Said, Session
from qedge.federated.secure_sum import SecureSum
from qedge.federated.write_ahead import Release, WriteAhead
from qedge.job import SecureAggregation
from qedge.job.statistics import HeavyHitters
from qedge.privacy.accounting import RenyiCost, epsilon_of
from qedge.privacy.mechanisms import NoiseSource, SystemNoise
from qedge.privacy.noise_share import NoiseShare
from qedge.privacy.rotation import ring_bits
from qedge.records import Records
from qedge.runs.query_preparation import population_of, prints_of, recorded_plan
from qedge.secure_aggregation.ring import WHOLE_BITS, Ring

ADVERSARY = (
    "whoever sees the answers, also one who knows who the clients are: everybody is asked, so nothing is amplified by sampling. The "
    "coordinator, the nodes that hold the clients' rows and whoever owns the Ray cluster are trusted."
)
SERVER = (
    "the server, which knows who the clients are and sees the sum of each group of them, and the members of a group that may collude with "
    "it; noise is counted of the fewest survivors of a group, less those. On Ray the clients are actors of one cluster, and whoever owns "
    "it can read them."
)
MakeSums = Callable[[ClientColumns, SecureAggregation | None], VectorSums]


@dataclass(frozen=True)
class Released:
    """A round's sum as everybody may see it. variance: of its noise; clients: how many are in it."""

    total: npt.NDArray[np.int64]
    variance: int
    clients: int


class Inquiry:
    """One query, coordinated in this process; `make_sums` says where its clients are."""

    def __init__(
        self,
        folder: RunFolder,
        records: Records,
        make_sums: MakeSums,
        on_event: Callable[[Event], None] = lambda event: None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.folder, self.records, self.on_event = folder, records, on_event
        self.noise = noise or SystemNoise()
        self.query, self.plan, self.key = folder.query(), recorded_plan(folder), folder.key()
        population = population_of(self.query)
        self.clients = len(population.clients)
        self.ahead = WriteAhead(folder.releases, lambda message: records.keys.mac("release", message))
        self.epoch = self._take_over(prints_of(population, records))
        self.known = self.ahead.read(records.ledger.releases(folder.run)) if self.plan else {}
        self.created_ms = int(str((folder.read("run.json") or {"created_ms": 0})["created_ms"]))
        self.told = set(folder.metrics_by_round(cut=True))
        self.spent = RenyiCost.zero()
        self.sums = make_sums(population.columns, self.query.secure_aggregation)
        self.summed = self.clients  # how many were in the last round's sum

    def answers(self) -> list[Answer]:
        """All rounds that are left, the plan closed, and what comes of it.

        Raises:
            RoundFailed, StorageFull: the query can be resumed; Fenced: another coordinator has it; CheckpointTampered.
        """
        self.on_event(Phase(self.folder.run, "counting"))
        hunts = self._hunt()
        shares, found = measured_at_once(self.query), dict[Measurement, Measured]()
        if shares:
            found = self._measure(hunting_rounds(self.query) + 1, list(shares), self.plan.once if self.plan else None)[1]
        if self.plan is not None:  # a search that ended early did so by what was released
            self.records.ledger.close(self.folder.run, self.epoch, give_back=True)
        hunted = iter(hunts)
        return [answer(one, found, next(hunted) if isinstance(one, HeavyHitters) else None) for one in self.query.statistics]

    def statement(self) -> Json:
        """What the answers cost and what they rest on."""
        public: list[JsonValue] = [
            "the number of clients and who they are",
            "names and kinds of columns",
            "ranges, bins, categories, lengths and the cap on rows, as declared",
        ]
        if self.plan is None:
            return {"privacy": "none", "max_rows": self.query.max_rows, "public_by_declaration": public}
        releases: list[JsonValue] = []
        for what, charge, rounds in (("heavy hitters", self.plan.hunting, self.plan.rounds), ("all other", self.plan.once, 1)):
            if charge is not None:
                releases.append({"what": what, "at_most_rounds": rounds, **_noise_of(charge)})
        return {
            "privacy": "(epsilon, delta)-differential privacy for every client",
            "epsilon": self._epsilon(),
            "delta": self.plan.delta,
            "order": self.plan.order,
            "unit": "client",
            "relation": "zero-out",
            "adversary": ADVERSARY if self.query.secure_aggregation is None else SERVER,
            "mechanism": "discrete Gaussian on the sum of clients' integer vectors"
            + ("" if self.query.secure_aggregation is None else ", a share of the noise from each client, in secure sums"),
            "clients_in_the_sum": self.summed,
            "noise": "for tests: no guarantee" if self.noise.for_tests else "from the operating system's cryptographic generator",
            "max_rows": self.query.max_rows,
            "public_by_declaration": public,
            "releases": releases,
        }

    def _hunt(self) -> list[Hunt]:
        """The finished searches for heavy hitters, in the order they were asked for."""
        hunts = [Hunt(statistic) for statistic in self.query.hunts]
        for number in range(1, hunting_rounds(self.query) + 1):
            going_on = {place: asked for place, hunt in enumerate(hunts) if (asked := hunt.measurement) is not None}
            if not going_on:
                break
            charge = self.plan.hunting if self.plan else None
            part = replace(charge, bounds=tuple(charge.bounds[place] for place in going_on)) if charge else None
            encoder, found = self._measure(number, list(going_on.values()), part)
            for place, scale in zip(going_on, encoder.scales, strict=True):
                of_hunt = found[scale.measurement]
                hunts[place] = hunts[place].after(of_hunt.values, of_hunt.deviation, encoder.step(scale))
        return hunts

    def _measure(self, number: int, measured: list[Measurement], charge: Charge | None) -> tuple[Encoder, dict[Measurement, Measured]]:
        """What one round says of each measurement, and how clients were asked."""
        bounds = charge.bounds if charge else (None,) * len(measured)
        scales = tuple(Scale(one, bound) for one, bound in zip(measured, bounds, strict=True))
        encoder = Encoder(scales, self.query.max_rows, self.key.derive("query", number))
        secure = self.query.secure_aggregation
        released = self._released(number, encoder, charge) if secure is None else self._opened(number, encoder, charge, secure)
        self.summed = released.clients
        return encoder, read_off(encoder, released.total, released.variance, released.clients)

    def _released(self, number: int, encoder: Encoder, charge: Charge | None) -> Released:
        """A round's sum, as everybody may see it: charged, and on disk before that."""
        run, ledger = self.folder.run, self.records.ledger
        if charge is None:
            self._tell(number)
            return Released(noised_sum(self.sums, encoder, 0, self.noise, self.query.deadline_s), 0, self.clients)
        release = self.known.get(number)
        if release is None:
            if number in ledger.releases(run):
                raise CheckpointTampered(f"run {run}: round {number} was charged but its record is gone or was altered", run=run)
            total = noised_sum(self.sums, encoder, charge.variance, self.noise, self.query.deadline_s)
            release = Release(run, number, self.epoch, total)
            self.ahead.append(release)
        self._charge(release, charge)
        return Released(release.total, charge.variance, self.clients)

    def _opened(self, number: int, encoder: Encoder, charge: Charge | None, secure: SecureAggregation) -> Released:
        """The same of a secure sum: charged before any share of a mask is asked for.

        Raises:
            RoundFailed: it was charged, and could not be opened or was cut off there: clients reveal nothing a second time.
        """
        everybody, share = np.arange(self.clients), charge.share if charge else None

        def begin(sessions: Sequence[Session]) -> tuple[list[Said], dict[int, str]]:
            return self.sums.secure_open(encoder, sessions, share, self.query.deadline_s), {}

        ring, words = self._ring(encoder, share, secure), share.words if share is not None else ""
        sums = SecureSum(secure, self.folder.run, self.key, self.epoch, ring, encoder.dimensions, words)
        if charge is None or share is None:
            partial = sums.of(number, everybody, self.sums, begin, self.query.deadline_s)
            self._tell(number)
            return Released(partial.total, 0, partial.weight)
        release = self.known.get(number) or Release(self.folder.run, number, self.epoch, np.empty(0, np.int64))
        if not release.session:
            if number in self.records.ledger.releases(self.folder.run):
                raise CheckpointTampered(f"run {self.folder.run}: round {number} was charged but its record is gone", run=self.folder.run)

            def charged(session: str) -> None:
                nonlocal release
                release = replace(release, session=session)
                self.ahead.append(release)
                self.records.ledger.commit(self.folder.run, number, release.digest, self.epoch)

            with suppress(SumAborted):
                partial = sums.of(number, everybody, self.sums, begin, self.query.deadline_s, charged)
                release = replace(release, total=np.append(partial.total, partial.weight))
                self.ahead.append(release)
        self._charge(release, charge)
        if not len(release.total):
            raise RoundFailed(f"round {number} was charged and could not be opened; what it cost stays spent: ask anew", round=number)
        survivors = int(release.total[-1])
        return Released(release.total[:-1], share.variance * survivors, survivors)

    def _ring(self, encoder: Encoder, share: NoiseShare | None, secure: SecureAggregation) -> Ring:
        """In which no sum of a group wraps, nor its noise but with a chance of 1e-9."""
        if share is None:
            return Ring(WHOLE_BITS)
        most = max(group.members for group in secure.groups(self.clients))
        signal = most * max(scale.bound or 0 for scale in encoder.scales)
        return Ring(ring_bits(signal, share.reach(most, encoder.dimensions, WRAPS)))

    def _charge(self, release: Release, charge: Charge) -> None:
        self.records.ledger.commit(release.run, release.round, release.digest, self.epoch)
        self.spent = self.spent + charge.cost
        self._tell(release.round)

    def _tell(self, number: int) -> None:
        """Put on record what has been spent; stamped by the round, since how long one took is nobody's business."""
        if number not in self.told:
            epsilon = self._epsilon()
            self.folder.append_metrics(number, self.created_ms + number, {} if epsilon is None else {"epsilon": epsilon})

    def _epsilon(self) -> float | None:
        """Of what was released so far, at the scope's order; None without privacy."""
        return None if self.plan is None else epsilon_of(self.spent.at(self.plan.order), self.plan.order, self.plan.delta)

    def _take_over(self, prints: frozenset[str]) -> int:
        """The epoch in which this coordinator may commit; 0 without privacy. Whether a run is private is the ledger's to say.

        Raises:
            CheckpointTampered: the data, the query, its record or key are not those that it was prepared with.
        """
        run, ledger = self.folder.run, self.records.ledger
        if str((self.folder.read("record.json") or {}).get("data")) != data_digest(prints, self.records.keys):
            raise CheckpointTampered(f"run {run}: the data are no longer those it was prepared on; ask anew", run=run)
        held = ledger.plan(run)
        if held is None:
            ledger.refuse_without_privacy(prints)
            if self.plan is not None or self.query.privacy is not None or run not in ledger.runs_without_privacy(prints):
                raise CheckpointTampered(f"run {run}: the ledger knows nothing of it on these data; ask anew", run=run)
            return 0
        if self.plan is None or f"terms={terms_digest(self.folder)}" not in held.participation:
            raise CheckpointTampered(f"run {run}: its query, record or key is not the one that the ledger holds a plan for", run=run)
        return ledger.take_over(run)


def _noise_of(charge: Charge) -> Json:
    return {
        "sensitivity": charge.sensitivity_squared**0.5,
        "sensitivity_squared": charge.sensitivity_squared,
        "noise_std": charge.variance**0.5,
        "variance": charge.variance,
        "noise_multiplier": (charge.variance / charge.sensitivity_squared) ** 0.5,
    }


def complete_query(inquiry: Inquiry) -> Json:
    """The query's result, as in its `result.json`."""
    answers = inquiry.answers()
    statement = inquiry.statement()
    metrics: Json = {}
    for one in answers:
        for estimate in one.estimates:
            metrics[one.title if len(one.estimates) == 1 else f"{one.title}: {estimate.of}"] = estimate.value
    tags: Json = {"qedge.receipt_id": "none"}
    if "epsilon" in statement:
        scope = (inquiry.folder.read("record.json") or {})["scope"]
        tags |= {"qedge.epsilon": repr(statement["epsilon"]), "qedge.delta": repr(statement["delta"]), "qedge.scope": scope}
    result: Json = {
        "status": "finished",
        "metrics": metrics,
        "tags": tags,
        "answers": [one.plain() for one in answers],
        "intervals": COVERS if inquiry.plan else "exact: no privacy, no noise",
        "statement": statement,
        "clients": inquiry.clients,
    }
    inquiry.folder.write("result.json", result)
    inquiry.ahead.forget()
    inquiry.records.log.append("query.answered", run=inquiry.folder.run)
    return result
