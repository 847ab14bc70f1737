"""What tracked codecs carry from step to step, in and out of a checkpoint.

It is no part of a model's `state_dict`, so that a checkpoint's weights load into the unconverted model; but a run that
is resumed must have it to go on to the same result.
"""

from typing import Any

from torch import nn

from tuckprop.codecs import Tracker
from tuckprop.layers import Site, Twin
from tuckprop.layers._allowance import Allowance


def _sites(model: nn.Module) -> dict[str, Site]:
    return {name: module._site for name, module in model.named_modules() if isinstance(module, Twin)}


def _trackers(model: nn.Module) -> dict[str, Tracker]:
    return {name: site.tracker for name, site in _sites(model).items() if site.tracker is not None}


def _allowance(model: nn.Module) -> Allowance | None:
    return next((site.allowance for site in _sites(model).values() if site.allowance is not None), None)


def warm_state(model: nn.Module) -> dict[str, Any]:
    """Return the state of every tracker of a converted model, by the site's name, and of what keeps its budget."""
    allowance = _allowance(model)
    return {
        "trackers": {name: tracker.state() for name, tracker in _trackers(model).items()},
        "allowance": None if allowance is None else allowance.state(),
    }


def restore_warm_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Give every tracker, and what keeps the budget, its state back.

    Args:
        model: Converted as the model was that `state` came from.
        state: As `warm_state` returned it.

    Raises:
        ValueError: The sites are others, or one of the two has a budget.
    """
    allowance, known = _allowance(model), state["trackers"]
    if (allowance is None) != (state["allowance"] is None):
        raise ValueError("expected a budget where the run had one, and none where it had none")
    if allowance is not None:
        # First, as it gives every site a tracker anew.
        allowance.restore(state["allowance"])
    trackers = _trackers(model)
    if trackers.keys() != known.keys():
        raise ValueError(f"expected tracked sites {sorted(trackers)}, got {sorted(known)}")
    for name, tracker in trackers.items():
        tracker.restore(known[name])
