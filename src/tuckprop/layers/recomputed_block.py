"""Blocks of layers that keep their packed input alone, and run once more in backward.

Gradient checkpointing keeps a block's input as it is; here the input is in a codec's form. What lies inside the block
(its activations, the bits of its rectifiers) is not kept at all: backward rebuilds the input and computes it again.
Source of checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tuckprop.codecs import Packed
from tuckprop.errors import UnsupportedError
from tuckprop.layers._first_run import (
    BuffersBefore,
    Frame,
    as_it_was,
    autocast_as_now,
    random_states,
    random_states_set,
    uncached_parametrizations,
)
from tuckprop.layers._once import first_derivative_only
from tuckprop.layers._structure import Structure
from tuckprop.layers._twin import Twin, trains
from tuckprop.linalg.layout import is_dense


@dataclass(frozen=True)
class _Call:
    """One call of a block, to be repeated: all that decides it but its tensors.

    Attributes:
        block: The block.
        plain: Its plain class.
        name: Its name in the model.
        arguments: The arguments without tensors.
        packed: Which of their tensors is kept in packed form.
        autocast: Makes autocast as it was.
    """

    block: "RecomputedBlock"
    plain: type[nn.Module]
    name: str
    arguments: Structure
    packed: int
    autocast: Callable[[], AbstractContextManager[Any]]

    def run(self, x: Tensor, others: Sequence[Tensor]) -> tuple[Structure, list[Tensor]]:
        """Run the plain block on `x` and the other tensors, and take its result apart."""
        args, kwargs = self.arguments.fill([*others[: self.packed], x, *others[self.packed :]])
        with self.autocast(), uncached_parametrizations():
            result = self.plain.forward(self.block, *args, **kwargs)
        return Structure.of(result)


class _Recomputed(torch.autograd.Function):
    """A block whose inside is computed again in backward.

    Among its inputs are, after the packed one, the other tensors of the arguments and then the block's parameters.
    """

    @staticmethod
    def forward(
        ctx: Any, call: _Call, packed: Packed, structures: list[Structure], x: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the block; append the structure of its result to `structures` and return the tensors of it."""
        count = len(call.arguments.places) - 1
        others, parameters = rest[:count], rest[count:]
        modules = tuple(call.block.modules())
        training = tuple(module.training for module in modules)
        buffers, random = BuffersBefore(modules), random_states(x.device)
        versions = [t._version for t in (x, *others)]
        structure, results = call.run(x, others)
        if versions != [t._version for t in (x, *others)]:
            raise UnsupportedError(
                f"{call.name}: expected a block that leaves its arguments as they are, got one that overwrites one "
                "(an operation with inplace=True comes first); it cannot be computed again"
            )
        structure.refuse_hidden(call.name, "result")
        structures.append(structure)
        changed, places = buffers.changed(modules)
        drawn = any(not torch.equal(a, b) for a, b in zip(random, random_states(x.device), strict=True))
        # As copies, which unlike what a generator gives are seen by those who count what operations make.
        random = [state.clone() for state in random] if drawn else []
        index = {id(parameter): place for place, parameter in enumerate(parameters)}
        owned = tuple({k: index[id(p)] for k, p in m._parameters.items() if p is not None} for m in modules)
        ctx.call, ctx.frame = call, Frame(modules, training, owned, places)
        ctx.packed, ctx.layout = (type(packed), packed.meta), _layout(x)
        ctx.counts = (len(others), len(parameters), len(changed), len(random))
        ctx.shapes = [t.shape for t in results]
        ctx.save_for_backward(*others, *parameters, *changed, *random, *packed.tensors())
        ctx.set_materialize_grads(False)
        results = [_on_its_own(t, (x, *others)) for t in results]
        ctx.mark_non_differentiable(*(t for t in results if not (t.is_floating_point() or t.is_complex())))
        return tuple(results)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Run the block again with a graph, and return the gradients of the tensors and parameters."""
        saved = iter(ctx.saved_tensors)
        others, parameters, buffers, random = ([next(saved) for _ in range(count)] for count in ctx.counts)
        kind, meta = ctx.packed
        x = _laid_out(kind.rebuild(tuple(saved), meta).dense(), ctx.layout)
        needed = ctx.needs_input_grad[3:]
        inputs = [t.detach().requires_grad_(n) for t, n in zip((x, *others, *parameters), needed, strict=True)]
        given, stand_ins = inputs[: 1 + len(others)], inputs[1 + len(others) :]
        with (
            as_it_was(ctx.frame, stand_ins, buffers),
            random_states_set(random, x.device),
            torch.enable_grad(),
        ):
            _, results = ctx.call.run(given[0], given[1:])
        if (shapes := [t.shape for t in results]) != ctx.shapes:
            raise UnsupportedError(
                f"{ctx.call.name}: expected a block that computes the same again, got results of shapes "
                f"{[tuple(s) for s in ctx.shapes]} and then {[tuple(s) for s in shapes]}; what it writes into (a cache "
                "of keys and values?) must be switched off in training"
            )
        ends = [(t, g) for t, g in zip(results, grads, strict=True) if g is not None and t.requires_grad]
        _refuse_others(ctx.call.name, [t for t, _ in ends], inputs)
        wanted = [t for t, needs in zip(inputs, needed, strict=True) if needs]
        found: Iterator[Tensor | None] = iter([None] * len(wanted))
        if ends and wanted:
            found = iter(torch.autograd.grad([t for t, _ in ends], wanted, [g for _, g in ends], allow_unused=True))
        return None, None, None, *(next(found) if needs else None for needs in needed)


def _refuse_others(name: str, ends: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """Check that nothing but `inputs` has led to `ends`: another tensor's gradient would be lost."""
    known = {id(t) for t in inputs}
    seen: set[Any] = set()
    open_nodes = [t.grad_fn for t in ends]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in known:
            raise UnsupportedError(
                f"{name}: expected a block that computes from its arguments and its own parameters alone, got one that "
                f"uses another tensor of shape {tuple(variable.shape)} that needs a gradient, which would be lost"
            )
        open_nodes += [following for following, _ in node.next_functions]


