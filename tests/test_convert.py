"""convert, revert and freeze on whole models."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close

from tests.cases import RandomTucker, decaying
from tests.networks import CONVOLUTIONS, ConvNet, Transformer
from tuckprop import HOSVD, SVD, Dense, GradientFilter, Plan, convert, freeze, plan, revert
from tuckprop.errors import ConfigError, TuckpropError
from tuckprop.layers import Twin
from tuckprop.plan import SitePlan, choose_sites, decide

TIGHT = {"rtol": 1e-10, "atol": 1e-10}

BATCH = decaying((8, 3, 16, 16), seed=1, decay=0.8)
TARGET = torch.arange(8) % 5


def network(kind: Callable[[], nn.Module] = ConvNet) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def loss_of(model: nn.Module, x: Tensor = BATCH) -> Tensor:
    return nn.functional.cross_entropy(model(x), TARGET[: len(x)])


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def kinds(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def twins(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Twin) and module.compresses]


both_networks = pytest.mark.parametrize("kind", [ConvNet, Transformer])


# What stays the same


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


# Shapes of models


def test_a_single_layer_is_a_model() -> None:
    layer = convert(nn.Conv2d(3, 4, 3), HOSVD(0.7))
    assert isinstance(layer, Twin)
    assert type(revert(layer)) is nn.Conv2d


class Shared(nn.Module):
    """One layer under two names, used at both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = self.first
        self.only = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(self.second(torch.relu(self.first(x))))


