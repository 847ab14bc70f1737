"""What the closed forms predict for one convolution, as a table: each number with its formula and its source."""

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from rich.table import Table

from tuckprop.report.table import unit
from tuckprop.theory import Convolution, cost, error, speed, storage

_SYMBOLS = (
    "K is K1: the batch unfolding is the same in both methods, so at one share of variance SVD has HOSVD's first rank. "
    "D taps a side, C' x H' x W' the output, C C' over the groups but in row 4; M a mode's size, P the product of the "
    "others. A multiply-add is two floating-point operations. A is the activation, A~ what is kept of it, ε the share "
    "of |A|² that every mode keeps, T_G the map from A to the weight gradient dW. paper: Nguyen et al., NeurIPS 2024. "
    "code: the counts in its authors' public code, which take the input's size for the output's, ignore groups and "
    "decompose in full. here: derived for this library. eq.: the number in docs/predictions.md."
)
_PREFIXES = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"))


class _Line(NamedTuple):
    """A row of the table and the note that explains it."""

    quantity: str
    plain_svd_hosvd: Iterable[str]
    note: str


def prediction_table(conv: Convolution, ranks: tuple[int, ...], epsilon: float = 0.8) -> Table:
    """Return storage, multiply-adds, speed-ups and errors of plain training, SVD and HOSVD.

    Args:
        conv: The convolution.
        ranks: HOSVD's, one a mode of the input; SVD gets the first.
        epsilon: Share of energy that every mode keeps, which the errors follow from.

    Returns:
        A table for the terminal, with numbered notes under it.

    Raises:
        ConfigError: There is not one rank a mode, from 1 to the mode's size, or `epsilon` is not in (0, 1].
    """
    shape = " x ".join(map(str, conv.shape))
    groups = "" if conv.groups == 1 else f", {conv.groups} groups"
    to = f"{conv.outputs} x {conv.out_height} x {conv.out_width}"
    table = Table(
        title=f"{shape} to {to}, kernel {conv.kernel}{groups}\nranks {' '.join(map(str, ranks))}, ε {epsilon:g}",
        caption_justify="left",
        caption_style="",
    )
    for heading in ("", "plain", "SVD", "HOSVD", "note"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    notes: list[str] = []
    for section in (_storage(conv, ranks), _multiply_adds(conv, ranks), _speedups(conv, ranks), _errors(epsilon)):
        for line in section:
            notes.append(line.note)
            table.add_row(line.quantity, *line.plain_svd_hosvd, str(len(notes)))
        table.add_section()
    table.caption = "\n".join([*(f"{number}. {note}" for number, note in enumerate(notes, 1)), _SYMBOLS])
    return table


def _svd_rank(conv: Convolution, ranks: tuple[int, ...]) -> int:
    return min(ranks[0], *conv.unfolding(0))


def _storage(conv: Convolution, ranks: tuple[int, ...]) -> list[_Line]:
    hosvd = storage.hosvd_elements(conv, ranks)
    kept = (storage.plain_elements(conv), storage.svd_elements(conv, _svd_rank(conv, ranks)), hosvd)
    rates = (f"{storage.compression_rate(conv, elements):.4g}" for elements in kept)
    elements = "BCHW; SVD: K (B + CHW); HOSVD: K1 K2 K3 K4 + B K1 + C K2 + H K3 + W K4 (paper; eq. 1 to 3)"
    return [
        _Line("elements kept", map(_count, kept), elements),
        _Line("bytes kept", (_size(4 * count) for count in kept), "4 an element, float32 (paper)"),
        _Line("compression rate R_C", rates, "BCHW / elements kept (paper, Fig. 3a; eq. 6)"),
    ]


def _multiply_adds(conv: Convolution, ranks: tuple[int, ...]) -> list[_Line]:
    rank = _svd_rank(conv, ranks)
    published, forward = cost.plain_forward_as_published(conv), cost.plain_forward(conv)
    full = (0, cost.svd_overhead_as_published(conv), cost.hosvd_overhead_as_published(conv))
    gram = (0, cost.svd_overhead_by_gram(conv, rank), cost.hosvd_overhead_by_gram(conv, ranks))
    plain, hosvd = cost.plain_weight_gradient(conv), cost.hosvd_weight_gradient(conv, ranks)
    restored = (plain, cost.svd_weight_gradient(conv, rank), hosvd)
    projected = (plain, cost.svd_weight_gradient_projected(conv, rank), hosvd)
    inputs = (cost.plain_input_gradient(conv),) * 3
    steps = "B K1 C' H'W' + H K1 K2 K3 K4 + HW K1 K2 K4 + D² C' K1 K2 H'W' + D² C C' K2"
    return [
        _Line(
            "forward, full SVDs",
            (_count(published + added) for added in full),
            "multiply-adds: D² C C' BHW, and max(M, P)² min(M, P) for each unfolding"
            " (code; one SVD: here; eq. 7, 12, 14)",
        ),
        _Line(
            "forward, Gram matrices",
            (_count(forward + added) for added in gram),
            "D² C C' B H'W', M² P + M³ for each unfolding, and the projection (here; eq. 8, 13, 15)",
        ),
        _Line(
            "weight gradient",
            map(_count, restored),
            f"D² C C' B H'W'; SVD: that and K BCHW to restore (here); HOSVD: {steps} (code; eq. 16, 18, 21)",
        ),
        _Line("the same, not restored", map(_count, projected), "SVD: B K C' H'W' + D² C C' K H'W' (here; eq. 19)"),
        _Line("input gradient", map(_count, inputs), "D² C C' B H'W', in every method, in no speed-up (here; eq. 17)"),
    ]


def _speedups(conv: Convolution, ranks: tuple[int, ...]) -> list[_Line]:
    rank = _svd_rank(conv, ranks)
    backward = speed.svd_backward_speedup(conv, rank), speed.hosvd_backward_speedup(conv, ranks)
    full = speed.svd_step_speedup_as_published(conv, rank), speed.hosvd_step_speedup_as_published(conv, ranks)
    gram = speed.svd_step_speedup_by_gram(conv, rank), speed.hosvd_step_speedup_by_gram(conv, ranks)
    return [
        _Line(
            "R_S, weight gradient",
            _ratios(backward),
            "row 6: plain / its own (paper, Fig. 3b, if that is without forward; eq. 25, 22)",
        ),
        _Line("R_S, forward too", _ratios(full), "rows 4 + 6: plain / its own (code; eq. 26, 23)"),
        _Line("the same, by Gram", _ratios(gram), "rows 5 + 7: plain / its own (here; eq. 27, 24)"),
    ]


def _errors(epsilon: float) -> list[_Line]:
    modes = (1, 4)
    lost = (error.hosvd_error_bound(epsilon, count) for count in modes)
    least = error.svd_snr_bound(epsilon), error.hosvd_snr_bound(epsilon)
    guessed = (error.hosvd_snr_guess(epsilon, count) for count in modes)
    gradient = (error.weight_gradient_error_bound(epsilon, 1.0, 1.0, count) for count in modes)
    bound = "min(1, d (1 - ε)), d = 1 mode for SVD, 4 for HOSVD; the ranks play no part"
    return [
        _Line("lost share, at most", _exact("0", lost), f"|A - A~|² / |A|² <= {bound} (here; eq. 30)"),
        _Line(
            "SNR, at least",
            _exact("∞", least),
            "|A|² / |A - A~|², 1 / row 12 (here; the SNR: paper, Fig. 3c; eq. 31, 32)",
        ),
        _Line(
            "SNR, a guess",
            _exact("∞", guessed),
            "1 / (1 - ε^d): modes that lose independently, no bound (here; eq. 33)",
        ),
        _Line(
            "gradient error, at most",
            _exact("0", gradient),
            "|dW - dW~| / (|T_G| |A|), the square root of row 12 (here; eq. 34)",
        ),
    ]


def _exact(plain: str, svd_hosvd: Iterable[float]) -> Iterable[str]:
    """Return plain training, which loses nothing, and the others; no end where they lose nothing either."""
    return plain, *("∞" if value == inf else f"{value:.4g}" for value in svd_hosvd)


def _ratios(svd_hosvd: tuple[float, float]) -> Iterable[str]:
    return "1", *(f"{value:.4g}" for value in svd_hosvd)


def _count(value: int) -> str:
    """Return a count, such as "118.4 G"."""
    size, prefix = next((entry for entry in _PREFIXES if value >= entry[0]), (1, ""))
    return f"{value / size:.4g} {prefix}" if prefix else f"{value:,}"


def _size(nbytes: int) -> str:
    size, name = unit(nbytes)
    return f"{nbytes / size:.4g} {name}"
