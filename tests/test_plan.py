"""What a plan says, that it is right, and that making one changes nothing."""

import copy
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import CODECS, RandomTucker, decaying
from tests.networks import ConvNet
from tuckprop import HOSVD, SVD, Dense, Plan, convert, freeze, measure, plan
from tuckprop.errors import ConfigError, TuckpropWarning
from tuckprop.layers import Twin
from tuckprop.plan import Elsewhere, SitePlan, Skipped, decide

BATCH = decaying((8, 3, 16, 16), seed=1, decay=0.5, dtype=torch.float32)
# Sequential convolutions alone: the input of each but the first is held by it, and by nothing else.
CHAIN = [(3, 6), (6, 8), (8, 4)]


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Conv2d(into, out, 3, padding=1) for into, out in CHAIN])


def test_bytes_by_hand() -> None:
    model = chain()
    decided = plan(model, BATCH, HOSVD(0.8))
    hidden = model[0](BATCH), model[1](model[0](BATCH))
    first, second, third = decided.sites
    # The first keeps the batch, which is the caller's, plain and converted.
    assert first == SitePlan("0", "Conv2d", HOSVD(0.8), (8, 3, 16, 16), 0, 0)
    for site, x in zip((second, third), hidden, strict=True):
        assert site.input_shape == tuple(x.shape)
        assert site.plain_bytes == x.numel() * 4
        assert site.predicted_bytes == HOSVD(0.8).compress(x.detach()).nbytes < site.plain_bytes
    assert decided.plain_bytes == (6 + 8) * 8 * 16 * 16 * 4
    assert decided.predicted_bytes == sum(site.predicted_bytes for site in decided.sites)
    assert decided.skipped == decided.frozen == ()


@pytest.mark.parametrize("codec", [HOSVD(0.7), SVD(0.7), Dense()], ids=repr)
@pytest.mark.filterwarnings("ignore::tuckprop.errors.TuckpropWarning")
def test_what_is_predicted_is_what_is_held(codec: Any) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    decided = plan(model, BATCH, codec)
    convert(model, decided)
    report = measure(model, lambda m: m(BATCH).square().mean())
    held = {site.name: site.bytes for site in report.sites}
    for site in decided.sites:
        assert held.get(site.name, 0) == site.predicted_bytes, site.name


def test_the_last_layers_are_planned_with_the_rest_frozen() -> None:
    decided = plan(chain(), BATCH, HOSVD(0.8), last=1)
    assert [site.name for site in decided.sites] == ["2"]
    assert decided.frozen == ("0", "1")
    assert decided.sites[0].plain_bytes == 8 * 8 * 16 * 16 * 4


def test_bytes_are_those_of_training_whatever_the_mode() -> None:
    plans = [plan(model, BATCH, HOSVD(0.8)) for model in (chain(), chain().eval())]
    assert plans[0] == plans[1]


def test_what_is_frozen_is_no_site_and_not_listed() -> None:
    decided = decide(ConvNet(), HOSVD(0.8), last=2)
    assert decided.frozen == ("stem", "bn", "act", "block.expand", "block.norm", "block.depthwise")
    assert not {site.name for site in (*decided.sites, *decided.skipped)} & set(decided.frozen)


def test_an_example_may_be_a_tensor_a_tuple_or_a_dict() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain()

        def forward(self, image: Tensor, scale: Tensor) -> Tensor:
            return self.net(image * scale)

    scale = torch.ones(())
    plans = [plan(TwoInputs(), example, HOSVD(0.8)) for example in ((BATCH, scale), {"scale": scale, "image": BATCH})]
    assert plans[0] == plans[1]
    assert [site.plain_bytes for site in plans[0].sites][1:] == [
        site.plain_bytes for site in plan(chain(), BATCH, HOSVD(0.8)).sites
    ][1:]


