"""Let a module's own forward run, with one functional call in it answered by a saver.

A norm's forward has more to it than the norm: running statistics, and in other libraries an activation or a change of
axes. The twin runs all of that as it is written, and replaces what `torch.nn.functional` is asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

from tuckprop.layers._twin import Twin


class _Answer(TorchFunctionMode):
    def __init__(self, answers: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.answers = answers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.answers.get(func, func)(*args, **(kwargs or {}))


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
        kind = type(self)

        def answer(*inner: Any, **options: Any) -> Tensor:
            return kind.saver(self, *inner, **options)

        with _Answer({kind.functional: answer}):
            return super().forward(*args, **kwargs)
