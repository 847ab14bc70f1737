"""Options that several verbs share; those of the codecs come from the codecs' own fields."""

from dataclasses import MISSING, Field, asdict, field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from tuckprop.codecs import Codec, codecs
from tuckprop.errors import ConfigError
from tuckprop.train import Compression

PLAIN = "plain"
_HELP = {
    "last": "Train only the last so many convolutions (Linear layers in a transformer) and what follows them.",
    "select": "Compress only layers whose name matches this pattern, such as 'blocks.13.*'.",
    "paper_layers": "Train and compress what the paper's code does where it speaks of the last 5 or 10 layers of a "
    "segmentation network.",
    "paper_patches": "With gradient_filter and --paper-layers: each layer has its published patch instead of --patch.",
    "train_only": "Train only these modules, such as 'decoder classifier'; freeze the rest, but for the statistics of "
    "its batch norms with --no-freeze-norms.",
    "pointwise": "Convert norms, activations, pools and dropout too.",
    "recompute": "Keep the input of each block of the network alone, and compute the block again in backward.",
    "budget": "Bytes that a batch may hold for backward, such as 64MB: each layer's setting is chosen to meet it.",
}


def _codec_fields() -> dict[str, tuple[Any, list[str]]]:
    """Return type and owners of every setting that a codec has."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for name in codecs:
        hints = get_type_hints(codecs[name])
        for setting in fields(codecs[name]):
            kind, owners = found.get(setting.name, (hints[setting.name], []))
            found[setting.name] = (kind | hints[setting.name], [*owners, f"{name} ({_default(setting)})"])
    return found


def _default(setting: "Field[Any]") -> str:
    return "required" if setting.default is MISSING else f"default {setting.default}"


def _option(kind: Any, text: str) -> Any:
    return Annotated[kind, tyro.conf.arg(help=text)]


def _compression_options() -> type[Any]:
    """Make the dataclass that tyro turns into options: the codec's name, every codec's settings, and the rest."""
    about = f"How activations are kept: {PLAIN} (as PyTorch does), {', '.join(codecs)}."
    entries: list[Any] = [("codec", _option(str, about), field(default=PLAIN))]
    for name, (kind, owners) in _codec_fields().items():
        entries.append((name, _option(kind | None, f"For {', '.join(owners)}."), field(default=None)))
    for setting in fields(Compression):
        if setting.name != "codec":
            kind = get_type_hints(Compression)[setting.name]
            entries.append((setting.name, _option(kind, _HELP[setting.name]), field(default=setting.default)))
    return make_dataclass("CompressionOptions", entries, frozen=True)


CompressionOptions: Any = _compression_options()


def to_compression(options: Any) -> Compression:
    """Return what the options ask for.

    Args:
        options: A CompressionOptions.

    Raises:
        ConfigError: The codec is unknown, or a setting is out of range or not one of its own.
    """
    given = asdict(options)
    name = given.pop("codec")
    rest = {setting.name: given.pop(setting.name) for setting in fields(Compression) if setting.name != "codec"}
    settings = {key: value for key, value in given.items() if value is not None}
    return Compression(codec=_codec(name, settings), **rest)


def _codec(name: str, settings: dict[str, Any]) -> Codec | None:
    if name != PLAIN and name not in codecs:
        raise ConfigError(f"--codec: expected one of {', '.join([PLAIN, *codecs])}, got {name!r}")
    own = set() if name == PLAIN else {setting.name for setting in fields(codecs[name])}
    foreign = [setting for setting in settings if setting not in own]
    if foreign:
        takes = ", ".join(f"--{setting.replace('_', '-')}" for setting in sorted(own)) or "no settings"
        raise ConfigError(f"--{foreign[0].replace('_', '-')}: codec {name} does not have it; it takes {takes}")
    return None if name == PLAIN else codecs[name](**settings)
