"""Hyperparameter search on Ray Tune: asynchronous successive halving over trials that are whole runs of ours.

Tune decides which trial goes on (ASHA; Li et al., MLSys 2020) and where it runs. What is true of a trial stands in the ledger and in its
run's folder, and nowhere in Tune: a search that was cut off is given to a new Tune, the rounds on record are told to it again without
being trained again, and so it comes to stand where it stood.

A trial is trained in one actor, by the serial backend, on the head node, beside the ledger: small models train fastest so, and trials
beside each other fill the CPUs. An actor is used for one trial after another, as it takes seconds to start.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from actors import environment
from actors.cluster import connect
from actors.coordinator import as_told
from actors.nodes import HEAD, refuse_off_head
from qedge.config import Settings
from qedge.errors import Diverged, QEdgeError, RoundFailed
from qedge.job.search_space import SearchJob
from qedge.runs.paced import PacedRun
from qedge.runs.search import SearchResult, SearchUnderWay, begin, resume
from qedge.search.progress import Progress, TrialEnded, TrialRound

SCRATCH = ".tune-"
_WORST = 1e30  # in place of a metric that is no number: percentiles need one
_TUNE_ENVIRONMENT: dict[str, str | None] = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command line's
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # a trial waits for the verdict on each round
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a user's own modules are found from where the command stands
    "RAY_AIR_NEW_OUTPUT": "0",
}


def search_on_tune(
    asked: SearchJob | None = None,
    *,
    going_on: str | None = None,
    settings: Settings,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> SearchResult:
    """Run a search to its end, or go on with one that was cut off (`going_on`, its id).

    Raises:
        Refused: the search cannot be run as asked; nothing was computed and nothing is held.
        Failed: it was begun and could not be finished; it can be gone on with.
        Tampered: the ledger, a log or a run is not what it was.
    """
    with ExitStack() as undo:
        if settings.address is not None or ray.is_initialized():  # reached before anything is held
            undo.enter_context(connect(settings, start=True))
            refuse_off_head()
        under_way = begin(asked, settings, on_progress) if asked else resume(str(going_on), settings, on_progress)
        undo.enter_context(under_way.alone())
        under_way.hold()
        if any(trial.status in ("planned", "cut off") for trial in under_way.trials()):
            undo.enter_context(connect(settings, start=True))
            compete(under_way, on_progress)
        return under_way.finish()


def compete(under_way: SearchUnderWay, on_progress: Callable[[Progress], None]) -> None:
    """Train the trials that have not ended, all against each other, on the Ray this process is connected to.

    Raises:
        Failed, Tampered: what ended a trial that neither was trained to its end nor diverged; the search can be gone on with.
    """
    search = under_way.asked.search
    referee = _Referee(under_way, on_progress)
    for left_over in under_way.path.glob(f"{SCRATCH}*"):  # by a process that was killed
        shutil.rmtree(left_over)
    with quiet_tune(), tempfile.TemporaryDirectory(dir=under_way.path, prefix=SCRATCH) as scratch:
        trainable = tune.with_parameters(
            TrialActor, settings=under_way.settings.model_dump_json(), runs=under_way.runs, metric=search.metric
        )
        ended = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, HEAD: 0.001}),
            param_space={"trial": tune.grid_search(sorted(under_way.runs))},
            tune_config=tune.TuneConfig(
                metric=search.metric,
                mode="max" if search.metric == "accuracy" else "min",
                scheduler=referee,
                max_concurrent_trials=search.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=scratch, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        ).fit()
    left = [trial for trial in under_way.trials() if trial.status in ("planned", "cut off")]
    if left:
        number = left[0].number
        how = next((type(one.error).__name__ for one in ended if one.error and (one.config or {}).get("trial") == number), "never begun")
        lost = RoundFailed(f"trial {number} of search {under_way.id} was lost (Ray: {how}); the search can be resumed", search=under_way.id)
        raise referee.errors.get(number, lost)


class _Referee(ASHAScheduler):
    """ASHA, whose verdicts are carried out in the ledger at once, while the trial stands still at the end of its round."""

    def __init__(self, under_way: SearchUnderWay, on_progress: Callable[[Progress], None]) -> None:
        search = under_way.asked.search
        most = max(job.rounds for _, job in under_way.jobs)
        super().__init__(time_attr="round", max_t=most, grace_period=search.grace_rounds, reduction_factor=search.reduction)
        self.under_way, self.on_progress = under_way, on_progress
        self.errors: dict[int, QEdgeError] = {}

    def __getstate__(self) -> dict[str, object]:
        """What Tune may write down: nothing of ours, which stands on record elsewhere."""
        return {name: value for name, value in self.__dict__.items() if name not in ("under_way", "on_progress", "errors")}

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: Mapping[str, object]) -> str:
        """See `TrialScheduler.on_trial_result`: of every round but a run's last. What has ended, on record, is not stopped again."""
        number = int(str(trial.config["trial"]))
        self._tell_round(number, result)
        verdict = str(super().on_trial_result(tune_controller, trial, result))
        if verdict == TrialScheduler.STOP:
            try:
                if self.under_way.trial(number).status == "cut off":
                    self.under_way.stop(number)
            except QEdgeError as error:
                self.errors[number] = error
            self._tell_end(number)
        return verdict

    def on_trial_complete(self, tune_controller: object, trial: TuneTrial, result: Mapping[str, object]) -> None:
        """See `TrialScheduler.on_trial_complete`: with a run's last round, or the one after which it was stopped."""
        super().on_trial_complete(tune_controller, trial, result)
        if result.get("over"):
            number, error = int(str(trial.config["trial"])), result.get("error")
            if isinstance(error, QEdgeError):
                self.errors[number] = error
            self._tell_round(number, result)
            self._tell_end(number)

    def _tell_round(self, number: int, result: Mapping[str, object]) -> None:
        value = float(str(result[self.under_way.asked.search.metric]))
        shown = None if abs(value) == _WORST else value
        rounds = self.under_way.jobs[number - 1][1].rounds
        self.on_progress(TrialRound(number, int(str(result["round"])), rounds, shown, result["known"] is True))

    def _tell_end(self, number: int) -> None:
        self.on_progress(TrialEnded(number, self.under_way.trial(number).status))