class Twice(nn.Module):
    """One layer used twice, on different tensors and on the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x)) + self.layer(x)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 6)
        self.up = nn.Linear(6, 6, bias=False)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x.transpose(1, -1)[..., :6, :6])))


@pytest.mark.parametrize("kind", [Shared, Twice, Tied])
@pytest.mark.parametrize("codec", [HOSVD(1.0), RandomTucker(1.0)], ids=repr)
def test_sharing(kind: Callable[[], nn.Module], codec: Any, forced: None) -> None:
    x = decaying((4, 4 if kind is not Tied else 6, 6, 6), seed=1)
    plain = network(kind)
    converted = convert(copy.deepcopy(plain), codec)
    for model in (plain, converted):
        y = model(x)
        y.square().sum().backward()
    assert torch.equal(plain(x), converted(x))
    for (name, expected), got in zip(plain.named_parameters(), converted.parameters(), strict=True):
        assert_close(got.grad, expected.grad, msg=name, **TIGHT)


def test_a_layer_under_two_names_is_one_site_and_stays_one_object() -> None:
    model = convert(network(Shared), HOSVD(0.7))
    assert model.first is model.second
    assert model.first._site.name == "first"
    assert [site.name for site in decide(network(Shared), HOSVD(0.7)).sites] == ["first", "only"]
    revert(model)
    assert type(model.second) is nn.Conv2d


def test_tied_weights_stay_tied() -> None:
    model = convert(network(Tied), HOSVD(0.7))
    assert model.up.weight is model.down.weight
    assert revert(model).up.weight is model.down.weight


class Plus(nn.Conv2d):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_a_subclass_is_left_alone_and_listed() -> None:
    model = nn.Sequential(Plus(3, 4, 3), nn.Conv2d(4, 4, 3)).double()
    expected = model(BATCH)
    (skipped,) = decide(model, HOSVD(0.7)).skipped
    assert (skipped.name, skipped.kind) == ("0", "Plus")
    assert "subclass of Conv2d" in skipped.reason
    convert(model, HOSVD(0.7))
    assert type(model[0]) is Plus
    assert torch.equal(model(BATCH), expected)


def test_a_layer_that_is_parametrized_is_left_alone_and_listed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)).double()
    expected = model(BATCH)
    (skipped,) = decide(model, HOSVD(0.7)).skipped
    assert skipped.name == "0"
    convert(model, HOSVD(0.7))
    assert parametrize.is_parametrized(model[0])
    assert torch.equal(model(BATCH), expected)
    revert(model)
    assert torch.equal(model(BATCH), expected)


def test_a_parametrization_of_a_converted_layer_works_and_must_go_before_the_revert() -> None:
    model = convert(network(), HOSVD(1.0))
    plain = network()
    for each in (model, plain):
        torch.manual_seed(0)
        parametrizations.orthogonal(each.tail[0])
    assert torch.equal(model(BATCH), plain(BATCH))
    assert_close(gradients(model), gradients(plain), **TIGHT)
    with pytest.raises(ConfigError, match=r"'tail\.0' was parametrized after its conversion"):
        revert(model)
    assert twins(model) == [*CONVOLUTIONS, "head"]  # Nothing was reverted by half.
    parametrize.remove_parametrizations(model.tail[0], "weight")
    assert twins(revert(model)) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_weight_norm_that_sets_the_weight_in_a_hook() -> None:
    plain, model = (nn.utils.weight_norm(nn.Conv2d(3, 4, 3).double()) for _ in range(2))
    model.load_state_dict(plain.state_dict())
    convert(model, HOSVD(1.0))
    for each in (plain, model):
        each(BATCH).square().sum().backward()
    for expected, got in zip(plain.parameters(), model.parameters(), strict=True):
        assert_close(got.grad, expected.grad, **TIGHT)


def test_lazy_layers_are_listed_until_they_have_a_shape() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ConfigError, match=r"nothing to compress.*run the model once first"):
        convert(model, HOSVD(0.7))
    model(BATCH.float())
    assert twins(convert(model, HOSVD(0.7))) == ["0", "2"]


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


# Choosing sites


def test_every_convolution_and_linear_layer_by_default() -> None:
    assert twins(convert(network(), HOSVD(0.7))) == [*CONVOLUTIONS, "head"]


def test_select_picks_sites() -> None:
    seen = []

    def select(name: str, module: nn.Module) -> bool:
        seen.append((name, type(module)))
        return getattr(module, "groups", 1) > 1

    assert twins(convert(network(), HOSVD(0.7), select=select)) == ["block.depthwise"]
    assert seen == [*((name, nn.Conv2d) for name in CONVOLUTIONS), ("head", nn.Linear)]


def test_what_select_leaves_out_is_listed() -> None:
    skipped = decide(network(), HOSVD(0.7), select=lambda name, module: name == "stem").skipped
    assert {s.name: s.reason for s in skipped if s.kind in {"Conv2d", "Linear"}} == dict.fromkeys(
        [*CONVOLUTIONS[1:], "head"], "not among the chosen layers"
    )


def test_a_mapping_gives_the_first_pattern_that_matches() -> None:
    choice = {"block.*": SVD(0.5), "*.0": HOSVD(0.6), "*": Dense()}
    model = convert(network(), choice, pointwise=False)
    assert {name: model.get_submodule(name)._site.codec for name in twins(model)} == {
        "stem": Dense(),
        "block.expand": SVD(0.5),
        "block.depthwise": SVD(0.5),
        "block.project": SVD(0.5),
        "tail.0": HOSVD(0.6),
        "head": Dense(),
    }


def test_what_no_pattern_matches_is_left_alone_and_listed() -> None:
    decided = decide(network(), {"stem": HOSVD(0.7)})
    assert [site.name for site in decided.sites if site.kind == "Conv2d"] == ["stem"]
    reasons = {s.name: s.reason for s in decided.skipped}
    assert reasons["tail.0"] == "no pattern of the codec mapping matches its name"


def test_pointwise_layers_are_left_alone_on_request() -> None:
    model = network()
    others = {name: type(m) for name, m in model.named_modules() if name not in choose_sites(model)}
    convert(model, HOSVD(0.7), pointwise=False)
    assert {name: type(m) for name, m in model.named_modules() if name in others} == others


# The paper's protocol


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


# Wrong arguments: each one clear error that says where, what was expected and what came


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no model": (lambda: convert([1], HOSVD()), r"convert\(model=\.\.\.\): expected a torch\.nn\.Module, got list"),
    "no codec": (
        lambda: convert(network(), "hosvd"),
        r"convert\(codec=\.\.\.\): expected a codec config \(.*hosvd.*\) or a mapping to them, got 'hosvd'",
    ),
    "a class for a codec": (lambda: convert(network(), HOSVD), r"convert\(codec=\.\.\.\): expected .*, got <class"),
    "a mapping to no codec": (
        lambda: convert(network(), {"*": 0.8}),
        r"convert\(codec=\.\.\.\): expected a mapping of name patterns to codec configs .*got '\*': 0\.8",
    ),
    "a mapping from no name": (lambda: convert(network(), {1: HOSVD()}), r"got 1: HOSVD\(epsilon=0\.8\)"),
    "last 0": (lambda: convert(network(), HOSVD(), last=0), r"last=\.\.\.\): expected an integer from 1 to 5, .*got 0"),
    "last 6": (lambda: convert(network(), HOSVD(), last=6), r"last=\.\.\.\): expected an integer from 1 to 5, .*got 6"),
    "last -1": (lambda: convert(network(), HOSVD(), last=-1), r"expected an integer from 1 to 5, .*got -1"),
    "last 2.0": (lambda: convert(network(), HOSVD(), last=2.0), r"expected an integer from 1 to 5, .*got 2\.0"),
    "last True": (lambda: convert(network(), HOSVD(), last=True), r"expected an integer from 1 to 5, .*got True"),
    "last in a transformer": (
        lambda: convert(network(Transformer), HOSVD(), last=13),
        r"last=\.\.\.\): expected an integer from 1 to 12, .*got 13",
    ),
    "freeze too many": (lambda: freeze(network(), last=6), r"expected an integer from 1 to 5, .*got 6"),
    "last of nothing": (
        lambda: convert(nn.Sequential(nn.Flatten()), HOSVD(), last=1),
        r"last=1\): the model has no convolution and no Linear layer",
    ),
    "select no function": (
        lambda: convert(network(), HOSVD(), select="stem"),
        r"convert\(select=\.\.\.\): expected a function of \(name, module\), got 'stem'",
    ),
    "select nothing": (
        lambda: convert(network(), HOSVD(), select=lambda name, module: False),
        r"convert\(select=\.\.\.\): it picks no convolution and no Linear layer",
    ),
    "nothing to compress": (lambda: convert(Nothing(), HOSVD()), r"nothing to compress in this Nothing"),
    "nothing that the codec serves": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), GradientFilter()),
        r"nothing to compress in this Sequential \(0: Gradient Filter is defined for Conv2d only\)",
    ),
    "nothing that a pattern matches": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), {"1": HOSVD()}),
        r"nothing to compress .*no pattern of the codec mapping matches",
    ),
    "twice": (
        lambda: convert(convert(network(), HOSVD()), HOSVD()),
        r"the model is converted already \(at 'stem'\); call tuckprop\.revert first",
    ),
    "a plan for another model": (
        lambda: convert(network(Transformer), decide(network(), HOSVD())),
        r"the plan has a Conv2d at 'stem', the model has nothing",
    ),
    "a plan for other layers": (
        lambda: convert(nn.ModuleDict({"0": nn.Flatten()}), decide(nn.Sequential(nn.Conv2d(3, 3, 3)), HOSVD())),
        r"the plan has a Conv2d at '0', the model has a Flatten",
    ),
    "a plan with a codec that does not serve the layer": (
        lambda: convert(nn.Sequential(nn.Linear(3, 3)), Plan((SitePlan("0", "Linear", GradientFilter()),))),
        r"the plan has GradientFilter\(patch=2\) at '0': Gradient Filter is defined for Conv2d only",
    ),
    "a plan and other arguments": (
        lambda: convert(network(), decide(network(), HOSVD()), last=2),
        r"expected a plan alone, got last",
    ),
    "a plan on a converted model": (
        lambda: convert(convert(network(), HOSVD()), decide(network(), HOSVD())),
        r"converted already",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(TuckpropError, match=message) as raised:
        call()
    assert isinstance(raised.value, ConfigError)
    assert isinstance(raised.value, ValueError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("by", ["last", "frozen"])
def test_a_model_that_is_refused_is_left_as_it_was(by: str) -> None:
    model = network()
    before, flags = kinds(model), [p.requires_grad for p in model.parameters()]
    good = decide(model, HOSVD(), last=2)
    wrong = HOSVD() if by == "last" else Plan(good.sites, frozen=(*good.frozen, "absent"))
    with pytest.raises(ConfigError):
        convert(model, wrong, last=9 if by == "last" else None)
    assert kinds(model) == before
    assert [p.requires_grad for p in model.parameters()] == flags


# A plan does what it says


def test_convert_carries_out_a_plan() -> None:
    model = network()
    decided = plan(model, BATCH, {"tail.*": HOSVD(0.5), "block.*": SVD(0.5)}, last=3, pointwise=False)
    convert(model, Plan.from_json(decided.to_json()))
    direct = convert(network(), {"tail.*": HOSVD(0.5), "block.*": SVD(0.5)}, last=3, pointwise=False)
    assert kinds(model) == kinds(direct)
    assert_close(gradients(model), gradients(direct), rtol=0, atol=0)
