"""What a block computes with besides its arguments, noted in its first run and put in place for its second one.

Those are its modules' modes, parameters and buffers, PyTorch's random numbers, and autocast.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Frame:
    """What a block computes with besides its arguments, as it was when it ran first.

    Attributes:
        modules: Every module of the block.
        training: Their modes.
        parameters: For each, the name of every parameter and its place among the block's.
        buffers: For each, the name of every buffer that the first run changed and its place among those kept.
    """

    modules: tuple[nn.Module, ...]
    training: tuple[bool, ...]
    parameters: tuple[dict[str, int], ...]
    buffers: tuple[dict[str, int], ...]


class BuffersBefore:
    """Notes a block's buffers ahead of its first run, to tell afterwards which ones it changed.

    Statistics of batch norms in train mode are left out: they are written and never read.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._noted: list[dict[str, tuple[Tensor, int, Tensor]]] = [
            {}
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
            else {k: (b, b._version, b.clone()) for k, b in module._buffers.items() if b is not None}
            for module in modules
        ]

    def changed(self, modules: Sequence[nn.Module]) -> tuple[list[Tensor], tuple[dict[str, int], ...]]:
        """Return what was in the buffers that have been changed since, and where each belongs."""
        values: list[Tensor] = []
        places: list[dict[str, int]] = []
        for module, noted in zip(modules, self._noted, strict=True):
            places.append({})
            for name, (buffer, version, value) in noted.items():
                if module._buffers.get(name) is not buffer or buffer._version != version:
                    places[-1][name] = len(values)
                    values.append(value)
        return values, tuple(places)


# While one thread has put stand-ins in place of a block's parameters, no other may.
_standing_in = RLock()


@contextmanager
def as_it_was(frame: Frame, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> Iterator[None]:
    """Put a block in the state of its first run for as long as the context is open.

    Stand-ins take the place of parameters, so that hooks on those run once, for the gradient that backward returns, and
    the place of buffers, so that what the first run wrote into them is not written twice.
    """
    with _standing_in:
        now = [(m, m.training, dict(m._parameters), dict(m._buffers)) for m in frame.modules]
        copies = {id(b): b.clone() for _, _, _, own in now for b in own.values() if b is not None}
        try:
            for (module, _, _, own), training, places, changed in zip(
                now, frame.training, frame.parameters, frame.buffers, strict=True
            ):
                module.training = training
                module._parameters.update({k: parameters[place] for k, place in places.items()})  # type: ignore[misc]
                module._buffers.update({k: None if b is None else copies[id(b)] for k, b in own.items()})
                module._buffers.update({k: buffers[place].clone() for k, place in changed.items()})
            yield
        finally:
            for module, training, own_parameters, own in now:
                module.training = training
                module._parameters.update(own_parameters)
                module._buffers.update(own)


def random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the random number generators that a block on `device` may use."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


@contextmanager
def random_states_set(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Set the states that `random_states` returned, and go back afterwards; with none, do nothing."""
    now = random_states(device) if states else []
    try:
        _set_random_states(states, device)
        yield
    finally:
        _set_random_states(now, device)


def _set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    for state, own in zip(states, (False, True), strict=False):
        if own:
            torch.get_device_module(device).set_rng_state(state, device)
        else:
            torch.set_rng_state(state)


def autocast_as_now(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes autocast as it is now.

    Its cache is off: what it would keep of the first run, without a graph, it would give to layers that need one.
    """
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Switch the cache of `parametrize.cached` off, for the same reason."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled
