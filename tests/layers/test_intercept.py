"""A saver answers for the function that a forward asks for, however it asks, and for no other."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from tuckprop.layers._intercept import InterceptingTwin
from tuckprop.layers._twin import Site, become_twin


def helper(x: Tensor) -> Tensor:
    return F.softsign(x)


class Watching(nn.Module):
    """Notes whether a mode watches the operations around it."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.watched.append(_get_current_function_mode() is not None)
        return x


class Direct(nn.Module):
    """Asks for the function itself, and has a module within."""

    def __init__(self, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner or Watching()

    def forward(self, x: Tensor, *, times: float = 2.0) -> Tensor:
        """Call the module first, as it may be a twin as well."""
        return F.softsign(self.inner(F.relu(x))) * times


class ByHelper(nn.Module):
    """Leaves it to a function of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Call it."""
        return helper(x)


class DirectTwin(InterceptingTwin, Direct):
    """A twin."""

    functional = staticmethod(F.softsign)
    saver = staticmethod(lambda module, x: x + module.amount)


class ByHelperTwin(InterceptingTwin, ByHelper):
    """A twin."""

    functional = staticmethod(F.softsign)
    saver = staticmethod(lambda module, x: x + module.amount)


def converted(module: nn.Module, twin: Any, amount: float) -> Any:
    twin.plain = type(module)
    become_twin(module, twin, Site("site"))
    module.amount = amount
    return module


def test_a_forward_that_asks_itself_runs_without_a_mode() -> None:
    module = converted(Direct(), DirectTwin, 1.0)
    assert torch.equal(module(torch.ones(2)), torch.full((2,), 4.0))
    assert torch.equal(module(torch.ones(2), times=3.0), torch.full((2,), 6.0))
    assert module.inner.watched == [False, False]
    assert F.softsign(torch.ones(())) == 0.5


def test_one_that_leaves_it_to_a_helper_is_watched() -> None:
    module = converted(ByHelper(), ByHelperTwin, 1.0)
    assert torch.equal(module(torch.ones(2)), torch.full((2,), 2.0))


def test_a_twin_within_a_twin_answers_for_itself() -> None:
    inner = converted(Direct(), DirectTwin, 10.0)
    outer = converted(Direct(inner), DirectTwin, 1.0)
    # ((1 + 10) * 2 + 1) * 2
    assert float(outer(torch.ones(()))) == 46.0


def test_after_an_error_the_next_call_is_answered_by_its_own() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("here")

    broken = converted(Direct(Failing()), DirectTwin, 100.0)
    with pytest.raises(RuntimeError, match="here"):
        broken(torch.ones(2))
    test_a_twin_within_a_twin_answers_for_itself()


def test_threads_do_not_answer_for_each_other() -> None:
    meet, wrong = threading.Barrier(2), []

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            meet.wait(10)
            return x

    def run(amount: float) -> None:
        module = converted(Direct(Waiting()), DirectTwin, amount)
        for _ in range(20):
            if float(module(torch.ones(()))) != 2 * (1 + amount):
                wrong.append(amount)

    threads = [threading.Thread(target=run, args=(amount,)) for amount in (1.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
