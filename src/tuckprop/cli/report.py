"""`tuckprop report`: runs as one HTML page."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from tuckprop.cli.reproduce import folder_of
from tuckprop.errors import CheckpointError, ConfigError
from tuckprop.report import find_records, report_html
from tuckprop.whole_file import whole_file


@dataclass(frozen=True)
class ReportOptions:
    """Write runs as one HTML file: tables, plots, curves and every run's settings. It needs no other file.

    Attributes:
        runs: Folders of runs, folders that hold several, .jsonl files of records, folders of such files, or the id of
            what `tuckprop reproduce` has run.
        out: File to write.
        title: Of the page.
        overwrite: Replace the file where there is one.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("report.html")
    title: str = "Training runs"
    overwrite: bool = False


def report(options: ReportOptions) -> int:
    """Write it; return the exit code.

    Raises:
        ConfigError: The file is there already, or is a folder.
        CheckpointError: No folder is given, or a record is missing or damaged.
    """
    out = options.out
    if out.is_dir():
        raise ConfigError(f"--out: expected a file to write, got the folder {out}; add a name such as report.html")
    if out.exists() and not options.overwrite:
        raise ConfigError(f"--out: {out} exists already; choose another name or add --overwrite")
    if not options.runs:
        raise CheckpointError("expected one folder of runs or more, got none")
    page = report_html(find_records(map(folder_of, options.runs)), options.title)
    with whole_file(out) as file:
        # JSON can hold half of a surrogate pair, which UTF-8 cannot.
        file.write(page.encode(errors="xmlcharrefreplace"))
    print(out)
    return 0
