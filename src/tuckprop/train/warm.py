"""What tracked codecs carry from step to step, in and out of a checkpoint.

It is no part of a model's `state_dict`, so that a checkpoint's weights load into the unconverted model; but a run that
is resumed must have it to go on to the same result.
"""

from typing import Any, Protocol, runtime_checkable

from torch import nn

from tuckprop.layers import Twin


@runtime_checkable
class Savable(Protocol):
    """A tracker that can be saved. One that cannot starts anew when a run is resumed."""

    def state(self) -> dict[str, Any]:
        """Return what is remembered: tensors, plain values, and lists and dictionaries of these."""

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what `state` returned."""


def _savable(model: nn.Module) -> dict[str, Savable]:
    savable: dict[str, Savable] = {}
    for name, module in model.named_modules():
        tracker = module._site.tracker if isinstance(module, Twin) else None
        if isinstance(tracker, Savable):
            savable[name] = tracker
    return savable


def warm_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of every tracker of a converted model, by the site's name."""
    return {name: tracker.state() for name, tracker in _savable(model).items()}


def restore_warm_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Give every tracker its state back.

    Args:
        model: Converted as the model was that `state` came from.
        state: As `warm_state` returned it.

    Raises:
        ValueError: The sites are others.
    """
    trackers = _savable(model)
    if trackers.keys() != state.keys():
        raise ValueError(f"expected tracked sites {sorted(trackers)}, got {sorted(state)}")
    for name, tracker in trackers.items():
        tracker.restore(state[name])
