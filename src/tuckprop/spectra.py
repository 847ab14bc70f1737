"""How much of a layer's input its leading components explain, mode by mode: what a threshold of variance sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.errors import ConfigError, UnsupportedError
from tuckprop.linalg.basis import NotFactorableError, spectrum
from tuckprop.memory.census import untouched
from tuckprop.plan import is_compressible, is_convolution

_SPATIAL = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class LayerSpectrum:
    """The explained variance of one layer's input.

    Attributes:
        name: Dotted name of the layer.
        shape: Of its input.
        axes: What each mode is, such as batch, channels, height, width.
        curves: By mode: the share of the energy that the first 1, 2, ... components explain together, float64, as
            many as the mode's unfolding has singular values.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    curves: tuple[Tensor, ...]

    def rank(self, mode: int, epsilon: float) -> int:
        """Return how many components of `mode`, counted from 0, explain the share `epsilon`."""
        curve = self.curves[mode]
        return min(int((curve < epsilon).sum()) + 1, len(curve))


def explained_variance(model: nn.Module, example: Tensor, layers: Sequence[str]) -> dict[str, LayerSpectrum]:
    """Run one forward in eval mode and decompose the inputs of some layers; the model is left as it was.

    The inputs are decomposed one after the other as they come, so no two are held. A layer that runs more than once
    counts with its first input.

    Args:
        model: Any model, plain or converted.
        example: A batch, where the model is.
        layers: Dotted names.

    Returns:
        The spectra by name, in the order in which the layers run.

    Raises:
        ConfigError: The model has no such layer, or the layer does not run.
        UnsupportedError: An input has no decomposition: it is not finite, or no tensor of at least two axes.

    Source: Nguyen et al., NeurIPS 2024 (arXiv 2411.06346), Fig. 4.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ConfigError(f"explained_variance(layers=...): the model has no layer {unknown[0]!r}")
    found: dict[str, LayerSpectrum] = {}
    handles = []
    for name in layers:

        def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            if name not in found:
                found[name] = _decompose(name, module, next(iter((*args, *kwargs.values())), None))

        handles.append(modules[name].register_forward_pre_hook(note, with_kwargs=True))
    try:
        with torch.no_grad(), untouched(model):
            model.eval()
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    idle = [name for name in layers if name not in found]
    if idle:
        raise ConfigError(f"explained_variance(layers=...): layer {idle[0]!r} does not run on this batch")
    return found


def _decompose(name: str, module: nn.Module, x: Any) -> LayerSpectrum:
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
        got = f"a tensor {tuple(x.shape)} of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise UnsupportedError(f"explained_variance: layer {name!r}: expected numbers of at least two axes, got {got}")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    try:
        curves = tuple(_curve(spectrum(x, mode, 1.0).energies) for mode in range(x.dim()))
    except NotFactorableError as error:
        raise UnsupportedError(
            f"explained_variance: layer {name!r}: its input has no decomposition: {error}"
        ) from error
    return LayerSpectrum(name, tuple(x.shape), _axes(module, x.dim()), curves)


def _curve(energies: Tensor) -> Tensor:
    """Return cumulative shares; an input of zeros is explained by its first component."""
    shares = energies.double().clamp_min(0).cumsum(0).cpu()
    return shares / shares[-1] if shares[-1] > 0 else torch.ones_like(shares)


def _axes(module: nn.Module, dims: int) -> tuple[str, ...]:
    if is_compressible(module) and not is_convolution(module):
        return ("batch", *("tokens",) * (dims - 2), "features")
    return ("batch", "channels", *_SPATIAL.get(dims - 2, (f"axis {axis + 1}" for axis in range(2, dims))))
