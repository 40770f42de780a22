"""An edge search on Ray Tune: trials train beside each other, and those that lag are ended by asynchronous successive halving.

Tune decides which trial goes on and where. By accuracy alone it would end every small network, so what trials are compared by is how many
others beat them in accuracy, latency and size at once; who is beaten by none goes on. How a trial ended stands in its folder and nowhere in
Tune: a search that was cut off goes on with the trials that had not ended, from their beginning.

Sources: Li et al., MLSys 2020 (ASHA); Schmucker et al., "Multi-objective asynchronous successive halving", 2021; Fonseca and Fleming, ICGA
1993 (ranking by how many beat one).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from actors.cluster import connect
from actors.nodes import HEAD, refuse_off_head
from actors.tuning import SCRATCH, quiet_tune
from qedge.config import Settings
from qedge.edge.search.job import EdgeSearch
from qedge.edge.search.trial import Limits, Outcome, Parts, Trial
from qedge.errors import QEdgeError
from qedge.runs.edge_search import EdgeSearchResult, EdgeSearchUnderWay, begin, resume
from qedge.search.space import shown

Told = Callable[[str], None]


def edge_search(
    asked: EdgeSearch | None = None,
    limits: Limits | None = None,
    *,
    going_on: str | None = None,
    settings: Settings,
    told: Told = lambda _: None,
) -> EdgeSearchResult:
    """Carry out an edge search, or go on with one that was cut off (`going_on`, its id). told: a line now and then.

    Raises:
        Refused: it cannot be carried out as asked, before anything is computed; or no trial is within the limits, at the end.
        Failed: no trial went to its end; it can be gone on with.
    """
    under_way = begin(asked, limits or Limits(), settings) if asked else resume(str(going_on), settings)
    told(f"search {under_way.id}: {under_way.asked.trials} trials of at most {under_way.asked.steps} steps")
    left = under_way.left()
    if left:
        with connect(settings, start=True):
            refuse_off_head()
            compete(under_way, left, told)
    return under_way.finish(told)


def compete(under_way: EdgeSearchUnderWay, trials: list[int], told: Told) -> None:
    """Carry out these trials, all against each other, on the Ray that this process is connected to."""
    asked = under_way.asked
    for left_over in under_way.path.glob(f"{SCRATCH}*"):  # by a process that was killed
        shutil.rmtree(left_over)
    with quiet_tune(), tempfile.TemporaryDirectory(dir=under_way.path, prefix=SCRATCH) as scratch:
        trainable = tune.with_parameters(EdgeTrialActor, settings=under_way.settings.model_dump_json(), search=under_way.id)
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1, HEAD: 0.001}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(
                metric="unbeaten",
                mode="max",
                scheduler=_Referee(under_way, told),
                max_concurrent_trials=asked.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=scratch, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        ).fit()


class _Referee(ASHAScheduler):
    """ASHA, whose verdicts are put on record at once."""

    def __init__(self, under_way: EdgeSearchUnderWay, told: Told) -> None:
        super().__init__(time_attr="check", max_t=under_way.asked.checks, grace_period=1, reduction_factor=under_way.asked.reduction)
        self.under_way, self.told = under_way, told
        self.at_check: dict[int, dict[int, tuple[float, ...]]] = {}
        self.said: set[int] = set()

    def __getstate__(self) -> dict[str, object]:
        """What Tune may write down: nothing of ours, which stands on record elsewhere."""
        return {name: value for name, value in self.__dict__.items() if name not in ("under_way", "told", "at_check", "said")}

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: Mapping[str, object]) -> str:
        """See `TrialScheduler.on_trial_result`."""
        verdict = str(super().on_trial_result(tune_controller, trial, self._ranked(trial, result)))
        if verdict == TrialScheduler.STOP:
            number, found = int(str(trial.config["trial"])), result["outcome"]
            assert isinstance(found, Outcome)
            found.write(self.under_way.folder(number))
            self._tell(number)
        return verdict

    def on_trial_complete(self, tune_controller: object, trial: TuneTrial, result: Mapping[str, object]) -> None:
        """See `TrialScheduler.on_trial_complete`."""
        if result.get("check"):
            super().on_trial_complete(tune_controller, trial, self._ranked(trial, result))
        self._tell(int(str(trial.config["trial"])))

    def _ranked(self, trial: TuneTrial, result: Mapping[str, object]) -> dict[str, object]:
        """The result with the share of those that came as far, and that do not beat this trial in all that counts."""
        found, reached = result["outcome"], self.at_check.setdefault(int(str(result["check"])), {})
        if not isinstance(found, Outcome):
            return {**result, "unbeaten": 0.0}
        number = int(str(trial.config["trial"]))
        mine = reached[number] = (-float(str(result["accuracy"])), found.p50_ms or 0.0, float(found.file_bytes or 0))
        beaten_by = sum(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in reached.values())
        return {**result, "unbeaten": 1 - beaten_by / len(reached)}

    def _tell(self, number: int) -> None:
        found = self.under_way.outcome(number)
        if found is not None and number not in self.said:
            self.said.add(number)
            accuracy = "" if found.accuracy is None else f", accuracy {found.accuracy:.4f}"
            self.told(f"trial {number} ({shown(found.values)}): {found.ended}{accuracy}")


class EdgeTrialActor(tune.Trainable):
    """Trials on some worker of the head's node, one after another: one step is as far as the next comparison."""

    def setup(self, config: dict, settings: str, search: str) -> None:
        """Read the rows, and begin the trial that `config` names."""
        torch.set_num_threads(1)
        self.under_way = resume(search, Settings.model_validate_json(settings))
        asked = self.under_way.asked
        self.parts = Parts.of(self.under_way.table(), asked.seed)
        self.reset_config(config)

    def reset_config(self, new_config: dict) -> bool:
        """Take up another trial."""
        self.number = int(new_config["trial"])
        self.folder: Path = self.under_way.folder(self.number)
        shutil.rmtree(self.folder, ignore_errors=True)  # of an attempt that was cut off
        self.folder.mkdir(mode=0o700, parents=True)
        self.trial: Trial | None = None
        self.taken: tuple[float, int] = (0.0, 0)
        self.check = 0
        return True

    def step(self) -> dict:
        """On to the next comparison. A trial that is over the limits is not trained; one that fails is on record as failed."""
        self.check += 1
        try:
            accuracy, over = self._advance()
        except Exception as error:  # noqa: BLE001 - the edge of the process: one trial's failure is not the search's
            said = error.message if isinstance(error, QEdgeError) else f"{type(error).__name__}: {error}"
            values = self.under_way.asked.points()[self.number - 1]
            Outcome(self.number, values, "failed", 0, None, None, None, said).write(self.folder)
            return {"check": self.check, "accuracy": 0.0, "unbeaten": 0.0, "outcome": None, "done": True}
        assert self.trial is not None
        so_far = self.trial.outcome("stopped", accuracy, self.taken)
        return {"check": self.check, "accuracy": accuracy, "unbeaten": 0.0, "outcome": so_far, "done": over}

    def _advance(self) -> tuple[float, bool]:
        """The accuracy, and whether the trial is over."""
        if self.trial is None:
            self.trial = Trial(self.under_way.asked, self.number, self.parts, self.folder)
            self.taken = self.trial.cost()
            reason = self.under_way.limits.against(*self.taken)
            if reason:
                self.trial.outcome("over the limits", None, self.taken, reason).write(self.folder)
                return 0.0, True
        accuracy = self.trial.advance()
        if self.trial.over:
            self.trial.outcome("to its end", accuracy, self.taken).write(self.folder)
        return accuracy, self.trial.over
