"""The report's numbers, counted by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cases import decaying
from tests.networks import ConvNet
from tuckprop import HOSVD, SVD, Dense, GradientFilter, MemoryReport, convert, measure
from tuckprop.errors import ConfigError
from tuckprop.memory import SiteBytes

BATCH = decaying((8, 3, 16, 16), seed=1, decay=0.5, dtype=torch.float32)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))


def test_a_plain_network_by_hand() -> None:
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 6)
    report = measure(model, lambda m: m(x).sum())
    assert report.held_bytes == 5 * 4 * 4
    assert report.naive_bytes == 2 * 5 * 4 * 4
    assert report.paper_bytes == 0
    assert report.fallbacks == 0
    assert report.device == "cpu"
    assert report.sites == (SiteBytes("1", "Tanh", "", 5 * 4 * 4),)


def test_converted_networks_by_hand() -> None:
    hidden = 8 * 6 * 16 * 16
    model = convert(chain(), Dense())
    report = measure(model, lambda m: m(BATCH).sum())
    assert report.held_bytes == hidden * 4
    assert report.paper_bytes == (BATCH.numel() + hidden) * 4
    assert report.sites == (SiteBytes("1", "Conv2d", "Dense()", hidden * 4),)

    activations = BATCH, chain()[0](BATCH).detach()
    forms = [HOSVD(0.8).compress(x) for x in activations]
    report = measure(convert(chain(), HOSVD(0.8)), lambda m: m(BATCH).sum())
    # The batch is the caller's: the first layer shares it, and the paper counts its form all the same.
    assert report.held_bytes == report.naive_bytes == forms[1].nbytes < hidden
    assert report.paper_bytes == sum(
        (math.prod(form.ranks) + sum(n * k for n, k in zip(form.shape, form.ranks, strict=True))) * 4 for form in forms
    )
    assert report.sites == (SiteBytes("1", "Conv2d", "HOSVD(epsilon=0.8)", forms[1].nbytes),)

    report = measure(convert(chain(), SVD(0.8)), lambda m: m(BATCH).sum())
    ranks = [SVD(0.8).compress(x).ranks[0] for x in activations]
    assert report.paper_bytes == (ranks[0] * (8 + 3 * 256) + ranks[1] * (8 + 6 * 256)) * 4

    report = measure(convert(chain(), GradientFilter(4)), lambda m: m(BATCH).sum())
    assert report.held_bytes == report.paper_bytes == (3 + 6) * 8 * 16 * 4


def test_what_is_not_smaller_is_held_plainly_and_counted_as_the_paper_would() -> None:
    noise = torch.randn(8, 3, 16, 16)
    report = measure(convert(chain(), HOSVD(0.99)), lambda m: m(noise).sum())
    assert report.held_bytes == 8 * 6 * 16 * 16 * 4
    assert report.paper_bytes > report.held_bytes + noise.numel() * 4


def test_held_bytes_are_the_sum_of_the_sites() -> None:
    for model in (ConvNet(), convert(ConvNet(), HOSVD(0.8))):
        report = measure(model, lambda m: m(BATCH).square().mean())
        assert report.held_bytes == sum(site.bytes for site in report.sites) <= report.naive_bytes
        assert [s.bytes for s in report.sites] == sorted((s.bytes for s in report.sites), reverse=True)
        plain = {name: type(module).__name__ for name, module in ConvNet().named_modules()}
        assert all(site.kind == plain[site.name] for site in report.sites)


def test_the_peak_covers_what_is_held_and_what_is_made_on_the_way() -> None:
    model = chain()
    report = measure(model, lambda m: m(BATCH).sum())
    # When the second layer's backward ends, its input and the gradient of that are there, and its own gradients.
    parameters, hidden = sum(p.numel() for p in model[1].parameters()) * 4, 8 * 6 * 256 * 4
    assert report.held_bytes == hidden
    assert report.peak_bytes >= 2 * hidden + parameters

    def with_scratch(m: nn.Module) -> Tensor:
        loss = m(BATCH).sum()
        torch.empty(10**7)
        return loss

    scratch = measure(model, with_scratch)
    assert scratch.held_bytes == report.held_bytes
    assert 4 * 10**7 + hidden <= scratch.peak_bytes <= 4 * 10**7 + report.peak_bytes


def test_fallbacks_are_reported() -> None:
    spoilt = BATCH.clone()
    spoilt[0, 0, 0, 0] = float("nan")
    report = measure(convert(chain(), HOSVD(0.8)), lambda m: m(spoilt.clone()).sum())
    assert report.fallbacks == 4  # Two sites, two runs.
    assert "no decomposition: 4 activations" in str(report)
    assert report.held_bytes == 8 * (3 + 6) * 256 * 4


def test_eval_mode_is_measured_as_it_is() -> None:
    plain, converted = chain().eval(), convert(chain(), HOSVD(0.8)).eval()
    reports = [measure(model, lambda m: m(BATCH).sum()) for model in (plain, converted)]
    assert reports[0].held_bytes == reports[1].held_bytes
    assert reports[1].paper_bytes == 0


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (lambda m: m(BATCH), r"a tensor of shape \(8, 4, 16, 16\) that needs one"),
        (lambda m: m(BATCH).sum().item(), r"-?[0-9.]+"),
        (lambda m: m(BATCH).sum().detach(), r"a tensor of shape \(\) without one"),
        (lambda m: None, "None"),
    ],
    ids=["no scalar", "no tensor", "no gradient", "nothing"],
)
def test_what_is_no_loss_is_refused(loss_fn: Any, got: str) -> None:
    expected = r"measure\(loss_fn=\.\.\.\): expected a scalar loss that needs a gradient, got "
    with pytest.raises(ConfigError, match=f"^{expected}{got}$"):
        measure(chain(), loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "got"), [(BATCH, r"a tensor of shape \(8, 3, 16, 16\)"), (None, "None")], ids=["tensor", "nothing"]
)
def test_what_is_no_function_is_refused(loss_fn: Any, got: str) -> None:
    expected = r"measure\(loss_fn=\.\.\.\): expected a function that takes the model .* such as lambda model: .*, got "
    with pytest.raises(ConfigError, match=f"^{expected}{got}$"):
        measure(chain(), loss_fn)


def test_what_is_no_model_is_refused() -> None:
    model: Any = "x"
    with pytest.raises(ConfigError, match=r"^measure\(model=\.\.\.\): expected a torch\.nn\.Module, got str$"):
        measure(model, lambda m: m(BATCH).sum())


def test_the_table() -> None:
    report = MemoryReport(
        held_bytes=3 * 2**19, naive_bytes=2**21, paper_bytes=2**18, peak_bytes=2**22, device="cpu",
        sites=(SiteBytes("stem", "Conv2d", "HOSVD(epsilon=0.8)", 2**20), SiteBytes("", "Net", "", 2**19)), fallbacks=0,
    )  # fmt: skip
    assert str(report).splitlines() == [
        f"site  {'type':<24}  {'codec':<28}  {'held, KiB':>10}",
        f"stem  {'Conv2d':<24}  {'HOSVD(epsilon=0.8)':<28}  {'1024.0':>10}",
        f"      {'Net':<24}  {'':<28}  {'512.0':>10}",
        "held for backward        1.50 MiB",
        "paper's count            0.25 MiB",
        "peak (cpu)               4.00 MiB",
    ]
