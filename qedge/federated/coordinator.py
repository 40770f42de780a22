"""Runs a prepared job from wherever it stands to its end.

A round: draw the cohort → train it and sum its integers → add noise → write the noised sum ahead and flush it → commit its
digest in the ledger → only now the server's step, evaluation on public rows, metrics. A coordinator that starts on a run
finds out how far it got from the checkpoint, the write-ahead records and the ledger, and takes over with a new epoch: an older
coordinator that still lives can commit nothing more, so it releases nothing more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from qedge.algorithms import scaffold
from qedge.algorithms.choice import ALGORITHMS
from qedge.algorithms.state import Mean, ServerState, init
from qedge.data.federation import Rows, fingerprints
from qedge.data.federation import load as load_data
from qedge.errors import CheckpointTampered, Diverged, RolledBack, SumAborted
from qedge.federated.buffered import BufferedTraining
from qedge.federated.checkpoint import read_checkpoint, write_checkpoint
from qedge.federated.cohorts import Cohorts
from qedge.federated.control_variates import ControlVariates
from qedge.federated.evaluation import Measured, from_noisy_counts, on_public_rows, per_client
from qedge.federated.events import Event, KernelReplaced, Phase, RoundFinished, SumLost, WentBack
from qedge.federated.guarantee import EVALUATION_ROWS, charged_evaluation
from qedge.federated.messages import Broadcast, Chunk, ClientSpec, PartialSum
from qedge.federated.profile import Profile
from qedge.federated.release import Mechanism, build_mechanism
from qedge.federated.rollback import BestModel
from qedge.federated.run_folder import RunFolder, data_digest, recorded_guarantee, terms_digest
from qedge.federated.scaling import released_scaling
from qedge.federated.secure_sum import SecureSum, secure_sum
from qedge.federated.selection.drawing import expected_cohort
from qedge.federated.traffic import Traffic, carried
from qedge.federated.workers import Workers
from qedge.federated.write_ahead import Release, WriteAhead
from qedge.models import build, parameters_vector
from qedge.privacy.clipping import FIXED_STEP, from_grid
from qedge.privacy.filter import most_epsilon
from qedge.privacy.mechanisms import DiscreteGaussian, NoiseSource, SystemNoise
from qedge.records import Records

CHECKPOINT_EVERY_S = 1.0
ORACLE = "sequential"
Evaluated = tuple[ServerState, Measured, list[Event]]  # to go on from; what the round's own was worth; what there is to tell
MakeWorkers = Callable[[ClientSpec, Rows, Rows | None], Workers]


class Coordinator:
    """One run, in this process; `make_workers` says where its clients are trained."""

    def __init__(
        self,
        folder: RunFolder,
        records: Records,
        make_workers: MakeWorkers,
        on_event: Callable[[Event], None],
        noise: NoiseSource | None = None,
    ) -> None:
        self.folder, self.records, self.on_event = folder, records, on_event
        self.noise = noise or SystemNoise()
        self.job = folder.job()
        self.key = folder.key()
        self.guarantee = recorded_guarantee(folder)
        record = folder.read("record.json") or {}
        self.federation = load_data(self.job.data, self.job.seed)
        self.epoch = self._take_over(str(record.get("data")))
        self._scale()
        self.expected = expected_cohort(self.job.cohort, len(self.federation.clients))
        schema = self.federation.schema
        self.module = build(self.job.model, len(schema.features), len(schema.labels), self.job.seed)
        self.algorithm = ALGORITHMS[self.job.algorithm.kind]
        self.ahead = WriteAhead(folder.releases, lambda message: records.keys.mac("release", message))
        replaced = folder.read("kernel.json")
        self.spec = spec = ClientSpec(
            model=self.job.model,
            features=len(schema.features),
            classes=len(schema.labels),
            algorithm=self.job.algorithm,
            kernel=str((replaced or record)["kernel"]),
            grid=self.guarantee.updates_grid if self.guarantee else None,
            count_weight=self.guarantee.count_weight if self.guarantee else 0,
            key=self.key.derive("clients"),
            seed=self.job.seed,
            secure=self.job.secure_aggregation,
            share=self.guarantee.share if self.guarantee else None,
            run=folder.run,
            rounds=self.job.rounds,
            rotated=self.guarantee.rotated if self.guarantee else False,
            examples=self.guarantee.noisy_steps if self.guarantee else None,
        )
        own_test = None if self.federation.test_public_file else self.federation.test
        self.workers = make_workers(spec, self.federation.train, own_test)
        self.federation = self.federation.without_training_rows()  # whoever trains has them now
        self.cohorts = Cohorts(self.job, self.federation, self.key, int(str(record["chunk"])), self.workers)
        traffic = Traffic.of(len(parameters_vector(self.module)), self.guarantee, controlled=self.algorithm.controlled)
        self.traffic = traffic.metrics(self.job.algorithm.buffer or self.expected)
        self.mechanism: Mechanism | None = None
        self.scope = str(record["scope"]) if record.get("scope") else None
        self.secure = secure_sum(self.job, folder.run, self.key, self.epoch, len(parameters_vector(self.module)), self.guarantee)
        self.left = self._left()
        self.created_ms = int(str((folder.read("run.json") or {"created_ms": 0})["created_ms"]))
        self.measured = set(folder.metrics_by_round(cut=True))
        self.seconds: list[float] = []
        self.profile = Profile()
        buffered = self.job.algorithm.buffer is not None
        self.buffered = BufferedTraining(self.cohorts, self.profile, on_event, folder.run) if buffered else None
        self.controls: ControlVariates | None = None
        self.best: BestModel | None = None
        self.scribe = ThreadPoolExecutor(1, thread_name_prefix="charge")
        self._check_kernel(spec.kernel)

    def train(self) -> ServerState:
        """All rounds that are left.

        Raises:
            RoundFailed, Diverged, StorageFull: the run can be resumed; Fenced: another coordinator has it; CheckpointTampered.
        """
        self.on_event(Phase(self.folder.run, "training"))
        state = self._restore()
        saved = time.monotonic()
        while state.round < self.job.rounds:
            begun = time.perf_counter()
            state, measured, news = self._round(state)
            with self.profile.phase("logging"):
                self._tell(state, measured, news)
            self.seconds.append(time.perf_counter() - begun)
            due = time.monotonic() - saved > CHECKPOINT_EVERY_S or (self.controls is not None and self.controls.due)
            if due or state.round == self.job.rounds:
                with self.profile.phase("checkpoint"):
                    self.records.ledger.repeat_in_log()  # what the ledger has on disk already; no round need wait for it
                    self._checkpoint(state)
                    self.left = self._left()  # another run may have held some of it
                saved = time.monotonic()
            self.profile.end_round(self.seconds[-1])
        self.scribe.shutdown()
        if self.controls is not None:
            self.controls.close()
        return state

    def evaluate_public(self, state: ServerState) -> Measured:
        """Accuracy and loss on the rows declared public, or (None, None) where there are none."""
        test = self.federation.test
        return (None, None) if test is None or charged_evaluation(self.job) else on_public_rows(self.module, state.model, test)

    def evaluate_charged(self, state: ServerState) -> tuple[float | None, float | None]:
        """The one evaluation on clients' held-out rows, by noisy counts: the mean accuracy of the clients that hold rows out, and one
        standard deviation of its noise; None where there is none, or the noise leaves nothing of it.

        A client adds 0..K to what was right, and K to what could have been, K the public cap on rows; noise on both as planned,
        released like a round.
        """
        guarantee = self.guarantee
        if guarantee is None or guarantee.evaluation_variance is None:
            return None, None
        number = self.job.rounds + 1
        release = self.ahead.read(self.records.ledger.releases(self.folder.run)).get(number)
        if release is None:
            if number in self.records.ledger.releases(self.folder.run):
                raise CheckpointTampered(f"run {self.folder.run}: the evaluation was charged but its record is gone", run=self.folder.run)
            everybody = np.arange(len(self.federation.clients))
            counts = self.workers.correct_counts(state.model, everybody, EVALUATION_ROWS, self.job.cohort.deadline_s)
            noise = DiscreteGaussian(guarantee.evaluation_variance).sample(len(counts), self.noise)
            release = Release(self.folder.run, number, self.epoch, counts + noise)
            self.ahead.append(release)
        self.records.ledger.commit(self.folder.run, number, release.digest, self.epoch)
        return from_noisy_counts(release.total, guarantee.evaluation_variance)

    def evaluate_clients(self, state: ServerState) -> dict[str, float]:
        """What the model is worth to each client on its held-out rows, where those may be looked at one by one; see `per_client`."""
        job = self.job
        if not isinstance(job.data.test, float) or not job.evaluated_each_round:
            return {}
        everybody = np.arange(len(self.federation.clients))
        return per_client(self.workers.accuracies(state.model, everybody, job.personalisation, job.cohort.deadline_s))

    @property
    def seconds_per_round(self) -> float:
        """Median seconds of the rounds this coordinator ran; 0 when it ran none."""
        return statistics.median(self.seconds) if self.seconds else 0.0

    def _left(self) -> float | None:
        """The most that a new job may ask; the whole plan is held, so that its own rounds do not change it."""
        return most_epsilon(self.records.ledger.scope(self.scope)) if self.scope else None

    def _take_over(self, data: str) -> int:
        """The epoch in which this coordinator may commit; 0 for a run without privacy.

        Whether a run is private is the ledger's to say, not its folder's: a run that holds a plan goes on under the terms it holds, on the
        data it was prepared on, and one that holds none must be on record as a run without privacy on these data.
        """
        run, ledger = self.folder.run, self.records.ledger
        prints = fingerprints(self.federation, lambda message: self.records.keys.mac("fingerprint", message))
        if data != data_digest(prints, self.records.keys):
            raise CheckpointTampered(f"run {run}: the data are no longer those it was prepared on; start a new run", run=run)
        plan = ledger.plan(run)
        if plan is None:
            ledger.refuse_without_privacy(prints)
            if self.guarantee is not None or self.job.privacy is not None or run not in ledger.runs_without_privacy(prints):
                raise CheckpointTampered(f"run {run}: the ledger knows nothing of it on these data; start a new run", run=run)
            return 0
        if self.guarantee is None or f"terms={terms_digest(self.folder)}" not in plan.participation:
            raise CheckpointTampered(f"run {run}: its job, record or key is not the one that the ledger holds a plan for", run=run)
        return ledger.take_over(run)

    def _scale(self) -> None:
        """Have rows whose scale is private scaled by what the run has released, or releases here, of their means and deviations."""
        if self.guarantee is None or self.guarantee.scaling is None:
            return
        self.on_event(Phase(self.folder.run, "scaling"))
        affine = released_scaling(self.folder, self.records, self.federation, self.guarantee.scaling, self.epoch, self.noise)
        self.federation = load_data(self.job.data, self.job.seed, affine)

    def _check_kernel(self, kernel: str) -> None:
        """Have a kernel that differs from the oracle on some worker's processor replaced by the oracle on all, and put that on record."""
        difference = self.workers.kernel_difference()
        if difference is not None:
            self.workers.use_kernel(ORACLE)
            self.folder.write("kernel.json", {"kernel": ORACLE, "instead_of": kernel, "difference": repr(difference)})
            self.on_event(KernelReplaced(self.folder.run, kernel, ORACLE, difference))

    def _restore(self) -> ServerState:
        """The state after the last round that counts: the checkpoint, and the releases written since."""
        kept = read_checkpoint(self.folder.checkpoint, self.folder.run, self._checkpoint_mac)
        state, beside = kept or (init(parameters_vector(self.module)), {})
        self.best = BestModel(self.job.rollback, beside) if self.job.rollback is not None else None
        if self.guarantee is None or self.job.privacy is None:
            self.cohorts.go_on_from(beside)
            if self.algorithm.controlled:
                self.controls = ControlVariates(self.folder.path / "controls.db", len(state.weights), state.round)
                self.controls.refuse_others(beside.get("controls"))
            return state
        self.mechanism = build_mechanism(self.guarantee, self.job.privacy.clipping, beside)
        committed = self.records.ledger.releases(self.folder.run)
        if uncharged := set(range(1, state.round + 1)) - committed.keys():
            raise RolledBack(
                f"run {self.folder.run}: round {min(uncharged)} was released and the ledger does not know it: an old ledger was put back",
                run=self.folder.run,
            )
        releases = self.ahead.read(committed)
        while state.round < self.job.rounds and (release := releases.get(state.round + 1)):
            self.records.ledger.commit(self.folder.run, release.round, release.digest, self.epoch)
            state = self._apply(state, Mean(self._mean_update(self.mechanism, release)))
            state, measured, news = self._evaluated(state)
            self._tell(state, measured, news)
        if lost := [number for number in committed if state.round < number <= self.job.rounds]:
            raise CheckpointTampered(
                f"run {self.folder.run}: round {min(lost)} was charged but its record is gone or was altered", run=self.folder.run
            )
        return state

    def _round(self, state: ServerState) -> Evaluated:
        number, phase = state.round + 1, self.profile.phase
        mechanism, controls = self.mechanism, self.controls
        if self.buffered is not None:
            return self._stepped(state, self.buffered.mean(state))
        with phase("sampling"):
            control = state.slot(scaffold.CONTROL).astype(np.float32) if controls is not None else None
            broadcast = Broadcast(number, state.weights, control, mechanism.bound if mechanism else None)
            chunks = [Chunk(clients, controls.of(clients) if controls else None) for clients in self.cohorts.of(broadcast)]
        with phase("ahead"):
            ahead = [Chunk(clients) for clients in self.cohorts.ahead(number + 1)]
        begun = time.perf_counter()
        if self.secure is not None and mechanism is not None:
            return self._opened(state, mechanism, self._secure_release(self.secure, broadcast, chunks))
        if self.secure is not None:
            partial = self._secure_partial(self.secure, broadcast, chunks)
        else:
            partial = self.workers.partial_sum(broadcast, chunks, self.job.cohort.deadline_s, ahead)
        self.profile.workers(begun, partial.seconds)
        if mechanism is None:
            with phase("sampling"):
                self.cohorts.took_part(broadcast, partial, self.on_event, self.folder.run)
            return self._stepped(state, self._mean(number, partial, chunks))
        with phase("noise"):
            total = mechanism.noised(partial.total, self.noise)
        release = Release(self.folder.run, number, self.epoch, total, mechanism.kept(partial.total))
        # While the disk takes the record and the ledger its digest, the next model is computed here; it leaves this process only
        # when both are done.
        charged = self.scribe.submit(self._charge, release)
        try:
            with phase("step"):
                after = self._apply(state, Mean(self._mean_update(mechanism, release)))
            with phase("evaluate"):
                evaluated = self._evaluated(after)
        finally:
            with phase("charge"):
                charged.result()  # whatever became of the sum, nobody hears of it before it is charged
        return evaluated

    def _secure_partial(self, secure: SecureSum, broadcast: Broadcast, chunks: Sequence[Chunk]) -> PartialSum:
        """The sum of a round without privacy; of nobody where it was lost as it was opened."""
        try:
            partial = secure.of_round(broadcast, chunks, self.workers, self.job.cohort.deadline_s)
            self.traffic = carried(broadcast, chunks, partial)
            return partial
        except SumAborted as error:
            self.on_event(SumLost(self.folder.run, broadcast.round, error.message))
            return PartialSum(np.zeros(len(broadcast.weights), dtype=np.int64), 0)

    def _secure_release(self, secure: SecureSum, broadcast: Broadcast, chunks: Sequence[Chunk]) -> Release:
        """The sum that clients added their noise to, charged before any share of it was asked for; empty where it was lost after that."""
        release = Release(self.folder.run, broadcast.round, self.epoch, np.empty(0, dtype=np.int64))

        def charge(session: str) -> None:
            nonlocal release
            release = replace(release, session=session)
            self._charge(release)

        try:
            partial = secure.of_round(broadcast, chunks, self.workers, self.job.cohort.deadline_s, charge)
        except SumAborted as error:
            self.on_event(SumLost(self.folder.run, broadcast.round, error.message))
            return release
        self.traffic = carried(broadcast, chunks, partial)
        release = replace(release, total=np.append(partial.total, partial.weight))
        self.ahead.append(release)
        return release

    def _opened(self, state: ServerState, mechanism: Mechanism, release: Release) -> Evaluated:
        """The end of a round whose release was charged."""
        with self.profile.phase("step"):
            after = self._apply(state, Mean(self._mean_update(mechanism, release)))
        with self.profile.phase("evaluate"):
            return self._evaluated(after)

    def _mean_update(self, mechanism: Mechanism, release: Release) -> np.ndarray:
        """The mean update that a release stands for, [params] float64."""
        mean, rotation = mechanism.mean(release.total, release.kept, self.expected), self.spec.rotation(release.round)
        return mean if rotation is None else rotation.backward(mean)

    def _stepped(self, state: ServerState, mean: Mean) -> Evaluated:
        """The end of a round without privacy."""
        with self.profile.phase("step"):
            after = self._apply(state, mean)
        with self.profile.phase("evaluate"):
            return self._evaluated(after)

    def _evaluated(self, state: ServerState) -> Evaluated:
        """The state to go on from, what the round's own was worth, and what there is to tell of it."""
        measured = self.evaluate_public(state)
        if self.best is None:
            return state, measured, []
        after = self.best.after(state, measured)
        return after, measured, [] if after is state else [WentBack(self.folder.run, state.round, self.best.best_round)]

    def _charge(self, release: Release) -> None:
        """Write a release ahead, then commit its digest."""
        with self.profile.phase("record"):
            self.ahead.append(release)
        with self.profile.phase("ledger"):
            self.records.ledger.commit(self.folder.run, release.round, release.digest, self.epoch)

    def _mean(self, number: int, partial: PartialSum, chunks: list[Chunk]) -> Mean:
        """What a cohort without privacy comes to; its control variates are kept."""
        mean = Mean(from_grid(partial.total, FIXED_STEP, partial.weight or 1))  # an empty cohort has an empty sum
        if self.controls is None:
            return mean
        after = {chunk.name: chunk.controls for chunk in partial.controls}
        change = np.zeros(len(mean.update))
        for chunk in chunks:  # in this order, whoever trained them
            new = after[chunk.name]
            if new is not None and chunk.controls is not None:
                change += (new.astype(np.float64) - chunk.controls).sum(axis=0)
                self.controls.put(number, chunk.clients, new)
        return replace(mean, control=change / len(self.federation.clients))

    def _apply(self, state: ServerState, mean: Mean) -> ServerState:
        """The server's step."""
        after = self.algorithm.server_update(state, mean, self.job.algorithm)
        if not np.isfinite(after.weights).all():
            raise Diverged(f"round {after.round}: the global model is no longer finite; try a smaller learning rate", round=after.round)
        return after

    def _tell(self, state: ServerState, measured: Measured, news: Sequence[Event]) -> None:
        """Keep a round's metrics and tell whoever listens; only what may be shown."""
        accuracy, loss = measured
        guarantee = self.guarantee
        epsilon = guarantee.epsilon(state.round) if guarantee else None
        staleness = self.buffered.staleness if self.buffered is not None else {}
        metrics = {"accuracy": accuracy, "loss": loss, "epsilon": epsilon, "expected_cohort": self.expected, **staleness, **self.traffic}
        # Under privacy how long a round took is nobody's business: its stamp is the run's start plus its number.
        stamp = self.created_ms + state.round if guarantee else time.time_ns() // 1_000_000
        if state.round not in self.measured:
            self.folder.append_metrics(state.round, stamp, {name: value for name, value in metrics.items() if value is not None})
        mean = staleness.get("staleness_mean")
        self.on_event(RoundFinished(self.folder.run, state.round, self.job.rounds, self.expected, accuracy, loss, epsilon, self.left, mean))
        for event in news:
            self.on_event(event)

    def _checkpoint(self, state: ServerState) -> None:
        beside = self.cohorts.arrays() | (self.best.arrays() if self.best is not None else {})
        if self.guarantee is not None:
            self.records.ledger.refuse_superseded(self.folder.run, self.epoch)
            if self.mechanism is not None and state.round < self.job.rounds:  # no exact sum outlives the round that needs it last
                beside |= self.mechanism.arrays()
        if self.controls is not None:
            beside["controls"] = self.controls.write()
        write_checkpoint(self.folder.checkpoint, state, self.folder.run, self._checkpoint_mac, beside)
        if self.controls is not None:
            self.controls.settle()
        self.ahead.forget()

    def _checkpoint_mac(self, message: bytes) -> bytes:
        return self.records.keys.mac("checkpoint", message)
