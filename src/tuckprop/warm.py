"""What tracked codecs carry from step to step, in and out of a checkpoint.

It is no part of a model's `state_dict`, so that a checkpoint's weights load into the unconverted model; but a run that
is resumed must have it to go on to the same result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.codecs import Tracker
from tuckprop.errors import ConfigError
from tuckprop.layers import Site, Twin, require_module
from tuckprop.layers._allowance import Allowance

_LOAD = "WarmState.load_state_dict(state=...)"
_ADVICE = "convert the model first, with the codec, layers and budget of the run that is resumed"


class WarmState:
    """What a converted model carries from step to step: bases of `Subspace` and `ASI`, and what a budget has learnt.

    It has the two methods that trainers ask of what they save and load besides the model, as
    `accelerator.register_for_checkpointing(tuckprop.WarmState(model))` does.

    Args:
        model: Converted, at the latest when a method is called.

    Raises:
        ConfigError: `model` is no module.
    """

    def __init__(self, model: nn.Module) -> None:
        require_module(model, "WarmState")
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every tracker, by the site's name, and of every budget, by the name of its first site.

        It holds plain values, lists, dictionaries and tensors: those that are in use, not copies.
        """
        return {
            "trackers": {name: tracker.state() for name, tracker in self._trackers().items()},
            "allowances": {name: allowance.state() for name, allowance in self._allowances().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give every tracker, and every budget, its state back.

        Args:
            state: As `state_dict` returned it, of a model that was converted as this one.

        Raises:
            ConfigError: It is something else, or of a model that was converted otherwise.
        """
        if not isinstance(state, dict) or not state.keys() >= {"trackers", "allowances"}:
            got = f"the entries {list(state)[:3]}" if isinstance(state, dict) else type(state).__name__
            raise ConfigError(
                f"{_LOAD}: expected the entries trackers and allowances, got {got}; pass what the state_dict() of a "
                "WarmState returned, which is no part of the model's own"
            )
        allowances, known = self._allowances(), state["trackers"]
        if allowances.keys() != state["allowances"].keys():
            raise ConfigError(
                f"{_LOAD}: expected budgets from the sites {sorted(allowances)} on, as this model has, got "
                f"{sorted(state['allowances'])}; {_ADVICE}"
            )
        for name, allowance in allowances.items():
            # First, as it gives sites trackers anew.
            with _fitting(f"the budget from {name!r} on"):
                allowance.restore(state["allowances"][name])
        trackers = self._trackers()
        if trackers.keys() != known.keys():
            raise ConfigError(
                f"{_LOAD}: expected tracked sites {sorted(trackers)}, as this model has, got {sorted(known)}; {_ADVICE}"
            )
        for name, tracker in trackers.items():
            with _fitting(f"site {name!r} ({self._sites()[name].codec!r})"):
                tracker.restore(known[name])
            # Trainers load on the CPU what they do not know.
            parameter = next(chain(self._model.get_submodule(name).parameters(), self._model.parameters()), None)
            if parameter is not None:
                tracker.apply(partial(_moved, device=parameter.device))

    def _sites(self) -> dict[str, Site]:
        return {name: module._site for name, module in self._model.named_modules() if isinstance(module, Twin)}

    def _trackers(self) -> dict[str, Tracker]:
        return {name: site.tracker for name, site in self._sites().items() if site.tracker is not None}

    def _allowances(self) -> dict[str, Allowance]:
        """Return every budget of the model, whose parts may have been converted on their own."""
        first: dict[int, tuple[str, Allowance]] = {}
        for name, site in self._sites().items():
            if site.allowance is not None:
                first.setdefault(id(site.allowance), (name, site.allowance))
        return dict(first.values())


@contextmanager
def _fitting(what: str) -> Iterator[None]:
    """Say of a state that cannot be taken over what it was for."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"no entry {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{_LOAD}: expected the state of {what}, got another ({reason}); {_ADVICE}") from error


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)
