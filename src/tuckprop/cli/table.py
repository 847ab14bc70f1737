"""`tuckprop table`: runs as a table."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from tuckprop.cli.reproduce import folder_of
from tuckprop.errors import CheckpointError
from tuckprop.report import Record, Row, find_records, markdown, summarise, tables

# Unfinished runs that are named.
_SHOWN = 3


@dataclass(frozen=True)
class TableOptions:
    """Print finished runs as a table: means and standard deviations over seeds.

    Attributes:
        runs: Folders of runs, folders that hold several, .jsonl files of records, folders of such files, or the id of
            what `tuckprop reproduce` has run.
        markdown: Print Markdown.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    markdown: bool = False


def table(options: TableOptions) -> int:
    """Print it; return the exit code."""
    rows = finished_rows(options.runs)
    if options.markdown:
        print(markdown(rows), end="")
        return 0
    console = Console()
    for part in tables(rows):
        console.print(part)
    return 0


def finished_rows(runs: tuple[Path, ...]) -> list[Row]:
    """Read runs and summarise those that are finished; name the others on stderr.

    Raises:
        CheckpointError: A record is missing or damaged, or no run is finished.
    """
    if not runs:
        raise CheckpointError("expected one folder of runs or more, got none")
    records = find_records(map(folder_of, runs))
    open_ = [record for record in records if not record.finished]
    if open_:
        shown = "; ".join(_describe(record) for record in open_[:_SHOWN])
        more = "; ..." if len(open_) > _SHOWN else ""
        Console(stderr=True).print(
            f"left away: {len(open_)} runs that are not finished ({shown}{more})", highlight=False
        )
    rows = summarise(records)
    if not rows:
        raise CheckpointError(f"no run in {', '.join(map(str, runs))} is finished; go on with --resume")
    return rows


def _describe(record: Record) -> str:
    return f"{record.method}, seed {record.settings['seed']}, {len(record.epochs)} epochs"
