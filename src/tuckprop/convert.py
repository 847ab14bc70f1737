"""Carry a plan out, undo it, and say beforehand what it would save."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tuckprop.errors import ConfigError, TuckpropWarning
from tuckprop.layers import Site, Twin, find_twin, load_twins_for
from tuckprop.layers._twin import become_plain, become_twin
from tuckprop.memory.census import census, untouched
from tuckprop.plan import CodecChoice, Plan, Select, choose_sites, decide, names_before, refuse_converted


def convert(
    model: nn.Module,
    codec: CodecChoice | Plan,
    *,
    last: int | None = None,
    select: Select | None = None,
    pointwise: bool = True,
) -> nn.Module:
    """Make `model` keep its activations in packed form, in place.

    The forward stays bit-identical, and so do parameters, `state_dict` keys, hooks and `isinstance`; only what is kept
    for backward changes. The input gradient of convolutions and Linear layers stays exact.

    Args:
        model: Any model.
        codec: How to keep activations: a config such as `HOSVD(epsilon=0.8)`, a mapping from name patterns (as in
            `fnmatch`; the first that matches counts) to configs, or a `Plan`.
        last: The paper's protocol: train the last k convolutions (Linear layers in a transformer) and what follows
            them, compress those k, freeze all that comes before and keep it in eval mode.
        select: `select(name, module)` picks the convolutions and Linear layers to compress; `last` counts among those.
        pointwise: Convert norms, activations, pools and dropout too.

    Returns:
        `model`.

    Raises:
        ConfigError: A bad argument, a model that is converted already, or nothing to compress.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
        >>> _ = model(torch.zeros(1, 3, 8, 8))
        >>> model = tuckprop.convert(model, tuckprop.HOSVD(epsilon=0.8))
    """
    plan = _settle(model, codec, last=last, select=select, pointwise=pointwise)
    _carry_out(model, plan)
    _freeze(model, plan.frozen)
    return model


def _settle(
    model: nn.Module, codec: CodecChoice | Plan, *, last: int | None, select: Select | None, pointwise: bool
) -> Plan:
    """Return the plan that the arguments give or ask for, checked against the model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"convert(model=...): expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(codec, Plan):
        return decide(model, codec, last=last, select=select, pointwise=pointwise)
    if last is not None or select is not None or not pointwise:
        raise ConfigError(
            "convert: expected a plan alone, got last, select or pointwise besides; a plan has them in it"
        )
    modules = dict(model.named_modules())
    refuse_converted(modules)
    for site in codec.sites:
        module = modules.get(site.name)
        if module is not None:
            load_twins_for(module)
        twin = find_twin(module, site.codec) if module is not None else None
        if module is None or twin is None:
            found = "nothing" if module is None else f"a {type(module).__name__}"
            raise ConfigError(f"convert: the plan has a {site.kind} at {site.name!r}, the model has {found}")
        if twin.compresses and (reason := twin.refusal(module) or site.codec.refusal(module)):
            raise ConfigError(f"convert: the plan has {site.codec!r} at {site.name!r}: {reason}")
    absent = [name for name in codec.frozen if name not in modules]
    if absent:
        raise ConfigError(f"convert: the plan freezes {absent[0]!r}, the model has nothing there")
    return codec


