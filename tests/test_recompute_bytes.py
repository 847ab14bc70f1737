"""What blocks that are computed again hold."""

import copy

import pytest
import torch
import torch.nn.functional as F

import tuckprop
from tests.recomputing import network, observed
from tuckprop.memory import PaperCounter
from tuckprop.zoo._torchvision import import_torchvision

import_torchvision()  # timm imports it, and it does not import beside every build of torch.
timm = pytest.importorskip("timm")


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
