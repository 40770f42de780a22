"""Models: built alike from alike seeds, carried by one flat vector, refused when they keep more than that."""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qedge.errors import LabelMismatch, ModelError
from qedge.job import Model
from qedge.models import affine_layers, build, parameters_vector, refuse_if_not_private, set_parameters

OWN = """
    import torch
    from torch import nn

    def good(features, classes, width=4):
        return nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.Linear(width, classes))

    def dropout(features, classes):
        return nn.Sequential(nn.Linear(features, 8), nn.Dropout(0.5), nn.Linear(8, classes))

    def lazy(features, classes):
        return nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(classes))

    class Masked(nn.Module):
        def __init__(self, features, classes):
            super().__init__()
            self.register_buffer("mask", torch.arange(features) % 2)
            self.inner = nn.Linear(features, classes)
        def forward(self, x):
            return self.inner(x * self.mask)

    def raises(features, classes):
        raise KeyError("no such thing")

    def no_module(features, classes):
        return [1, 2]

    def too_wide(features, classes):
        return nn.Linear(features, classes + 1)

    def two_outputs(features, classes):
        class Two(nn.Linear):
            def forward(self, x):
                return super().forward(x), x
        return Two(features, classes)

    def wrong_input(features, classes):
        return nn.Linear(features + 1, classes)

    def batch_norm(features, classes):
        return nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, classes))

    def instance_norm(features, classes):
        norm = nn.InstanceNorm1d(1, track_running_stats=True)
        return nn.Sequential(nn.Unflatten(1, (1, features)), norm, nn.Flatten(), nn.Linear(features, classes))

    class Counts(nn.Module):
        def __init__(self, features, classes):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.inner = nn.Linear(features, classes)
        def forward(self, x):
            if self.training:
                self.seen += len(x)
            return self.inner(x)

    class Mixes(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(dim=0))

    class Random(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    def no_parameters(features, classes):
        return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(classes))

    def frozen(features, classes):
        module = nn.Linear(features, classes)
        module.bias.requires_grad_(False)
        return module

    class Double(nn.Linear):
        def __init__(self, features, classes):
            super().__init__(features, classes, dtype=torch.float64)
        def forward(self, x):
            return super().forward(x.double())

    not_callable = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, on the path."""
    (tmp_path / "own_models.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_attribute.py").write_text("import math; math.nothing")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_models"


SPECS = [
    Model(kind="linear"),
    Model(kind="mlp", hidden=(7,)),
    Model(kind="mlp", hidden=(5, 3)),
    Model(kind="cnn"),
    Model(kind="cnn", channels=(2,)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_batch_of_rows_gives_a_logit_for_each_label(spec: Model) -> None:
    module = build(spec, 64, 10, seed=0)
    for batch in (1, 3):
        assert module(torch.zeros(batch, 64)).shape == (batch, 10)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert module.training


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_seed_alone_decides_the_weights(spec: Model) -> None:
    torch.manual_seed(5)
    untouched = torch.get_rng_state()
    one = parameters_vector(build(spec, 64, 10, seed=1))
    assert torch.equal(torch.get_rng_state(), untouched)
    torch.rand(3)
    assert (parameters_vector(build(spec, 64, 10, seed=1)) == one).all()
    assert not np.array_equal(parameters_vector(build(spec, 64, 10, seed=2)), one)
    assert build(spec, 64, 10, seed=2**63 - 1) is not None


@settings(max_examples=20, deadline=None)
@given(spec=st.sampled_from(SPECS), seed=st.integers(0, 2**32))
def test_the_vector_carries_the_whole_model(spec: Model, seed: int) -> None:
    one, other = build(spec, 64, 10, seed=seed), build(spec, 64, 10, seed=seed + 1)
    vector = parameters_vector(one)
    vector.setflags(write=False)
    set_parameters(other, vector)
    features = torch.rand(3, 64)
    assert torch.equal(one(features), other(features))
    assert (parameters_vector(other) == vector).all()


def test_the_vector_and_the_model_share_no_memory() -> None:
    module = build(Model(kind="linear"), 4, 2, seed=0)
    vector = parameters_vector(module)
    set_parameters(module, vector)
    before = vector.copy()
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert (vector == before).all()
    vector[:] = 9
    assert not (parameters_vector(module) == 9).any()
    assert vector.dtype == np.float32


@pytest.mark.parametrize("shape", [(9,), (11,), (1, 10), ()])
def test_a_vector_of_another_length_is_refused_and_changes_nothing(shape: tuple[int, ...]) -> None:
    module = build(Model(kind="linear"), 4, 2, seed=0)
    before = parameters_vector(module)
    with pytest.raises(ModelError, match="10 parameters"):
        set_parameters(module, np.zeros(shape, np.float32))
    assert (parameters_vector(module) == before).all()


def test_affine_layers_are_those_of_linear_models_and_mlps_only() -> None:
    assert affine_layers(build(Model(kind="linear"), 6, 3, seed=0)) == [(6, 3)]
    assert affine_layers(build(Model(kind="mlp", hidden=(5, 4)), 6, 3, seed=0)) == [(6, 5), (5, 4), (4, 3)]
    assert affine_layers(build(Model(kind="cnn"), 64, 3, seed=0)) is None


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(2, 2),
        nn.Sequential(),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2))),
    ],
)
def test_anything_that_only_looks_like_an_mlp_is_not_one(module: nn.Module) -> None:
    assert affine_layers(module) is None


