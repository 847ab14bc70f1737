"""Blocks that are computed again: PyTorch's gradients where the codec is lossless, little held where it is not."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import tuckprop
from tuckprop import zoo
from tuckprop.codecs import Codec
from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.layers import PackEvent, Site, observe
from tuckprop.layers.recomputed_block import RecomputedBlock
from tuckprop.memory import PaperCounter
from tuckprop.recompute import find_blocks
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # timm imports it, and it does not import beside every build of torch.
timm = pytest.importorskip("timm")


class Residual(nn.Module):
    """A block with all that makes a second run different: batch statistics, dropout, a buffer that counts."""

    def __init__(self, width: int, drop: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop)
        self.second = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.drop(self.act(self.norm(self.first(x)))))


def network(blocks: int = 3, width: int = 4, drop: float = 0.3) -> nn.Sequential:
    body = nn.Sequential(*(Residual(width, drop) for _ in range(blocks)))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), body, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()


def step(model: nn.Module, x: Tensor, *, seed: int = 0) -> dict[str, Tensor]:
    """Return all that a training step leaves: output, gradients, buffers, random state."""
    model.zero_grad()
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    left = {"y": y.detach(), "x": x.grad, "random": torch.get_rng_state()}
    left |= {name: parameter.grad for name, parameter in model.named_parameters()}
    left |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {name: torch.zeros(()) if value is None else value for name, value in left.items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], **tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


class TestExactness:
    def test_a_lossless_codec_gives_plain_gradients_statistics_and_random_numbers(self) -> None:
        model, x = network(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        for seed in range(3):
            assert_same(step(ours, x, seed=seed), step(model, x, seed=seed))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: timm.create_model("resnet18", num_classes=5, drop_rate=0.2),
            lambda: timm.create_model("mobilenetv2_100", num_classes=5),
            lambda: timm.create_model(
                "vit_tiny_patch16_224", img_size=32, num_classes=5, proj_drop_rate=0.2, drop_path_rate=0.4
            ),
            lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=5, drop_path_rate=0.4),
        ],
        ids=["resnet18", "mobilenetv2", "vit", "swin"],
    )
    def test_real_networks(self, build: Callable[[], nn.Module]) -> None:
        model = build().double()
        size = 56 if "Swin" in type(model).__name__ else 32
        x = torch.randn(3, 3, size, size, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        assert sum(isinstance(m, RecomputedBlock) for m in ours.modules()) >= 8
        assert_same(step(ours, x), step(model, x), rtol=1e-9, atol=1e-9)

    @settings(max_examples=20, deadline=None)
    @given(
        batch=st.integers(2, 4), width=st.integers(1, 5), size=st.integers(2, 7), blocks=st.integers(1, 3),
        epsilon=st.sampled_from([0.5, 0.9, 0.99]), seed=st.integers(0, 99),
    )  # fmt: skip
    def test_gradients_are_those_at_the_input_that_was_kept(
        self, batch: int, width: int, size: int, blocks: int, epsilon: float, seed: int
    ) -> None:
        torch.manual_seed(seed)
        model, x = network(blocks, width), torch.randn(batch, 3, size, size, dtype=torch.float64)
        reference = copy.deepcopy(model)
        reference[1] = nn.Sequential(*(AtTheKeptInput(block, tuckprop.HOSVD(epsilon)) for block in reference[1]))
        ours = tuckprop.recompute(model, tuckprop.HOSVD(epsilon), blocks="1.*")
        tuckprop.revert(ours[0])  # It is in no block, and would add its own approximation.
        theirs = {name.replace(".block.", "."): value for name, value in step(reference, x, seed=seed).items()}
        assert_same(step(ours, x, seed=seed), theirs, rtol=1e-8, atol=1e-10)

    def test_one_more_use_of_a_block_before_backward(self) -> None:
        model, x = network(1), torch.randn(2, 3, 4, 4, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        for net in (model, ours):
            torch.manual_seed(0)
            (net(x).square().sum() + net(2 * x).sum()).backward()
        for a, b in zip(ours.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)

    def test_hooks_on_parameters_and_blocks_run_once(self) -> None:
        model, x = network(1), torch.randn(2, 3, 4, 4, dtype=torch.float64)
        ours, calls = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense()), []
        for net in (model, ours):
            net[1][0].second.weight.register_hook(lambda grad: 2 * grad)
        ours[1][0].register_forward_hook(lambda *_: calls.append("forward"))
        ours[1][0].register_full_backward_hook(lambda *_: calls.append("backward"))
        assert_same(step(ours, x), step(model, x))
        assert calls == ["forward", "backward"]

    def test_arguments_by_keyword_several_results_and_a_second_tensor_with_a_gradient(self) -> None:
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, index: Tensor, x: Tensor, *, scale: Tensor, note: str) -> dict[str, Any]:
                hidden = self.a(x)[index]
                return {"y": self.b(hidden) * scale, "note": note, "order": index.flip(0), "hidden": hidden}

        model = nn.ModuleList([Mixed()]).double()
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        results = []
        for net in (model, ours):
            x, scale = torch.ones(3, 4, dtype=torch.float64), torch.full((4,), 2.0, dtype=torch.float64)
            x.requires_grad_()
            scale.requires_grad_()
            out = net[0](torch.tensor([2, 0, 1]), x=x, scale=scale, note="n")
            assert (out["note"], out["order"].tolist()) == ("n", [1, 0, 2])
            (out["y"] * out["hidden"]).sum().backward()
            results.append([x.grad, scale.grad, *(p.grad for p in net.parameters())])
        torch.testing.assert_close(results[1], results[0])

    def test_autocast_is_as_it_was(self) -> None:
        model, x = network(drop=0.0).float(), torch.randn(4, 3, 8, 8)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        grads = []
        for net in (model, ours):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(x).float().square().sum()
            loss.backward()  # Outside autocast, as is usual.
            grads.append([p.grad for p in net.parameters()])
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-2, atol=1e-3)

    def test_weights_used_outside_the_block_too_keep_their_gradient_under_autocast(self) -> None:
        block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        ours = tuckprop.recompute(nn.ModuleList([block]), tuckprop.Dense(), blocks="0")
        x = torch.randn(2, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ours[0](x).detach().sum() + F.linear(x, block[0].weight).sum()
        loss.backward()
        torch.testing.assert_close(block[0].weight.grad, x.sum(0).expand(4, 4), rtol=1e-2, atol=1e-2)


class Scaled(nn.Module):
    """A block of two layers with whatever else a test puts into its forward."""

    def __init__(self, body: Callable[..., Any], size: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, size), nn.Linear(size, size)
        self.register_buffer("scale", torch.ones(()))
        self.body = body

    def hidden(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, *args, **kwargs)


def pair(body: Callable[..., Any]) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """Return a network with such a block, plain and computed again without loss, and an input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Scaled(body), nn.Linear(4, 2)).double()
    ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense(), blocks="1")
    return model, ours, torch.randn(3, 4, dtype=torch.float64)


