"""The page."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.made import record, segmentation
from tuckprop.errors import ConfigError
from tuckprop.report import report_html, summarise
from tuckprop.report.records import Record, read_record
from tuckprop.report.table import full_columns

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "mcunet-cifar10.jsonl"
# Elements that have no end tag.
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source"}


class Page(HTMLParser):
    """A parsed page: tags with attributes, texts of cells, and a check that each element is closed where it should."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
            if self.open[-1] in ("td", "th"):
                self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[str]:
        """Return the texts of an element's occurrences."""
        return [text.strip() for where, text in self.texts if where == tag]

    def values(self, *names: str) -> list[str]:
        """Return the values of attributes, wherever they stand."""
        return [value or "" for _, attrs in self.tags for name, value in attrs.items() if name in names]


def published(folder: Path) -> list[Record]:
    """Return the runs in docs/results."""
    runs: list[list[str]] = []
    for line in RESULTS.read_text(encoding="utf-8").splitlines(keepends=True):
        if json.loads(line)["kind"] == "run":
            runs.append([])
        runs[-1].append(line)
    records = []
    for lines in runs:
        (folder / "one.jsonl").write_text("".join(lines), encoding="utf-8")
        records.append(read_record(folder / "one.jsonl"))
    return records


MADE = [
    record("plain", seed=1, held=3 * 2**20),
    record("plain", seed=2, held=3 * 2**20, accuracies=(0.5, 0.75, 0.6)),
    record("HOSVD 0.8", codec="hosvd"),
    record("SVD 0.8", codec="svd", accuracies=(0.123,), paper=(1000.0,), finished=False),
    record("plain", data="cifar10", last=None),
]
HOSTILE = '</title></style><script src="http://evil.example/x.js">&amp;\'"]]>--><b>$\\frac{$ {0} %s'


def assert_self_contained(page: str) -> Page:
    parsed = Page(page)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    assert not [name for _, attrs in parsed.tags for name in attrs if name in ("src", "srcset") or name[:2] == "on"]
    ids = parsed.values("id")
    assert [name for name, number in Counter(ids).items() if number > 1] == []
    links = parsed.values("href", "xlink:href")
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    for value in parsed.values("style", "clip-path", "fill"):
        assert set(re.findall(r"url\((.*?)\)", value)) <= {f"#{name}" for name in ids}
    (sheet,) = parsed.of("style")
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert re.sub(r'xmlns(:\w+)?="[^"]*"', "", page).count("://") == 0
    assert page.count("<!") == 1
    assert page.startswith("<!DOCTYPE html>\n")
    assert "<?" not in page
    return parsed


def test_the_published_runs_are_all_there(tmp_path: Path) -> None:
    records = published(tmp_path)
    assert len(records) > 30
    page = assert_self_contained(report_html(records, "MCUNet on CIFAR-10"))
    assert page.of("title") == page.of("h1") == ["MCUNet on CIFAR-10"]
    assert page.of("h2") == ["cifar10, mcunet"]
    headings, *rows = page.tables[0]
    assert headings == [heading for heading, _ in full_columns(summarise(records)[0])]
    assert rows == [[cell(row) for _, cell in full_columns(row)] for row in summarise(records)]
    assert len(page.of("summary")) == len(records)
    assert [tag for tag, _ in page.tags].count("svg") == 3
    assert "Not finished" not in page.of("h3")


def test_a_section_a_task_with_its_own_rows_and_plots() -> None:
    page = assert_self_contained(report_html(MADE, "Two"))
    assert page.of("h2") == ["cifar10, digits_cnn", "digits, digits_cnn"]
    summaries = [table[1:] for table in page.tables if table[0][0] == "method" and len(table[0]) > 5]
    assert [[row[0] for row in rows] for rows in summaries] == [["plain"], ["plain", "HOSVD 0.8"]]
    assert summaries[1][0][:5] == ["plain", "last 2", "2", "72.5 ± 3.5", "60.0 ± 0.0"]
    assert summaries[1][0][7] == "3.00 ± 0.00 MiB"
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert len(labels) == 6
    assert sum("held" in (label or "") for label in labels) == 2
    assert sum("paper's count" in (label or "") for label in labels) == 2


