"""A tensor that several layers read is packed once, and nothing is kept alive for it."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.cases import decaying
from tuckprop import HOSVD, SVD, Dense, convert
from tuckprop.codecs import Packed
from tuckprop.layers import PackEvent, _shared, observe

SHAPE = (6, 8, 10, 10)


class Counting(HOSVD):
    """HOSVD that counts its decompositions."""

    calls = 0

    def compress(self, x: Tensor) -> Packed:
        type(self).calls += 1
        return super().compress(x)


@pytest.fixture
def counting() -> Counting:
    Counting.calls = 0
    return Counting(epsilon=0.7)


def branches(codec: object, count: int = 3) -> nn.ModuleList:
    return convert(nn.ModuleList(nn.Conv2d(8, 4, 3, dtype=torch.float64) for _ in range(count)), codec)


def pointers(kept: Packed) -> list[int]:
    return [t.data_ptr() for t in kept.tensors()]


def test_layers_that_read_one_tensor_share_one_form(counting: Counting) -> None:
    layers = branches(counting)
    x = decaying(SHAPE, seed=1)
    events: list[PackEvent] = []
    with observe(events.append):
        outputs = [layer(x) for layer in layers]
    assert counting.calls == 1
    assert len(events) == 3
    assert pointers(events[0].kept) == pointers(events[1].kept) == pointers(events[2].kept)
    assert events[0].kept.nbytes < x.numel() * 8
    assert {event.paper_count for event in events} == {counting.compress(x).paper_count()}
    sum(y.sum() for y in outputs).backward()
    gradients = [layer.weight.grad for layer in layers]
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_one_layer_used_twice_on_one_tensor_packs_once(counting: Counting) -> None:
    (layer,) = branches(counting, 1)
    x = decaying(SHAPE, seed=1)
    (layer(x) + layer(x)).sum().backward()
    assert counting.calls == 1


def test_a_tensor_that_changed_in_between_is_packed_again(counting: Counting) -> None:
    first, second = branches(counting, 2)
    x = decaying(SHAPE, seed=1)
    events: list[PackEvent] = []
    with observe(events.append):
        y = first(x)
        x.mul_(2)
        z = second(x)
    assert counting.calls == 2
    assert not torch.equal(events[0].kept.dense(), events[1].kept.dense())
    (y + z).sum().backward()
    torch.testing.assert_close(second.weight.grad, 2 * first.weight.grad)


def test_codecs_do_not_share_with_each_other() -> None:
    layers = convert(nn.ModuleList(nn.Conv2d(8, 4, 3) for _ in range(2)), {"0": HOSVD(0.5), "1": SVD(0.5)})
    x = decaying(SHAPE, seed=1).float()
    events: list[PackEvent] = []
    with observe(events.append):
        outputs = [layer(x) for layer in layers]
    assert len(events[0].kept.tensors()) > len(events[1].kept.tensors()) == 2
    assert len(outputs) == 2


def test_equal_tensors_are_different_tensors(counting: Counting) -> None:
    (layer,) = branches(counting, 1)
    x = decaying(SHAPE, seed=1)
    layer(x)
    layer(x.clone())
    assert counting.calls == 2


def test_a_fallback_is_shared_too(counting: Counting) -> None:
    layers = branches(counting, 2)
    x = decaying(SHAPE, seed=1)
    x[0, 0, 0, 0] = float("nan")
    for layer in layers:
        layer(x)
    assert counting.calls == 1
    assert sum(layer._site.fallbacks for layer in layers) == 1


def alive(references: list[weakref.ref[Tensor]]) -> int:
    """Count without a collection of cycles: what is not needed is to be freed at once."""
    return sum(reference() is not None for reference in references)


def observed_forms(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Tensor]]:
    """Return a list that fills with weak references to every tensor of every form that HOSVD makes."""
    references: list[weakref.ref[Tensor]] = []
    original = HOSVD.compress

    def compress(codec: HOSVD, x: Tensor) -> Packed:
        packed = original(codec, x)
        references.extend(weakref.ref(t) for t in packed.tensors())
        return packed

    monkeypatch.setattr(HOSVD, "compress", compress)
    return references


def test_a_form_that_is_not_used_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The activation itself is kept here; the form besides would be more than plain PyTorch holds."""
    forms = observed_forms(monkeypatch)
    layers = convert(nn.ModuleList(nn.Conv2d(8, 4, 3) for _ in range(2)), HOSVD(0.99))
    x = torch.randn(SHAPE)
    outputs = [layer(x) for layer in layers]
    assert len(forms) > 0
    assert alive(forms) == 0
    assert all(y.requires_grad for y in outputs)


def test_a_form_lives_as_long_as_a_graph_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as long as the tensor it was made from: an input batch may live for ever."""
    forms = observed_forms(monkeypatch)
    layers = convert(nn.ModuleList(nn.Conv2d(8, 4, 3) for _ in range(2)), HOSVD(0.5))
    x = decaying(SHAPE, seed=1).float()
    outputs = [layer(x) for layer in layers]
    made = len(forms)
    assert alive(forms) == made > 0
    outputs[0].sum().backward()
    assert alive(forms) == made  # The other layer still needs it.
    del outputs
    assert alive(forms) == 0
    assert x.isfinite().all()


def test_the_activation_is_freed_once_the_layer_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = convert(nn.Conv2d(8, 8, 3), HOSVD(0.5))
    x = decaying(SHAPE, seed=1).float().requires_grad_()
    inner = x * 1.0
    reference, storage = weakref.ref(inner), inner.untyped_storage()._weak_ref()
    y = layer(inner)
    del inner
    assert reference() is None
    assert torch.UntypedStorage._expired(storage)
    torch.UntypedStorage._free_weak_ref(storage)
    y.sum().backward()
    assert x.grad is not None


def test_nothing_piles_up_over_many_steps() -> None:
    model = convert(nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]), HOSVD(0.7))
    x = decaying(SHAPE, seed=1).float()
    gc.collect()
    before, sizes = len(_shared._choices), []
    for _ in range(20):
        model(x).sum().backward()
        sizes.append(len(_shared._choices) - before)
    assert set(sizes) == {1}  # The input batch, which is the same throughout.
    del x
    assert len(_shared._choices) == before


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_keeps_no_form_between_forward_and_backward(
    use_reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = observed_forms(monkeypatch)
    model = convert(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)), HOSVD(0.5))
    x = decaying(SHAPE, seed=1).float().requires_grad_()
    y = checkpoint(model, x, use_reentrant=use_reentrant)
    assert alive(forms) == 0
    y.sum().backward()
    assert len(forms) > 0
    del y
    assert alive(forms) == 0


def test_threads_that_read_one_tensor(counting: Counting) -> None:
    layers = branches(counting, 4)
    x = decaying(SHAPE, seed=1)
    expected = torch.autograd.grad(layers[0](x).sum(), layers[0].weight)[0]

    def step(index: int) -> Tensor:
        layer = layers[index % 4]
        return torch.autograd.grad(layer(x).sum(), layer.weight)[0]

    with ThreadPoolExecutor(4) as pool:
        for gradient in pool.map(step, range(40)):
            torch.testing.assert_close(gradient, expected)


def test_dense_makes_no_entry() -> None:
    gc.collect()
    before = len(_shared._choices)
    layer = convert(nn.Conv2d(8, 8, 3), Dense())
    x = torch.randn(SHAPE)
    y = layer(x)
    assert len(_shared._choices) == before
    assert y.requires_grad
