"""Runs as one HTML page that needs nothing else: no script, no link, no font; plots are inline."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from itertools import count
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tuckprop.errors import ConfigError
from tuckprop.report.curves import curves
from tuckprop.report.depth import Depth
from tuckprop.report.plot import measures, plot
from tuckprop.report.records import Epoch, Memory, Record
from tuckprop.report.summary import Row, Spread, summarise, task
from tuckprop.report.svg import inline_svg
from tuckprop.report.table import TEXT_COLUMNS, data_size, full_caption, full_columns, milliseconds, percent

# Kinds of memory to plot against, names in `tuckprop.report.measures`.
_PLOTTED = ("held", "paper")
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  /* The colours of the plots that are too dark for a dark page. */
  :root { --page: #14171b; --text: #e6e9ed; --soft: #9aa4af; --line: #3a424c; --band: #1d2227;
    --ink-0072b2: #4a8fe7; --ink-882255: #c8508c; --ink-332288: #9d8df0; --ink-661100: #b08060; }
}
* { box-sizing: border-box; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; }
h2 { margin-top: 2.5rem; padding-bottom: 0.25rem; border-bottom: 1px solid var(--line); }
a { color: inherit; }
.note, figcaption { color: var(--soft); font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
thead th { background: var(--band); vertical-align: bottom; white-space: normal; overflow-wrap: normal; }
th.number { min-width: 5rem; }
th.number, td.number { text-align: right; }
.pairs th, .pairs td { white-space: normal; }
.pairs th { overflow-wrap: normal; }
.pairs td { min-width: 8rem; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { flex: 1 1 18rem; max-width: 30rem; margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
details { border-bottom: 1px solid var(--line); }
summary { padding: 0.4rem 0; cursor: pointer; }
details > :not(summary) { margin-left: 1rem; }
""".strip()

_META = ('<meta charset="utf-8">', '<meta name="viewport" content="width=device-width, initial-scale=1">')

_Cells = Sequence[str]
# {metric} is that which ranks runs.
_EPOCHS: tuple[tuple[str, Callable[[Epoch], str]], ...] = (
    ("epoch", lambda epoch: str(epoch.epoch)),
    ("training loss", lambda epoch: f"{epoch.loss:.4f}"),
    ("training {metric}, %", lambda epoch: _share(epoch.train_accuracy)),
    ("validation loss", lambda epoch: f"{epoch.val_loss:.4f}"),
    ("validation {metric}, %", lambda epoch: _share(epoch.val_accuracy)),
    ("learning rate", lambda epoch: f"{epoch.learning_rate:.4g}"),
    ("paper's count", lambda epoch: _bytes(epoch.paper_bytes)),
    ("step, ms", lambda epoch: milliseconds(Spread(epoch.step_seconds, None))),
    ("epoch, s", lambda epoch: f"{epoch.seconds:.1f}"),
)
_MEMORY: tuple[tuple[str, Callable[[Memory], int]], ...] = (
    ("held for backward", lambda memory: memory.held_bytes),
    ("held, shared storages counted each time", lambda memory: memory.naive_bytes),
    ("peak of one step", lambda memory: memory.step_peak_bytes),
    ("paper's count, first batch", lambda memory: memory.paper_bytes),
    ("process peak", lambda memory: memory.process_peak_bytes),
    ("process before the first step", lambda memory: memory.process_start_bytes),
)


