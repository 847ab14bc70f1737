"""The contract of layer and codec, over the whole matrix of `tests.cases`."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import CODECS, FACTORED, LAYERS, LayerCase, RandomTucker, check_named, pair_id, pairs
from tests.forcing import forced_route
from tests.layers.contract import TIGHT, Run, check_contract, plain_and_converted
from tuckprop import HOSVD, SVD, Dense, GradientFilter, convert
from tuckprop.codecs import Codec, codecs
from tuckprop.layers import all_twins
from tuckprop.layers.linear import FactoredLinear

ALL_PAIRS = pairs(CODECS)
WEIGHT_ONLY = pairs([codec for codec in [*CODECS, *FACTORED] if not isinstance(codec, GradientFilter)])
CONVOLUTIONS = [case for case in LAYERS if case.plain is not nn.Linear]
LINEARS = [case for case in LAYERS if case.plain is nn.Linear]


@pytest.mark.parametrize(("case", "codec"), ALL_PAIRS, ids=pair_id)
def test_forward_is_bit_identical(case: LayerCase, codec: Codec, forced: None) -> None:
    plain, converted = plain_and_converted(case, codec)
    assert torch.equal(converted.y, plain.y)


@pytest.mark.parametrize(("case", "codec"), WEIGHT_ONLY, ids=pair_id)
def test_gradients(case: LayerCase, codec: Codec, forced: None) -> None:
    """Input and bias gradients are PyTorch's; the weight gradient is PyTorch's at the activation as it was kept."""
    check_contract(case, codec)


@pytest.mark.parametrize(("case", "codec"), pairs([GradientFilter(patch=2), GradientFilter(patch=3)]), ids=pair_id)
def test_gradient_filter_leaves_the_bias_exact(case: LayerCase, codec: Codec) -> None:
    plain, converted = plain_and_converted(case, codec)
    assert (converted.bias is None) == (plain.bias is None)
    if plain.bias is not None:
        assert_close(converted.bias, plain.bias, **TIGHT)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_every_route_gives_the_same_weight_gradient(case: LayerCase, route: str) -> None:
    plain, converted = check_contract(case, RandomTucker(0.6))
    assert not torch.allclose(converted.weight, plain.weight, rtol=1e-3, atol=1e-3)  # The case is lossy.


@pytest.mark.parametrize("case", LINEARS, ids=str)
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_linear_with_factors_on_every_axis(case: LayerCase, share: float, forced: None) -> None:
    check_contract(case, RandomTucker(share))


def passes_gradcheck(case: LayerCase) -> bool:
    """Compare with finite differences, with a codec that factors every axis and loses nothing."""
    module = convert(case.module(), RandomTucker(1.0))
    parameters = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,))

    x = case.input().requires_grad_()
    return torch.autograd.gradcheck(run, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_gradcheck_by_the_factored_route(case: LayerCase, forced: None) -> None:
    with forced_route("factored"):
        assert passes_gradcheck(case)


@pytest.mark.parametrize("case", LINEARS, ids=str)
def test_gradcheck_of_linear(case: LayerCase, forced: None) -> None:
    assert passes_gradcheck(case)


@pytest.mark.parametrize("codec", [Dense(), HOSVD(epsilon=1.0), SVD(epsilon=1.0)], ids=repr)
@pytest.mark.parametrize("is_forced", [False, True], ids=["chosen", "forced"])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_lossless_settings_give_the_plain_gradients(
    case: LayerCase, is_forced: bool, codec: Codec, request: pytest.FixtureRequest
) -> None:
    if is_forced:
        request.getfixturevalue("forced")
    plain, converted = plain_and_converted(case, codec)
    for name in ("y", "weight", "bias"):
        if getattr(plain, name) is not None:
            assert_close(getattr(converted, name), getattr(plain, name), **TIGHT)
    assert_close(converted.x.grad, plain.x.grad, **TIGHT)


@pytest.mark.parametrize(("case", "codec"), ALL_PAIRS, ids=pair_id)
def test_never_keeps_more_than_the_activation(case: LayerCase, codec: Codec) -> None:
    kept = Run(convert(case.module(), codec), case.input()).kept
    assert kept is not None
    assert kept.nbytes <= case.input().numel() * 8


FREEZABLE = [
    (case, part)
    for case in LAYERS
    for part in ("input", "weight", "bias")
    if part != "bias" or case.module().bias is not None
]


@pytest.mark.parametrize(("case", "frozen"), FREEZABLE, ids=str)
def test_a_frozen_part_gets_no_gradient_and_the_others_theirs(case: LayerCase, frozen: str, forced: None) -> None:
    gradients = []
    for module in (case.module(), convert(case.module(), RandomTucker(1.0))):
        x = case.input().requires_grad_(frozen != "input")
        if frozen != "input":
            getattr(module, frozen).requires_grad_(False)
        module(x).square().sum().backward()
        gradients.append({"input": x.grad} | {name: p.grad for name, p in module.named_parameters()})
    plain, converted = gradients
    assert converted[frozen] is None
    for name in plain.keys() - {frozen}:
        assert_close(converted[name], plain[name], **TIGHT)


COMPRESSING = {
    key: twin for key, twin in all_twins().items() if twin.compresses and key[0].__module__.startswith("torch")
}
OTHERS = sorted({(key[0].__name__, twin.__module__) for key, twin in all_twins().items() if key not in COMPRESSING})


@pytest.mark.parametrize(("plain", "codec"), COMPRESSING, ids=lambda kind: kind.__name__)
def test_every_twin_that_compresses_has_a_case(plain: type[nn.Module], codec: type[Codec]) -> None:
    """One of its own codec, or with each of the codecs that a twin of no codec in particular serves."""
    registered = {codecs[name] for name in codecs}
    own = {kind for layer, kind in COMPRESSING if layer is plain and kind in registered}
    served = {codec} if codec in registered else {kind for kind in registered if kind not in own | {GradientFilter}}
    covered = {(case.plain, type(config)) for case, config in ALL_PAIRS}
    missing = [kind.__name__ for kind in served if (plain, kind) not in covered]
    assert not missing, f"tests.cases has no case of {plain.__name__} with {missing}"


@pytest.mark.parametrize(("plain", "module"), OTHERS)
def test_every_other_twin_has_a_test_module_that_names_it(plain: str, module: str) -> None:
    check_named(plain, module)


def test_every_registered_codec_has_a_case() -> None:
    covered = {type(codec) for codec in CODECS}
    missing = [name for name in codecs if codecs[name] not in covered]
    assert not missing, f"tests.cases.CODECS has no case for {missing}"


def test_no_two_cases_are_the_same() -> None:
    assert len({str(case) for case in LAYERS}) == len(LAYERS)
    assert len(set(CODECS)) == len(CODECS)


def test_a_twin_is_the_plain_class_and_no_other(forced: None) -> None:
    for (plain, _), twin in all_twins().items():
        assert issubclass(twin, plain)
        assert twin.plain is plain
    module = nn.Linear(3, 3)
    assert type(convert(copy.deepcopy(module), Dense())) is FactoredLinear
    assert type(module) is nn.Linear
