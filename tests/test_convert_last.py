"""The paper's protocol: the last layers are trained, what comes before them is frozen."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.converting import BATCH, TIGHT, gradients, kinds, loss_of, network, twins
from tests.networks import CONVOLUTIONS, Transformer
from tuckprop import HOSVD, convert, freeze, revert
from tuckprop.plan import choose_sites


@pytest.mark.parametrize("last", [1, 2, 4, 5])
def test_last_trains_the_last_layers_and_what_follows_them(last: int) -> None:
    model = convert(network(), HOSVD(0.7), last=last)
    assert twins(model) == CONVOLUTIONS[-last:]
    first = CONVOLUTIONS[-last]
    names = [name for name, _ in network().named_modules()]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (names.index(name.rpartition(".")[0]) >= names.index(first)), name
    assert {name for name, g in gradients(model).items() if g is not None} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


def test_frozen_modules_stay_in_eval_mode_and_keep_their_statistics() -> None:
    model = convert(network(), HOSVD(0.7), last=2)
    before = {name: b.clone() for name, b in model.named_buffers()}
    for _ in range(2):
        model.train()
        loss_of(model).backward()
        assert not model.bn.training
        assert not model.block.norm.training
        assert model.tail[1].training
        model.eval()
        assert not any(m.training for m in model.modules())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == (not name.startswith("tail")), name


def test_revert_unfreezes_what_was_trainable_and_no_more() -> None:
    model = network()
    model.stem.bias.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    before = kinds(model)
    convert(model, HOSVD(0.7), last=2)
    assert sum(p.requires_grad for p in model.parameters()) < sum(flags.values())
    revert(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert kinds(model) == before
    assert not model._forward_pre_hooks
    assert all(m.training for m in model.train().modules())


def test_a_frozen_part_computes_what_it_would_in_eval_mode() -> None:
    model, plain = convert(network(), HOSVD(1.0), last=2), network()
    for name in ("stem", "bn", "act", "block.expand", "block.norm", "block.depthwise"):
        plain.get_submodule(name).eval()
    assert torch.equal(model(BATCH), plain(BATCH))


def test_last_counts_among_what_select_picks() -> None:
    def is_pointwise(name: str, module: nn.Module) -> bool:
        return getattr(module, "kernel_size", None) == (1, 1)

    model = convert(network(), HOSVD(0.7), select=is_pointwise, last=1)
    assert twins(model) == ["block.project"]
    assert not model.block.expand.weight.requires_grad


def test_in_a_transformer_last_counts_linear_layers_before_the_classifier() -> None:
    model = convert(network(Transformer), HOSVD(0.7), last=3)
    assert twins(model) == ["blocks.2.out", "blocks.2.up", "blocks.2.down"]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.weight", "norm.weight", "blocks.2.out.weight"} <= trainable
    assert not {"token", "patches.weight", "blocks.2.qkv.weight", "blocks.1.down.weight"} & trainable


@pytest.mark.parametrize(("blocks", "linears"), [(1, 5), (2, 9), (3, 13)])
def test_where_linear_layers_are_not_ten_times_as_many_convolutions_count(blocks: int, linears: int) -> None:
    model = Transformer(blocks=blocks)
    assert sum(isinstance(m, nn.Linear) for m in model.modules()) == linears
    counted = choose_sites(model, last=1)
    assert counted == (["patches"] if linears <= 10 else [f"blocks.{blocks - 1}.down"])


def test_what_is_not_reached_by_a_gradient_is_frozen_also_where_the_model_holds_it_directly() -> None:
    model = convert(network(Transformer), HOSVD(0.7), last=1)
    assert not model.token.requires_grad
    assert not model.blocks[0].scale.requires_grad
    assert gradients(model)["head.weight"] is not None


def test_freeze_is_the_plain_arm_of_the_same_protocol() -> None:
    plain, model = network(), convert(network(), HOSVD(1.0), last=2)
    assert freeze(plain, last=2) == CONVOLUTIONS[-2:]
    assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in model.parameters()]
    assert twins(plain) == []
    assert_close(gradients(plain), gradients(model), **TIGHT)
    assert all(p.requires_grad for p in revert(plain).parameters())


def test_freezing_before_the_first_layer_freezes_nothing() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
            self.scale = nn.Parameter(torch.ones(()))

    assert freeze(model := Scaled(), last=2) == ["0", "1"]
    assert all(p.requires_grad for p in model.parameters())


def test_a_part_of_a_model_can_be_converted_and_the_whole_reverted() -> None:
    model = network()
    convert(model.block, HOSVD(0.7), last=1)
    assert twins(model) == ["block.project"]
    assert not model.block.expand.weight.requires_grad
    revert(model)
    assert twins(model) == []
    assert all(p.requires_grad for p in model.parameters())
