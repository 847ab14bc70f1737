"""What tracked codecs carry from step to step, in and out of a checkpoint.

It is no part of a model's `state_dict`, so that a checkpoint's weights load into the unconverted model; but a run that
is resumed must have it to go on to the same result.
"""

from typing import Any

from torch import nn

from tuckprop.codecs import Tracker
from tuckprop.layers import Twin


def _trackers(model: nn.Module) -> dict[str, Tracker]:
    sites = {name: module._site for name, module in model.named_modules() if isinstance(module, Twin)}
    return {name: site.tracker for name, site in sites.items() if site.tracker is not None}


def warm_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of every tracker of a converted model, by the site's name."""
    return {name: tracker.state() for name, tracker in _trackers(model).items()}


def restore_warm_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Give every tracker its state back.

    Args:
        model: Converted as the model was that `state` came from.
        state: As `warm_state` returned it.

    Raises:
        ValueError: The sites are others.
    """
    trackers = _trackers(model)
    if trackers.keys() != state.keys():
        raise ValueError(f"expected tracked sites {sorted(trackers)}, got {sorted(state)}")
    for name, tracker in trackers.items():
        tracker.restore(state[name])
