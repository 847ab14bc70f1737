"""Say beforehand what a conversion would save, and choose settings that meet a byte budget."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.allocation import allocate
from tuckprop.budget import example_loss, parse_bytes, tabulate
from tuckprop.codecs import Codec, Dense
from tuckprop.convert import carry_out, keep_frozen, settle, thaw, unconvert
from tuckprop.errors import ConfigError, TuckpropWarning
from tuckprop.memory.census import census, untouched
from tuckprop.plan import CodecChoice, Elsewhere, Plan, Select, is_compressible

# Share of a budget to aim at and that is near enough, and how often what is held is measured to come nearer.
_AIM, _NEAR = 0.98, 0.95
_ROUNDS = 6


def plan(
    model: nn.Module,
    example_input: Any,
    codec: CodecChoice | Plan,
    *,
    last: int | None = None,
    select: Select | None = None,
    pointwise: bool = True,
    budget: int | str | None = None,
    loss_fn: Callable[[Any], Tensor] | None = None,
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
        budget: Bytes that the whole model may hold for backward on this batch, as a number or a text such as "64MB".
            Each convolution's and Linear layer's epsilon (for ASI: ranks) is then chosen so that the weight gradients
            lose least, by a table measured on this batch; a single `codec` says of what kind.
        loss_fn: Takes the model's output and returns the scalar loss to measure gradients with; only for a budget. The
            default draws labels from the model's own prediction.

    Returns:
        The plan, with shapes and bytes; `convert(model, plan)` carries it out. Warns (TuckpropWarning) where it would
        save less than 5%.

    Raises:
        ConfigError: As for `convert`; also if the budget is unreadable or too small.
    """
    decided = settle(model, codec, last=last, select=select, pointwise=pointwise)
    limit = None if budget is None else parse_bytes(budget)
    shapes: dict[str, tuple[int, ...]] = {}
    with untouched(model):
        model.train()
        keep = keep_frozen(model, decided.frozen)
        try:
            plain = _held(model, example_input, decided, shapes)
            if limit is not None:
                decided = _within(model, example_input, codec, decided, limit, loss_fn or example_loss)
            packed, spent = _held_converted(model, example_input, decided)
            if limit is not None:
                decided = replace(decided, budget=limit, form_bytes=limit - sum(packed.values()) + spent)
        finally:
            unconvert(model)
            if keep is not None:
                thaw(model, keep)
    held, kept = sum(plain.values()), sum(packed.values())
    if kept > 0.95 * held:
        warnings.warn(
            f"this conversion holds {kept / 2**20:.2f} MiB for backward, the plain model {held / 2**20:.2f} MiB: it "
            "saves under 5%. print(plan) shows where the bytes are.",
            TuckpropWarning,
            stacklevel=2,
        )
    return _measured(decided, shapes, plain, packed)


def _measured(
    plan: Plan, shapes: Mapping[str, tuple[int, ...]], plain: Mapping[str, int], packed: Mapping[str, int]
) -> Plan:
    """Return the plan with the shape of each site's input, and all bytes unconverted and converted."""
    sites = tuple(
        replace(
            site,
            input_shape=shapes.get(site.name),
            plain_bytes=plain.get(site.name, 0),
            predicted_bytes=packed.get(site.name, 0),
        )
        for site in plan.sites
    )
    known = {site.name for site in sites}
    others = [name for name in {**plain, **packed} if name not in known]
    elsewhere = tuple(Elsewhere(name, plain.get(name, 0), packed.get(name, 0)) for name in others)
    return replace(plan, sites=sites, elsewhere=elsewhere)


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
            output = _run(model, example)
            held = counted.by_module()
            del output
        return held
    finally:
        for handle in handles:
            handle.remove()


def _held_converted(model: nn.Module, example: Any, decided: Plan) -> tuple[dict[str, int], int]:
    """Return held bytes by module, and what sites keep of activations, with the plan carried out.

    Only classes are put back afterwards.
    """
    allowance = carry_out(model, replace(decided, budget=0, form_bytes=0))
    assert allowance is not None
    try:
        return _held(model, example, decided, {}), allowance.taken
    finally:
        unconvert(model)


def _within(
    model: nn.Module, example: Any, codec: object, decided: Plan, budget: int, loss_fn: Callable[[Any], Tensor]
) -> Plan:
    """Return the plan with each compressed site's codec set so that the model holds about `budget` bytes."""
    if not isinstance(codec, Codec):
        raise ConfigError(
            "plan(budget=...): expected a single codec config to set, such as Subspace(), got a mapping or a plan"
        )
    sites = [s.name for s in decided.sites if is_compressible(model.get_submodule(s.name))]
    exact = _with_codecs(decided, dict.fromkeys(sites, Dense()))
    carry_out(model, exact)
    try:
        tables = tabulate(model, codec, sites, lambda: loss_fn(_run(model, example)))
    finally:
        unconvert(model)

    def spend(limit: int) -> tuple[Plan, int]:
        """Return the plan in which sites may take so many bytes by their tables, and the bytes that it then holds."""
        chosen = _with_codecs(decided, {name: option.codec for name, option in allocate(tables, limit).items()})
        return chosen, sum(_held_converted(model, example, chosen)[0].values())

    least, most = (sum(end(option.nbytes for option in options) for options in tables.values()) for end in (min, max))
    smallest, held = spend(least)
    if held > budget:
        raise ConfigError(
            f"plan(budget=...): {budget} bytes are too few; this model on this batch holds at least {held}"
        )
    found = _approach(spend, budget, (least, most), smallest, held)
    return replace(found, sites=tuple(replace(site, options=tuple(tables.get(site.name, ()))) for site in found.sites))


def _approach(
    spend: Callable[[int], tuple[Plan, int]], budget: int, limits: tuple[int, int], smallest: Plan, least_held: int
) -> Plan:
    """Return, of a few plans, the one that holds the most within the budget.

    Sites that share a tensor hold it once, and settings in between have no measured bytes, so that what tables say is
    not what is held: limits that hold too little and too much come nearer and nearer.

    Args:
        spend: Returns a plan for a limit, and the bytes it holds.
        budget: Bytes that may be held.
        limits: The lowest, and the highest that makes a difference.
        smallest: The plan of the lowest.
        least_held: What that holds.

    Returns:
        The plan.
    """
    least, most = limits
    best, best_held, aim = smallest, least_held, int(_AIM * budget)
    low, low_held, high, high_held = least, least_held, 0, 0
    limit = least + budget - least_held
    for _ in range(_ROUNDS):
        chosen, held = spend(limit)
        if best_held < held <= budget:
            best, best_held = chosen, held
        if held > budget:
            high, high_held = limit, held
        else:
            low, low_held = limit, held
        if best_held >= _NEAR * budget or (limit >= most and not high):
            break
        # Inside of both, as what a limit holds rises by steps.
        share = min(0.9, max(0.1, (aim - low_held) / (high_held - low_held))) if high else 0.0
        limit = low + int(share * (high - low)) if high else low + aim - low_held
    return best


def _with_codecs(plan: Plan, codecs: Mapping[str, Codec]) -> Plan:
    return replace(plan, sites=tuple(replace(s, codec=codecs.get(s.name, s.codec)) for s in plan.sites))


def _run(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)