def test_the_stacked_picture_of_an_mlp_computes_what_the_module_does() -> None:
    module = build(Model(kind="mlp", hidden=(5, 4)), 6, 3, seed=3)
    vector, place = parameters_vector(module), 0
    features = np.random.default_rng(0).random((7, 6), np.float32)
    hidden = features
    for number, (inputs, outputs) in enumerate(affine_layers(module) or []):
        weight = vector[place : place + inputs * outputs].reshape(outputs, inputs)
        place += inputs * outputs
        hidden = hidden @ weight.T + vector[place : place + outputs]
        place += outputs
        hidden = np.maximum(hidden, 0) if number < 2 else hidden
    assert place == len(vector)
    with torch.no_grad():
        assert np.allclose(module(torch.from_numpy(features)).numpy(), hidden, atol=1e-6)


# images


@settings(max_examples=15, deadline=None)
@given(
    image=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), channels=st.lists(st.integers(1, 4), min_size=1, max_size=5)
)
def test_a_cnn_takes_an_image_of_any_size_and_depth(image: tuple[int, int, int], channels: list[int]) -> None:
    features = image[0] * image[1] * image[2]
    module = build(Model(kind="cnn", image=image, channels=tuple(channels)), features, 3, seed=0)
    assert module(torch.zeros(4, features)).shape == (4, 3)


@pytest.mark.parametrize(
    ("image", "features", "says"), [(None, 60, "'image"), ((1, 8, 7), 64, "64"), ((1, -8, -8), 64, "64"), ((0, 0, 0), 0, "0")]
)
def test_an_image_that_does_not_hold_the_features_is_refused(image: tuple[int, int, int] | None, features: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        build(Model(kind="cnn", image=image), features, 3, seed=0)


# the user's own


@pytest.mark.parametrize("name", ["good", "lazy", "Masked"])
def test_a_function_or_class_of_the_users_is_built_and_seeded(own: str, name: str) -> None:
    spec = Model(kind=f"{own}:{name}")
    one, again, other = (parameters_vector(build(spec, 6, 3, seed=seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert not np.array_equal(one, other)


def test_options_reach_the_users_function(own: str) -> None:
    module = build(Model(kind=f"{own}:good", options={"width": 9}), 6, 3, seed=0)
    assert len(parameters_vector(module)) == 6 * 9 + 9 + 9 + 9 + 9 * 3 + 3
    with pytest.raises(ModelError, match="wdith"):
        build(Model(kind=f"{own}:good", options={"wdith": 9}), 6, 3, seed=0)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("no_such_place:f", ModelError, "PYTHONPATH"),
        ("own_models:no_such_name", ModelError, "no_such_name"),
        ("own_models:not_callable", ModelError, "not_callable"),
        ("own_broken:f", ModelError, "ZeroDivisionError"),
        ("own_attribute:f", ModelError, "AttributeError"),
        ("own_models:raises", ModelError, "no such thing"),
        ("own_models:dropout", ModelError, "dropout"),
        ("own_models:no_module", ModelError, "returned a list"),
        ("own_models:wrong_input", ModelError, "two rows"),
        ("own_models:too_wide", LabelMismatch, r"\[2, 4\]"),
        ("own_models:two_outputs", LabelMismatch, "tuple"),
        ("own_models:batch_norm", ModelError, "GroupNorm or LayerNorm"),
        ("own_models:instance_norm", ModelError, "GroupNorm or LayerNorm"),
        ("own_models:Counts", ModelError, "'seen'"),
        ("own_models:Mixes", ModelError, "other rows"),
        ("own_models:Random", ModelError, "random"),
        ("own_models:no_parameters", ModelError, "nothing to train"),
        ("own_models:frozen", ModelError, "'bias' is frozen"),
        ("own_models:Double", ModelError, "float64; accepted: torch.float32"),
    ],
)
def test_a_model_that_cannot_be_trained_here_is_refused(own: str, kind: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        build(Model(kind=kind), 6, 3, seed=0)


def test_a_model_too_large_to_make_is_refused() -> None:
    with pytest.raises(ModelError, match="mlp"):
        build(Model(kind="mlp", hidden=(2**40, 2**40)), 64, 10, seed=0)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.LazyBatchNorm1d(), nn.SyncBatchNorm(3), nn.BatchNorm1d(3, track_running_stats=False)],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_is_refused_wherever_it_hides(layer: nn.Module) -> None:
    hidden = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"deep": nn.Sequential(layer)}))
    with pytest.raises(ModelError, match=r"1\.deep\.0.*LayerNorm"):
        refuse_if_not_private(hidden)


def test_normalisation_of_each_example_alone_is_accepted_and_with_running_statistics_it_is_not() -> None:
    alone = [nn.GroupNorm(1, 3), nn.LayerNorm(3), nn.InstanceNorm1d(3), nn.Dropout()]
    assert [layer for layer in alone if _is_refused(nn.Sequential(layer))] == []
    assert _is_refused(nn.Sequential(*alone, nn.InstanceNorm1d(3, track_running_stats=True)))


def _is_refused(module: nn.Module) -> bool:
    try:
        refuse_if_not_private(module)
    except ModelError:
        return True
    return False


def test_one_example_does_not_reach_another_through_a_built_in_model() -> None:
    for spec, changed in itertools.product(SPECS, range(3)):
        module = build(spec, 64, 10, seed=0)
        features = torch.rand(3, 64)
        other = features.clone()
        other[changed] += 1
        same = [row for row in range(3) if row != changed]
        assert torch.allclose(module(features)[same], module(other)[same])
