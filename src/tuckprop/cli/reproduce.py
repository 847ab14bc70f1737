"""`tuckprop reproduce`: a table or figure of the paper, from its config to the result."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from rich.console import Console
from rich.table import Column, Table

from tuckprop.errors import ConfigError
from tuckprop.report import Row, find_records, plot, save_plot, summarise, tables
from tuckprop.report.records import FILE as RECORD
from tuckprop.reproduce import Config, Outcome, Run, carry_out, known, read, runs
from tuckprop.reproduce.config import Scale
from tuckprop.reproduce.config import options as train_options
from tuckprop.train.folder import make_folder

_RUNS = Path("runs/reproduce")


@dataclass(frozen=True)
class ReproduceOptions:
    """Run what a table or figure of the paper shows; what is finished is skipped, what was cut off goes on.

    Attributes:
        id: Which; see --list.
        list: Print every table and figure, and how many runs each has.
        scale: "paper" for the published settings, "small" for a few seconds without a download.
        out: Folder for the runs.
        data_path: Where the data set's files are; for several data sets the folder that holds theirs.
        weights: A file of weights to start from; for several networks MODEL=FILE for each. Others keep what the config
            says, public weights as a rule.
        only: Run only these methods, by codec: plain hosvd.
        set: Other settings of `tuckprop train` than the config's, as name=value: epochs=3 train_size=2000. A list runs
            every value: seed=[233,234,235].
    """

    id: tyro.conf.Positional[str] = ""
    list: bool = False
    scale: Literal["paper", "small"] = "paper"
    out: Path = _RUNS
    data_path: Path | None = None
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[MODEL=]FILE")] = ()
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
        return _draw(config, options, out)
    chosen = _with_weights(runs(config, _besides(options)), options.weights)
    names = list(dict.fromkeys(run.method for run in chosen))
    if strange := [name for name in options.only if name not in names]:
        raise ConfigError(f"--only: expected some of {', '.join(names)}, got {strange[0]}")
    if options.only:
        chosen = [run for run in chosen if run.method in options.only]
    outcomes = carry_out(chosen, out, lambda line: console.print(line, highlight=False, soft_wrap=True))
    done = [outcome.folder for outcome in outcomes if outcome.error is None]
    if done:
        show(console, done, out)
    return _complain(outcomes, out)


def _complain(outcomes: Sequence[Outcome], out: Path) -> int:
    """Print what failed, a line for each error; return the exit code: 1 where a run failed."""
    failed: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            failed.setdefault(outcome.error, []).append(outcome.run.name)
    for error, names in failed.items():
        print(f"tuckprop: {names[0] if len(names) == 1 else f'{len(names)} runs'}: {error}", file=sys.stderr)
    if failed:
        count = sum(map(len, failed.values()))
        print(
            f"tuckprop: {count} of {len(outcomes)} runs failed, the others are kept in {out}; put right what the "
            "lines above name, and the same command goes on with what is missing",
            file=sys.stderr,
        )
    return 1 if failed else 0


def show(console: Console, folders: list[Path], out: Path) -> None:
    """Print the table of finished runs, and draw a plot a task into `out`."""
    rows = summarise(find_records(folders))
    for table in tables(rows):
        console.print(table)
    for file in draw_tasks(rows, "held", out / "accuracy-memory.png"):
        console.print(f"plot: {file}", highlight=False, soft_wrap=True)


def draw_tasks(rows: Sequence[Row], memory: str, out: Path) -> list[Path]:
    """Draw a plot a task: the first to `out`, the second to OUT-2 and so on; return the files.

    Raises:
        ConfigError: `memory` is no kind of memory.
    """
    files: list[Path] = []
    for number, task in enumerate(dict.fromkeys(row.task for row in rows)):
        place = out.with_name(f"{out.stem}-{number + 1}{out.suffix}") if number else out
        files += save_plot(plot([row for row in rows if row.task == task], memory), place)
    return files


def folder_of(path: Path) -> Path:
    """Return where runs of a config are, if `path` is no path but a config's id; else `path`.

    Those of the paper's scale go before those of the small one.

    Raises:
        ConfigError: They have not been run, or the config is a figure that is drawn without runs.
    """
    name = str(path)
    if path.exists() or name not in known():
        return path
    if read(name).commands:
        raise ConfigError(f"{name} has no runs: `tuckprop reproduce {name}` draws it")
    folders = [_RUNS / name / str(scale) for scale in get_args(Scale)]
    # One whose runs all failed holds none.
    found = [folder for folder in folders if any(folder.rglob(RECORD))]
    if not found:
        raise ConfigError(
            f"{name} has not been run: expected its runs in {_RUNS / name}; run `tuckprop reproduce {name}`, or give "
            "the folder that --out named there"
        )
    return found[0]


def _besides(options: ReproduceOptions) -> dict[str, Any]:
    besides: dict[str, Any] = {}
    for text in options.set:
        name, sign, value = text.partition("=")
        name = name.strip().replace("-", "_")
        names = list(train_options())
        if not sign or name not in names:
            near = ", ".join(get_close_matches(name, names) or names)
            raise ConfigError(f"--set: expected NAME=VALUE with an option of `tuckprop train` ({near}), got {text!r}")
        try:
            besides[name] = json.loads(value)
        except json.JSONDecodeError:
            besides[name] = value
    if options.data_path is not None:
        besides["data_path"] = options.data_path
    return besides


def _with_weights(chosen: Sequence[Run], weights: Sequence[str]) -> list[Run]:
    """Return the runs, started from the files that are given as FILE for all networks or MODEL=FILE for one."""
    models = list(dict.fromkeys(str(run.settings.get("model")) for run in chosen))
    files: dict[str, Path] = {}
    for text in weights:
        model, sign, file = text.partition("=")
        own = bool(sign) and not Path(text).exists()
        if own and model not in models:
            raise ConfigError(f"--weights: expected FILE, or MODEL=FILE with one of {', '.join(models)}, got {text!r}")
        files |= {model: Path(file)} if own else {name: Path(text) for name in models if name not in files}
    return [
        replace(run, settings={**run.settings, "weights": files[model], "pretrained": False})
        if (model := str(run.settings.get("model"))) in files
        else run
        for run in chosen
    ]


def _draw(config: Config, options: ReproduceOptions, out: Path) -> int:
    """Carry out the commands, one a process; return the largest exit code."""
    code = 0
    make_folder(out)
    for number, arguments in enumerate(config.commands):
        name = config.id + (f"-{number + 1}" if number else "")
        command = [*_adapted(arguments, config.id, options), "--out", str(out / f"{name}.png")]
        code = max(code, subprocess.run([sys.executable, "-m", "tuckprop.cli", *command]).returncode)
    return code


def _adapted(arguments: Sequence[str], name: str, options: ReproduceOptions) -> list[str]:
    """Return a command's arguments with those that the user gave for data, weights and settings.

    Raises:
        ConfigError: The command takes none.
    """
    if options.only:
        raise ConfigError(f"--only: {name} is one figure, it has no methods to choose from; leave it away")
    settings = _besides(options)
    if len(options.weights) > 1:
        raise ConfigError(f"--weights: {name} has one network, expected one file, got {', '.join(options.weights)}")
    if options.weights:
        settings["weights"] = options.weights[0]
    if settings and arguments[0] != "spectrum":
        given = ", ".join(key.replace("_", "-") for key in settings)
        raise ConfigError(f"{name} is computed from formulas, it takes no {given}; see `tuckprop predict --help`")
    kept = [argument for argument in arguments if not (options.weights and argument == "--pretrained")]
    return [*kept, *Run(name, settings).arguments()]


def _list() -> Table:
    # An id that is broken over lines cannot be copied.
    columns = (Column("id", no_wrap=True), Column("what; in the paper", overflow="fold"), "runs", "small")
    table = Table(*columns, title="tables and figures of the paper")
    for name in known():
        paper, small = read(name), read(name, "small")
        counts = [str(len(runs(c))) if c.methods else "drawn" for c in (paper, small)]
        table.add_row(name, f"{paper.title}; {paper.paper}", *counts)
    return table
