"""Carry a plan out, and undo it."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from tuckprop.errors import ConfigError
from tuckprop.layers import Site, Twin, find_twin, load_twins_for
from tuckprop.layers._allowance import Allowance
from tuckprop.layers._held import NoteInputs
from tuckprop.layers._twin import become_plain, become_twin, require_module
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

    The forward stays bit-identical, but for rounding where a kernel of our own serves (float32 on a CPU, channels
    first), and so do parameters, `state_dict` keys, hooks and `isinstance`; only what is kept for backward changes. The
    input gradient of convolutions and Linear layers stays exact, but with `GradientFilter`.

    Args:
        model: Any model.
        codec: How to keep activations: a config such as `HOSVD(epsilon=0.8)`, a mapping from name patterns (as in
            `fnmatch`; the first that matches counts, and each must match a module) to configs, or a `Plan`.
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
    plan = settle(model, codec, last=last, select=select, pointwise=pointwise)
    carry_out(model, plan)
    keep_frozen(model, plan.frozen)
    return model


def settle(
    model: nn.Module, codec: CodecChoice | Plan, *, last: int | None, select: Select | None, pointwise: bool
) -> Plan:
    """Return the plan that the arguments give or ask for, checked against the model."""
    require_module(model, "convert")
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


def carry_out(model: nn.Module, plan: Plan) -> Allowance | None:
    """Give every site of a plan that fits its twin, in place; return what keeps them within the plan's budget."""
    allowance = None if plan.form_bytes is None else Allowance(plan.budget or 0, plan.form_bytes)
    modules = dict(model.named_modules())
    for planned in plan.sites:
        module = modules[planned.name]
        twin = find_twin(module, planned.codec)
        assert twin is not None
        site = Site(planned.name, planned.codec, allowance=allowance)
        become_twin(module, twin, site)
        if allowance is not None and planned.options:
            number = [option.codec for option in planned.options].index(planned.codec)
            allowance.watch(site, planned.options, number)
    model.register_forward_pre_hook(NoteInputs(), with_kwargs=True)
    if allowance is not None:
        model.register_forward_pre_hook(allowance)
    return allowance


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert` and `freeze`: plain classes, the same parameters and hooks, what was frozen trainable again.

    Args:
        model: A converted model; a plain one stays as it is.

    Returns:
        `model`. What was frozen stays in eval mode until the next `model.train()`.

    Raises:
        ConfigError: `model` is no module, or one in it was parametrized after its conversion.
    """
    require_module(model, "revert")
    for name, module in model.named_modules():
        if isinstance(module, Twin) and parametrize.is_parametrized(module):
            raise ConfigError(
                f"revert: {name!r} was parametrized after its conversion; call "
                "torch.nn.utils.parametrize.remove_parametrizations on it first"
            )
    unconvert(model)
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, KeepFrozen):
                thaw(module, hook)
    return model


def unconvert(model: nn.Module) -> None:
    """Give every module its plain class back; what is frozen stays frozen."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, (NoteInputs, Allowance)):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
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
        ConfigError: `model`, `last` or `select` is wrong.
    """
    require_module(model, "freeze")
    sites = choose_sites(model, last=last, select=select)
    keep_frozen(model, names_before(model, sites[0]))
    return sites


class KeepFrozen:
    """A forward pre-hook that keeps frozen modules in eval mode, whatever `model.train()` says.

    Attributes:
        modules: Names of the modules that it keeps in eval mode.
        parameters: Names of the parameters that were trainable before.
    """

    def __init__(self, modules: tuple[str, ...], parameters: tuple[str, ...]) -> None:
        self.modules = modules
        self.parameters = parameters

    def __call__(self, model: nn.Module, args: Any) -> None:
        """Put the frozen modules in eval mode."""
        for name in self.modules:
            model.get_submodule(name).training = False


def keep_frozen(model: nn.Module, names: tuple[str, ...], *, batch_norms: bool = True) -> KeepFrozen | None:
    """Freeze modules by name and keep them in eval mode until `revert`; return the hook, for `thaw`.

    Without `batch_norms` those among them are in the mode that the model is put in, so that their statistics may follow
    the data; their parameters are frozen all the same.
    """
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
    kept = names if batch_norms else tuple(n for n in names if not isinstance(model.get_submodule(n), _BatchNorm))
    keep = KeepFrozen(kept, tuple(stopped))
    model.register_forward_pre_hook(keep)
    keep(model, ())
    return keep


def thaw(model: nn.Module, keep: KeepFrozen) -> None:
    """Undo one `keep_frozen`."""
    for key, hook in list(model._forward_pre_hooks.items()):
        if hook is keep:
            del model._forward_pre_hooks[key]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in keep.parameters:
        parameters[name].requires_grad_(True)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