def _carry_out(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    for site in plan.sites:
        module = modules[site.name]
        twin = find_twin(module, site.codec)
        assert twin is not None
        become_twin(module, twin, Site(site.name, site.codec))


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert` and `freeze`: plain classes, the same parameters and hooks, what was frozen trainable again.

    Args:
        model: A converted model; a plain one stays as it is.

    Returns:
        `model`. What was frozen stays in eval mode until the next `model.train()`.

    Raises:
        ConfigError: A module was parametrized after its conversion.
    """
    for name, module in model.named_modules():
        if isinstance(module, Twin) and parametrize.is_parametrized(module):
            raise ConfigError(
                f"revert: {name!r} was parametrized after its conversion; call "
                "torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
    _undo(model)
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, _KeepFrozen):
                _thaw(module, hook)
    return model


def _undo(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Twin):
            become_plain(module)


def freeze(model: nn.Module, *, last: int, select: Select | None = None) -> list[str]:
    """Freeze the model as `convert(model, codec, last=last)` does, and leave it plain: one arm of a comparison.

    Args:
        model: Any model.
        last: How many convolutions (Linear layers in a transformer) stay trainable, with what follows them.
        select: Count only those for which `select(name, module)` is true.

    Returns:
        The names of those layers.

    Raises:
        ConfigError: `last` or `select` is wrong.
    """
    sites = choose_sites(model, last=last, select=select)
    _freeze(model, names_before(model, sites[0]))
    return sites


class _KeepFrozen:
    """A forward pre-hook that keeps frozen modules in eval mode, whatever `model.train()` says.

    Attributes:
        modules: Names of the frozen modules.
        parameters: Names of the parameters that were trainable before.
    """

    def __init__(self, modules: tuple[str, ...], parameters: tuple[str, ...]) -> None:
        self.modules = modules
        self.parameters = parameters

    def __call__(self, model: nn.Module, args: Any) -> None:
        for name in self.modules:
            model.get_submodule(name).training = False


def _freeze(model: nn.Module, names: tuple[str, ...]) -> _KeepFrozen | None:
    if not names:
        return None
    frozen = set(names)
    # Direct parameters of containers (a class token, position embeddings) feed the first layers.
    containers = {name for first in names[-1:] for name in _ancestors(first)} | {""}
    stopped = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if (owner in frozen or owner in containers) and parameter.requires_grad:
            stopped.append(name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in stopped:
        parameters[name].requires_grad_(False)
    keep = _KeepFrozen(names, tuple(stopped))
    model.register_forward_pre_hook(keep)
    keep(model, ())
    return keep


def _thaw(model: nn.Module, keep: _KeepFrozen) -> None:
    """Undo one `_freeze`."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is keep:
            del model._forward_pre_hooks[key]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in keep.parameters:
        parameters[name].requires_grad_(True)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def plan(
    model: nn.Module,
    example_input: Any,
    codec: CodecChoice | Plan,
    *,
    last: int | None = None,
    select: Select | None = None,
    pointwise: bool = True,
) -> Plan:
    """Say what `convert` would do and save, by one plain and one converted forward; the model is left as it was.

    Args:
        model: Any model, not converted.
        example_input: A batch as the model takes it: a tensor, a tuple of arguments or a dict of keyword arguments.
            Bytes are for this batch; where the plain model does not fit, a smaller batch will do.
        codec: As for `convert`, like the other arguments.
        last: As for `convert`.
        select: As for `convert`.
        pointwise: As for `convert`.

    Returns:
        The plan, with shapes and bytes; `convert(model, plan)` carries it out. Warns (TuckpropWarning) where it would
        save less than 5%.

    Raises:
        ConfigError: As for `convert`.
    """
    decided = _settle(model, codec, last=last, select=select, pointwise=pointwise)
    shapes: dict[str, tuple[int, ...]] = {}
    with untouched(model):
        model.train()
        keep = _freeze(model, decided.frozen)
        try:
            plain = _held(model, example_input, decided, shapes)
            _carry_out(model, decided)
            packed = _held(model, example_input, decided, shapes)
        finally:
            _undo(model)
            if keep is not None:
                _thaw(model, keep)
    sites = tuple(
        replace(
            site,
            input_shape=shapes.get(site.name),
            plain_bytes=plain.get(site.name, 0),
            predicted_bytes=packed.get(site.name, 0),
        )
        for site in decided.sites
    )
    held, kept = sum(plain.values()), sum(packed.values())
    if kept > 0.95 * held:
        warnings.warn(
            f"this conversion holds {kept / 2**20:.2f} MiB for backward, the plain model {held / 2**20:.2f} MiB: it "
            "saves under 5%. print(plan) shows where the bytes are.",
            TuckpropWarning,
            stacklevel=2,
        )
    return replace(decided, sites=sites)


def _held(model: nn.Module, example: Any, decided: Plan, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Run one forward; return held bytes by module and note the input shapes of the plan's sites."""
    modules = dict(model.named_modules())
    handles = []
    for site in decided.sites:

        def note(module: nn.Module, args: Any, name: str = site.name) -> None:
            if args and isinstance(args[0], Tensor):
                shapes[name] = tuple(args[0].shape)

        handles.append(modules[site.name].register_forward_pre_hook(note))
    try:
        with torch.enable_grad(), census(model) as counted:
            if isinstance(example, Mapping):
                output = model(**example)
            elif isinstance(example, (tuple, list)):
                output = model(*example)
            else:
                output = model(example)
            held = counted.by_module()
            del output
        return held
    finally:
        for handle in handles:
            handle.remove()
