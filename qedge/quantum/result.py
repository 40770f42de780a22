"""What a quantum job came to: value, error bar, resources, the classical baseline and who won."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from qedge.errors import DataNotFound, InvalidValue
from qedge.quantum.resources import Resources
from qedge.quantum.verdict import Compared, Verdict
from qedge.storage import write_atomically

FORMAT = "qedge-quantum-result-1"


@dataclass(frozen=True)
class Baseline:
    """The classical answer to the same question. how: which method, and with how much tuning; error: one standard deviation."""

    name: str
    value: float
    error: float = 0.0
    how: str = ""


@dataclass(frozen=True)
class Result:
    """The answer of a quantum job.

    kind: vqe, qaoa, qsvm, qnn; quantity: what `value` is, with its unit; error: one standard deviation, 0 where nothing was drawn;
    baseline: what the verdict compares with; others: further classical answers; details: what belongs to the kind, as plain JSON,
    such as `exact`, `history` or `warnings`.
    """

    kind: str
    title: str
    quantity: str
    value: float
    error: float
    baseline: Baseline
    compared: Compared
    resources: Resources
    others: tuple[Baseline, ...] = ()
    details: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Who won."""
        return self.compared.verdict

    def plain(self) -> dict[str, JsonValue]:
        """As `--json` shows it; details at the same level."""
        taken = {name: value for name, value in self.resources.plain().items() if name != "circuits"}
        return {
            "value": self.value,
            "error": self.error,
            "baseline": self.baseline.value,
            "verdict": str(self.verdict),
            **taken,
            **self.details,
        }

    def save(self, path: Path | str) -> None:
        """Write it as JSON, whole or not at all."""
        content = {
            "format": FORMAT,
            **{name: value for name, value in vars(self).items() if isinstance(value, str | float | int)},
            "baseline": vars(self.baseline),
            "compared": {**vars(self.compared), "verdict": str(self.verdict)},
            "resources": self.resources.plain(),
            "others": [vars(one) for one in self.others],
            "details": dict(self.details),
        }
        write_atomically(Path(path), json.dumps(content, indent=1).encode())

    @classmethod
    def load(cls, path: Path | str) -> Result:
        """One that `save` wrote.

        Raises:
            DataNotFound: no such file.
            InvalidValue: a file that is no result.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            compared = content.pop("compared")
            return cls(
                baseline=Baseline(**content.pop("baseline")),
                compared=Compared(**{**compared, "verdict": Verdict(compared["verdict"])}),
                resources=Resources(**content.pop("resources")),
                others=tuple(Baseline(**one) for one in content.pop("others")),
                **content,
            )
        except OSError as error:
            raise DataNotFound(f"no result can be read at {path}: {error.strerror}", given=str(path)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidValue(f"{path} is no result of a quantum job; accepted: what Result.save writes", given=str(path)) from error
