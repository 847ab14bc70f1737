"""From a config to the runs it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tuckprop.reproduce.config import Config, options


@dataclass(frozen=True)
class Run:
    """One call of `tuckprop train`.

    Attributes:
        name: Of its folder.
        settings: Options by field name.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The codec's name."""
        return str(self.settings["codec"])

    def arguments(self) -> list[str]:
        """Return the options as `tuckprop train` takes them."""
        found = []
        defaults = options()
        for name, value in self.settings.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                # The default needs no switch.
                found += [] if value == defaults.get(name) else [f"--{option}" if value else f"--no-{option}"]
            elif isinstance(value, list):
                found += [f"--{option}", *map(str, value)]
            else:
                found += [f"--{option}", str(value)]
        return found


def runs(config: Config, besides: Mapping[str, Any] | None = None) -> list[Run]:
    """Return every combination of the axes with every method.

    Args:
        config: What to run.
        besides: Settings that go over those of the config; one that is an axis there takes the place of its values. A
            list is an axis too: every value is run.

    Returns:
        The runs, in the order of the axes, methods innermost. A value 0 of `last` stands for all layers.
    """
    besides = dict(besides or {})
    more = {name: besides.pop(name) for name, value in list(besides.items()) if isinstance(value, list)}
    axes = {name: more.pop(name, values) for name, values in config.axes.items() if name not in besides} | more
    found = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        for method in config.methods:
            settings = {**config.settings, **chosen, **method, **besides}
            # A switch reads as its name.
            parts = [str(method["codec"])]
            parts += [k.replace("_", "") if v is True else str(v) for k, v in method.items() if k != "codec"]
            parts += [f"{name.replace('_', '')}{value}" for name, value in chosen.items()]
            if settings.get("last") == 0:
                del settings["last"]
            found.append(
                Run("-".join("".join(c if c.isalnum() or c in "._" else "_" for c in p) for p in parts), settings)
            )
    return found