# Nothing is changed


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "classes": [type(m) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "flags": [m.training for m in model.modules()],
        "parameters": [(id(p), p.requires_grad) for p in model.parameters()],
        "gradients": [(id(p.grad), p.grad is None or p.grad.clone()) for p in model.parameters()],
        "buffers": [(id(b), b.clone()) for b in model.buffers()],
        "hooks": [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()],
        "rng": torch.get_rng_state(),
    }  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Noisy(nn.Module):
    """A network with dropout, batch norm, a frozen parameter and a buffer that the forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), ConvNet())
        self.net[1].stem.bias.requires_grad_(False)
        self.net[1].bn.eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.net(x)


def noisy() -> Noisy:
    model = Noisy()
    model(BATCH).sum().backward()
    return model


MAKERS: dict[str, Callable[[nn.Module], object]] = {
    "plan": lambda model: plan(model, BATCH, HOSVD(0.5)),
    "plan, last": lambda model: plan(model, BATCH, HOSVD(0.5), last=2),
    "plan of a plan": lambda model: plan(model, BATCH, decide(model, HOSVD(0.5), last=2)),
    "measure": lambda model: measure(model, lambda m: m(BATCH).square().mean()),
    "measure, with steps of its own": lambda model: measure(model, lambda m: m.train()(BATCH).square().mean()),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("frozen_before", [False, True])
def test_the_model_and_the_random_state_stay_as_they_were(make: str, frozen_before: bool) -> None:
    model = noisy()
    if frozen_before:
        freeze(model, last=3)
    before = state_of(model)
    MAKERS[make](model)
    after = state_of(model)
    for key in before:
        assert same(before[key], after[key]), key


@pytest.mark.parametrize("make", MAKERS)
def test_a_forward_that_fails_leaves_the_model_as_it_was(make: str) -> None:
    model = noisy()

    def fail(*args: object) -> None:
        raise KeyError("on purpose")

    handle = model.net[1].tail.register_forward_hook(fail)
    before = state_of(model)
    with pytest.raises(KeyError, match="on purpose"):
        MAKERS[make](model)
    after = state_of(model)
    for key in before:
        assert same(before[key], after[key]), key
    handle.remove()
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_converted_model_is_refused_and_stays_converted() -> None:
    model = chain()
    decided = decide(model, HOSVD(0.5))
    convert(model, decided)
    for codec in (HOSVD(0.5), decided):
        with pytest.raises(ConfigError, match="converted already"):
            plan(model, BATCH, codec)
    assert all(isinstance(module, Twin) for module in model)


def test_a_model_with_lazy_layers_is_refused() -> None:
    for make in (MAKERS["plan"], MAKERS["measure"]):
        with pytest.raises(ConfigError, match=r"expected a model that has been run once, got one whose '0\.weight'"):
            make(nn.Sequential(nn.LazyConv2d(4, 3), nn.Conv2d(4, 4, 3)))


# Warning


def test_it_warns_where_little_is_saved() -> None:
    with pytest.warns(TuckpropWarning, match=r"saves under 5%"):
        plan(chain(), torch.randn(8, 3, 16, 16), HOSVD(0.999))


# Text and JSON


def test_the_table() -> None:
    decided = Plan(
        (
            SitePlan("stem", "Conv2d", HOSVD(0.8), (8, 3, 16, 16), 24576, 1024),
            SitePlan("head.fc", "Linear", Dense(), (8, 12), 384, 384),
        ),
        (Skipped("act", "Own", "no twin for Own"),),
        ("a", "b.c"),
    )
    assert str(decided) == "\n".join([
        "site     type    input      codec               plain, KiB  predicted, KiB",
        "stem     Conv2d  8x3x16x16  HOSVD(epsilon=0.8)        24.0             1.0",
        "head.fc  Linear  8x12       Dense()                    0.4             0.4",
        "total                                                 24.4             1.4",
        "frozen, in eval mode: 2 modules, up to b.c",
        "left alone: act (Own): no twin for Own",
    ])


def test_a_plan_before_a_run_has_no_numbers() -> None:
    decided = decide(chain(), HOSVD(0.8))
    assert {(s.input_shape, s.plain_bytes, s.predicted_bytes) for s in decided.sites} == {(None, None, None)}
    assert (decided.plain_bytes, decided.predicted_bytes) == (0, 0)
    assert "None" not in str(decided)


def test_a_plan_is_immutable() -> None:
    decided = decide(chain(), HOSVD(0.8))
    with pytest.raises(FrozenInstanceError):
        decided.sites = ()
    with pytest.raises(FrozenInstanceError):
        decided.sites[0].codec = Dense()
    hash(decided)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_json_and_back(codec: Any) -> None:
    decided = decide(ConvNet(), codec, last=2)
    assert Plan.from_json(decided.to_json()) == decided
    measured = Plan((SitePlan("a", "Conv2d", codec, (1, 2, 3), 4, 5),), (Skipped("b", "B", "reason"),), ("c",))
    assert Plan.from_json(measured.to_json()) == measured
    assert json.loads(measured.to_json())["version"] == 1


def test_a_codec_that_is_not_registered_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match=r"Plan\.to_json: expected a registered codec, got RandomTucker"):
        decide(chain(), RandomTucker(0.5)).to_json()


GOOD = json.loads(Plan((SitePlan("a", "Conv2d", HOSVD(0.8)),)).to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan"),
        ("{", "not a plan"),
        ("[]", "not a plan"),
        ("null", "not a plan"),
        ("{}", "not a plan"),
        (json.dumps(GOOD | {"version": 2}), "expected version 1, got 2"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "sites"}), "not a plan"),
        (json.dumps(GOOD | {"sites": 3}), "not a plan"),
        (json.dumps(GOOD | {"sites": [{"name": "a"}]}), "not a plan"),
        (json.dumps(GOOD | {"sites": [GOOD["sites"][0] | {"extra": 1}]}), "not a plan"),
        (json.dumps(GOOD | {"sites": [GOOD["sites"][0] | {"codec": {"name": "zip"}}]}), "unknown codec 'zip'; known: "),
        (json.dumps(GOOD | {"sites": [GOOD["sites"][0] | {"codec": {"name": "hosvd", "epsilon": 5}}]}), r"\(0, 1\]"),
        (json.dumps(GOOD | {"sites": [GOOD["sites"][0] | {"codec": {"name": "hosvd", "rank": 5}}]}), "not a plan"),
        (json.dumps(GOOD | {"skipped": [1]}), "not a plan"),
        (None, "not a plan"),
    ],
)
def test_what_is_no_plan_is_refused(text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.from_json(text)


def test_a_plan_serves_equal_models_again_and_again() -> None:
    decided = plan(chain(), BATCH, HOSVD(0.8))
    models = [convert(chain(), decided) for _ in range(2)]
    gradients = []
    for model in models:
        model(BATCH).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert copy.deepcopy(decided) == decided


def test_what_functions_hold_is_shown_and_counted() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(self.second(F.silu(self.first(x))))

    model, x = Calls(), torch.randn(8, 3, 32, 32)
    decided = plan(model, x, HOSVD(0.8))
    whole = 8 * 16 * 32 * 32 * 4
    # SiLU's and GELU's inputs; the plain second convolution keeps SiLU's output besides.
    assert decided.elsewhere == (Elsewhere("", 2 * whole, 2 * whole),)
    assert decided.plain_bytes == 3 * whole
    held = measure(convert(model, decided), lambda m: m(x).sum()).held_bytes
    assert decided.predicted_bytes == held > 2 * whole
    assert "(the model)" in str(decided)
    assert Plan.from_json(decided.to_json()) == decided


def test_empty_containers_are_passed_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleList(), nn.Sequential(), nn.ModuleDict())
    assert decide(model, HOSVD(0.8)).skipped == ()
