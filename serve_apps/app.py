"""The one place that names deployments: what runs on Ray Serve, and how a model gets there.

One application with one deployment answers for every model. Deploying changes its user configuration, so the replica stays
up, loads the new model beside the old and swaps them between two requests. The model is verified twice: here, before
anything is touched, and in the replica, on the very bytes that it loads.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from actors.cluster import connected_head, note_endpoint, serve_starting, serve_url
from actors.serving import quiet, start_serve
from qedge import __version__
from qedge.config import Settings
from qedge.errors import Failed, QEdgeError, UnknownModel, nearest
from qedge.ports import refuse_taken_port
from qedge.sdk import Client
from qedge.security.keys import Keys, public_text
from serve_apps.inference import InferenceServer
from serve_apps.model_folder import ModelFolder
from serve_apps.onnx_model import OnnxModel

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from qedge.edge.engine import EdgeEngine
    from qedge.quantum.execution import Executor

APPLICATION = "qedge"
DEPLOYMENT = "InferenceDeployment"
_ANSWER_TIMEOUT_S = 60.0
_CIRCUITS_TIMEOUT_S = 300.0
_REQUESTS_AT_ONCE = 256


class Plan(BaseModel):
    """The deployment's user configuration: plain values that Serve's controller keeps across replica restarts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generation: str
    url: str
    models: dict[str, ModelFolder]
    max_body_bytes: int
    max_batch_rows: int
    edge_bytes: int
    covered_only: bool
    home: str


@dataclass(frozen=True)
class State:
    """What a replica says of itself: the plan it follows, and what it could not load."""

    plan: Plan
    failures: dict[str, QEdgeError]


class Inference:
    """An `InferenceServer` behind HTTP, following the plan it is given."""

    def __init__(self) -> None:
        from actors.metrics import record

        self._server = InferenceServer(record=record, make_executor=_circuits, make_engine=self._engine)
        self._plan: Plan | None = None

    async def reconfigure(self, config: dict[str, object]) -> None:
        """Follow a new plan. Never raises for a model: Serve would take the whole replica down for it."""
        plan = Plan.model_validate(config)
        self._server.max_body_bytes, self._server.max_batch_rows = plan.max_body_bytes, plan.max_batch_rows
        self._edge = (plan.edge_bytes, Path(plan.home), plan.covered_only)
        await asyncio.to_thread(self._server.serve, plan.models.values())
        self._plan = plan

    def _engine(self) -> EdgeEngine:
        """For all ladders of this replica, from the first on; a budget that is changed holds for replicas that start later."""
        from actors.metrics import record
        from qedge.edge.engine import EdgeEngine

        budget, home, covered_only = self._edge
        return EdgeEngine(budget, home=home, record=record, covered_only=covered_only)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from serve_apps import open_inference

        return open_inference.build(self._server)

    async def state(self) -> State:
        """What is served and what could not be."""
        if self._plan is None:
            raise Failed("the replica has no plan yet")
        return State(self._plan, self._server.failures)


def _circuits(workers: int) -> Executor:
    """Quantum workers beside the replica."""
    import torch

    from actors.quantum_executor import RayExecutor

    torch.set_num_threads(1)  # in the replica, beside whatever else runs on its node
    return RayExecutor(None, workers=workers, deadline_s=_CIRCUITS_TIMEOUT_S)


def build(plan: Plan, replicas: int) -> Application:
    """The application that follows `plan`.

    The replica takes no logical CPU: training actors may hold all of them, and answering must not wait for a round to end.
    Serve gives every run a new version, and a new version restarts replicas; ours names the code alone.
    """
    from ray import serve

    deployment = serve.deployment(
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_REQUESTS_AT_ONCE,
        health_check_period_s=5,
    )(serve.ingress()(Inference))
    return deployment.options(num_replicas=replicas, user_config=plan.model_dump(mode="json"), version=__version__, _internal=True).bind()


def deploy(settings: Settings, model: ModelFolder) -> str:
    """Serve a version of a model, in place of another of the same name; the URL of the endpoint. Ray must be connected.

    Without a pinned key the home's own is used, if it has one. An endpoint that serves models stays where it listens; one
    that serves none moves to where the settings say.

    Raises:
        UnknownModel, ReceiptTampered, ArtifactTampered, ModelError: the model does not hold; whatever was served still is.
        PortInUse: the endpoint is not up yet and its port is taken.
        Failed: the endpoint did not answer in a minute.
    """
    model = replace(model, folder=str(Path(model.folder).resolve()), key=model.key or _own_key(settings))
    refuse_unfit(model, settings)
    with serve_starting(settings):
        before = _endpoint(settings)
        plan = before.model_copy(update=_limits(settings) | {"models": before.models | {model.name: model}})
        _follow(plan, settings)
        error = _await_plan(plan, settings).get(model.name)
        if error is not None:
            _follow(before, settings)
            raise error
        _await_answer(plan.url, model)
        return plan.url


