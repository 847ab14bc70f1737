"""Blocks of layers that keep their packed input alone, and run once more in backward.

Gradient checkpointing keeps a block's input as it is; here the input is in a codec's form. What lies inside the block
(its activations, the bits of its rectifiers) is not kept at all: backward rebuilds the input and computes it again.
Source of checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tuckprop.codecs import Packed
from tuckprop.errors import UnsupportedError
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._twin import Twin, trains


@dataclass(frozen=True)
class _Structure:
    """Arguments or results without their tensors.

    Attributes:
        others: What there is, with None where there was a tensor.
        places: Where the tensors were.
        spec: How all of it hangs together.
    """

    others: tuple[Any, ...]
    places: tuple[int, ...]
    spec: TreeSpec

    @classmethod
    def of(cls, value: Any) -> tuple["_Structure", list[Tensor]]:
        """Take a value apart."""
        leaves, spec = tree_flatten(value)
        places = tuple(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(others, places, spec), [leaves[i] for i in places]

    def fill(self, tensors: Sequence[Tensor]) -> Any:
        """Return the value with these tensors in it."""
        leaves = list(self.others)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        return tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class _Call:
    """One call of a block, to be repeated: all that decides it but its tensors.

    Attributes:
        block: The block.
        arguments: The arguments without tensors.
        packed: Which of their tensors is kept in packed form.
        autocast: Makes autocast as it was.
    """

    block: "RecomputedBlock"
    arguments: _Structure
    packed: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def run(self, x: Tensor, others: Sequence[Tensor]) -> tuple[_Structure, list[Tensor]]:
        """Run the plain block on `x` and the other tensors, and take its result apart."""
        args, kwargs = self.arguments.fill([*others[: self.packed], x, *others[self.packed :]])
        with self.autocast():
            return _Structure.of(self.block.plain.forward(self.block, *args, **kwargs))


class _Recomputed(torch.autograd.Function):
    """A block whose inside is computed again in backward.

    Among its inputs are, after the packed one, the other tensors of the arguments and then the block's parameters.
    """

    @staticmethod
    def forward(
        ctx: Any, call: _Call, packed: Packed, structures: list[_Structure], x: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the block; append the structure of its result to `structures` and return the tensors of it."""
        others = others[: len(call.arguments.places) - 1]
        before, version = _random_states(x.device), x._version
        structure, results = call.run(x, others)
        if x._version != version:
            raise UnsupportedError(
                f"{call.block._site.name}: expected a block that leaves its input as it is, got one that overwrites it "
                "(an operation with inplace=True comes first); it cannot be computed again"
            )
        structures.append(structure)
        ctx.shapes = [t.shape for t in results]
        drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_states(x.device), strict=True))
        ctx.call, ctx.packed = call, (type(packed), packed.meta)
        # As copies, which unlike what a generator gives are seen by those who count what operations make.
        random = [state.clone() for state in before] if drawn else []
        ctx.others, ctx.random = len(others), len(random)
        ctx.save_for_backward(*others, *random, *packed.tensors())
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in results if not (t.is_floating_point() or t.is_complex())))
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the block again with a graph, and return the gradients of the tensors and parameters."""
        saved, count = ctx.saved_tensors, ctx.others + ctx.random
        kind, meta = ctx.packed
        needed = ctx.needs_input_grad[3:]
        given = [kind.rebuild(saved[count:], meta).dense().detach(), *(t.detach() for t in saved[: ctx.others])]
        for tensor, needs in zip(given, needed, strict=False):
            tensor.requires_grad_(needs)
        random = saved[ctx.others : count]
        with _stand_ins(ctx.call.block) as parameters, _random_states_set(random, given[0].device), torch.enable_grad():
            _, results = ctx.call.run(given[0], given[1:])
        if (shapes := [t.shape for t in results]) != ctx.shapes:
            raise UnsupportedError(
                f"{ctx.call.block._site.name}: expected a block that computes the same again, got results of shapes "
                f"{[tuple(s) for s in ctx.shapes]} and then {[tuple(s) for s in shapes]}; what it writes into (a cache "
                "of keys and values?) must be switched off in training"
            )
        ends = [(t, g) for t, g in zip(results, grads, strict=True) if g is not None and t.requires_grad]
        inputs = [t for t, needs in zip((*given, *parameters), needed, strict=True) if needs]
        found: Iterator[Tensor | None] = iter([None] * len(inputs))
        if ends and inputs:
            found = iter(torch.autograd.grad([t for t, _ in ends], inputs, [g for _, g in ends], allow_unused=True))
        return None, None, None, *(next(found) if needs else None for needs in needed)


class RecomputedBlock(Twin):
    """A block that keeps its packed input alone.

    The output, `state_dict` and hooks are the plain block's. Backward computes the block again from the input as the
    codec gives it back, with the random numbers, the autocast and the buffers of the first time. A lossless codec gives
    the plain gradients; with any other the gradients of the input and of the parameters are those of the block at the
    input that was kept, so that the input gradient is approximate too.

    The block must compute from its arguments, its own parameters and its own buffers alone.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block; see the plain class for arguments and result."""
        if "_site" not in self.__dict__:  # A part that was cut out of a Sequential.
            return self.plain.forward(self, *args, **kwargs)
        arguments, tensors = _Structure.of((args, kwargs))
        parameters = list(self.parameters())
        first = next((i for i, t in enumerate(tensors) if t.is_floating_point()), None)
        if first is None or not trains(self, tensors[first], *(t for t in (*tensors, *parameters) if t.requires_grad)):
            return self.plain.forward(self, *args, **kwargs)
        x = tensors.pop(first)
        call = _Call(self, arguments, first, _autocast_as_now(x.device.type))
        structures: list[_Structure] = []
        results = _Recomputed.apply(call, self._site.pack(x), structures, x, *tensors, *parameters)
        return structures[0].fill(results)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.plain,), self.__dict__.copy()

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why this block cannot be computed again, or None if it can."""
        for name, part in module.named_modules():
            if isinstance(part, nn.RNNBase):
                return f"{name or 'it'} is a {type(part).__name__}, which keeps references to its own parameters"
        return "it is converted already" if isinstance(module, Twin) else None


