"""The command line: one file a verb; each parses, calls and prints."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from tuckprop import __version__
from tuckprop.cli.demo import DemoOptions, demo
from tuckprop.cli.measure import MeasureOptions, measure
from tuckprop.cli.plan import PlanOptions, plan
from tuckprop.cli.plot import PlotOptions, plot
from tuckprop.cli.predict import PredictOptions, predict
from tuckprop.cli.report import ReportOptions, report
from tuckprop.cli.reproduce import ReproduceOptions, reproduce
from tuckprop.cli.spectrum import SpectrumOptions, spectrum
from tuckprop.cli.table import TableOptions, table
from tuckprop.cli.train import TrainOptions, train
from tuckprop.errors import TuckpropError

_VERBS: dict[str, tuple[Any, Callable[[Any], int]]] = {
    "train": (TrainOptions, train),
    "demo": (DemoOptions, demo),
    "plan": (PlanOptions, plan),
    "measure": (MeasureOptions, measure),
    "reproduce": (ReproduceOptions, reproduce),
    "table": (TableOptions, table),
    "plot": (PlotOptions, plot),
    "report": (ReportOptions, report),
    "predict": (PredictOptions, predict),
    "spectrum": (SpectrumOptions, spectrum),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, 2 for a mistake of the user's or unusable files, 130 after an interrupt.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"tuckprop {__version__}")
        return 0
    options = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in _VERBS.items()},
        prog="tuckprop",
        description="Train in little memory: activations are kept in factored form. --version prints the version.",
        args=given,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    call = next(call for kind, call in _VERBS.values() if isinstance(options, kind))
    warnings.formatwarning = _one_line
    try:
        return call(options)
    except TuckpropError as error:
        print(f"tuckprop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # Such as a full disk. Files take their names only once they are whole.
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"tuckprop: {reason}; what was saved before is kept, put that right and go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tuckprop: interrupted", file=sys.stderr)
        return 130


def _one_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    return f"tuckprop: {category.__name__}: {message}\n"
