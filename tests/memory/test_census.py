"""Which storages are counted, once, for whom and how long."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.networks import ConvNet
from tuckprop import HOSVD, Subspace, convert
from tuckprop.codecs import Codec
from tuckprop.memory import census


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.inner(x))


def test_by_hand() -> None:
    model = nn.Sequential(Block(), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    with census(model) as counted:
        loss = model(x).exp().sum()
    # Linear keeps x, which was there before; Tanh and sigmoid keep what they return; the second Linear keeps what
    # sigmoid kept already; exp, outside, keeps what it returns.
    assert counted.by_module() == {"0.inner.1": 5 * 6 * 4, "0": 5 * 6 * 4, "": 5 * 3 * 4}
    assert counted.held_bytes == (30 + 30 + 15) * 4
    assert counted.naive_bytes == (30 + 30 + 30 + 15) * 4
    loss.backward()
    assert counted.held_bytes == 0
    assert counted.by_module() == {}


def test_what_is_dropped_is_not_held() -> None:
    model = nn.Linear(4, 4)
    with census(model) as counted:
        y = model(torch.randn(5, 4) * 1.0).tanh()
        assert counted.held_bytes == 2 * 5 * 4 * 4
        del y
        assert counted.held_bytes == 0


def test_a_view_counts_for_the_whole_storage_it_keeps_alive() -> None:
    model = nn.Linear(4, 4, bias=False)
    x = torch.randn(100, 4)
    with census(model) as counted:
        y = model((x * 1.0)[:5])
    assert counted.held_bytes == 100 * 4 * 4
    assert counted.naive_bytes == 5 * 4 * 4
    assert y.shape == (5, 4)


def test_parameters_buffers_inputs_and_what_was_there_before_are_left_out() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    x, constant = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    with census(model) as counted:
        y = F.linear(x * constant, model[1].weight) + model[1].weight.sum() * x
    # `x * constant` is kept for the weight; x, constant and the weight were there before; their sum is one element.
    assert counted.by_module() == {"": 5 * 4 * 4 + 4}
    assert y.requires_grad


def test_a_module_under_two_names_goes_by_its_first() -> None:
    layer = nn.Tanh()
    model = nn.ModuleDict({"first": layer, "second": layer})
    x = torch.randn(3, 3, requires_grad=True)
    with census(model) as counted:
        y = model["second"](x)
    assert counted.by_module() == {"first": y.numel() * 4}


def test_a_module_that_is_not_the_models_counts_for_its_caller() -> None:
    class Caller(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.Tanh()(x)

    model = nn.ModuleDict({"caller": Caller()})
    with census(model) as counted:
        y = model["caller"](torch.randn(3, 3, requires_grad=True))
    assert counted.by_module() == {"caller": y.numel() * 4}


def test_nested_forwards_that_fail_do_not_shift_the_names() -> None:
    class Flaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = nn.Linear(7, 7), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            with pytest.raises(RuntimeError):
                self.bad(x)
            return self.good(x).exp()

    model = nn.ModuleDict({"flaky": Flaky()})
    x = torch.randn(3, 3, requires_grad=True)
    with census(model) as counted:
        y = model["flaky"](x).tanh()
    assert counted.by_module() == {"flaky.good": 36, "flaky": 36, "": 36}
    assert y.requires_grad


def test_no_hook_stays_behind() -> None:
    hooks = torch.nn.modules.module
    with census(nn.Linear(2, 2)):
        assert hooks._global_forward_pre_hooks
    assert not hooks._global_forward_pre_hooks
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_hooks_always_called


def test_the_census_itself_changes_no_gradient_and_keeps_nothing_alive() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    x = torch.randn(4, 3, 16, 16)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with census(model) as counted:
        loss = model(x).sum()
    loss.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))
    assert counted.held_bytes == 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_holds_the_input_of_the_segment(use_reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = torch.randn(5, 4, requires_grad=True)
    with census(model) as counted:
        y = checkpoint(model, x * 1.0, use_reentrant=use_reentrant)
    assert counted.held_bytes == 5 * 4 * 4
    y.sum().backward()
    assert counted.held_bytes == 0


def test_a_graph_that_is_dropped_without_a_backward_is_freed() -> None:
    """A plan runs forwards only; a reference cycle through the hooks would keep each of them for ever."""
    model = ConvNet()
    x = torch.randn(4, 3, 16, 16)
    with census(model) as counted:
        y = model(x).exp()
        assert counted.held_bytes > 0
        del y
        assert counted.held_bytes == 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        result: Tensor = self.q(hidden) + self.k(hidden) + self.v(hidden)
        return result


def _in_graph(output: Tensor, without: Tensor) -> int:
    """Return the bytes of the storages that the graph behind an output saves, but for parameters and one tensor."""
    found, left, seen = {}, [output.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        left += [following for following, _ in node.next_functions]
        for tensor in getattr(node, "saved_tensors", ()):
            if not isinstance(tensor, nn.Parameter):
                found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
    found.pop(without.untyped_storage()._cdata, None)
    return sum(found.values())


@pytest.mark.parametrize("codec", [HOSVD(0.8), Subspace(0.8)], ids=repr)
def test_a_packed_input_that_several_layers_read_is_packed_once_as_without_a_census(codec: Codec) -> None:
    torch.manual_seed(0)
    model, x = convert(Attention(), codec), torch.randn(4, 64, 64)
    model(x)
    with census(model) as counted:
        y = model(x)
    held = counted.held_bytes
    assert held == _in_graph(model(x), x) > 0
    y.sum().backward()
