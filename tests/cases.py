"""The one matrix of compressing layers and codecs that the tests run over. A registered type without a case fails."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn

from tuckprop import HOSVD, HOSVD8, SVD, DeflatedHOSVD, Dense, GradientFilter, Subspace
from tuckprop.codecs import Codec, Packed
from tuckprop.codecs._tucker import TuckerPacked
from tuckprop.codecs.asi import ASI
from tuckprop.linalg.modes import mode_product

# A twin without a case below is covered by the test module that mirrors its own, layers/rectifier.py by
# tests/layers/test_rectifier.py, which names the plain class. Where several are covered by one, that is said here.
COVERED_ELSEWHERE = {
    "adaptive_max_pool": "test_average_pool",
    "timm_activations": "test_timm_layers",
    "norm_batch": "test_norms",
    "norm_group": "test_norms",
    "norm_instance": "test_norm_layouts",
    "norm_layer": "test_norms",
    "norm_rms": "test_norm_layouts",
}


def check_named(plain: str, module: str) -> None:
    """Check that the twin of class `plain`, which `module` defines, has a test module that names the class."""
    mirrored = module.rpartition(".")[2]
    path = Path(__file__).parent / "layers" / f"{COVERED_ELSEWHERE.get(mirrored, f'test_{mirrored}')}.py"
    assert path.is_file(), f"{plain} has a twin, and {path.name} does not exist; see tests.cases.COVERED_ELSEWHERE"
    assert re.search(rf"\b{plain}\b", path.read_text()), f"{plain} has a twin, and {path.name} does not name it"


@dataclass(frozen=True)
class LayerCase:
    """One layer and an input shape for it.

    Attributes:
        plain: Class of the layer.
        shape: Shape of the input.
        args: Positional arguments of the class.
        options: Keyword arguments of the class.
        device: Where layer and input are.
    """

    plain: type[nn.Module]
    shape: tuple[int, ...]
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def module(self, dtype: torch.dtype = torch.float64) -> Any:
        """Return a new layer, the same each time."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return self.plain(*self.args, **self.options, dtype=dtype).to(self.device)

    def input(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return a new input whose modes are of decaying energy, so that thresholds give ranks in between."""
        return decaying(self.shape, seed=2).to(self.device, dtype)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        shape = "x".join(map(str, self.shape))
        args = ",".join(map(str, self.args))
        return f"{self.plain.__name__}({args}{',' if options else ''}{options})@{shape}".replace(" ", "")


def decaying(shape: tuple[int, ...], *, seed: int, decay: float = 0.6, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a random tensor of full rank in every mode, whose singular values fall by about `decay` each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mode, size in enumerate(shape):
        basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        x = mode_product(x, torch.diag(decay ** torch.arange(size, dtype=torch.float64)) @ basis, mode)
    return (x / x.square().mean().sqrt()).to(dtype)


def _layer(plain: type[nn.Module], shape: tuple[int, ...], *args: Any, **options: Any) -> LayerCase:
    return LayerCase(plain, shape, args, options)


_MODES = ("zeros", "reflect", "replicate", "circular")

LAYERS: list[LayerCase] = [
    # One spatial axis.
    _layer(nn.Conv1d, (3, 4, 9), 4, 5, 3),
    _layer(nn.Conv1d, (3, 4, 9), 4, 5, 1),
    _layer(nn.Conv1d, (4, 9), 4, 5, 3, padding=1),
    _layer(nn.Conv1d, (3, 4, 9), 4, 5, 2, stride=3, padding=2, bias=False),
    _layer(nn.Conv1d, (3, 4, 9), 4, 6, 3, dilation=2, padding=3, groups=2),
    _layer(nn.Conv1d, (3, 4, 9), 4, 8, 4, padding="same", dilation=3, groups=4),
    _layer(nn.Conv1d, (3, 4, 9), 4, 5, 3, padding="valid"),
    *[_layer(nn.Conv1d, (3, 4, 9), 4, 5, 4, padding="same", padding_mode=mode) for mode in _MODES],
    *[_layer(nn.Conv1d, (3, 4, 9), 4, 5, 3, padding=2, stride=2, padding_mode=mode) for mode in _MODES],
    # Two.
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3, padding=1, bias=False),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3, padding=1, stride=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 1),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 1, stride=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 1, padding=1),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 2, stride=3),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3, stride=2, dilation=2, padding=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, (7, 6)),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 7, padding=3),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 6, 3, padding=1, groups=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 6, 1, groups=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 4, 3, padding=1, groups=4),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 4, 5, padding=2, stride=2, groups=4, bias=False),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 12, 3, padding=1, groups=4),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 4, (1, 3), padding=(0, 1), groups=4),
    _layer(nn.Conv2d, (3, 1, 7, 6), 1, 5, 3),
    _layer(nn.Conv2d, (1, 4, 7, 6), 4, 5, 3, padding=1),
    _layer(nn.Conv2d, (4, 7, 6), 4, 5, 3, padding=1),
    _layer(nn.Conv2d, (3, 4, 1, 1), 4, 5, 1),
    _layer(nn.Conv2d, (3, 4, 1, 1), 4, 5, 3, padding=1),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3, padding="valid", stride=2),
    _layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, 3, padding="valid", padding_mode="circular"),
    *[_layer(nn.Conv2d, (3, 4, 7, 6), 4, 5, (4, 3), padding="same", padding_mode=mode) for mode in _MODES],
    *[_layer(nn.Conv2d, (3, 4, 7, 6), 4, 4, 3, padding=(2, 1), groups=2, padding_mode=mode) for mode in _MODES],
    *[_layer(nn.Conv2d, (3, 4, 7, 6), 4, 4, 3, padding=1, stride=2, groups=4, padding_mode=mode) for mode in _MODES],
    # Three.
    _layer(nn.Conv3d, (2, 3, 4, 5, 4), 3, 4, 3, padding=1),
    _layer(nn.Conv3d, (2, 3, 4, 5, 4), 3, 4, (1, 3, 2), stride=(1, 2, 2), padding=(0, 1, 2), dilation=(2, 1, 2)),
    _layer(nn.Conv3d, (2, 4, 3, 4, 4), 4, 8, 2, padding="same", groups=4),
    _layer(nn.Conv3d, (3, 4, 5, 4), 3, 4, 1, bias=False),
    *[_layer(nn.Conv3d, (2, 3, 4, 4, 3), 3, 3, 2, padding=1, stride=2, groups=3, padding_mode=mode) for mode in _MODES],
    # Transposed.
    _layer(nn.ConvTranspose1d, (3, 4, 6), 4, 5, 3),
    _layer(nn.ConvTranspose1d, (3, 4, 6), 4, 6, 3, stride=3, padding=1, output_padding=2, groups=2),
    _layer(nn.ConvTranspose1d, (4, 6), 4, 5, 4, stride=2, dilation=2, padding=3, bias=False),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 5, 3, stride=2, padding=1, output_padding=1),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 5, 1),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 5, 1, stride=2),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 5, 2, stride=3),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 3)),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 6, 3, stride=2, groups=2),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 4, 3, padding=1, groups=4),
    _layer(nn.ConvTranspose2d, (3, 4, 5, 4), 4, 8, 2, stride=2, groups=4, bias=False),
    _layer(nn.ConvTranspose2d, (4, 5, 4), 4, 5, 3),
    _layer(nn.ConvTranspose3d, (2, 3, 3, 4, 3), 3, 4, 2, stride=2, padding=(1, 0, 1), output_padding=(0, 1, 0)),
    _layer(nn.ConvTranspose3d, (2, 4, 3, 3, 2), 4, 4, (1, 3, 2), dilation=(1, 1, 2), groups=4),
    _layer(nn.ConvTranspose3d, (3, 3, 4, 3), 3, 2, 3, padding=1, stride=(2, 1, 1)),
    # Linear, with no leading axis up to three.
    _layer(nn.Linear, (6,), 6, 5),
    _layer(nn.Linear, (8, 6), 6, 5),
    _layer(nn.Linear, (8, 6), 6, 1, bias=False),
    _layer(nn.Linear, (1, 6), 6, 5),
    _layer(nn.Linear, (8, 1), 1, 5),
    _layer(nn.Linear, (4, 7, 6), 6, 5),
    _layer(nn.Linear, (3, 4, 5, 6), 6, 5),
    _layer(nn.Linear, (3, 4, 5, 6), 6, 7, bias=False),
]  # fmt: skip


@dataclass(frozen=True)
class RandomTucker(Codec):
    """A test's own codec: projections on random subspaces, on chosen axes; lossless where `share` is 1.

    Attributes:
        share: Rank of each factored axis as a share of its size.
        axes: The axes to factor, or None for all of them.
    """

    share: float = 1.0
    axes: tuple[int, ...] | None = None
    label: ClassVar[str] = "random Tucker"

    def compress(self, x: Tensor) -> Packed:
        """Project `x` on the same random subspaces each time."""
        core, factors = x, {}
        for axis in range(x.dim()) if self.axes is None else {axis % x.dim() for axis in self.axes}:
            size = x.shape[axis]
            generator = torch.Generator().manual_seed(7 + axis)
            square = torch.randn(size, size, generator=generator, dtype=torch.float64)
            basis = torch.linalg.qr(square).Q[:, : max(1, round(self.share * size))]
            factors[axis] = basis.to(x, copy=True, memory_format=torch.contiguous_format)
            core = mode_product(core, factors[axis], axis)
        return TuckerPacked(core, factors, tuple(core.shape))

    def worth_trying(self, shape: Size) -> bool:
        """Always, as it is for tests of the factored path."""
        return True


# Every registered codec, at lossy settings and where it has one at a lossless one.
CODECS: list[Codec] = [
    Dense(),
    HOSVD(epsilon=0.5),
    HOSVD(epsilon=0.9),
    HOSVD(epsilon=1.0),
    HOSVD8(epsilon=0.9),
    DeflatedHOSVD(epsilon=0.9),
    SVD(epsilon=0.7),
    SVD(epsilon=1.0),
    Subspace(epsilon=0.7),
    ASI(ranks=(2, 3, 2)),
    GradientFilter(patch=2),
    GradientFilter(patch=3),
]

# Factors on every axis, and on some, as no threshold would choose them.
FACTORED: list[Codec] = [
    RandomTucker(0.6),
    RandomTucker(0.6, axes=(0,)),
    RandomTucker(0.6, axes=(1,)),
    RandomTucker(0.6, axes=(-1,)),
]


def pairs(codecs: list[Codec]) -> list[tuple[LayerCase, Codec]]:
    """Return every layer with every codec that serves it."""
    return [(layer, codec) for layer in LAYERS for codec in codecs if codec.refusal(layer.module()) is None]


def pair_id(value: object) -> str:
    """Return a readable id for a layer or a codec."""
    return str(value) if isinstance(value, LayerCase) else repr(value)
