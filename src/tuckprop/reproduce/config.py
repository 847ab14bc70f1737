"""One table or figure of the paper as data: `experiments/ID.toml`, read and checked.

A config has a `title`, says where in the `paper` it is, and either lists runs,

    methods               a list: a codec, its settings and how it is used, each; every combination is run with each
    [settings]            options of `tuckprop train` that all runs share
    [axes]                options with a list of values each; every combination is run

or has `commands`: lists of arguments of `tuckprop`, each of which draws one figure. `[small]` holds the same entries
for a scale that runs in seconds and needs no download; its settings and axes go over those above, its methods and
commands replace them.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tuckprop
from tuckprop.codecs import codecs
from tuckprop.errors import ConfigError
from tuckprop.train import Compression, DataSettings, Machine, NetworkSettings, Schedule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Scale = Literal["paper", "small"]
Settings = dict[str, Any]

_ENTRIES = {
    "title": str,
    "paper": str,
    "settings": dict,
    "axes": dict,
    "methods": list,
    "commands": list,
    "small": dict,
}
_SCALED = ("settings", "axes", "methods", "commands")


@dataclass(frozen=True)
class Config:
    """One table or figure at one scale.

    Attributes:
        id: Name of the file.
        title: What it shows.
        paper: Where it is in the paper.
        settings: Options of `tuckprop train` by field name, for all runs.
        axes: Options with their values; every combination is run.
        methods: A codec's name under "codec", its settings, and options of `tuckprop train` on how it is used.
        commands: Arguments of `tuckprop`, instead of runs.
    """

    id: str
    title: str
    paper: str
    settings: Settings
    axes: dict[str, list[Any]]
    methods: list[Settings]
    commands: list[list[str]]


def folder() -> Path:
    """Return where the configs are: beside the installed package, or in the checkout."""
    package = Path(tuckprop.__file__).parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parents[1] / "experiments"


def known() -> list[str]:
    """Return the ids of all configs."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def read(name: str, scale: Scale = "paper", path: Path | None = None) -> Config:
    """Read and check a config.

    Args:
        name: Its id.
        scale: "paper" for the published settings, "small" for seconds without a download.
        path: The file; by default that of `name` among the configs of the package.

    Returns:
        The config at that scale.

    Raises:
        ConfigError: There is no such config, or an entry is unknown or of a wrong type.
    """
    if path is None:
        if name not in known():
            raise ConfigError(f"reproduce: expected one of {', '.join(known()) or 'no configs'}, got {name!r}")
        path = folder() / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected a config in TOML, cannot read it: {error}") from error
    _check_entries(content, path, _ENTRIES)
    small = content.pop("small", {})
    _check_entries(small, path, {key: _ENTRIES[key] for key in _SCALED})
    for missing in {"title", "paper"} - content.keys():
        raise ConfigError(f"{path}: expected an entry {missing!r}, there is none")
    parts = {key: content.get(key, {} if _ENTRIES[key] is dict else []) for key in _SCALED}
    if scale == "small":
        parts = {key: value | small.get(key, {}) if isinstance(value, dict) else small.get(key, value)
                 for key, value in parts.items()}  # fmt: skip
    config = Config(path.stem, content["title"], content["paper"], **parts)
    _check(config, path)
    return config


def _check_entries(content: dict[str, Any], path: Path, entries: Mapping[str, type]) -> None:
    for key, value in content.items():
        if key not in entries:
            raise ConfigError(f"{path}: unknown entry {key!r}; known: {', '.join(entries)}")
        if not isinstance(value, entries[key]):
            raise ConfigError(f"{path}: {key}: expected a {entries[key].__name__}, got {type(value).__name__}")


def _check(config: Config, path: Path) -> None:
    names_known = options()
    for part, names in (("settings", config.settings), ("axes", config.axes)):
        for name in names:
            if name not in names_known:
                raise ConfigError(f"{path}: {part}.{name}: `tuckprop train` has no such option")
    for name, values in config.axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{path}: axes.{name}: expected a list of values, got {values!r}")
        if name in config.settings:
            raise ConfigError(f"{path}: {name} is among the settings and the axes; expected it in one of them")
    for method in config.methods:
        codec = str(method.get("codec"))
        if codec != "plain" and codec not in codecs:
            raise ConfigError(f"{path}: methods: expected a codec, one of plain, {', '.join(codecs)}, got {codec!r}")
        own = {field.name for field in fields(Compression)} | (
            {field.name for field in fields(codecs[codec])} if codec in codecs else set()
        )
        for name in method.keys() - own:
            raise ConfigError(f"{path}: methods: codec {codec} has no setting {name!r}")
    if bool(config.methods) == bool(config.commands):
        raise ConfigError(
            f"{path}: expected either methods to run or commands, got {'both' if config.methods else 'none'}"
        )


def options() -> dict[str, Any]:
    """Return the options of `tuckprop train` that decide a run with their defaults, codecs' settings left away."""
    parts = (NetworkSettings, DataSettings, Compression, Schedule, Machine)
    return {field.name: field.default for part in parts for field in fields(part) if field.name != "codec"}
