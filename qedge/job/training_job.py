"""One federated training job, checked whole before anything is computed.

A job is YAML or Python with the same names. Unknown keys are refused with the nearest known name; names the field knows
and this version does not carry out are refused as `NotInThisVersion`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from qedge.errors import InvalidJob, PrivacyError
from qedge.job.algorithm import Algorithm
from qedge.job.cohort import INFORMED, Cohort
from qedge.job.data import BUILT_IN, Data
from qedge.job.explanation import explain
from qedge.job.model import Model
from qedge.job.part import NOW, Part, known
from qedge.job.personalisation import Personalisation
from qedge.job.privacy import Noise, Privacy
from qedge.job.rollback import Rollback
from qedge.job.secure_aggregation import SecureAggregation
from qedge.yaml_mapping import read_mapping

PRIVACY_PARAMETERS = {
    "privacy.epsilon",
    "privacy.delta",
    "privacy.clipping.bound",
    "privacy.clipping.quantile",
    "privacy.rate",
    "cohort.rate",
}


class TrainingJob(Part):
    """One federated training job. `privacy` has no default: a run without it must say `none`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the run and of the model")
    data: Data
    model: Model
    algorithm: Algorithm = Algorithm()
    aggregation: str = "mean"
    cohort: Cohort
    privacy: Privacy | None
    secure_aggregation: SecureAggregation | None = None
    personalisation: Personalisation | None = None
    rollback: Rollback | None = None
    rounds: int = Field(ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, lt=2**63, description="initial weights and synthetic partition; never cohorts or noise")

    def __init__(self, **given: object) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise explain(error, TrainingJob, "job", PRIVACY_PARAMETERS) from None

    @field_validator("aggregation")
    @classmethod
    def _aggregation(cls, value: str) -> str:
        return known("aggregation", value)

    @field_validator("privacy", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        if value is None:  # an empty `privacy:` in YAML is a slip, never a decision to train without
            raise InvalidJob("'privacy' is empty; write 'privacy: none' for a run without privacy", missing="privacy")
        return None if value == "none" else value

    @model_validator(mode="after")
    def _fits(self) -> TrainingJob:
        if self.data.evaluation is not None and self.data.test is None:
            raise InvalidJob("data: 'evaluation' needs 'test', a share of each client's rows or a file of public rows")
        if self.data.evaluation == "charged" and self.privacy is None:
            raise InvalidJob("data: 'evaluation: charged' spends a privacy budget, and this job has 'privacy: none'; leave it out")
        if self.privacy is not None and self.privacy.clipping.quantile is not None and self.cohort.period is not None:
            raise PrivacyError(
                "privacy.clipping: a bound that follows a 'quantile' changes the grid, and cyclic sampling mixes rounds on one grid; "
                "accepted: a fixed bound, or another sampling"
            )
        if self.data.scale == "private" and self.privacy is None:
            raise InvalidJob("data: 'scale: private' spends a privacy budget, and this job has 'privacy: none'; accepted: given, local")
        if self.rollback is not None and not self.evaluated_each_round:
            raise InvalidJob("rollback: needs rows that every round is evaluated on; accepted: 'data.test' and, under privacy, public ones")
        if self.personalisation is not None:
            self._check_personalisation(self.personalisation)
        if self.cohort.informed and self.privacy is not None:
            raise PrivacyError(
                f"cohort: '{self.cohort.sampling}' draws clients by what is known of each, and no accounting covers that; "
                f"accepted under privacy: {', '.join(sorted(NOW['cohort.sampling'] - INFORMED.keys()))}; or 'privacy: none'",
                given=self.cohort.sampling,
            )
        self._check_noise()
        if self.secure_aggregation is not None:
            self._check_secure(self.secure_aggregation)
        if self.algorithm.buffer is not None:
            self._check_buffer(self.algorithm.buffer)
        if self.privacy is not None and self.privacy.unit == "example":
            self._check_examples()
        if self.algorithm.layers == "body" and self.privacy is not None:
            raise PrivacyError(
                "algorithm: 'layers: body' leaves the head as it is, and noise would move it; accepted: 'layers: all', or 'privacy: none'"
            )
        if self.algorithm.layers == "body" and self.model.kind == "linear":
            raise InvalidJob(
                "algorithm: 'layers: body' trains all but the last layer, and a linear model has no other; accepted: an mlp, a cnn"
            )
        if self.algorithm.kind == "scaffold" and self.privacy is not None:
            raise PrivacyError(
                "algorithm: 'scaffold' has no bound under privacy: a client would give its control variate beside its update, unclipped; "
                "accepted: another algorithm, or 'privacy: none'"
            )
        return self

    @property
    def noise(self) -> Noise:
        """Who adds the noise of a run under privacy: central, or each client its share of discrete-gaussian or skellam noise."""
        given = self.privacy.noise if self.privacy is not None else None
        return given or ("central" if self.secure_aggregation is None else "discrete-gaussian")

    def _check_noise(self) -> None:
        if self.noise == "central" and self.secure_aggregation is not None:
            raise PrivacyError(
                "privacy.noise: 'central' noise is added by the coordinator, which secure aggregation does not trust with a sum; accepted: "
                "discrete-gaussian, skellam, or no 'secure_aggregation'",
                given="central",
            )
        if self.noise != "central" and self.secure_aggregation is None:
            raise PrivacyError(
                f"privacy.noise: each client's share of '{self.noise}' noise protects it in a sum alone; accepted: 'secure_aggregation' "
                "with it, or 'noise: central'",
                given=self.noise,
            )

    def _check_secure(self, secure: SecureAggregation) -> None:
        """Refuse what would have to see a single client's update, or more than sums."""
        cohort, held_out = self.cohort, isinstance(self.data.test, float) and self.data.evaluation != "public"
        refused = (
            (self.algorithm.kind == "scaffold", "algorithm: 'scaffold' gives control variates beside an update"),
            (self.algorithm.buffer is not None, "algorithm: 'fedbuff' has no cohort that could be summed"),
            (cohort.follows_the_weights or cohort.sampling == "oort", f"cohort: '{cohort.sampling}' draws by clients' losses"),
            (cohort.sampling == "poisson", "cohort: 'poisson' may draw too few to hide anybody; accepted: 'uniform', with 'size'"),
            (
                cohort.period is not None and self.privacy is not None,
                "cohort: 'cyclic' noise spans rounds; accepted: 'uniform'",
            ),
            (self.privacy is not None and self.privacy.unit == "example", "privacy.unit: 'example' noise is in each update as it leaves"),
            (self.personalisation is not None, "personalisation: is measured client by client"),
            (self.data.scale == "private", "data: the noise on 'scale: private' is the coordinator's; accepted: given, local, none"),
            (held_out, "data: held-out rows are evaluated outside of sums; accepted: 'evaluation: public', or a file of public rows"),
        )
        for holds, reason in refused:
            if holds:
                raise PrivacyError(f"secure_aggregation is refused here: {reason}")
        if self.cohort.size is not None:
            secure.groups(self.cohort.size)

    def _check_buffer(self, buffer: int) -> None:
        if self.privacy is not None:
            raise PrivacyError(
                "algorithm: 'fedbuff' is refused under privacy until it has its own accounting: who is in a step follows how long each "
                f"client takes; accepted: {', '.join(sorted(NOW['algorithm.kind'] - {'fedbuff', 'scaffold'}))}; or 'privacy: none'"
            )
        if self.cohort.size is None or self.cohort.sampling != "uniform":
            raise InvalidJob(
                f"cohort: 'fedbuff' draws whoever is free, not by '{self.cohort.sampling}'; accepted: 'sampling: uniform', with 'size', "
                "the clients that train at once",
                given=self.cohort.sampling,
            )
        if buffer > self.cohort.size:
            raise InvalidJob(f"algorithm.buffer is {buffer}; accepted: at most 'cohort.size', {self.cohort.size}", given=buffer)

    def _check_examples(self) -> None:
        """What has no bound, or no meaning, when each row is protected by itself."""
        if self.data.scale not in ("none", "given"):
            raise PrivacyError(
                f"data: 'scale: {self.data.scale}' lets one row move all others of its client, and 'unit: example' bounds each by itself; "
                "accepted: 'scale: given' with public ranges, or 'none'"
            )
        if self.privacy is not None and self.privacy.noise is not None:
            raise PrivacyError(
                f"privacy.noise: '{self.privacy.noise}' is added to sums of clients, and with 'unit: example' each client adds noise at "
                "each of its steps; leave it out",
                given=self.privacy.noise,
            )
        if self.algorithm.loop is not None:
            raise PrivacyError("algorithm: a loop of your own clips no single examples; accepted with 'unit: example': no 'loop'")
        if self.data.test is not None and not self.evaluated_each_round:
            raise PrivacyError(
                "data: an evaluation by noisy counts is accounted for whole clients only; accepted with 'unit: example': "
                "'evaluation: public' where held-out rows may be declared so, a file of public rows as 'test', or no 'test'"
            )
        for key in ("local_epochs", "batch_size", "shuffle", "max_rows", "max_steps"):
            if getattr(self.algorithm, key) != Algorithm.model_fields[key].default:
                raise InvalidJob(
                    f"algorithm: with 'unit: example' batches are drawn by privacy.rate, privacy.steps times; leave out '{key}'"
                )

    @property
    def evaluated_each_round(self) -> bool:
        """Whether there are rows that may be looked at after every round: nobody's secret, or declared public."""
        public = self.privacy is None or self.data.evaluation == "public" or isinstance(self.data.test, str)
        return self.data.test is not None and public

    def _check_personalisation(self, personalisation: Personalisation) -> None:
        if not isinstance(self.data.test, float):
            raise InvalidJob("personalisation: is measured on rows that clients hold out; accepted: 'data.test' as a share")
        if self.privacy is not None:
            raise PrivacyError(
                "personalisation: how well a client's own model does tells of the rows that it trained on by itself, which nothing covers, "
                "whatever it is measured on; accepted: 'privacy: none'"
            )
        if self.algorithm.loop is not None:
            raise InvalidJob("personalisation: trains by SGD, and the job has a loop of its own; leave one of them out")

    @classmethod
    def parse(cls, given: object) -> TrainingJob:
        """A job from plain values.

        Raises:
            InvalidJob: and its kinds, when a value is missing or out of range; InvalidPrivacy for the privacy parameters.
        """
        if not isinstance(given, Mapping):
            raise InvalidJob(f"a job must be a mapping with the keys {', '.join(cls.model_fields)}; given: {given!r}")
        return cls(**{str(key): value for key, value in given.items()})

    @classmethod
    def load(cls, path: str | Path) -> TrainingJob:
        """A job from a YAML file; a relative `source`, `test` or `facts` is taken from where the file lies.

        Raises:
            InvalidJob: the file is missing, is not YAML, or is not a job.
        """
        path = Path(path)
        given = read_mapping(path, "job file", list(cls.model_fields), InvalidJob)
        for part, keys in (("data", ("source", "test")), ("cohort", ("facts",))):
            values = given.get(part)
            if not isinstance(values, dict):
                continue
            for key in keys:
                value = values.get(key)
                if isinstance(value, str) and value and value not in BUILT_IN:
                    values[key] = str((path.parent / Path(value).expanduser()).resolve())
        return cls.parse(given)

    def plain(self) -> dict[str, JsonValue]:
        """The job as JSON values that `parse` reads back equal."""
        values: dict[str, JsonValue] = self.model_dump(mode="json")
        return values | {"privacy": values["privacy"] or "none"}
