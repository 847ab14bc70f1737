"""Which blocks are computed again, and that the model stays the user's own; wrong arguments."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tuckprop
from tests.recomputing import Residual, assert_same, network, step
from tuckprop import zoo
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.layers.recomputed_block import RecomputedBlock
from tuckprop.memory import PaperCounter
from tuckprop.recompute import find_blocks
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # timm imports it, and it does not import beside every build of torch.
timm = pytest.importorskip("timm")


class TestTheModelStaysTheUsersOwn:
    def test_names_classes_state_and_revert(self) -> None:
        model = network()
        kinds, names = [type(m) for m in model.modules()], list(model.state_dict())
        ours = tuckprop.recompute(model, tuckprop.HOSVD(0.9))
        assert ours is model
        assert list(ours.state_dict()) == names
        assert all(isinstance(block, Residual) for block in ours[1])
        assert [type(m) for m in tuckprop.revert(ours).modules()] == kinds

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
    def test_copies_train_alike(self, copied: Callable[[nn.Module], nn.Module]) -> None:
        ours, x = tuckprop.recompute(network(), tuckprop.Subspace(0.9)), torch.randn(4, 3, 6, 6, dtype=torch.float64)
        step(ours, x)
        assert_same(step(copied(ours), x), step(ours, x))

    def test_a_slice_of_a_sequential_block_runs(self) -> None:
        ours = tuckprop.recompute(
            nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))]), tuckprop.HOSVD(), blocks="0"
        )
        assert ours[0][:1](torch.ones(1, 3)).shape == (1, 3)

    def test_last(self) -> None:
        model = network()
        ours = tuckprop.recompute(model, tuckprop.HOSVD8(0.99), last=3)
        assert [isinstance(block, RecomputedBlock) for block in ours[1]] == [False, True, True]
        trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
        assert trained == {n for n, _ in ours.named_parameters() if n.startswith(("1.2.", "1.1.second"))}
        tuckprop.revert(ours)
        assert all(parameter.requires_grad for parameter in ours.parameters())

    def test_second_derivatives_are_refused(self) -> None:
        ours, x = tuckprop.recompute(network(), tuckprop.Dense()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
        x.requires_grad_()
        (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
        with pytest.raises(UnsupportedError, match="first derivatives only"):
            grad.sum().backward()


class TestWhichBlocks:
    def test_a_layer_with_modules_inside_is_no_block(self) -> None:
        model = timm.create_model("mobilenetv2_035", num_classes=5)
        kinds = [type(m) for m in model.modules()]
        tuckprop.recompute(model, tuckprop.HOSVD(0.9), blocks="*")
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        assert [type(m) for m in tuckprop.revert(model).modules()] == kinds
        model(torch.randn(2, 3, 32, 32)).sum().backward()

    def test_modules_without_a_forward_are_none(self) -> None:
        model = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})])
        assert find_blocks(model) == []
        with pytest.raises(ConfigError, match="ModuleDict has no forward"):
            tuckprop.recompute(model, tuckprop.HOSVD(), blocks="0")

    def test_blocks_whose_layers_have_no_twin(self) -> None:
        class Own(nn.Linear):
            pass

        blocks = [nn.Sequential(Own(6, 6), Own(6, 6)), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))]
        ours = tuckprop.recompute(nn.Sequential(*blocks), tuckprop.HOSVD(0.9), blocks=["0", "1"])
        assert all(isinstance(block, RecomputedBlock) for block in ours)

    def test_a_mapping_of_blocks_alone_and_one_that_names_what_is_inside(self) -> None:
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), nn.Linear(6, 2))
        ours = tuckprop.recompute(copy.deepcopy(model), {"0": tuckprop.HOSVD(0.9)}, blocks="0")
        assert ours[0]._site.codec == tuckprop.HOSVD(0.9)
        assert type(ours[1]) is nn.Linear
        both = {"0.*": tuckprop.HOSVD(0.3), "*": tuckprop.HOSVD(0.9)}
        ours = tuckprop.recompute(copy.deepcopy(model), both, blocks="0")
        assert ours[0][0]._site.codec == tuckprop.Dense()

    def test_layers_inside_are_not_counted(self) -> None:
        ours = tuckprop.recompute(network(2, 8, 0.0), tuckprop.HOSVD(0.9))
        tuckprop.layers._twin.become_plain(ours[1][0].first)
        x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
        counts = []
        for sites in (None, ["1.0.first"]):
            with PaperCounter(ours, sites) as counter:
                ours(x).sum().backward()
            counts.append(counter.take())
        assert counts[0] == counts[1]


class TestFindBlocks:
    @pytest.mark.parametrize(
        ("name", "count", "first"),
        [
            ("resnet18", 8, "layer1.0"),
            ("mobilenetv2_100", 17, "blocks.0.0"),
            ("vit_tiny_patch16_224", 12, "blocks.0"),
            ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0"),
            ("convnext_atto", 12, "stages.0.blocks.0"),
        ],
    )
    def test_networks(self, name: str, count: int, first: str) -> None:
        blocks = find_blocks(timm.create_model(name))
        assert (len(blocks), blocks[0]) == (count, first)

    def test_mcunet(self) -> None:
        assert find_blocks(zoo.build("mcunet", 10, 3)) == [f"blocks.{i}" for i in range(14)]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"codec": tuckprop.HOSVD(), "blocks": "none.*"}, "names of modules that have modules inside .1, 1.0, 1.1"),
            ({"codec": {"0": tuckprop.HOSVD()}}, "no pattern of the mapping matches the block '1.0'"),
            ({"codec": tuckprop.GradientFilter()}, "'1.0': Gradient Filter is defined for Conv2d only"),
            ({"codec": tuckprop.HOSVD(), "blocks": []}, r"expected one pattern of names or more, got \[\]"),
            ({"codec": tuckprop.HOSVD(), "blocks": [1]}, r"expected one pattern of names or more, got \[1\]"),
            ({"codec": "hosvd"}, "expected a codec config"),
            ({"codec": tuckprop.HOSVD(), "last": 99}, "an integer from 1 to 7"),
        ],
    )
    def test_is_named_and_nothing_is_changed(self, arguments: dict[str, Any], message: str) -> None:
        model = network()
        kinds = [type(m) for m in model.modules()]
        with pytest.raises(ConfigError, match=message):
            tuckprop.recompute(model, **arguments)
        assert [type(m) for m in model.modules()] == kinds
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_no_block(self) -> None:
        with pytest.raises(ConfigError, match="repeats no block"):
            tuckprop.recompute(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tuckprop.HOSVD())

    def test_converted_already(self) -> None:
        model = tuckprop.recompute(network(), tuckprop.HOSVD())
        for again in (tuckprop.recompute, tuckprop.convert):
            with pytest.raises(ConfigError, match="converted already"):
                again(model, tuckprop.HOSVD())

    def test_a_block_with_a_recurrent_layer(self) -> None:
        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.GRU(2, 2)])

            def forward(self, x: Tensor) -> Tensor:
                return x

        with pytest.raises(ConfigError, match=r"layers\.2 is a GRU"):
            tuckprop.recompute(nn.ModuleList([Recurrent()]), tuckprop.HOSVD())
