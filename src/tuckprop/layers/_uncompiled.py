"""Functions that torch.compile runs as they are: its graph breaks once at each, not at every operation within."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

# What torch.compiler.disable does; but that imports the compiler, 70 MB of code, and this one not before it is used.
from torch._compile import _disable_dynamo

_P = ParamSpec("_P")
_R = TypeVar("_R")


def uncompiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `function`, made to stay out of compiled graphs; a decorator."""
    disabled: Callable[_P, _R] = _disable_dynamo(function)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call
