"""Under torch.compile: a converted model runs, its graph breaks at convolutions and Linear layers alone."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tuckprop
from tuckprop.codecs import Codec


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2),
        nn.GELU(),
        nn.ConvTranspose2d(16, 16, 2),
        nn.MaxPool2d(3),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


# Those of `network` that a codec packs for.
LAYERS = 4


@pytest.mark.parametrize(
    "codec",
    [
        tuckprop.Dense(),
        tuckprop.HOSVD(0.9),
        tuckprop.SVD(0.9),
        tuckprop.Subspace(0.9),
        tuckprop.ASI(),
        tuckprop.GradientFilter(2),
    ],
    ids=repr,
)
def test_graphs_break_at_packed_layers_alone_and_gradients_stay(codec: Codec) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    eager = tuckprop.convert(network(), codec)
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, backend=count)
    for step in range(4):
        x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        for one in (eager, compiled):
            one.zero_grad()
            one(x).square().mean().backward()
        for got, expected in zip(model.parameters(), eager.parameters(), strict=True):
            assert got.grad is not None
            assert bool(got.grad.isfinite().all())
            # What is between the layers is compiled as it is in a plain model, and keeps its input whole.
            if isinstance(codec, tuckprop.Dense):
                assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-5)
    # What is between the layers, once: nothing of the codec, and nothing anew in later steps.
    assert 1 <= len(graphs) <= LAYERS + 1
