"""Explained variance of layers' inputs."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tests.cases import decaying
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.layers import observe
from tuckprop.spectra import explained_variance


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def images(batch: int = 5) -> Tensor:
    return decaying((batch, 3, 8, 9), seed=1, decay=0.9, dtype=torch.float32)


def test_curves_are_the_cumulative_shares_of_squared_singular_values() -> None:
    model, x = network(), images()
    found = explained_variance(model, x, ["4", "7"])
    assert list(found) == ["4", "7"]
    inputs = {"4": model.eval()[:4](x), "7": model[:7](x)}
    assert found["4"].axes == ("batch", "channels", "height", "width")
    assert found["7"].axes == ("batch", "features")
    for name, value in inputs.items():
        assert found[name].shape == value.shape
        for mode, curve in enumerate(found[name].curves):
            squares = torch.linalg.svdvals(value.detach().double().movedim(mode, 0).flatten(1)).square()
            assert_close(curve, squares.cumsum(0) / squares.sum(), atol=1e-5, rtol=0)
            assert float(curve[-1]) == 1


@pytest.mark.parametrize("epsilon", [0.5, 0.8, 0.9, 0.99])
def test_ranks_are_those_that_the_codec_chooses(epsilon: float) -> None:
    model = tuckprop.convert(network(), tuckprop.HOSVD(epsilon))
    found = explained_variance(model, images(16), ["0", "4"])
    counts: dict[str, int] = {}
    for layer in (model[1], model[3]):
        layer.eval()
    with observe(lambda event: counts.update({event.site.name: event.paper_count})):
        model(images(16))
    for name, layer in found.items():
        ranks = [layer.rank(mode, epsilon) for mode in range(4)]
        elements = sum(n * k for n, k in zip(layer.shape, ranks, strict=True))
        assert counts[name] == elements + torch.tensor(ranks).prod()


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    explained_variance(model, images(), ["4"])
    assert [m.training for m in model.children()] == [True, False, *[True] * 6]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model[4]._forward_pre_hooks


def test_an_input_of_zeros_is_explained_by_one_component() -> None:
    layer = explained_variance(network(), torch.zeros(4, 3, 8, 8), ["0"])["0"]
    assert [layer.rank(mode, 0.9) for mode in range(4)] == [1] * 4
    assert all(bool((curve == 1).all()) for curve in layer.curves)


def test_half_precision_and_tall_unfoldings_are_decomposed() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).bfloat16()
    layer = explained_variance(model, decaying((40, 3), seed=2, dtype=torch.bfloat16), ["0"])["0"]
    assert [len(curve) for curve in layer.curves] == [3, 3]
    assert_close(layer.curves[0], layer.curves[1])


def test_a_layer_that_runs_twice_counts_with_its_first_input() -> None:
    shared = nn.Conv2d(3, 3, 1)
    x = images()
    twice = explained_variance(nn.Sequential(shared, shared), x, ["0"])["0"]
    once = explained_variance(nn.Sequential(shared), x, ["0"])["0"]
    for a, b in zip(twice.curves, once.curves, strict=True):
        assert_close(a, b)


def test_tokens_and_other_axes_have_names() -> None:
    layer = explained_variance(nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 3, 4), ["0"])["0"]
    assert layer.axes == ("batch", "tokens", "features")
    layer = explained_variance(nn.Sequential(nn.Conv1d(4, 2, 1)), torch.rand(2, 4, 3), ["0"])["0"]
    assert layer.axes == ("batch", "channels", "length")


class Idle(nn.Module):
    """A layer that does not run, and one that takes no tensor of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.inner = nn.Linear(2, 2), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x[0, 0, 0])
        return x


def test_what_cannot_be_decomposed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no layer 'nothing'"):
        explained_variance(network(), images(), ["nothing"])
    with pytest.raises(ConfigError, match="'idle' does not run"):
        explained_variance(Idle(), images(), ["idle"])
    with pytest.raises(UnsupportedError, match=r"layer 'inner': expected numbers of at least two axes, got a tensor"):
        explained_variance(Idle(), images(), ["inner"])
    model = network()
    with pytest.raises(UnsupportedError, match="'0': its input has no decomposition"):
        explained_variance(model, images() * float("nan"), ["0"])
    assert not model[0]._forward_pre_hooks
