"""Which modules have a twin, when it packs, and what it then keeps."""

import pytest
import torch
from torch import Tensor, nn

from tests.cases import LayerCase, RandomTucker
from tests.layers.contract import Run, plain_and_converted
from tests.layers.kinds import KINDS, each_exact, each_kind
from tuckprop import HOSVD, Dense, GradientFilter, convert, revert
from tuckprop.codecs import Codec, DensePacked
from tuckprop.errors import ConfigError
from tuckprop.layers import PackEvent, find_twin, observe, twin_of
from tuckprop.layers._twin import Twin, not_convertible


def saved_bytes(module: nn.Module, x: Tensor, *besides: Tensor) -> int:
    """Return the bytes that a forward saves for backward, without parameters and `besides`, each storage once."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *besides)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    assert y.requires_grad
    return sum(saved.values())


@each_kind
@pytest.mark.parametrize("how", ["eval", "no_grad", "nothing needs a gradient", "inference_mode"])
def test_outside_training_the_plain_op_runs_and_nothing_is_packed(case: LayerCase, codec: Codec, how: str) -> None:
    module, x = case.module(), case.input()
    expected = module(x)
    convert(module, codec)
    events: list[PackEvent] = []
    with observe(events.append):
        if how == "eval":
            y = module.eval()(x)
            assert y.requires_grad
        elif how == "no_grad":
            with torch.no_grad():
                y = module(x)
        elif how == "inference_mode":
            with torch.inference_mode():
                y = module(x)
        else:
            module.requires_grad_(False)
            y = module(x)
    assert torch.equal(y, expected)
    assert events == []
    assert "Factored" not in type(y.grad_fn).__name__
    assert "Filtered" not in type(y.grad_fn).__name__


@each_exact
def test_eval_mode_gradients_are_the_plain_ones(case: LayerCase, codec: Codec) -> None:
    plain, x = Run(case.module().eval(), case.input()), case.input()
    converted = Run(convert(case.module(), codec).eval(), x)
    assert torch.equal(converted.weight, plain.weight)
    assert torch.equal(converted.x.grad, plain.x.grad)


@each_kind
def test_it_keeps_the_packed_form_and_nothing_else(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input()
    events: list[PackEvent] = []
    with observe(events.append):
        held = saved_bytes(module, x)
    (event,) = events
    assert held == event.kept.nbytes < x.numel() * 8
    assert event.site.name == ""
    assert event.shape == x.shape
    assert event.element_size == 8


@each_kind
def test_a_frozen_weight_keeps_nothing(case: LayerCase, codec: Codec) -> None:
    module, x = convert(case.module(), codec), case.input()
    module.weight.requires_grad_(False)
    assert saved_bytes(module, x) == 0  # The bias needs a gradient.
    x.requires_grad_()
    assert saved_bytes(module, x) == 0
    module.bias.requires_grad_(False)
    assert saved_bytes(module, x) == 0


@each_exact
def test_where_the_form_is_not_smaller_the_activation_itself_is_kept(case: LayerCase, codec: Codec) -> None:
    module = convert(case.module(), type(codec)(epsilon=0.9999999))
    x = torch.randn(case.shape, dtype=torch.float64)
    events: list[PackEvent] = []
    with observe(events.append):
        assert saved_bytes(module, x, x) == 0  # It is x's own storage.
    assert isinstance(events[0].kept, DensePacked)
    assert events[0].paper_count == type(codec)(epsilon=0.9999999).compress(x).paper_count()


def test_the_bytes_of_an_expanded_activation_are_those_it_has() -> None:
    """A form smaller than the elements, yet larger than the storage, saves nothing."""
    x = torch.randn(1, 6, 12, 12, dtype=torch.float64).expand(64, 6, 12, 12)
    layer = convert(nn.Conv2d(6, 6, 3, dtype=torch.float64), HOSVD(0.99))
    form = HOSVD(0.99).compress(x)
    assert 6 * 144 * 8 <= form.nbytes < 64 * 6 * 144 * 8
    assert saved_bytes(layer, x, x) == 0


def test_a_class_has_one_twin_a_codec() -> None:
    with pytest.raises(ConfigError, match="Conv2d has a twin already: FactoredConv2d"):
        twin_of(nn.Conv2d)(type("Another", (Twin, nn.Conv2d), {}))


def test_a_codecs_own_twin_goes_before_the_general_one() -> None:
    layer = nn.Conv2d(2, 2, 3)
    assert find_twin(layer, GradientFilter(2)) is not find_twin(layer, HOSVD(0.8))
    assert find_twin(layer, HOSVD(0.8)) is find_twin(layer, Dense())


def test_only_the_exact_class_has_a_twin() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    layer = Own(2, 2, 3)
    assert find_twin(layer, HOSVD(0.8)) is None
    assert not_convertible(layer) == (
        f"{Own.__qualname__} is a subclass of Conv2d and may compute otherwise; only exact classes are converted"
    )


@each_kind
def test_hooks_see_what_they_saw(case: LayerCase, codec: Codec) -> None:
    seen: list[list[str]] = []
    for convert_it in (False, True):
        module, calls = case.module(), []
        module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append("before"))
        module.register_forward_hook(lambda m, args, out, calls=calls: calls.append("after"))
        module.register_full_backward_pre_hook(lambda m, grads, calls=calls: calls.append("backward"))
        module.register_full_backward_hook(
            lambda m, into, out, calls=calls: calls.append(f"gradients {[g is not None for g in into]}")
        )
        module.weight.register_hook(lambda grad, calls=calls: calls.append("weight"))
        if convert_it:
            convert(module, codec)
        module(case.input().requires_grad_()).sum().backward()
        seen.append(sorted(calls))
        if convert_it:
            revert(module)
            module(case.input().requires_grad_()).sum().backward()
            assert sorted(calls) == sorted(seen[0] * 2)
    assert seen[0] == seen[1]


def test_lossy_training_still_differs_from_plain(forced: None) -> None:
    """A guard for the tests above: had conversion done nothing, most of them would pass."""
    for case, codec in [*KINDS, (KINDS[0][0], RandomTucker(0.5))]:
        plain, converted = plain_and_converted(case, codec)
        assert not torch.allclose(plain.weight, converted.weight, rtol=1e-2)
