"""`tuckprop reproduce`: a table or figure of the paper, from its config to the result."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from tuckprop.errors import ConfigError
from tuckprop.report import find_records, plot, save_plot, summarise, tables
from tuckprop.reproduce import Config, carry_out, known, read, runs
from tuckprop.reproduce.config import options as train_options

_RUNS = Path("runs/reproduce")


@dataclass(frozen=True)
class ReproduceOptions:
    """Run what a table or figure of the paper shows; what is finished is skipped, what was cut off goes on.

    Attributes:
        id: Which; see --list.
        list: Print every table and figure, and how many runs each has.
        scale: "paper" for the published settings, "small" for a few seconds without a download.
        out: Folder for the runs.
        data_path: Where the data set's files are.
        weights: A file of weights to start from.
        only: Run only these methods, by codec: plain hosvd.
        set: Other settings of `tuckprop train` than the config's, as name=value: epochs=3 train_size=2000.
    """

    id: tyro.conf.Positional[str] = ""
    list: bool = False
    scale: Literal["paper", "small"] = "paper"
    out: Path = _RUNS
    data_path: Path | None = None
    weights: Path | None = None
    only: tuple[str, ...] = ()
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()


def reproduce(options: ReproduceOptions) -> int:
    """Run it; return the exit code: 1 where a run failed."""
    console = Console()
    if options.list:
        console.print(_list())
        return 0
    if not options.id:
        raise ConfigError(f"reproduce: expected the id of a table or figure, one of {', '.join(known())}; see --list")
    config = read(options.id, options.scale)
    out = options.out / config.id / options.scale
    console.print(f"{config.title} ({config.paper}) -> {out}", highlight=False)
    if config.commands:
        return _draw(config, out)
    chosen = runs(config, _besides(options))
    if options.only:
        chosen = [run for run in chosen if run.method in options.only]
    if not chosen:
        names = ", ".join(dict.fromkeys(str(method["codec"]) for method in config.methods))
        raise ConfigError(f"--only: expected some of {names}, got {', '.join(options.only)}")
    outcomes = carry_out(chosen, out, lambda line: console.print(line, highlight=False, soft_wrap=True))
    done = [outcome.folder for outcome in outcomes if outcome.error is None]
    if done:
        show(console, done, out)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print(f"tuckprop: {outcome.run.name}: {outcome.error}", file=sys.stderr)
    if failed:
        print(
            f"tuckprop: {len(failed)} of {len(outcomes)} runs failed, the others are kept in {out}; the same command "
            "goes on with what is missing",
            file=sys.stderr,
        )
    return 1 if failed else 0


def show(console: Console, folders: list[Path], out: Path) -> None:
    """Print the table of finished runs, and draw a plot a task into `out`."""
    rows = summarise(find_records(folders))
    for table in tables(rows):
        console.print(table)
    for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
        name = "accuracy-memory" + (f"-{number + 1}" if number else "")
        for file in save_plot(plot([row for row in rows if row.task == task]), out / f"{name}.png"):
            console.print(f"plot: {file}", highlight=False, soft_wrap=True)


def folder_of(name: str) -> Path | None:
    """Return where runs of a config are, or None where `name` is no config's id or has not been run."""
    found = _RUNS / name
    return found if name in known() and found.is_dir() else None


def _besides(options: ReproduceOptions) -> dict[str, Any]:
    besides: dict[str, Any] = {}
    for text in options.set:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or name not in train_options():
            raise ConfigError(f"--set: expected NAME=VALUE with an option of `tuckprop train`, got {text!r}")
        try:
            besides[name] = json.loads(value)
        except json.JSONDecodeError:
            besides[name] = value
    for name in ("data_path", "weights"):
        if getattr(options, name) is not None:
            besides[name] = getattr(options, name)
    if options.weights is not None:
        besides["pretrained"] = False
    return besides


def _draw(config: Config, out: Path) -> int:
    code = 0
    out.mkdir(parents=True, exist_ok=True)
    for number, arguments in enumerate(config.commands):
        name = config.id + (f"-{number + 1}" if number else "")
        command = [sys.executable, "-m", "tuckprop.cli", *arguments, "--out", str(out / f"{name}.png")]
        code = max(code, subprocess.run(command).returncode)
    return code


def _list() -> Table:
    table = Table("id", "what", "in the paper", "runs", "runs, small", title="tables and figures of the paper")
    for name in known():
        paper, small = read(name), read(name, "small")
        counts = [str(len(runs(c))) if c.methods else "drawn" for c in (paper, small)]
        table.add_row(name, paper.title, paper.paper, *counts)
    return table
