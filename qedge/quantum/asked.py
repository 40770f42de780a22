"""What every quantum job shares: it says itself what is wrong with it, and is read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ModelWrapValidatorHandler, ValidationError, model_validator

from qedge.errors import InvalidJob
from qedge.job.explanation import explain
from qedge.job.part import Part
from qedge.yaml_mapping import read_mapping


class Asked(Part):
    """A part of a quantum job that says itself what is wrong with it, wherever it is made."""

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, given: object, handler: ModelWrapValidatorHandler[Asked]) -> Asked:
        try:
            return handler(given)
        except ValidationError as error:
            if not isinstance(given, Mapping):  # not a part at all: whoever reads the whole job says so
                raise
            raise explain(error, cls, cls.__name__.lower(), ()) from None


class QuantumJob(Asked):
    """A whole one. FILES: keys whose value may be the name of a file, with a dot in it."""

    FILES: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """A job from a YAML file.

        Raises:
            InvalidJob: the file is missing, is not YAML, or is no such job. UnknownKey: a key that there is not.
        """
        return cls(**cls.read(path))

    @classmethod
    def read(cls, path: Path | str) -> dict[str, object]:
        """What a YAML file gives, not looked at; relative names of files are taken from where it lies."""
        path = Path(path)
        given = read_mapping(path, "job file", list(cls.model_fields), InvalidJob)
        return {str(key): _found(value, path.parent) if key in cls.FILES else value for key, value in given.items()}


def _found(value: object, folder: Path) -> object:
    return str((folder / Path(value).expanduser()).resolve()) if isinstance(value, str) and Path(value).suffix else value