_kinds: dict[type[nn.Module], type[RecomputedBlock]] = {}


def recomputed(plain: type[nn.Module]) -> type[RecomputedBlock]:
    """Return the class of blocks of class `plain` that are computed again."""
    if plain not in _kinds:
        members = {"plain": plain, "__doc__": plain.__doc__}
        _kinds[plain] = type(f"Recomputed{plain.__name__}", (RecomputedBlock, plain), members)
    return _kinds[plain]


def _rebuild(plain: type[nn.Module]) -> RecomputedBlock:
    """Return an empty block, for `copy.deepcopy` and pickle, which fill it."""
    kind = recomputed(plain)
    return kind.__new__(kind)


def _autocast_as_now(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes autocast as it is now.

    Its cache is off: what it would keep of the first run, without a graph, it would give to layers that need one.
    """
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


@contextmanager
def _stand_ins(block: nn.Module) -> Iterator[list[Tensor]]:
    """Give every parameter and buffer of the block a stand-in for as long as the context is open.

    So hooks on parameters run once, for the gradient that backward returns, and batch norm's statistics are counted
    once.

    Yields:
        The stand-ins of the parameters, in the order of `parameters()`.
    """
    before = [(m, dict(m._parameters), dict(m._buffers)) for m in block.modules()]
    made: dict[Tensor, Tensor] = {p: p.detach().requires_grad_(p.requires_grad) for p in block.parameters()}
    copies = {b: b.clone() for b in block.buffers()}
    try:
        for module, parameters, buffers in before:
            module._parameters.update({k: None if p is None else made[p] for k, p in parameters.items()})  # type: ignore[misc]
            module._buffers.update({k: None if b is None else copies[b] for k, b in buffers.items()})
        yield list(made.values())
    finally:
        for module, parameters, buffers in before:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the random number generators that a block on `device` may use."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


@contextmanager
def _random_states_set(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Set the states that `_random_states` returned, and go back afterwards; with none, do nothing."""
    now = _random_states(device) if states else []
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
