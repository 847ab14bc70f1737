"""Tracked subspaces: the bound holds for every stored tensor, and the bases are moved only when they must be."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tuckprop
from tests.cases import decaying
from tuckprop import HOSVD, Subspace
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.codecs.subspace import SubspaceTracker
from tuckprop.errors import ConfigError
from tuckprop.linalg.basis import NotFactorableError
from tuckprop.linalg.energy import Energy
from tuckprop.linalg.standardised import Standardised

SHAPE = (6, 8, 7, 5)


def lost_share(x: Tensor, packed: TuckerPacked) -> float:
    return float((x - packed.dense()).square().sum() / x.square().sum())


def pack(tracker: SubspaceTracker, x: Tensor) -> TuckerPacked:
    packed = tracker.compress(x)
    assert isinstance(packed, TuckerPacked)
    return packed


def similar(x: Tensor, seed: int, noise: float) -> Tensor:
    """Return other samples from about the subspaces of `x`: the batch mode mixed, and noise."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(len(x), len(x), generator=generator, dtype=x.dtype)
    mixed = torch.tensordot(torch.linalg.qr(mix).Q, x, 1)
    return mixed + noise * x.square().mean().sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_similar_activations_reuse_the_bases() -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying(SHAPE, seed=0)
    first = pack(tracker, x)
    for seed in range(5):
        packed = pack(tracker, similar(x, seed, 0.0))
        for axis, basis in packed.factors.items():
            if axis > 0:
                assert basis.data_ptr() == first.factors[axis].data_ptr()
    assert (tracker.refreshes, tracker.uses) == (1, 6)


def test_other_activations_move_the_bases() -> None:
    tracker = Subspace(0.9).tracker()
    pack(tracker, decaying(SHAPE, seed=0))
    pack(tracker, decaying(SHAPE, seed=1))
    assert tracker.refreshes == 2


def test_bases_that_became_too_rich_are_cut() -> None:
    tracker = Subspace(0.9).tracker()
    rich = pack(tracker, decaying(SHAPE, seed=0, decay=0.95))
    poor = pack(tracker, decaying(SHAPE, seed=0, decay=0.2))
    assert poor.nbytes < rich.nbytes / 2


def test_bases_that_miss_are_given_room_and_those_that_are_needless_are_not() -> None:
    tracker = Subspace(0.9, slack=0.0).tracker()
    pack(tracker, decaying(SHAPE, seed=0, decay=0.7))
    (first,) = tracker.bases.values()
    assert (first.misses, first.expected) == (0, first.lost)
    pack(tracker, decaying(SHAPE, seed=1, decay=0.7))
    (second,) = tracker.bases.values()
    assert second.misses == 1
    assert second.expected < first.expected
    pack(tracker, decaying(SHAPE, seed=1, decay=0.1))
    (third,) = tracker.bases.values()
    assert third.misses == 0


def test_the_horizon_ends_the_use_of_bases() -> None:
    tracker = Subspace(0.9, horizon=3).tracker()
    for _ in range(7):
        pack(tracker, decaying(SHAPE, seed=0))
    assert tracker.refreshes == 3


def test_an_axis_whose_bases_do_not_carry_over_is_left_whole_until_the_horizon() -> None:
    tracker = Subspace(0.8, horizon=6).tracker()
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64)

    def batch() -> Tensor:
        """Return a batch whose channels lie in four directions of its own; height and width are as ever."""
        directions = torch.linalg.qr(torch.randn(40, 4, generator=generator, dtype=torch.float64)).Q
        return torch.einsum("ck,bkhw->bchw", directions, coefficients)

    packed = [pack(tracker, batch()) for _ in range(12)]
    assert [1 in p.factors for p in packed] == [True] * 4 + [False] * 6 + [True] * 2
    assert tracker.refreshes == 4 + 1 + 2
    # The paper counts no factor for an axis that has none.
    assert packed[5].paper_count() == packed[5].core.numel() + sum(f.numel() for f in packed[5].factors.values())


def test_other_settings_begin_with_what_was_learnt_and_with_bases_of_their_own() -> None:
    tracker = Subspace(0.9, slack=0.0).tracker()
    for seed in range(3):
        pack(tracker, decaying(SHAPE, seed=seed, decay=0.7))
    (before,) = tracker.bases.values()
    assert before.misses == 2
    x = decaying(SHAPE, seed=3, decay=0.7)
    for epsilon in (0.8, 0.95):
        heir = tracker.heir(Subspace(epsilon, slack=0.0))
        packed = pack(heir, x)
        (known,) = heir.bases.values()
        assert (known.misses, known.age, heir.refreshes) == (2, 1, 1)
        assert lost_share(x, packed) <= 3 * (1 - epsilon)
        # Those of a tracker that knows nothing have no room.
        assert packed.nbytes > pack(Subspace(epsilon, slack=0.0).tracker(), x).nbytes
        pack(heir, x)
        assert heir.refreshes == 1
    # The bases that the others came from serve as before.
    assert list(tracker.bases.values()) == [before]
    assert not before.due
    assert tracker.heir(HOSVD(0.8)) is None


def test_other_settings_leave_the_axes_whole_that_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuckprop.codecs._bases._PATIENCE", 1)
    tracker = Subspace(0.9, slack=0.0).tracker()
    for seed in range(2):
        pack(tracker, decaying(SHAPE, seed=seed, decay=0.7))
    (before,) = tracker.bases.values()
    assert before.whole
    heir = tracker.heir(Subspace(0.8))
    packed = pack(heir, decaying(SHAPE, seed=5, decay=0.7))
    assert not before.whole & packed.factors.keys()


