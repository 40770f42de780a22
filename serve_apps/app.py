"""The one place that names deployments: what runs on Ray Serve, and how a model gets there.

One application with one deployment answers for every model. Deploying changes its user configuration, so the replica stays
up, loads the new model beside the old and swaps them between two requests. The model is verified twice: here, before
anything is touched, and in the replica, on the bytes that it loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    pass

APPLICATION = "qedge"


class Config(TypedDict):
    """The deployment's user configuration: JSON values, kept by Serve's controller across replica restarts."""

    generation: str
    url: str
    models: list[dict[str, str | None]]
    max_body_bytes: int
    max_batch_rows: int
