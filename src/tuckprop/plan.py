"""Decide which modules get which twin and codec. A plan is data: immutable, printable, serialisable."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList

from tuckprop.allocation import Option
from tuckprop.codecs import Codec, Dense, codecs
from tuckprop.errors import ConfigError
from tuckprop.layers import Twin, find_twin, load_twins_for
from tuckprop.layers._twin import not_convertible

Select = Callable[[str, nn.Module], bool]
CodecChoice = Codec | Mapping[str, Codec]

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


@dataclass(frozen=True)
class SitePlan:
    """One module to convert.

    Attributes:
        name: Dotted name, the first under which the model has it.
        kind: Class name.
        codec: How its activation is kept.
        input_shape: Shape of its input on the example, or None before a run.
        plain_bytes: Bytes it holds for backward unconverted, on the example.
        predicted_bytes: Bytes it will hold for backward, on the example.
        options: Where there is a budget: the settings that `codec` was chosen from, and may be exchanged for.
    """

    name: str
    kind: str
    codec: Codec
    input_shape: tuple[int, ...] | None = None
    plain_bytes: int | None = None
    predicted_bytes: int | None = None
    options: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One module that is left alone, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Elsewhere:
    """What is held on the example by modules that are not converted, and by functions that a module calls.

    Attributes:
        name: The module's dotted name; empty for the model itself.
        plain_bytes: Bytes held for backward before the conversion.
        predicted_bytes: Bytes held after it.
    """

    name: str
    plain_bytes: int
    predicted_bytes: int


@dataclass(frozen=True)
class Plan:
    """What `convert` will do.

    Attributes:
        sites: Modules to convert, in the model's order.
        skipped: Modules that hold activations or weights and are left alone.
        frozen: Names of modules that are frozen and kept in eval mode (the paper's "last k layers").
        budget: Bytes that the model may hold for backward, or None. Settings then follow what is held in training.
        form_bytes: Bytes of the budget that are left for what sites keep of activations, or None.
        elsewhere: What is held beside the sites, on the example.
    """

    sites: tuple[SitePlan, ...]
    skipped: tuple[Skipped, ...] = ()
    frozen: tuple[str, ...] = ()
    budget: int | None = None
    form_bytes: int | None = None
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def plain_bytes(self) -> int:
        """Bytes that the model holds for backward unconverted, on the example; 0 before a run."""
        at_sites = sum(site.plain_bytes or 0 for site in self.sites)
        return at_sites + sum(holder.plain_bytes for holder in self.elsewhere)

    @property
    def predicted_bytes(self) -> int:
        """Bytes that the model will hold for backward, on the example; 0 before a run."""
        at_sites = sum(site.predicted_bytes or 0 for site in self.sites)
        return at_sites + sum(holder.predicted_bytes for holder in self.elsewhere)

    def __str__(self) -> str:
        def kib(nbytes: int | None) -> str:
            return "" if nbytes is None else f"{nbytes / 1024:.1f}"

        rows = [("site", "type", "input", "codec", "plain, KiB", "predicted, KiB")]
        for s in self.sites:
            shape = "" if s.input_shape is None else "x".join(map(str, s.input_shape))
            rows.append((s.name, s.kind, shape, repr(s.codec), kib(s.plain_bytes), kib(s.predicted_bytes)))
        for e in self.elsewhere:
            rows.append((e.name or "(the model)", "", "", "elsewhere", kib(e.plain_bytes), kib(e.predicted_bytes)))
        rows.append(("total", "", "", "", kib(self.plain_bytes), kib(self.predicted_bytes)))
        if self.budget is not None:
            rows.append(("budget", "", "", "", "", kib(self.budget)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(f"{c:<{w}}" if i < 4 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows
        ]
        if self.frozen:
            lines.append(f"frozen, in eval mode: {len(self.frozen)} modules, up to {self.frozen[-1]}")
        lines += [f"left alone: {s.name} ({s.kind}): {s.reason}" for s in self.skipped]
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> str:
        """Return the plan as JSON text; codecs go by their registered names.

        Raises:
            ConfigError: A codec is not registered, and so has no name.
        """
        used = [codec for s in self.sites for codec in (s.codec, *(option.codec for option in s.options))]
        names = {codecs[name]: name for name in codecs}
        foreign = next((codec for codec in used if type(codec) not in names), None)
        if foreign is not None:
            raise ConfigError(f"Plan.to_json: expected a registered codec, got {foreign!r}")

        def as_data(codec: Codec) -> dict[str, Any]:
            return {"name": names[type(codec)], **asdict(codec)}

        sites = [
            {f.name: getattr(s, f.name) for f in fields(s)}
            | {"codec": as_data(s.codec)}
            | {"options": [asdict(option) | {"codec": as_data(option.codec)} for option in s.options]}
            for s in self.sites
        ]
        whole = {"version": 1, "sites": sites, "skipped": [asdict(s) for s in self.skipped], "frozen": self.frozen}
        whole |= {"budget": self.budget, "form_bytes": self.form_bytes}
        return json.dumps(whole | {"elsewhere": [asdict(holder) for holder in self.elsewhere]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote.

        Raises:
            ConfigError: The text is no plan of this version.
        """
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ConfigError(f"Plan.from_json: expected version 1, got {data['version']!r}")
            sites = []
            for entry in data["sites"]:
                shape = entry["input_shape"]
                options = [Option(**o | {"codec": _from_data(o["codec"])}) for o in entry.get("options", ())]
                changed = {"codec": _from_data(entry["codec"]), "options": tuple(options)}
                sites.append(SitePlan(**entry | changed | {"input_shape": None if shape is None else tuple(shape)}))
            skipped = tuple(Skipped(**entry) for entry in data["skipped"])
            limits = (data.get("budget"), data.get("form_bytes"))
            elsewhere = tuple(Elsewhere(**entry) for entry in data.get("elsewhere", ()))
            return cls(tuple(sites), skipped, tuple(data["frozen"]), *limits, elsewhere)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"Plan.from_json: not a plan as to_json writes it: {error!r}") from error