def test_a_standardised_input_is_packed_as_if_it_were_formed() -> None:
    plain, lazy = Subspace(0.9).tracker(), Subspace(0.9).tracker()
    for seed in range(4):
        x = similar(decaying(SHAPE, seed=0), seed, 0.1) * 3 + 2
        for example in (x, x.contiguous(memory_format=torch.channels_last), torch.stack([x, x], -1)[..., 0]):
            mean, invstd = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True).rsqrt()
            normalised = (example - mean) * invstd
            source = Standardised(example, mean, invstd, Energy(normalised.square().sum()))
            found, expected = lazy.compress_standardised(source), pack(plain, normalised)
            torch.testing.assert_close(found.dense(), expected.dense())
            assert found.meta == expected.meta
    assert lazy.refreshes == plain.refreshes


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.1, 1.0])), min_size=2, max_size=8),
    st.sampled_from([0.6, 0.8, 0.95]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_every_stored_tensor_obeys_the_bound(steps: list[tuple[int, float]], epsilon: float, slack: float) -> None:
    tracker = Subspace(epsilon, slack=slack).tracker()
    base = decaying(SHAPE, seed=0)
    batch_share = (1 - epsilon) / 3
    for seed, noise in steps:
        x = similar(base, seed, noise)
        lost = lost_share(x, pack(tracker, x))
        (bases,) = tracker.bases.values()
        tracked = (1 + slack) * max(bases.lost, 0.05 * (1 - epsilon))
        assert lost <= tracked + (1 - tracked) * batch_share + 1e-9
        # The loss that bases are measured by is HOSVD's own, over three modes.
        assert bases.lost <= 3 * (1 - epsilon) + 1e-9


def test_a_refresh_leaves_stored_tensors_alone() -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying(SHAPE, seed=0)
    packed = pack(tracker, x)
    before = packed.dense()
    pack(tracker, decaying(SHAPE, seed=1))
    assert torch.equal(packed.dense(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_activation_does_not_spoil_the_bases(bad: float) -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying(SHAPE, seed=0)
    expected = pack(tracker, x).dense()
    spoiled = x.clone()
    spoiled[0, 0, 0, 0] = bad
    with pytest.raises(NotFactorableError):
        tracker.compress(spoiled)
    assert torch.equal(pack(tracker, x).dense(), expected)
    assert tracker.refreshes == 1


def test_batch_and_image_sizes_may_change() -> None:
    tracker = Subspace(0.9).tracker()
    for shape in ((6, 8, 7, 5), (3, 8, 7, 5), (6, 8, 4, 4), (6, 8, 7, 5), (1, 8, 7, 5)):
        x = decaying(shape, seed=0)
        packed = pack(tracker, x)
        assert packed.shape == x.shape
        assert lost_share(x, packed) < 0.5
    assert len(tracker.bases) == 2


def test_zero_and_constant_activations_are_exact() -> None:
    for value in (0.0, 3.0):
        x = torch.full(SHAPE, value, dtype=torch.float64)
        assert torch.allclose(pack(Subspace(0.8).tracker(), x).dense(), x, rtol=0, atol=1e-12)


def test_channels_last_shares_the_bases_of_contiguous() -> None:
    tracker = Subspace(0.9).tracker()
    x = decaying(SHAPE, seed=0)
    expected = pack(tracker, x).dense()
    actual = pack(tracker, x.contiguous(memory_format=torch.channels_last)).dense()
    torch.testing.assert_close(actual, expected)
    assert tracker.refreshes == 1


def converted() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1))
    return tuckprop.convert(layers, Subspace(0.8), pointwise=False)


def test_bases_follow_the_module() -> None:
    model = converted()
    model(torch.randn(8, 3, 16, 16)).sum().backward()
    keys = set(model.state_dict())
    assert keys == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[2]._site.tracker.bases.keys() == model[2]._site.tracker.bases.keys()
        assert twin[2]._site.tracker is not model[2]._site.tracker
    model.double()
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64)
    model(x).sum().backward()  # Noise, which in single precision was kept as codes.
    (bases,) = model[2]._site.tracker.bases.values()
    assert {basis.dtype for basis in bases.factors.values()} == {torch.float64}
    model.float()
    (bases,) = model[2]._site.tracker.bases.values()
    assert {basis.dtype for basis in bases.factors.values()} == {torch.float32}
    model(x.float()).sum().backward()


def test_gradient_accumulation_adds_up() -> None:
    model = converted()
    x = torch.randn(8, 3, 16, 16)
    model(x).square().mean().backward()
    once = [p.grad.clone() for p in model.parameters()]
    model(x).square().mean().backward()
    for parameter, gradient in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@pytest.mark.parametrize(
    "arguments", [{"epsilon": 0}, {"epsilon": 1.5}, {"slack": -1}, {"slack": float("nan")}, {"horizon": 0}]
)
def test_wrong_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Subspace(**arguments)


def test_a_batch_mode_without_a_factor_is_not_counted() -> None:
    x = decaying((8, 6, 1, 1), seed=0, decay=0.1)
    packed = pack(Subspace(0.8).tracker(), x)
    assert 0 not in packed.factors
    trivial = 2  # The paper counts a factor [1, 1] for each axis of size 1.
    assert packed.paper_count() == sum(tensor.numel() for tensor in packed.tensors()) + trivial