class RecomputedBlock(Twin):
    """A block that keeps its packed input alone.

    The output, `state_dict` and hooks are the plain block's. Backward computes the block again from the input as the
    codec gives it back, with parameters, modes, buffers, autocast and PyTorch's random numbers as they were the first
    time. A lossless codec gives the plain gradients; with any other the gradients of the input and of the parameters
    are those of the block at the input that was kept, so that the input gradient is approximate too.

    Of several tensors among the arguments the largest is packed, and the others are kept as they are. The block must
    compute from its arguments, its own parameters and its own buffers alone. Hooks on modules inside it run twice.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A block that is made anew, as a slice of a Sequential is, is a plain one.
        super().__init__(*args, **kwargs)
        self.__class__ = self.plain  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block; see the plain class for arguments and result."""
        arguments, tensors = Structure.of((args, kwargs))
        parameters = list(self.parameters())
        floating = [i for i, t in enumerate(tensors) if t.is_floating_point()]
        # A replica, as nn.DataParallel makes them, has no parameters of its own.
        if not floating or getattr(self, "_is_replica", False):
            return self.plain.forward(self, *args, **kwargs)
        largest = max(floating, key=lambda i: tensors[i].numel())
        x = tensors.pop(largest)
        if not trains(self, x, *(t for t in (*tensors, *parameters) if t.requires_grad)):
            return self.plain.forward(self, *args, **kwargs)
        arguments.refuse_hidden(self._site.name, "argument")
        call = _Call(self, self.plain, self._site.name, arguments, largest, autocast_as_now(x.device.type))
        structures: list[Structure] = []
        results = _Recomputed.apply(call, self._site.pack(x), structures, x, *tensors, *parameters)
        return structures[0].fill(results)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, (self.plain,), self.__dict__.copy()

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why this block cannot be computed again, or None if it can."""
        if isinstance(module, Twin):
            return "it is converted already"
        if type(module).forward is nn.Module.forward:
            return f"{type(module).__name__} has no forward"
        if "forward" in vars(module):
            return "its forward is one of the instance, not of the class"
        for name, part in module.named_modules():
            if isinstance(part, nn.RNNBase):
                return f"{name or 'it'} is a {type(part).__name__}, which keeps references to its own parameters"
            if any(is_lazy(parameter) for parameter in part.parameters(recurse=False)):
                return f"the shape of {name or 'it'} is not known yet; run the model once first"
        return None


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


def _layout(x: Tensor) -> tuple[int, ...] | None:
    """Return the strides of a tensor that fills its memory, in whatever order."""
    return x.stride() if is_dense(x) else None


def _laid_out(x: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    if strides is None or strides == x.stride():
        return x
    return x.new_empty_strided(x.shape, strides).copy_(x)


def _on_its_own(result: Tensor, arguments: Sequence[Tensor]) -> Tensor:
    """Return a result of the first run as a tensor that may be overwritten: no view, and no argument."""
    if result.layout != torch.strided:
        return result
    memory = result.untyped_storage()._cdata
    if any(a.layout == torch.strided and a.untyped_storage()._cdata == memory for a in arguments):
        return result.clone()
    return result.detach() if result._is_view() else result
