"""Let a module's own forward run, with one functional call in it answered by a saver.

A norm's forward has more to it than the norm: running statistics, and in other libraries an activation or a change of
axes. The twin runs all of that as it is written, and replaces what `torch.nn.functional` is asked for.

Where a forward asks for it itself, it is run with another `F` among its globals. Where it leaves that to a helper, a
mode of PyTorch's watches for the call; but every operation in it, of an activation as well, then takes a detour through
Python: several times as long as the norm itself, where that is small.
"""

import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tuckprop.layers._twin import Twin


class _Answer(TorchFunctionMode):
    def __init__(self, answers: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.answers = answers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.answers.get(func, func)(*args, **(kwargs or {}))


class _Functional:
    """`torch.nn.functional`, but for one function."""

    def __init__(self, name: str, answer: Callable[..., Any]) -> None:
        setattr(self, name, answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


class _Running(threading.local):
    """The twins whose forward this thread is running, the innermost last."""

    def __init__(self) -> None:
        self.twins: list[InterceptingTwin] = []


_running = _Running()


class InterceptingTwin(Twin):
    """Mixin: the plain forward, in which calls of `functional` become calls of `saver(module, ...)`.

    Attributes:
        functional: The function of `torch.nn.functional` to answer.
        saver: Takes the twin and the function's own arguments.
    """

    functional: ClassVar[Callable[..., Tensor]]
    saver: ClassVar[Callable[..., Tensor]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the plain layer's output, bit for bit."""
        kind: Any = type(self)
        plain = getattr(super().forward, "__func__", None)
        forward = None if torch.compiler.is_compiling() else _rewired(kind, plain)
        if forward is not None:
            _running.twins.append(self)
            try:
                return forward(self, *args, **kwargs)
            finally:
                _running.twins.pop()

        def answer(*inner: Any, **options: Any) -> Any:
            return kind.saver(self, *inner, **options)

        with _Answer({kind.functional: answer}):
            return super().forward(*args, **kwargs)


@lru_cache(maxsize=1024)
def _rewired(kind: Any, plain: Any) -> Callable[..., Any] | None:
    """Return a plain forward that asks a saver instead; None where it does not ask for the function itself.

    Nor where it calls anything else that might: a function that is neither Python's nor of `torch.nn.functional`.
    """
    name = kind.functional.__name__
    if (
        type(plain) is not FunctionType
        or name not in plain.__code__.co_names
        or getattr(F, name) is not kind.functional
    ):
        return None
    used = {n: plain.__globals__[n] for n in plain.__code__.co_names if n in plain.__globals__}
    asks = any(value is F for value in used.values())
    if not asks or any(value is not F and value is not torch._assert for value in used.values()):
        return None

    def answer(*inner: Any, **options: Any) -> Any:
        return kind.saver(_running.twins[-1], *inner, **options)

    own = {n: _Functional(name, answer) for n, value in used.items() if value is F}
    globals_ = plain.__globals__ | own
    rewired = FunctionType(plain.__code__, globals_, plain.__name__, plain.__defaults__, plain.__closure__)
    rewired.__kwdefaults__ = plain.__kwdefaults__
    return rewired
