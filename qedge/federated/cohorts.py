"""Who takes part in each round of a run, in which pieces of work, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np

from qedge.data.federation import Federation
from qedge.errors import RoundFailed
from qedge.federated.events import ClientsFailed, Event
from qedge.federated.messages import Broadcast, PartialSum
from qedge.federated.randomness import RunKey
from qedge.federated.selection import oort
from qedge.federated.selection.client_facts import ClientFacts, client_facts
from qedge.federated.selection.drawing import draw_cohort
from qedge.federated.selection.informed import draw_informed, largest_losses
from qedge.federated.selection.roster import Roster
from qedge.federated.workers import Workers, make_chunks
from qedge.job import TrainingJob


class Cohorts:
    """Draws a run's cohorts, each once, from its key; kept: what `arrays` gave at the checkpoint that the run goes on from."""

    def __init__(self, job: TrainingJob, federation: Federation, key: RunKey, chunk: int, workers: Workers) -> None:
        self.job, self.federation, self.key, self.workers = job, federation, key, workers
        self.rows = np.diff(federation.train.offsets)
        self.chunk = chunk
        self.roster = Roster(len(federation.clients))
        self.drawn: tuple[int, list[np.ndarray]] = (0, [])

    def go_on_from(self, kept: Mapping[str, np.ndarray]) -> None:
        """Remember what a checkpoint kept."""
        self.roster = Roster(len(self.federation.clients), kept)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps; nothing under privacy, where nothing is remembered."""
        return {} if self.job.privacy is not None else self.roster.arrays()

    def of(self, broadcast: Broadcast) -> list[np.ndarray]:
        """The clients of a round, [clients] int64 for each piece of work; its weights may have a say."""
        number, cohort = broadcast.round, self.job.cohort
        if cohort.follows_the_weights:
            candidates = self._draw(number)
            losses = self.workers.losses(broadcast, candidates, cohort.deadline_s)[:, 0]
            self._take(number, largest_losses(candidates, losses, cohort.size or 0))
        elif self.drawn[0] != number:
            self._take(number, self._draw(number))
        return self.drawn[1]

    def ahead(self, number: int) -> list[np.ndarray]:
        """The clients of the next round where they can be said while this one is under way: as `of` says them then, unless one fails."""
        if self.job.cohort.informed or number > self.job.rounds:
            return []
        self._take(number, self._draw(number))
        return self.drawn[1]

    def took_part(self, broadcast: Broadcast, partial: PartialSum, tell: Callable[[Event], None], run: str) -> None:
        """Remember who failed and what those that trained were worth, without privacy.

        Raises:
            RoundFailed: nobody is left whose training did not raise.
        """
        if partial.failed:
            self._note_failures(broadcast.round, partial, tell, run)
        if self.job.cohort.sampling == "oort":
            self._note_utilities(broadcast, partial)

    def _take(self, number: int, cohort: np.ndarray) -> None:
        # Under privacy who shares a chunk must not depend on anybody's rows.
        self.drawn = number, make_chunks(cohort, None if self.job.privacy is not None else self.rows, self.chunk)

    def _draw(self, number: int) -> np.ndarray:
        """Who is drawn for a round, [clients] int64, ascending; where the weights will choose among them, the candidates."""
        if self.job.cohort.informed:
            return draw_informed(self.job.cohort, self._facts, self.roster, self.key, number)
        return draw_cohort(self.job.cohort, len(self.federation.clients), self.key, number, self.roster.available)

    @cached_property
    def _facts(self) -> ClientFacts:
        """What the selection knows of clients.

        Raises:
            CheckpointTampered: it was something else when the run began.
        """
        facts = client_facts(self.job, self.federation)
        self.roster.stand_on(facts.digest)
        return facts

    def _note_utilities(self, broadcast: Broadcast, partial: PartialSum) -> None:
        """Remember what those of a cohort that trained were worth, by their losses under the weights that they were sent."""
        drawn = np.sort(np.concatenate(self.drawn[1])) if self.drawn[1] else np.empty(0, dtype=np.int64)
        trained = drawn[~np.isin(drawn, list(partial.failed))]
        losses = self.workers.losses(broadcast, trained, self.job.cohort.deadline_s)[:, 1]
        self.roster.took_part(broadcast.round, trained, oort.statistical_utility(self.rows[trained], losses))

    def _note_failures(self, number: int, partial: PartialSum, tell: Callable[[Event], None], run: str) -> None:
        """Say which clients' training raised, and draw those no more that failed too often."""
        failed, ids = sorted(partial.failed), self.federation.clients
        quarantined = self.roster.failed(failed)
        if quarantined:
            self.drawn = (0, [])  # they may be among those that were drawn ahead
        reasons = {ids[client]: partial.failed[client] for client in failed}
        tell(ClientsFailed(run, number, reasons, tuple(ids[client] for client in quarantined)))
        if partial.weight == 0:
            first = ids[failed[0]]
            raise RoundFailed(
                f"round {number}: all {len(failed)} clients that hold rows failed; client '{first}': {reasons[first]}", client=first
            )