def report_html(records: Iterable[Record], title: str) -> str:
    """Return a page with a section for each task: table, plots of accuracy against memory, curves, and every run.

    Args:
        records: In any order; those that are not finished are listed apart and drawn dashed.
        title: Of the page.

    Returns:
        A whole document. It names no other file and is the same for the same records.

    Raises:
        ConfigError: There are no records.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(task(record), []).append(record)
    if not groups:
        raise ConfigError("report: expected records of one run or more, got none")
    names = (f"plot{number}" for number in count(1))
    sections = [
        _element("section", [f"<h2>{escape(name)}</h2>", *_task(group, names)], f' id="task{number}"')
        for number, (name, group) in enumerate(sorted(groups.items()), start=1)
    ]
    head = _element("head", [*_META, f"<title>{escape(title)}</title>", _element("style", [_STYLE])])
    body = _element("body", [f"<h1>{escape(title)}</h1>", _contents(groups), *sections])
    return "<!DOCTYPE html>\n" + _element("html", [head, body], ' lang="en"') + "\n"


def _contents(groups: dict[str, list[Record]]) -> str:
    """Return a list of the tasks with their numbers of runs."""
    lines = []
    for number, (name, group) in enumerate(sorted(groups.items()), start=1):
        open_ = sum(not record.finished for record in group)
        runs = f"{len(group) - open_} finished" + (f", {open_} not finished" if open_ else "")
        lines.append(f'<li><a href="#task{number}">{escape(name)}</a>: {runs}</li>')
    return _element("nav", [_element("ul", lines)])


def _task(records: list[Record], names: Iterator[str]) -> list[str]:
    rows = summarise(records)
    open_ = [record for record in records if not record.finished]
    parts = ["<h3>Summary</h3>", _summary(rows) if rows else "<p>No run is finished.</p>"]
    if open_:
        parts += ["<h3>Not finished</h3>", _unfinished(open_)]
    parts += ["<h3>Plots</h3>", _plots(rows, records, names)]
    return [*parts, "<h3>Runs</h3>", *map(_run, records)]


def _summary(rows: Sequence[Row]) -> str:
    columns = full_columns(rows[0])
    table = _table(
        [heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows], TEXT_COLUMNS
    )
    return f'{table}\n<p class="note">{escape(full_caption(rows))}</p>'


def _unfinished(records: Sequence[Record]) -> str:
    cells = [
        [record.method, _depth(record), _text(record.settings["seed"]), _progress(record), _accuracy(record)]
        for record in records
    ]
    return _table(["method", "layers", "seed", "epochs", f"{records[0].metric} so far, %"], cells, TEXT_COLUMNS)


def _plots(rows: Sequence[Row], records: Sequence[Record], names: Iterator[str]) -> str:
    figures = []
    # A dollar sign in a name is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        for memory in _PLOTTED if rows else ():
            caption = f"Validation {records[0].metric}, best epoch, against memory: {measures[memory].label}."
            figures.append(_figure(plot(rows, memory), next(names), caption))
        if any(record.epochs for record in records):
            caption = f"Training loss and validation {records[0].metric} by epoch, a line a run."
            figures.append(_figure(curves(records), next(names), caption))
    return _element("div", figures, ' class="plots"') if figures else "<p>No run has an epoch.</p>"


def _figure(figure: Figure, name: str, caption: str) -> str:
    return _element("figure", [inline_svg(figure, name, caption), f"<figcaption>{escape(caption)}</figcaption>"])


def _run(record: Record) -> str:
    """Return one run, folded: all that its record holds."""
    settings = record.settings
    results = [f"{_accuracy(record)}%"] if record.epochs else []
    results += [] if record.finished else [f"not finished, {_progress(record)} epochs"]
    line = f"{record.method}, {_depth(record)}, seed {_text(settings['seed'])}: {', '.join(results)}"
    parts = [f"<summary>{escape(line)}</summary>"]
    parts += ["<h4>Settings</h4>", _pairs((name, _text(value)) for name, value in settings.items())]
    environment = record.environment | {"seed": settings["seed"]}
    parts += ["<h4>Environment</h4>", _pairs((name, _text(value)) for name, value in environment.items())]
    if record.memory is not None:
        sizes = [(name, _bytes(size(record.memory))) for name, size in _MEMORY]
        parts += ["<h4>Memory</h4>", _pairs([*sizes, ("process peak is that of", record.memory.process_peak_kind)])]
    parts += ["<h4>Layers counted</h4>", f"<p>{escape(', '.join(record.sites)) or 'none'}</p>"]
    epochs = [[cell(epoch) for _, cell in _EPOCHS] for epoch in record.epochs]
    headings = [heading.format(metric=record.metric) for heading, _ in _EPOCHS]
    parts += ["<h4>Epochs</h4>", _table(headings, epochs, 0) if epochs else "<p>none</p>"]
    return _element("details", parts)


def _table(headings: _Cells, rows: Iterable[_Cells], text_columns: int) -> str:
    """Return a table that scrolls sideways where it is too wide; all columns but the first ones hold numbers."""
    kinds = ["" if number < text_columns else ' class="number"' for number in range(len(headings))]

    def line(tag: str, cells: _Cells) -> str:
        inner = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    head, body = _element("thead", [line("th", headings)]), _element("tbody", [line("td", cells) for cells in rows])
    return _scroll(_element("table", [head, body]))


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    lines = (f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs)
    return _scroll(_element("table", [_element("tbody", lines)], ' class="pairs"'))


def _scroll(table: str) -> str:
    # With a tab index, the keyboard can scroll it too.
    return _element("div", [table], ' class="scroll" tabindex="0"')


def _element(tag: str, parts: Iterable[str], attributes: str = "") -> str:
    """Return an element around parts that are HTML already."""
    return "\n".join([f"<{tag}{attributes}>", *parts, f"</{tag}>"])


def _depth(record: Record) -> str:
    return str(Depth.of(record.settings))


def _progress(record: Record) -> str:
    return f"{len(record.epochs)} of {_text(record.settings['epochs'])}"


def _accuracy(record: Record) -> str:
    return _share(record.best_accuracy) if record.epochs else "-"


def _share(value: float) -> str:
    return percent(Spread(value, None))


def _bytes(value: float) -> str:
    return data_size(Spread(value, None))


def _text(value: Any) -> str:
    """Return a setting as it reads; nothing is a dash."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
