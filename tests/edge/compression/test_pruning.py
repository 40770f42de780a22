"""What is taken out of a network: as much as was asked, what counts least, and nothing else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qedge.edge.compression.pruning import by_magnitude, by_norm, structured, taylor
from qedge.errors import EdgeError, ModelError


def mlp(seed: int, widths: tuple[int, ...] = (6, 9, 5, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    first, second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
    return nn.Sequential(nn.Unflatten(1, (1, 6, 6)), first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


def silenced(module: nn.Sequential, gone: dict[int, list[int]]) -> None:
    """Make these units' outputs count for nothing in the layer that follows."""
    places = [place for place, layer in enumerate(module) if isinstance(layer, nn.Linear | nn.Conv2d)]
    for place, units in gone.items():
        layer, following = module[place], module[places[places.index(place) + 1]]
        size = following.weight.shape[1] // layer.weight.shape[0]
        with torch.no_grad():
            for unit in units:
                following.weight[:, unit * size : (unit + 1) * size] = 0


@given(st.integers(0, 2**31), st.sampled_from(["mlp", "cnn"]), st.floats(0, 0.99))
def test_taking_out_units_that_count_for_nothing_changes_no_answer(seed: int, kind: str, share: float) -> None:
    module = mlp(seed) if kind == "mlp" else cnn(seed)
    scores = by_norm(module)
    gone = {place: found.argsort()[: min(int(share * len(found)), len(found) - 1)].tolist() for place, found in scores.items()}
    silenced(module, gone)
    rows = torch.randn(5, 6 if kind == "mlp" else 36)
    smaller = structured(module, share, scores)
    torch.testing.assert_close(smaller(rows), module(rows), rtol=1e-4, atol=1e-5)
    kept = [layer.weight.shape[0] for layer in smaller if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert kept[:-1] == [len(found) - len(gone[place]) for place, found in scores.items()]
    assert all(layer is not other for layer, other in zip(smaller, module, strict=True))


def test_the_units_that_score_least_go() -> None:
    module = mlp(0)
    scores = {0: torch.arange(9.0), 2: torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])}
    smaller = structured(module, 0.4, scores)
    torch.testing.assert_close(smaller[0].weight, module[0].weight[3:])
    torch.testing.assert_close(smaller[2].weight, module[2].weight[[0, 2, 4]][:, 3:])
    torch.testing.assert_close(smaller[2].bias, module[2].bias[[0, 2, 4]])


def test_taylor_is_the_square_of_what_a_gate_before_a_unit_would_change() -> None:
    module, rows, labels = cnn(1), torch.randn(7, 36), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    expected = torch.zeros(7, 6)
    for row in range(7):
        gates = torch.ones(6, requires_grad=True)
        image = module[1](module[0](rows[row : row + 1])) * gates[:, None, None]
        loss = nn.functional.cross_entropy(module[2:](image), labels[row : row + 1])
        expected[row] = torch.autograd.grad(loss, gates)[0]
    torch.testing.assert_close(taylor(module, rows, labels)[1], expected.square().mean(0), rtol=1e-4, atol=1e-7)


@given(st.integers(0, 2**31), st.floats(0, 0.99), st.booleans())
def test_the_smallest_weights_go_and_no_more_than_asked(seed: int, share: float, each_layer: bool) -> None:
    module = mlp(seed)
    pruned = by_magnitude(module, share, each_layer=each_layer)
    weights = {name: weight for name, weight in module.named_parameters() if weight.dim() > 1}
    groups = [[name] for name in weights] if each_layer else [list(weights)]
    left = dict(pruned.module.named_parameters())
    for names in groups:
        size = torch.cat([weights[name].detach().abs().flatten() for name in names])
        mask = torch.cat([pruned.masks[name].flatten() for name in names])
        assert int((~mask).sum()) == int(share * len(size))
        if (~mask).any():
            assert size[~mask].max() <= size[mask].min()
    for name, weight in module.named_parameters():
        expected = weight * pruned.masks[name] if name in pruned.masks else weight
        torch.testing.assert_close(left[name], expected, rtol=0, atol=0)


@given(st.integers(0, 2**31), st.floats(0.3, 0.9), st.floats(0, 0.9), st.booleans())
def test_what_was_taken_out_before_stays_out(seed: int, first: float, then: float, each_layer: bool) -> None:
    once = by_magnitude(mlp(seed), first)
    twice = by_magnitude(once.module, then, each_layer=each_layer)
    for name, mask in twice.masks.items():
        assert not (mask & ~once.masks[name]).any()


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    for prune in (structured, by_magnitude):
        with pytest.raises(EdgeError, match="from 0 to below 1"):
            prune(mlp(0), share)


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Sequential(nn.Linear(4, 2)), "no hidden layer"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2)), "Conv2d"),
        (nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)), "GroupNorm"),
        (nn.Bilinear(2, 2, 2), "Bilinear"),
    ],
)
def test_networks_that_units_cannot_be_taken_out_of_are_refused(module: nn.Module, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        structured(module, 0.5)
