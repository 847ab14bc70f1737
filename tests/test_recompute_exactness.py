"""Blocks that are computed again give PyTorch's gradients, at the input that was kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tuckprop
from tests.recomputing import assert_same, network, observed, pair, step
from tuckprop.codecs import Codec
from tuckprop.layers import Site
from tuckprop.layers.recomputed_block import RecomputedBlock
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # timm imports it, and it does not import beside every build of torch.
timm = pytest.importorskip("timm")


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
