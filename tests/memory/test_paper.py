"""The paper's count over forwards."""

import pytest
import torch
from torch import Tensor, nn

from tests.cases import decaying
from tests.networks import CONVOLUTIONS, ConvNet
from tuckprop import HOSVD, Dense, convert, freeze
from tuckprop.errors import ConfigError
from tuckprop.memory import PaperCounter

BATCH = decaying((8, 3, 16, 16), seed=1, decay=0.5, dtype=torch.float32)


def network() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet()


# Inputs of the two last convolutions: block.project reads 16 channels, tail.0 reads 8, on maps of 8 by 8.
LAST_TWO = 8 * (16 + 8) * 8 * 8 * 4


def test_plain_and_dense_count_the_inputs_of_the_last_layers() -> None:
    plain, dense = network(), convert(network(), Dense(), last=2, pointwise=False)
    sites = freeze(plain, last=2)
    assert sites == CONVOLUTIONS[-2:]
    for model, names in ((plain, sites), (dense, None)):
        with PaperCounter(model, names) as counter:
            model(BATCH)
            assert counter.take() == LAST_TWO
            assert counter.take() == 0
            model(BATCH)
            model(BATCH[:4])
            assert counter.take() == LAST_TWO * 3 // 2


def test_a_factored_layer_counts_its_form() -> None:
    model = convert(network(), HOSVD(0.8), select=lambda name, module: name == "stem", pointwise=False)
    with PaperCounter(model) as counter:
        model(BATCH)
        assert counter.take() == HOSVD(0.8).compress(BATCH).paper_count() * 4


def test_outside_training_nothing_is_counted() -> None:
    plain, converted = network(), convert(network(), HOSVD(0.8))
    for model, names in ((plain, CONVOLUTIONS), (converted, None)):
        with PaperCounter(model, names) as counter:
            model.eval()(BATCH)
            with torch.no_grad():
                model.train()(BATCH)
            assert counter.take() == 0
        model.train()(BATCH)
        assert counter.take() == 0  # Closed.


def test_another_models_layers_are_not_counted() -> None:
    mine, other = convert(network(), HOSVD(0.8)), convert(network(), HOSVD(0.8))
    with PaperCounter(mine) as counter:
        other(BATCH)
        assert counter.take() == 0


def test_inputs_by_keyword_count() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    model = ByKeyword()
    with PaperCounter(model, ["layer"]) as counter:
        model(BATCH)
        assert counter.take() == BATCH.numel() * 4


def test_no_hook_stays_behind() -> None:
    model = network()
    with PaperCounter(model, CONVOLUTIONS):
        assert model.stem._forward_pre_hooks
    assert not model.stem._forward_pre_hooks


def test_a_name_that_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PaperCounter\(sites=\.\.\.\): the model has no module 'stern'"):
        PaperCounter(network(), ["stem", "stern"])