class TrialActor(tune.Trainable):
    """A `PacedRun` on some worker: one step is one round."""

    def setup(self, config: dict, settings: str, runs: Mapping[int, str], metric: str) -> None:
        """Begin, or go on with, the run of the trial that `config` names. runs: the run of each trial."""
        self.settings, self.runs, self.metric = Settings.model_validate_json(settings), runs, metric
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        """Let the trial before go as it stands, and take up another."""
        self.cleanup()
        self.run = PacedRun(self.runs[new_config["trial"]], self.settings)
        self.round, self.value = 0, _WORST
        return True

    def step(self) -> dict:
        """The next round: its number, its metric, whether it was known, whether the run is over, and what ended it if that was not the
        end of its rounds."""
        known, error = self.run.knows_next, None
        try:
            told = self.run.next()
        except Diverged:
            told = None  # on record as failed; the worst there is
            self.value = _WORST
        except Exception as raised:  # noqa: BLE001 - the edge of the process: a model may raise anything
            told, error = None, as_told(raised, self.run.run, private=self.run.private)
        if told is not None:
            self.round, self.value = told[0], _finite(told[1].get(self.metric))
        over = error is not None or self.run.ended
        signed = self.value if self.value != _WORST or self.metric == "loss" else -_WORST
        return {"round": self.round, self.metric: signed, "known": known, "over": over, "error": error, "done": over}

    def cleanup(self) -> None:
        """See `tune.Trainable.cleanup`: the run stays as it is on disk."""
        if hasattr(self, "run"):
            self.run.abandon()


def _finite(value: float | None) -> float:
    return value if value is not None and abs(value) < _WORST else _WORST


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Tune without its own logs, terminal and signal handlers."""
    before = environment.put_environment(_TUNE_ENVIRONMENT)
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("ray.tune", "ray.air"))}
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what ended a trial is told by our own errors: a traceback may hold values of private rows
    try:
        yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
        environment.put_environment(before)