def refuse_unfit(model: ModelFolder, settings: Settings) -> None:
    """Refuse a model that does not hold, before anything is touched. A ladder is measured for this, if this machine's was not yet."""
    if model.edge is not None:
        from serve_apps.edge_model import refuse_rungs

        refuse_rungs(model, settings.home, settings.edge)
        return
    if model.quantum is None:
        OnnxModel.load(model)
        return
    from serve_apps.quantum import refuse_backend

    refuse_backend(model)


def undeploy(settings: Settings, name: str) -> None:
    """Stop serving a model. The endpoint stays, for the others.

    Raises:
        UnknownModel: it is not served.
    """
    with serve_starting(settings):
        before = running()
        models = dict(before.models) if before else {}
        if before is None or models.pop(name, None) is None:
            raise UnknownModel(f"no model '{name}' is served; {nearest(name, models) if models else 'none is'}", model=name)
        plan = before.model_copy(update={"models": models})
        _follow(plan, settings)
        _await_plan(plan, settings)


def running() -> Plan | None:
    """The plan being followed, or None when nothing was deployed on this cluster."""
    from ray import serve

    if APPLICATION not in serve.status().applications:
        return None
    state: State = serve.get_app_handle(APPLICATION).state.remote().result(timeout_s=_ANSWER_TIMEOUT_S)
    return state.plan


def _limits(settings: Settings) -> dict[str, object]:
    return {
        "generation": secrets.token_hex(8),
        "max_body_bytes": settings.serve.max_body_bytes,
        "max_batch_rows": settings.serve.max_batch_rows,
        "edge_bytes": settings.edge.replica_bytes,
        "covered_only": settings.edge.covered_only,
        "home": str(settings.home),
    }


def _endpoint(settings: Settings) -> Plan:
    """The plan being followed, or an empty one on an endpoint that has just been brought up where the settings say."""
    from ray import serve

    plan, wanted = running(), serve_url(settings)
    if plan is not None and plan.models:
        return plan
    record = connected_head(settings)
    url = plan.url if plan else record.serve_url if record else None
    if url != wanted:
        if serve.status().applications.keys() <= {APPLICATION}:
            refuse_taken_port(settings.serve.host, settings.serve.port)
            serve.shutdown()
        start_serve(settings)
        note_endpoint(settings, wanted)
    return Plan.model_validate(_limits(settings) | {"url": wanted, "models": {}})


def _own_key(settings: Settings) -> str | None:
    signing = settings.home / "keys" / "signing.ed25519"
    return public_text(Keys.open(settings.home).public) if signing.exists() else None


def _follow(plan: Plan, settings: Settings) -> None:
    from ray import serve

    serve.run(build(plan, settings.serve.replicas), name=APPLICATION, logging_config=quiet())


def _await_plan(plan: Plan, settings: Settings) -> dict[str, QEdgeError]:
    """Wait until every replica follows `plan`; what any of them could not load, by name."""
    from ray import serve

    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    while True:
        states: list[State] = serve.get_app_handle(APPLICATION).broadcast("state").results(timeout_s=_ANSWER_TIMEOUT_S)
        if len(states) >= settings.serve.replicas and all(state.plan.generation == plan.generation for state in states):
            return {name: error for state in states for name, error in state.failures.items()}
        if time.monotonic() > deadline:
            raise Failed(f"the replicas did not take up their new plan in {_ANSWER_TIMEOUT_S:g} s")
        time.sleep(0.05)


def _await_answer(url: str, model: ModelFolder) -> None:
    """Wait until the ingress, which learns of replicas a moment later, answers for this version."""
    deadline = time.monotonic() + _ANSWER_TIMEOUT_S
    with Client(url, timeout_s=5.0) as client:
        while not client.ready(model.name, model.version):
            if time.monotonic() > deadline:
                raise Failed(f"{url} did not answer for {model.name} in {_ANSWER_TIMEOUT_S:g} s", url=url)
            time.sleep(0.05)