def test_a_run_shows_settings_environment_memory_and_epochs() -> None:
    run = record("HOSVD 0.8", codec_settings={"epsilon": 0.8}, select=None, pointwise=True, seed=77)
    page = Page(report_html([run], "One"))
    assert page.of("summary") == ["HOSVD 0.8, last 2, seed 77: 70.0%"]
    pairs = dict(row for table in page.tables for row in table if len(row) == 2)
    assert pairs["codec_settings"] == '{"epsilon": 0.8}'
    assert (pairs["select"], pairs["pointwise"], pairs["seed"], pairs["torch"]) == ("-", "true", "77", "2")
    assert pairs["held for backward"] == "4.00 KiB"
    assert pairs["process peak"] == "95.4 MiB"
    assert "0, 2" in page.of("p")
    headings, *epochs = page.tables[-1]
    column = headings.index("validation accuracy, %")
    assert [row[column] for row in epochs] == ["50.0", "70.0", "60.0"]
    assert [row[headings.index("training loss")] for row in epochs] == ["1.0000", "0.5000", "0.3333"]


def test_segmentation_is_told_by_its_metric() -> None:
    page = Page(report_html([segmentation()], "One"))
    assert {"training mIoU, %", "validation mIoU, %"} <= set(page.tables[-1][0])
    assert "Training loss and validation mIoU by epoch, a line a run." in page.of("figcaption")


def test_unfinished_runs_are_listed_apart() -> None:
    page = Page(report_html(MADE, "Some"))
    (table,) = [table for table in page.tables if table[0][-1].startswith("accuracy so far")]
    assert table[1:] == [["SVD 0.8", "last 2", "1", "1 of 3", "12.3"]]
    assert "SVD 0.8, last 2, seed 1: 12.3%, not finished, 1 of 3 epochs" in page.of("summary")
    assert page.of("li")[-1] == ": 3 finished, 1 not finished"


def test_no_finished_run_and_no_epoch_still_make_a_page() -> None:
    page = assert_self_contained(report_html([record(accuracies=(), paper=(), finished=False)], "Begun"))
    assert {"No run is finished.", "No run has an epoch."} <= set(page.of("p"))
    assert page.tables[0][1] == ["plain", "last 2", "1", "0 of 3", "-"]
    assert page.of("summary") == ["plain, last 2, seed 1: not finished, 0 of 3 epochs"]
    page = assert_self_contained(report_html([record(finished=False)], "Under way"))
    assert [tag for tag, _ in page.tags].count("svg") == 1
    with pytest.raises(ConfigError, match="got none"):
        report_html([], "Nothing")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_hostile_texts_stay_texts() -> None:
    # A path to data of one's own may hold anything; NUL and escape can stand in no XML, a dash pair in no comment.
    name = HOSTILE.replace("http:", "") + "\x1b\x00 $a$ _"
    runs = [
        record(name, data=name, finished=finished, note={name: [name]}, seed=seed)
        for finished, seed in ((True, 1), (False, 2))
    ]
    page = assert_self_contained(report_html(runs, name))
    assert page.tables[0][1][0] == page.of("title")[0].ljust(len(name)) == name
    assert page.of("h2") == [f"{name}, digits_cnn"]
    pairs = dict(row for table in page.tables for row in table if len(row) == 2)
    assert json.loads(pairs["note"]) == {name: [name]}


def test_links_in_a_name_are_not_links() -> None:
    page = Page(report_html([record(HOSTILE)], HOSTILE))
    assert page.tables[0][1][0] == HOSTILE
    assert not [value for value in page.values("src", "href") if "evil" in value]
    assert "script" not in {tag for tag, _ in page.tags}


def test_the_same_records_make_the_same_page() -> None:
    assert report_html(MADE, "x") == report_html(MADE, "x")


def test_the_page_suits_light_dark_and_narrow_screens() -> None:
    text = report_html(MADE, "x")
    page = Page(text)
    (sheet,) = page.of("style")
    assert "prefers-color-scheme: dark" in sheet
    assert "width=device-width, initial-scale=1" in page.values("content")
    # Nothing of a plot is black: it is drawn in the colour of the page's text.
    drawn = [attrs for tag, attrs in page.tags if tag in ("path", "use", "g", "svg")]
    assert not [attrs for attrs in drawn if "#000000" in (attrs.get("style") or "")]
    assert sum(attrs.get("fill") == "currentColor" for attrs in drawn) == 6
    assert not [attrs for tag, attrs in page.tags if tag == "svg" and "width" in attrs]
    # Colours that the sheet replaces are those that the plots ask for.
    assert set(re.findall(r"--ink-\w+(?=:)", sheet)) >= {
        f"--ink-{colour}" for colour in ("0072b2", "882255", "332288", "661100")
    }
    assert "var(--ink-e69f00, #e69f00)" in text
    # A table scrolls inside its box.
    assert text.count('<div class="scroll"') == text.count("<table")
