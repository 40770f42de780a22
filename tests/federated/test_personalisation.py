"""What the model is worth to each client, as it is and after the client trained it on by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from qedge import train
from qedge.algorithms import fedavg
from qedge.config import Settings
from qedge.data.federation import load
from qedge.errors import InvalidJob, ModelError, PrivacyError
from qedge.federated.evaluation import per_client
from qedge.job import Algorithm, Model, TrainingJob
from qedge.kernels.batches import ClientBatches, LocalSGD
from qedge.kernels.choice import kernels_for, made_up_clients
from qedge.kernels.sequential import SequentialKernel
from qedge.models import build, head_of, parameters_vector, set_parameters

Make = Callable[..., TrainingJob]
PLAIN = {"privacy": "none", "cohort": {"sampling": "uniform", "size": 10, "rate": None}}
SKEWED = {"data": {"source": "digits", "partition": {"dirichlet": 0.1, "clients": 40}, "test": 0.3, "evaluation": "public"}}


def test_the_numbers_by_hand():
    found = np.array([[4, 2, 4], [0, 0, 0], [10, 9, 8], [2, 0, 0]], dtype=float)
    told = per_client(found)
    assert told["client_accuracy"] == pytest.approx((0.5 + 0.9 + 0) / 3)
    assert told["personal_accuracy"] == pytest.approx((1 + 0.8 + 0) / 3)
    assert told["client_accuracy_worst_tenth"] == 0
    assert told["not_worse_for_its_own_training"] == pytest.approx(2 / 3)
    assert set(per_client(np.array([[4, 2, np.nan]]))) == {"client_accuracy", "client_accuracy_worst_tenth"}
    assert per_client(np.zeros((3, 3))) == {}


@pytest.mark.parametrize("hidden", [(), (7,)])
@pytest.mark.parametrize("trained", ["head", "body"])
def test_the_head_is_the_last_layer_and_is_trained_alone_or_not_at_all(hidden, trained):
    model = Model(kind="mlp", hidden=hidden) if hidden else Model(kind="linear")
    module = build(model, 5, 3, 0)
    weights, last = parameters_vector(module), (hidden or (5,))[-1] * 3 + 3
    assert sum(parameter.numel() for parameter in head_of(module)) == last
    batches = ClientBatches(np.ones((4, 5), dtype=np.float32), np.array([0, 1, 2, 0]), np.array([[0, 1], [2, 3]]))
    algorithm = Algorithm(layers="body")
    if trained == "body" and not hidden:
        with pytest.raises(ModelError, match="has no other"):
            kernels_for(module, algorithm, fedavg.client_update(algorithm), 5, 3, private=False)
        return
    update = SequentialKernel(module, LocalSGD(0.1, layers=trained)).updates(weights, [batches]).values[0]
    assert update[:-last].any() == (trained == "body")
    assert update[-last:].any() == (trained == "head")


@pytest.mark.parametrize("model", [{"kind": "mlp", "hidden": [16]}, {"kind": "cnn", "channels": [4]}])
def test_only_kernels_that_leave_the_head_alone_are_offered_for_the_body(model):
    algorithm, module = Algorithm(layers="body"), build(Model.model_validate(model), 64, 10, 0)
    kernels = kernels_for(module, algorithm, fedavg.client_update(algorithm), 64, 10, private=False)
    weights, head = parameters_vector(module), sum(parameter.numel() for parameter in head_of(module))
    clients = made_up_clients(algorithm, 64, 10, 3)
    assert "sequential" in kernels
    for kernel in kernels.values():
        updates = kernel.updates(weights, kernel.prepare(clients)).values
        assert updates[:, :-head].any(axis=1).all()
        assert not updates[:, -head:].any()


def test_a_head_of_ones_own_on_a_shared_body_beats_the_shared_model_where_labels_are_skewed(settings: Settings, make_job: Make):
    """The published head is the one that was drawn at first, bit for bit."""
    job = make_job(
        **PLAIN,
        **SKEWED,
        model={"kind": "mlp", "hidden": [32]},
        algorithm={"layers": "body"},
        personalisation={"epochs": 10, "learning_rate": 0.1, "layers": "head"},
        rounds=25,
    )
    result = train(job, backend="serial", settings=settings)
    weights = load_file(settings.home / "runs" / result.run_id / "model" / "weights.safetensors")
    first = build(job.model, 64, 10, job.seed)
    named = dict(first.named_parameters())
    head = {name for name, value in named.items() if any(value is one for one in head_of(first))}
    for name, value in named.items():
        assert (weights[name] == value.detach().numpy()).all() == (name in head)
    assert result.of_clients["personal_accuracy"] > result.of_clients["client_accuracy"] + 0.02
    assert result.of_clients["personal_accuracy"] > 0.9


@pytest.mark.parametrize("layers", ["all", "head"])
def test_clients_of_skewed_labels_are_better_off_with_a_model_of_their_own(settings: Settings, make_job: Make, layers):
    own = {"personalisation": {"epochs": 5, "learning_rate": 0.1, "layers": layers}}
    result = train(
        make_job(**PLAIN, **SKEWED, **own, model={"kind": "mlp", "hidden": [16]}, rounds=25), backend="serial", settings=settings
    )
    told = result.of_clients
    assert told["personal_accuracy"] > told["client_accuracy"] + 0.05
    assert told["personal_accuracy_worst_tenth"] >= told["client_accuracy_worst_tenth"]
    assert told["not_worse_for_its_own_training"] > 0.7


def test_the_accuracy_of_clients_is_that_of_the_model_on_their_own_held_out_rows(settings: Settings, make_job: Make):
    job = make_job(**PLAIN, **SKEWED, rounds=5)
    result = train(job, backend="serial", settings=settings)
    federation = load(job.data, job.seed)
    module = build(job.model, len(federation.schema.features), len(federation.schema.labels), job.seed)
    weights = load_file(settings.home / "runs" / result.run_id / "model" / "weights.safetensors")
    set_parameters(module, np.concatenate([weights[name].ravel() for name, _ in module.named_parameters()]))
    shares = []
    for client in range(len(federation.clients)):
        features, labels = federation.test.of(client)
        if len(labels):
            with torch.no_grad():
                shares.append(float((module(torch.tensor(features)).argmax(1).numpy() == labels).mean()))
    assert result.of_clients["client_accuracy"] == pytest.approx(np.mean(shares), abs=1e-6)


def test_private_rows_are_never_looked_at_one_client_at_a_time(settings: Settings, make_job: Make, tmp_path):
    result = train(make_job(data={"evaluation": None}), backend="serial", settings=settings)
    assert result.of_clients == {}
    elsewhere = settings.model_copy(update={"home": tmp_path / "public"})
    assert train(make_job(), backend="serial", settings=elsewhere).of_clients  # declared public


@pytest.mark.parametrize("evaluation", [None, "public"])
def test_noise_would_move_a_head_that_is_to_stay(make_job: Make, evaluation):
    with pytest.raises(PrivacyError, match="noise would move it"):
        make_job(data={"evaluation": evaluation}, algorithm={"layers": "body"}, model={"kind": "mlp", "hidden": [8]})


@pytest.mark.parametrize("evaluation", [None, "public"])
def test_a_model_of_a_clients_own_tells_of_its_training_rows_whatever_it_is_measured_on(make_job: Make, evaluation):
    with pytest.raises(PrivacyError, match="nothing covers"):
        make_job(data={"evaluation": evaluation}, personalisation={})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"test": None, "evaluation": None}}, "data.test"),
        ({"algorithm": {"loop": "tests.federated.own_code:noisy", "kernel": "auto"}}, "loop"),
        ({"personalisation": {"layers": "body"}}, "layers"),
        ({"algorithm": {"layers": "head"}, "model": {"kind": "mlp", "hidden": [8]}}, "layers"),
        ({"algorithm": {"layers": "body"}, "model": {"kind": "linear"}}, "has no other"),
        ({"algorithm": {"layers": "body", "kind": "scaffold"}, "model": {"kind": "mlp", "hidden": [8]}}, "every layer"),
        ({"personalisation": {"epochs": 0}}, "epochs"),
    ],
)
def test_what_cannot_be_is_refused(make_job: Make, changes, said):
    with pytest.raises(InvalidJob, match=said):
        make_job(**{"personalisation": {}, **PLAIN, **changes})