def _from_data(data: Mapping[str, Any]) -> Codec:
    settings = dict(data)
    return codecs[settings.pop("name")](**settings)


def decide(
    model: nn.Module,
    codec: CodecChoice,
    *,
    last: int | None = None,
    select: Select | None = None,
    pointwise: bool = True,
) -> Plan:
    """Choose sites and codecs without running the model; the arguments are those of `tuckprop.convert`.

    Returns:
        A plan without shapes and bytes.

    Raises:
        ConfigError: A bad argument, a model that is converted already, or nothing to compress.
    """
    choose = chooser(codec)
    unmatched = _unmatched(codec, model)
    modules = dict(model.named_modules())
    refuse_converted(modules)
    for module in modules.values():
        load_twins_for(module)
    chosen = choose_sites(model, last=last, select=select)
    frozen = names_before(model, chosen[0]) if last is not None else ()
    before = set(frozen)
    inside_layers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, ParametrizationList))
    sites: list[SitePlan] = []
    skipped: list[Skipped] = []
    for name, module in modules.items():
        is_layer = is_compressible(module) or find_twin(module, Dense()) is not None
        if name in before or name.startswith(inside_layers) or (any(True for _ in module.children()) and not is_layer):
            continue
        verdict = _judge(name, module, choose(name), set(chosen), pointwise)
        if isinstance(verdict, Codec):
            sites.append(SitePlan(name, type(module).__name__, verdict))
        elif verdict:
            skipped.append(Skipped(name, type(module).__name__, verdict))
    if not sites:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3]) or "it has no layer that tuckprop knows"
        raise ConfigError(
            f"convert: nothing to compress in this {type(model).__name__} ({reasons})"
            + (f"; {unmatched}" if unmatched else "")
        )
    if unmatched:
        raise ConfigError(f"convert(codec=...): {unmatched}")
    return Plan(tuple(sites), tuple(skipped), frozen)


def refuse_converted(modules: Mapping[str, nn.Module]) -> None:
    """Check that no module is converted.

    Raises:
        ConfigError: One is.
    """
    converted = next((name for name, module in modules.items() if isinstance(module, Twin)), None)
    if converted is not None:
        raise ConfigError(f"convert: the model is converted already (at {converted!r}); call tuckprop.revert first")


def chooser(codec: CodecChoice) -> Callable[[str], Codec | None]:
    """Return what gives a module's codec by its name, or None where no pattern matches.

    Raises:
        ConfigError: `codec` is neither a codec nor a mapping from patterns to codecs.
    """
    if isinstance(codec, Codec):
        return lambda name: codec
    known = ", ".join(codecs)
    if not isinstance(codec, Mapping):
        raise ConfigError(f"convert(codec=...): expected a codec config ({known}) or a mapping to them, got {codec!r}")
    for pattern, entry in codec.items():
        if not isinstance(pattern, str) or not isinstance(entry, Codec):
            raise ConfigError(
                f"convert(codec=...): expected a mapping of name patterns to codec configs ({known}), "
                f"got {pattern!r}: {entry!r}"
            )
    return lambda name: next((entry for pattern, entry in codec.items() if fnmatchcase(name, pattern)), None)


