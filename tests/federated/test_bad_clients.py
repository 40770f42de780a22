"""Clients whose training raises, and processors on which a kernel is wrong: named, left out, replaced; the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file

from qedge import train
from qedge.config import Settings
from qedge.data.federation import load
from qedge.errors import RoundFailed
from qedge.federated.events import ClientsFailed, Event, KernelReplaced
from qedge.federated.selection.roster import QUARANTINED_AFTER
from qedge.job import TrainingJob
from qedge.kernels import stacked
from qedge.kernels.batches import ClientBatches, LocalSGD
from qedge.kernels.sequential import SequentialKernel
from qedge.models import build, parameters_vector

Make = Callable[..., TrainingJob]
PLAIN = {"privacy": "none", "cohort": {"sampling": "uniform", "size": 30, "rate": None}}


def _loop(most: int) -> dict[str, object]:
    return {"loop": "tests.federated.own_code:picky", "options": {"most": most}, "kernel": "auto"}


def _told(job: TrainingJob, settings: Settings, kind: type, **how) -> tuple[list, object]:
    told: list[Event] = []
    result = train(job, backend="serial", settings=settings, on_event=told.append, **how)
    return [event for event in told if isinstance(event, kind)], result


def test_a_client_that_raises_is_named_left_out_and_drawn_no_more_after_three_rounds(settings: Settings, make_job: Make):
    told, result = _told(make_job(**PLAIN, algorithm=_loop(6), rounds=6), settings, ClientsFailed)
    assert [event.round for event in told] == [1, 2, 3]
    assert len({tuple(event.reasons) for event in told}) == 1
    assert all("too many" in reason for reason in told[0].reasons.values())
    assert not told[0].quarantined
    assert set(told[-1].quarantined) == set(told[0].reasons)
    assert result.rounds == 6
    assert QUARANTINED_AFTER == 3


def test_leaving_out_clients_that_raise_equals_a_federation_in_which_they_count_nothing(settings: Settings, make_job: Make):
    """The rest of the cohort trains and is averaged as if those that raised had not been drawn."""
    job = make_job(**PLAIN, algorithm=_loop(6), rounds=1)
    told, result = _told(job, settings, ClientsFailed)
    federation = load(job.data, job.seed)
    module = build(job.model, len(federation.schema.features), len(federation.schema.labels), job.seed)
    weights = parameters_vector(module)
    total, rows = np.zeros(len(weights)), 0
    for client in range(len(federation.clients)):
        features, labels = federation.train.of(client)
        if 0 < len(labels) <= 6:
            batch = ClientBatches(features, labels, np.arange(len(labels))[None])
            total += len(labels) * SequentialKernel(module, LocalSGD(0.1)).updates(weights, [batch]).values[0].astype(np.float64)
            rows += len(labels)
    ours = load_file(settings.home / "runs" / result.run_id / "model" / "weights.safetensors")
    ours = np.concatenate([ours[name].ravel() for name, _ in module.named_parameters()])
    np.testing.assert_allclose(ours, weights + total / rows, atol=1e-6)
    assert told


def test_a_round_in_which_everybody_raises_ends_the_run_by_name(settings: Settings, make_job: Make):
    with pytest.raises(RoundFailed, match=r"all \d+ clients that hold rows failed; client 'client-\d+': .*too many"):
        train(make_job(**PLAIN, algorithm=_loop(0), rounds=2), backend="serial", settings=settings)


def test_quarantine_survives_a_crash(settings: Settings, make_job: Make):
    class Cut(Exception):
        pass

    def cut(event: Event) -> None:
        if isinstance(event, ClientsFailed) and event.quarantined:
            raise Cut

    job = make_job(**PLAIN, algorithm=_loop(6), rounds=6)
    with pytest.raises(Cut):
        train(job, backend="serial", settings=settings, on_event=cut)
    (folder,) = (settings.home / "runs").iterdir()
    told, result = _told(None, settings, ClientsFailed, resume=folder.name)
    whole, other = _told(job, settings, ClientsFailed)
    assert sum(bool(event.quarantined) for event in told) == 1
    ours, theirs = ((settings.home / "runs" / one / "model" / "weights.safetensors").read_bytes() for one in (result.run_id, other.run_id))
    assert ours == theirs
    assert whole[-1].quarantined == told[-1].quarantined


@pytest.mark.parametrize("privacy", ["none", None])
def test_a_kernel_that_is_wrong_on_a_processor_is_replaced_by_the_oracle_and_that_is_on_record(
    monkeypatch, settings: Settings, make_job: Make, tmp_path, privacy
):
    right = stacked.descend

    def wrong(parameter, direction, sgd):
        right(parameter, direction.mul_(1.5), sgd)

    changes = {} if privacy is None else PLAIN
    job = make_job(**changes, algorithm={"kernel": "stacked"}, rounds=2)
    oracle, expected = _told(
        make_job(**changes, algorithm={"kernel": "sequential"}, rounds=2),
        settings.model_copy(update={"home": tmp_path / "other"}),
        KernelReplaced,
    )
    monkeypatch.setattr(stacked, "descend", wrong)
    (replaced,), result = _told(job, settings, KernelReplaced)
    assert (replaced.kernel, replaced.instead) == ("stacked", "sequential")
    assert 0.02 < replaced.difference < 1
    on_record = json.loads((settings.home / "runs" / result.run_id / "kernel.json").read_text())
    assert on_record["kernel"] == "sequential"
    assert not oracle
    if privacy == "none":
        assert result.loss == expected.loss
