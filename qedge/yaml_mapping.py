"""A YAML file that must be a mapping. Refuses what YAML passes over in silence: a key given twice, of which the last would win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qedge.errors import QEdgeError


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' is given twice", node.value[at][0].start_mark)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str, keys: list[str], refusal: type[QEdgeError]) -> dict[str, Any]:
    """The mapping in the file at `path`; an empty file is an empty mapping. `what` and `keys` are for the message.

    Raises:
        refusal: the file cannot be read, is not YAML, gives a key twice, or is not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise refusal(f"{what} {path} cannot be read: {error.strerror}", path=str(path)) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a date that is none
        raise refusal(f"{what} {path} is not YAML: {error}", path=str(path)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise refusal(f"{what} {path} must be a mapping with the keys {', '.join(keys)}", path=str(path))
    return values
