"""Records of runs, and pure functions from records to tables and plots."""

from tuckprop.report.curves import curves
from tuckprop.report.html import report_html
from tuckprop.report.plot import Measure, measures, plot, save_plot
from tuckprop.report.records import Epoch, Memory, Record, find_records, read_record, write_record
from tuckprop.report.summary import Row, Spread, summarise
from tuckprop.report.table import markdown, tables

__all__ = [
    "Epoch",
    "Measure",
    "Memory",
    "Record",
    "Row",
    "Spread",
    "curves",
    "find_records",
    "markdown",
    "measures",
    "plot",
    "read_record",
    "report_html",
    "save_plot",
    "summarise",
    "tables",
    "write_record",
]