def running_scale(self: Scaled, x: Tensor) -> Tensor:
    self.scale.mul_(0.9).add_(0.1 * x.detach().abs().max())
    return self.hidden(x / self.scale)


class TestWhatChangesBetweenTheTwoRuns:
    def test_a_buffer_that_the_block_writes_before_it_reads_it(self) -> None:
        model, ours, x = pair(running_scale)
        for _ in range(2):
            assert_same(step(ours, x), step(model, x))

    def test_parameters_are_those_of_the_first_run(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        grads = []
        for net in (model, ours):
            doubled = {name: (2 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
            torch.func.functional_call(net, doubled, (x,)).square().sum().backward()
            grads.append([p.grad for p in doubled.values()])
        torch.testing.assert_close(grads[1], grads[0])

    def test_a_parameter_that_was_overwritten_is_an_error_as_in_pytorch(self) -> None:
        for net in pair(Scaled.hidden)[:2]:
            loss = net(torch.ones(1, 4, dtype=torch.float64)).sum()
            with torch.no_grad():
                net[1].a.weight.mul_(2)
                net[1].b.weight.mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_modes_and_what_needs_a_gradient_are_those_of_the_first_run(self) -> None:
        model, x = network(1), torch.randn(4, 3, 6, 6, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.Dense())
        grads = []
        for net in (model, ours):
            torch.manual_seed(0)
            loss = net(x).square().sum()
            net.eval()
            net.requires_grad_(False)
            loss.backward()
            grads.append([p.grad for p in net.parameters()])
            assert not any(module.training for module in net.modules())
        torch.testing.assert_close(grads[1], grads[0])

    def test_revert_before_backward(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        loss = ours(x).square().sum()
        tuckprop.revert(ours)
        loss.backward()
        model(x).square().sum().backward()
        torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in model.parameters()])

    def test_parametrizations_under_a_cache(self) -> None:
        grads = []
        for net in pair(Scaled.hidden)[:2]:
            parametrizations.weight_norm(net[1].a)
            with parametrize.cached():
                net(torch.ones(2, 4, dtype=torch.float64)).square().sum().backward()
            grads.append([p.grad for p in net.parameters()])
        torch.testing.assert_close(grads[1], grads[0])

    def test_threads_that_go_back_through_one_model(self) -> None:
        model, ours, x = pair(Scaled.hidden)
        losses = [ours(x * i).square().sum() for i in range(12)]
        # Taken before: while a block is computed again, stand-ins are in the place of its parameters.
        parameters = list(ours.parameters())
        with ThreadPoolExecutor(6) as pool:
            grads = list(pool.map(lambda loss: torch.autograd.grad(loss, parameters), losses))
        for i, found in enumerate(grads):
            expected = torch.autograd.grad(model(x * i).square().sum(), list(model.parameters()))
            torch.testing.assert_close(found, expected)
        assert all(isinstance(parameter, nn.Parameter) for parameter in ours.parameters())


@dataclass
class Boxed:
    y: Tensor


class TestBlocksThatCannotBeComputedAgain:
    def test_an_argument_that_is_overwritten(self) -> None:
        _, ours, x = pair(lambda self, x, total: self.hidden(x) + total.add_(1))
        with pytest.raises(UnsupportedError, match="1: expected a block that leaves its arguments as they are"):
            ours[1](x, torch.zeros(4, dtype=torch.float64))

    def test_a_tensor_out_of_sight(self) -> None:
        _, ours, x = pair(lambda self, x: Boxed(self.hidden(x)))
        with pytest.raises(UnsupportedError, match="as result, got a Boxed with a tensor in it"):
            ours[1](x)
        _, ours, x = pair(lambda self, x, box: self.hidden(x) * box.y)
        with pytest.raises(UnsupportedError, match="as argument, got a Boxed with a tensor in it"):
            ours[1](x, Boxed(x))

    def test_a_parameter_from_elsewhere(self) -> None:
        other = nn.Parameter(torch.ones(4, dtype=torch.float64))
        _, ours, x = pair(lambda self, x: self.hidden(x) * other)
        with pytest.raises(UnsupportedError, match=r"uses another tensor of shape \(4,\) that needs a gradient"):
            ours(x).sum().backward()


class TestResultsAndLayouts:
    @pytest.mark.parametrize(
        "body",
        [lambda self, x: self.hidden(x).view(-1, 4), lambda self, x: x, lambda self, x: self.hidden(x).t().t()],
        ids=["view", "argument", "transposed"],
    )
    def test_a_result_may_be_overwritten(self, body: Callable[..., Any]) -> None:
        model, ours, x = pair(body)
        for net in (model, ours):
            net.insert(2, nn.ReLU(inplace=True))
        assert_same(step(ours, x), step(model, x))

    @pytest.mark.parametrize("codec", [tuckprop.Dense(), tuckprop.HOSVD(0.5), tuckprop.HOSVD8(0.9)], ids=repr)
    def test_the_strides_of_the_input_come_back(self, codec: Codec) -> None:
        class Rows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.a(x.permute(0, 2, 3, 1).view(-1, 6)))

        ours = tuckprop.recompute(nn.Sequential(Rows()), codec)
        x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        ours(x).sum().backward()
        assert x.grad is not None

    def test_the_largest_tensor_is_packed(self) -> None:
        _, ours, x = pair(lambda self, t, x: self.hidden(x) * t)
        with observed() as kept:
            ours[1](torch.ones(4, dtype=torch.float64), x)
        assert kept["1"].shape == x.shape


class AtTheKeptInput(nn.Module):
    """A block's output at its input, and its gradients at what a codec keeps of the input: in plain autograd."""

    def __init__(self, block: nn.Module, codec: tuckprop.HOSVD) -> None:
        super().__init__()
        self.block, self.site = block, Site("", codec)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.get_rng_state()
        with torch.no_grad():
            y = self.block(x)
            kept = self.site.pack(x).dense()
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        buffers = {name: buffer.clone() for name, buffer in self.block.named_buffers()}
        z = torch.func.functional_call(self.block, buffers, x + (kept - x).detach())
        torch.set_rng_state(after)
        return z + (y - z).detach()


class TestWhatIsHeld:
    def test_a_blocks_packed_input_and_nothing_else(self) -> None:
        model, x = network(blocks=4, width=16, drop=0.0).float(), torch.randn(8, 3, 16, 16)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.HOSVD8(epsilon=0.9))
        report = tuckprop.measure(ours, lambda net: net(x).square().sum())
        held = {site.name: site.bytes for site in report.sites if site.name.startswith("1.")}
        assert set(held) == {f"1.{i}" for i in range(4)}
        with PaperCounter(ours) as counter, observed() as kept:
            ours(x).sum().backward()
        assert held == {name: event.kept.nbytes for name, event in kept.items() if name in held}
        assert counter.take() == sum(event.paper_count * 4 for event in kept.values())

    def test_random_states_are_counted_where_they_are_kept(self) -> None:
        x = torch.randn(8, 3, 16, 16)
        held = {
            drop: tuckprop.measure(
                tuckprop.recompute(network(1, 4, drop).float(), tuckprop.Dense()), lambda net: net(x).sum()
            ).held_bytes
            for drop in (0.0, 0.3)
        }
        assert held[0.3] - held[0.0] == torch.get_rng_state().numel()

    def test_less_than_the_converted_network_and_the_gradients_are_closer(self) -> None:
        torch.manual_seed(0)
        model = timm.create_model("mobilenetv2_035", num_classes=10)
        x = F.interpolate(torch.randn(8, 3, 8, 8), size=64, mode="bicubic")
        labels = torch.arange(8) % 10
        loss = lambda net: F.cross_entropy(net(x), labels)  # noqa: E731
        arms = {
            "plain": copy.deepcopy(model),
            "convert": tuckprop.convert(copy.deepcopy(model), tuckprop.HOSVD(0.95)),
            "recompute": tuckprop.recompute(copy.deepcopy(model), tuckprop.HOSVD8(0.999)),
        }
        held = {name: tuckprop.measure(net, loss).held_bytes for name, net in arms.items()}
        assert held["recompute"] < held["convert"] < held["plain"]

    def test_nothing_is_kept_where_nothing_is_trained(self) -> None:
        model, x = network(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
        ours = tuckprop.recompute(copy.deepcopy(model), tuckprop.HOSVD(0.9))
        with observed() as kept:
            with torch.no_grad():
                ours(x)
            ours.eval()(x).sum().backward()
        assert not kept


@contextmanager
def observed() -> Iterator[dict[str, PackEvent]]:
    """Collect what each site outside of recomputed blocks keeps in a forward."""
    kept: dict[str, PackEvent] = {}

    def note(event: PackEvent) -> None:
        if not re.fullmatch(r"1\.\d+\..*", event.site.name):
            kept[event.site.name] = event

    with observe(note):
        yield kept


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

    def test_a_block_that_overwrites_its_input(self) -> None:
        class Overwriting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3), nn.Linear(3, 3))

            def forward(self, x: Tensor) -> Tensor:
                return self.layers(x)

        ours = tuckprop.recompute(nn.Sequential(nn.Linear(3, 3), Overwriting()), tuckprop.HOSVD(0.9))
        with pytest.raises(UnsupportedError, match="1: expected a block that leaves its arguments as they are"):
            ours(torch.randn(4, 3))

    def test_a_block_that_goes_on_from_what_it_wrote(self) -> None:
        class Remembering(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
                self.cache: list[Tensor] = []

            def forward(self, x: Tensor) -> Tensor:
                self.cache.append(self.layers(x))
                return torch.cat(self.cache)

        ours = tuckprop.recompute(nn.Sequential(nn.Linear(3, 3), Remembering()), tuckprop.HOSVD(0.9))
        result = ours(torch.randn(4, 3)).sum()
        with pytest.raises(UnsupportedError, match=r"1: expected a block that computes the same again, .*\(8, 3\)"):
            result.backward()
