"""What `convert` and `revert` leave as it was, and converted models that are copied, moved or wrapped."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.cases import RandomTucker
from tests.converting import BATCH, TIGHT, both_networks, gradients, kinds, loss_of, network, twins
from tests.networks import CONVOLUTIONS
from tuckprop import HOSVD, SVD, Dense, GradientFilter, Plan, convert, plan, revert
from tuckprop.layers import Twin
from tuckprop.plan import choose_sites


@both_networks
def test_the_output_is_bit_identical_and_so_are_the_statistics_of_batch_norm(kind: Callable[[], nn.Module]) -> None:
    plain, converted = network(kind), convert(network(kind), HOSVD(0.7))
    for _ in range(3):
        assert torch.equal(plain(BATCH), converted(BATCH))
    for (name, expected), got in zip(plain.named_buffers(), converted.buffers(), strict=True):
        assert torch.equal(expected, got), name


@both_networks
def test_lossless_gradients_are_the_plain_ones(kind: Callable[[], nn.Module]) -> None:
    for codec in (Dense(), HOSVD(1.0), SVD(1.0)):
        expected, got = gradients(network(kind)), gradients(convert(network(kind), codec, pointwise=False))
        assert_close(got, expected, **TIGHT)


@both_networks
def test_the_weight_gradient_alone_is_approximate(kind: Callable[[], nn.Module], forced: None) -> None:
    expected = gradients(network(kind))
    got = gradients(convert(network(kind), RandomTucker(0.5), pointwise=False))
    compressed = {f"{name}.weight" for name in choose_sites(network(kind))}
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, **TIGHT) == (name not in compressed), name


@both_networks
def test_parameters_buffers_and_keys_are_the_same_objects(kind: Callable[[], nn.Module]) -> None:
    model = network(kind)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    keys, text = list(model.state_dict()), str(model)
    for change in (lambda: convert(model, HOSVD(0.7)), lambda: revert(model)):
        assert change() is model
        assert all(p is parameters[name] for name, p in model.named_parameters())
        assert all(b is buffers[name] for name, b in model.named_buffers())
        assert list(model.state_dict()) == keys
    assert str(model) == text


@both_networks
def test_isinstance_stays_true(kind: Callable[[], nn.Module]) -> None:
    model = network(kind)
    before = kinds(model)
    convert(model, HOSVD(0.7))
    assert len(twins(model)) == len(choose_sites(model))
    for module, was in zip(model.modules(), before, strict=True):
        assert isinstance(module, was)


def test_state_dicts_load_both_ways() -> None:
    plain, converted = network(), convert(network(), HOSVD(0.7))
    for module in (plain, converted):
        with torch.no_grad():
            for p in module.parameters():
                p.normal_()
    state = converted.state_dict()
    fresh = network()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.eval()(BATCH), converted.eval()(BATCH))
    converted.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(BATCH), converted(BATCH))


def test_revert_gives_back_classes_attributes_and_outputs() -> None:
    model = network()
    before, attributes = kinds(model), [sorted(m.__dict__) for m in model.modules()]
    outputs = copy.deepcopy(model)(BATCH)
    convert(model, HOSVD(0.7))
    revert(model)
    assert kinds(model) == before
    assert [sorted(m.__dict__) for m in model.modules()] == attributes
    assert torch.equal(model(BATCH), outputs)
    assert_close(gradients(model), gradients(network()), **TIGHT)
    assert kinds(revert(model)) == before  # A plain model stays as it is.


def test_converting_again_after_a_revert_works() -> None:
    model = network()
    first = gradients(convert(model, HOSVD(0.7)))
    revert(model)
    second = gradients(convert(model, HOSVD(0.7)))
    assert_close(second, first, rtol=0, atol=0)


def test_module_hooks_are_kept() -> None:
    model, calls = network(), []
    handle = model.block.project.register_forward_hook(lambda *_: calls.append("hook"))
    for change in (lambda: convert(model, HOSVD(0.7)), lambda: revert(model)):
        change()
        model(BATCH)
    assert calls == ["hook", "hook"]
    handle.remove()
    model(BATCH)
    assert len(calls) == 2


def test_a_single_layer_is_a_model() -> None:
    layer = convert(nn.Conv2d(3, 4, 3), HOSVD(0.7))
    assert isinstance(layer, Twin)
    assert type(revert(layer)) is nn.Conv2d


def test_convert_carries_out_a_plan() -> None:
    model = network()
    decided = plan(model, BATCH, {"tail.*": HOSVD(0.5), "block.*": SVD(0.5)}, last=3, pointwise=False)
    convert(model, Plan.from_json(decided.to_json()))
    direct = convert(network(), {"tail.*": HOSVD(0.5), "block.*": SVD(0.5)}, last=3, pointwise=False)
    assert kinds(model) == kinds(direct)
    assert_close(gradients(model), gradients(direct), rtol=0, atol=0)


# Copies


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle, by_save])
@pytest.mark.parametrize("last", [None, 2])
@pytest.mark.parametrize("codec", [HOSVD(0.7), GradientFilter(2)], ids=repr)
def test_a_copy_is_converted_and_independent(copied: Callable[[nn.Module], nn.Module], last: Any, codec: Any) -> None:
    model = convert(network(), codec, last=last)
    expected = gradients(model)
    other = copied(model)
    assert kinds(other) == kinds(model)
    assert_close(gradients(other), expected, rtol=0, atol=0)
    revert(other)
    assert twins(other) == []
    assert twins(model)
    assert all(p.requires_grad for p in other.parameters())
    assert all(p.requires_grad for p in model.parameters()) == (last is None)


def test_moving_and_casting() -> None:
    model = convert(network(), HOSVD(0.7))
    model.to(torch.float32)
    loss_of(model, BATCH.float()).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    model.zero_grad()
    model.to("meta").to_empty(device="cpu")
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert twins(model) == [*CONVOLUTIONS, "head"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_distributed_data_parallel(tmp_path: Path) -> None:
    expected = gradients(convert(network(), HOSVD(0.7)))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(convert(network(), HOSVD(0.7)))
        got = gradients(model)
    finally:
        torch.distributed.destroy_process_group()
    assert_close({name.removeprefix("module."): g for name, g in got.items()}, expected, rtol=0, atol=0)


def test_a_grad_scaler_skips_a_spoilt_step_and_the_next_one_is_sound() -> None:
    model, plain = (network().float() for _ in range(2))
    convert(model, HOSVD(1.0))
    x = BATCH.float()
    spoilt = x.clone()
    spoilt[0, 0, 0, 0] = float("inf")
    for each in (model, plain):
        each.eval()  # The statistics of batch norm would be spoilt in both.
        for module in each.modules():
            if not isinstance(module, nn.BatchNorm2d):
                module.train()
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        before = [p.detach().clone() for p in each.parameters()]
        scales = []
        for batch in (spoilt, x):
            optimizer.zero_grad()
            scaler.scale(loss_of(each, batch)).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            moved = any(not torch.equal(p, b) for p, b in zip(each.parameters(), before, strict=True))
            assert moved == (batch is x)
        assert scales == [512.0, 512.0]
    assert_close(dict(model.named_parameters()), dict(plain.named_parameters()), rtol=1e-4, atol=1e-5)