def _unmatched(codec: CodecChoice, model: nn.Module) -> str:
    """Return what is wrong with a mapping of which a pattern, or all for want of one, would do nothing; else ""."""
    if not isinstance(codec, Mapping):
        return ""
    if not codec:
        return "expected a mapping of one name pattern or more to codec configs, got {}"
    # All names: a module that is used under several is found by any.
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    pattern = next((p for p in codec if not any(fnmatchcase(name, p) for name in names)), None)
    if pattern is None:
        return ""
    near = get_close_matches(pattern, names, n=5, cutoff=0.5)
    known = "near it: " + ", ".join(near) if near else ", ".join(list(filter(None, names))[:8]) or "'' alone"
    return f"expected patterns of names of the model's modules ({known}), got {pattern!r}, which matches none"


def _judge(name: str, module: nn.Module, codec: Codec | None, chosen: set[str], pointwise: bool) -> Codec | str | None:
    """Return the codec for a module, or the reason to leave it alone, or None where there is nothing to say."""
    if isinstance(module, LazyModuleMixin):
        return "its shape is not known yet; run the model once first"
    compressible = is_compressible(module)
    twin = find_twin(module, codec or Dense())
    if twin is None:
        return not_convertible(module)
    if reason := twin.refusal(module):
        return reason
    if twin.compresses or compressible:
        if name not in chosen:
            return "not among the chosen layers"
        if codec is None:
            return "no pattern of the codec mapping matches its name"
        return codec.refusal(module) or codec
    if not pointwise:
        return None
    serving = codec if codec is not None and codec.refusal(module) is None else Dense()
    if twin.lossy and serving.lossless:
        return f"its twin approximates, and {serving!r} keeps gradients exact"
    return serving


def is_convolution(module: nn.Module) -> bool:
    """Say whether a module is a convolution, of whatever subclass."""
    return isinstance(module, _CONVOLUTIONS)


def is_compressible(module: nn.Module) -> bool:
    """Say whether a module is a convolution or a Linear layer, of whatever subclass or of another library."""
    if is_convolution(module) or isinstance(module, nn.Linear):
        return True
    load_twins_for(module)
    twin = type(module) if isinstance(module, Twin) else find_twin(module, Dense())
    return twin is not None and twin.compresses


def choose_sites(model: nn.Module, *, last: int | None = None, select: Select | None = None) -> list[str]:
    """Return the names of the convolutions and Linear layers to compress, in the model's order.

    Args:
        model: The model.
        last: Take the last k convolutions; in a transformer (Linear layers outnumber convolutions ten to one) the last
            k Linear layers before the classifier.
        select: Take those for which `select(name, module)` is true; `last` then counts among them.

    Returns:
        The names; empty only where the model has none and nothing is asked of it.

    Raises:
        ConfigError: `last` is no integer from 1 to the number of layers, `select` is not callable or picks none, or
            there is no such layer.
    """
    names = {n: m for n, m in model.named_modules() if is_compressible(m)}
    if select is not None:
        if not callable(select):
            raise ConfigError(f"convert(select=...): expected a function of (name, module), got {select!r}")
        names = {n: m for n, m in names.items() if select(n, m)}
        if not names:
            raise ConfigError("convert(select=...): it picks no convolution and no Linear layer of the model")
    elif last is not None:
        convolutions = {n: m for n, m in names.items() if is_convolution(m)}
        linears = {n: m for n, m in names.items() if n not in convolutions}
        names = dict(list(linears.items())[:-1]) if len(convolutions) * 10 < len(linears) else convolutions
    if last is None:
        return list(names)
    if not names:
        raise ConfigError(f"convert(last={last!r}): the model has no convolution and no Linear layer to count")
    if isinstance(last, bool) or not isinstance(last, int) or not 1 <= last <= len(names):
        raise ConfigError(
            f"convert(last=...): expected an integer from 1 to {len(names)}, the number of layers, got {last!r}"
        )
    return list(names)[-last:]


def names_before(model: nn.Module, first: str) -> tuple[str, ...]:
    """Return the names of all modules that come before module `first`, except those that contain it."""
    before: list[str] = []
    for name, _ in model.named_modules():
        if name == first:
            break
        if name and not first.startswith(f"{name}."):
            before.append(name)
    return tuple(before)


def names_beside(model: nn.Module, kept: Collection[str]) -> tuple[str, ...]:
    """Return the names of all modules except those of `kept`, what they contain, and what contains them."""
    return tuple(
        name
        for name, _ in model.named_modules()
        if name and not any(f"{name}.".startswith(f"{k}.") or f"{k}.".startswith(f"{name}.") for k in kept)
    )


__all__ = [
    "CodecChoice",
    "Elsewhere",
    "Plan",
    "Select",
    "SitePlan",
    "Skipped",
    "choose_sites",
    "chooser",
    "decide",
    "is_compressible",
    "is_convolution",
    "names_before",
    "names_beside",
    "refuse_converted",
]
