"""The compiled kernels compute what PyTorch's operations do, for every size, and are missed by nobody."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.layers.pointwise import assert_same_step, twin
from tuckprop import native
from tuckprop.layers.smooth import Smooth, level_code
from tuckprop.native import _build

SIZES = st.one_of(st.integers(1, 1100), st.sampled_from([512 * 32, 512 * 64 + 7, 512 * 32 * 3 + 513, 100_003]))
CPU = torch.device("cpu")

needs_compiler = pytest.mark.skipif(_build.library() is None, reason="no C compiler here")


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 3


@needs_compiler
@given(count=SIZES, high=st.sampled_from([None, 0.5, 6.0]), low=st.sampled_from([0.0, -1.0]), in_place=st.booleans())
def test_clamp_and_gate(count: int, high: float | None, low: float, in_place: bool) -> None:
    x, grad = normal(count), normal(count, 1)
    x[:: max(1, count // 3)] = low  # On the edge.
    y, result = (x.clone(), grad.clone()) if in_place else (torch.empty_like(x), torch.empty_like(grad))
    bits = native.clamp(y if in_place else x, y, low, high)
    assert bits.numel() == -(-count // 8)
    native.gate(result if in_place else grad, bits, result)
    assert torch.equal(y, x.clamp(low, high))
    inside = (x > low) & (x < (torch.inf if high is None else high))
    assert torch.equal(result, torch.where(inside, grad, 0.0))


@needs_compiler
@given(count=SIZES, bits=st.sampled_from([1, 2, 4, 8]))
def test_levels(count: int, bits: int) -> None:
    code = level_code(Smooth(nn.functional.gelu), bits, CPU)
    x, grad = normal(count), normal(count, 1)
    # Away from the borders of cells, where rounding decides.
    place = x.clamp(-code.reach, code.reach) * 256 / (2 * code.reach)
    x = torch.where((place - place.round()).abs() < 1e-3, 0.1, x)
    packed = code.encode(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda _: False)
        expected = code.encode(x)
    held = 8 // bits
    whole = count // held
    assert torch.equal(packed[:whole], expected[:whole])
    out = torch.empty_like(grad)
    code.multiply(grad, packed, out)
    levels = torch.cat([part.clone() for _, part in code.decode(expected, count, torch.float32)])
    assert torch.equal(out, grad * levels)


MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.3, 0.7), nn.Hardtanh(-0.3, 0.7, inplace=True),
]  # fmt: skip


@needs_compiler
@given(data=st.data())
def test_pool(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=data.draw(st.booleans()))
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(8, 20), st.integers(9, 40)))
    x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()  # With many equals.
    if data.draw(st.booleans()):
        x[x == 3] = torch.nan
        x[x == -3] = -torch.inf
    assert_same_step(module, x)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("module", MODULES, ids=repr)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 31, 33), (2, 64, 40, 40)])
def test_layers_with_and_without(
    module: nn.Module, shape: tuple[int, ...], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "serves", lambda _: False)
    elif _build.library() is None:
        pytest.skip("no C compiler here")
    torch.manual_seed(0)
    for x in (torch.randn(shape), torch.randn(shape).transpose(0, -1)):
        assert_same_step(module, x, leaf=not getattr(module, "inplace", False))


@needs_compiler
def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    clamp = native.clamp
    monkeypatch.setattr(native, "clamp", lambda x, *rest: (calls.append(x.numel()), clamp(x, *rest))[1])
    twin(nn.ReLU())(torch.randn(40, requires_grad=True))
    assert calls == [40]


class TestBuild:
    @pytest.fixture(autouse=True)
    def _fresh(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.delenv("TUCKPROP_NATIVE", raising=False)

    def test_it_is_built_once(self, tmp_path: Path) -> None:
        if _build.library() is None:
            pytest.skip("no C compiler here")
        build = _build.library.__wrapped__
        assert build() is not None
        (built,) = (tmp_path / "tuckprop").iterdir()
        time = built.stat().st_mtime_ns
        assert build() is not None
        assert built.stat().st_mtime_ns == time

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUCKPROP_NATIVE", "0")
        assert _build.library.__wrapped__() is None

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "there-is-no-such-compiler")
        assert _build.library.__wrapped__() is None

    def test_a_compiler_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CC", "false")
        assert _build.library.__wrapped__() is None

    def test_a_cache_that_is_no_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        if _build.library() is None:
            pytest.skip("no C compiler here")
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert _build.library.__wrapped__() is not None
