"""Load weights from a file, safely, and say what did not fit."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tuckprop.errors import DataError


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` or `load_hub_weights` did.

    Attributes:
        source: The file, or the hub's name for the weights.
        loaded: Names of parameters and buffers that were loaded.
        fresh: Names of the classifier's parameters that kept their initial values: the file has another number of
            classes, or none.
    """

    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors from {self.source}"
        return f"{text}; fresh: {', '.join(self.fresh)}" if self.fresh else text


def load_weights(model: nn.Module, path: Path | str) -> Loaded:
    """Load a state dict into `model`, in place.

    The classifier, which is the last Linear layer (the last convolution where there is none), may have another number
    of classes in the file, or be missing there: it then keeps its fresh values. A 1 x 1 convolution there loads into a
    Linear layer here. Batch norms' counts of batches, which old files lack, may be missing.

    Args:
        model: The network.
        path: A `.safetensors` file, or one of `torch.save` (read with `weights_only=True`) that holds a state dict,
            bare or under "state_dict" or "model"; or the checkpoint of a run of this library.

    Returns:
        What was loaded and what was not.

    Raises:
        DataError: There is no such file, it cannot be read, or its tensors do not match; the model is then unchanged.
    """
    path = Path(path)
    return load_state(model, _read(path), str(path), heads=find_heads(model))


def load_state(model: nn.Module, given: Mapping[str, Tensor], source: str, *, heads: Sequence[str]) -> Loaded:
    """Load a state dict as `load_weights` does.

    Args:
        model: The network.
        given: The state dict.
        source: Where it is from, for messages.
        heads: Names of the classifiers, which need not fit.

    Returns:
        What was loaded and what was not.

    Raises:
        DataError: Its tensors do not match; the model is then unchanged.
    """
    wanted = model.state_dict()
    fitting = {name: _fit(value, wanted[name]) for name, value in given.items() if name in wanted}
    wrong = {name for name, value in fitting.items() if value.shape != wanted[name].shape}
    missing = {name for name in wanted.keys() - given.keys() if not name.endswith(".num_batches_tracked")}
    fresh = {name for name in wrong | missing if name.startswith(tuple(f"{head}." for head in heads))}
    problems = [
        *(f"{name} is missing in the file" for name in wanted if name in missing - fresh),
        *(f"{name} is unexpected" for name in given if name not in wanted),
        *(
            f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(given[name].shape)}"
            for name in wanted
            if name in wrong - fresh
        ),
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise DataError(f"{source} does not match {type(model).__name__} ({len(problems)} of its tensors): {shown}")
    loaded = {name: value for name, value in fitting.items() if name not in fresh}
    model.load_state_dict(loaded, strict=False)
    return Loaded(source, tuple(loaded), tuple(name for name in wanted if name in fresh))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"weights: expected a .safetensors or .pt file at {path}, there is none")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"weights: {path} is no safetensors file, or is damaged: {error}") from error
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise DataError(
            f"weights: {path} is not a file of torch.save that can be loaded safely: {why_unread(error)}; expected a "
            "state dict, as torch.save(model.state_dict(), FILE) writes it"
        ) from error
    # A checkpoint of this library has the model in its state.
    for key in ("state", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise DataError(f"weights: expected a state dict (names to tensors) in {path}, got a {type(found).__name__}")
    return dict(found)


def why_unread(error: Exception) -> str:
    """Return in words why `torch.load` did not load a file, without PyTorch's advice to load it unsafely."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return "it holds something else than tensors and plain values, or is damaged"
    return text.splitlines()[0] if text else type(error).__name__


def find_heads(model: nn.Module) -> tuple[str, ...]:
    """Return the name of the last Linear layer, or of the last convolution without one; empty without both."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = names or [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return tuple(names[-1:])


def _fit(value: Tensor, wanted: Tensor) -> Tensor:
    """Drop the trailing axes of size 1 of a convolution where a matrix is wanted."""
    extra = value.dim() - wanted.dim()
    if wanted.dim() == 2 and extra > 0 and value.shape[2:] == torch.Size([1] * extra):
        return value.flatten(1)
    return value
