"""Say beforehand what a conversion would save, and choose settings that meet a byte budget."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tuckprop.allocation import allocate
from tuckprop.budget import example_loss, parse_bytes, tabulate
from tuckprop.codecs import Codec, Dense
from tuckprop.convert import carry_out, keep_frozen, settle, thaw, unconvert
from tuckprop.errors import ConfigError, TuckpropWarning
from tuckprop.layers._allowance import Allowance
from tuckprop.memory.census import census, untouched
from tuckprop.plan import CodecChoice, Elsewhere, Plan, Select, is_compressible

# Share of a budget to aim at and that is near enough, and how often what is held is measured to come nearer.
_AIM, _NEAR = 0.98, 0.95
_ROUNDS = 10


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
            packed, allowance = _held_converted(model, example_input, decided)
            if limit is not None:
                decided = replace(decided, budget=limit, form_bytes=limit - sum(packed.values()) + allowance.taken)
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


def _held_converted(model: nn.Module, example: Any, decided: Plan) -> tuple[dict[str, int], Allowance]:
    """Return held bytes by module with the plan carried out, and who noted what each site keeps of activations.

    Only classes are put back afterwards.
    """
    allowance = carry_out(model, replace(decided, budget=0, form_bytes=0))
    assert allowance is not None
    try:
        return _held(model, example, decided, {}), allowance
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

    def spend(limit: int) -> Spending:
        """Return the plan in which sites may take so many bytes by their tables."""
        options = allocate({name: table.options() for name, table in tables.items()}, limit)
        chosen = _with_codecs(decided, {name: option.codec for name, option in options.items()})
        held, allowance = _held_converted(model, example, chosen)
        spent = allowance.spent
        # What is used several times is in the table once.
        once = {name: spent[name].nbytes for name in options if name in spent and spent[name].uses == 1}
        learnt = [tables[name].learn(options[name], nbytes) for name, nbytes in once.items()]
        by_table = sum(once.get(name, option.nbytes) for name, option in options.items())
        return Spending(chosen, sum(held.values()), by_table, any(learnt))

    sizes = [[option.nbytes for option in table.options()] for table in tables.values()]
    least, most = (sum(map(end, sizes)) for end in (min, max))
    found = _approach(spend, budget, least, most)
    options = {name: tuple(table.options()) for name, table in tables.items()}
    return replace(found, sites=tuple(replace(site, options=options.get(site.name, ())) for site in found.sites))


@dataclass(frozen=True)
class Spending:
    """A plan for a limit.

    Attributes:
        plan: The plan.
        held: Bytes that it holds.
        by_table: Bytes of the sites in its tables, corrected by what they hold.
        learnt: Whether that was not in the tables yet.
    """

    plan: Plan
    held: int
    by_table: int
    learnt: bool


def _approach(spend: Callable[[int], Spending], budget: int, least: int, most: int) -> Plan:
    """Return, of a few plans, the one that holds the most within the budget.

    Settings in between have no measured bytes before they are chosen, and sites that share a tensor hold it once, so
    that what tables say is not what is held. The former is learnt; for the latter, limits that hold too little and too
    much come nearer and nearer.

    Args:
        spend: Returns a plan for a limit, and learns.
        budget: Bytes that may be held.
        least: The lowest limit.
        most: The highest that makes a difference.

    Raises:
        ConfigError: The plan of the lowest holds more than the budget.
    """
    best = smallest = spend(least)
    if smallest.held > budget:
        raise ConfigError(
            f"plan(budget=...): {budget} bytes are too few; this model on this batch holds at least {smallest.held}"
        )
    aim = int(_AIM * budget)
    low, low_held, high, high_held = least, smallest.held, 0, 0
    limit = least + budget - smallest.held
    for _ in range(_ROUNDS):
        spent = spend(limit)
        if best.held < spent.held <= budget:
            best = spent
        if best.held >= _NEAR * budget or (limit >= most and not spent.learnt and not high):
            break
        if spent.learnt:
            # Tables are others now, and limits mean something else.
            low, low_held, high = least, smallest.held, 0
            limit = max(least, spent.by_table + aim - spent.held)
            continue
        if spent.held > budget:
            high, high_held = limit, spent.held
        else:
            low, low_held = limit, spent.held
        # Inside of both, as what a limit holds rises by steps.
        share = min(0.9, max(0.1, (aim - low_held) / (high_held - low_held))) if high else 0.0
        limit = low + int(share * (high - low)) if high else low + aim - low_held
    return best.plan


def _with_codecs(plan: Plan, codecs: Mapping[str, Codec]) -> Plan:
    return replace(plan, sites=tuple(replace(s, codec=codecs.get(s.name, s.codec)) for s in plan.sites))


def _run(model: nn.Module, example: Any) -> Any:
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)
