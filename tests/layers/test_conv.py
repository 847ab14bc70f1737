"""What is particular to Conv1d, Conv2d and Conv3d."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.cases import LAYERS, RandomTucker, decaying
from tests.layers.contract import TIGHT, Run
from tuckprop import HOSVD, convert
from tuckprop.layers.conv import FactoredConv2d, geometry_of


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 3), (2, 5)], ids=str)
def test_the_matrix_has_what_the_paddings_need(mode: str, kernel: tuple[int, int]) -> None:
    """'same' with an even kernel pads one more after than before; every mode must see it so."""
    layer = nn.Conv2d(1, 1, kernel, padding="same", padding_mode=mode, bias=False, dtype=torch.float64)
    geometry = geometry_of(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    )
    assert geometry.padding == tuple(((k - 1) // 2, k // 2) for k in kernel)
    with torch.no_grad():
        layer.weight.fill_(1)
    x = decaying((1, 1, 6, 7), seed=1)
    summed = nn.functional.conv2d(
        nn.functional.pad(geometry.pad_input(x), [p for p in reversed(geometry.implicit) for _ in range(2)]),
        torch.ones_like(layer.weight),
    )
    assert_close(layer(x), summed, **TIGHT)


def test_a_circular_convolution_by_hand() -> None:
    """Three taps on a ring of four: the weight gradient is the circular correlation."""
    layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    convert(layer, RandomTucker(1.0))
    x, grad = decaying((1, 1, 4), seed=1), decaying((1, 1, 4), seed=2)
    layer(x).backward(grad)
    expected = [sum(grad[0, 0, m] * x[0, 0, (m + k - 1) % 4] for m in range(4)) for k in range(3)]
    assert_close(layer.weight.grad.flatten(), torch.stack(expected), **TIGHT)


def test_a_strided_convolution_by_hand() -> None:
    layer = nn.Conv1d(1, 1, 2, stride=3, dilation=2, padding=1, bias=False, dtype=torch.float64)
    convert(layer, RandomTucker(1.0))
    x, grad = decaying((1, 1, 7), seed=1), decaying((1, 1, 3), seed=2)
    layer(x).backward(grad)
    padded = [0.0, *x[0, 0].tolist(), 0.0]
    expected = [sum(grad[0, 0, m].item() * padded[3 * m + 2 * k] for m in range(3)) for k in range(2)]
    assert_close(layer.weight.grad.flatten(), torch.tensor(expected, dtype=torch.float64), **TIGHT)


def test_an_unbatched_input_gets_an_unbatched_gradient() -> None:
    layer = convert(nn.Conv2d(3, 4, 3, dtype=torch.float64), HOSVD(0.9))
    x = decaying((3, 9, 9), seed=1)
    single, batch = Run(layer, x), Run(convert(nn.Conv2d(3, 4, 3, dtype=torch.float64), HOSVD(0.9)), x[None])
    assert single.y.shape == (4, 7, 7)
    assert single.x.grad.shape == x.shape
    assert batch.x.grad.shape == (1, *x.shape)


def test_a_layer_whose_forward_is_replaced_on_the_instance_keeps_it() -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: nn.Conv2d.forward(layer, x) + 1
    x = torch.randn(2, 3, 5, 5)
    expected = layer(x)
    convert(layer, HOSVD(0.8))
    assert torch.equal(layer(x), expected)


def test_the_functional_form_with_another_weight() -> None:
    """Weight standardisation and the like call `_conv_forward` with a weight that is no parameter."""
    layer = nn.Conv2d(6, 4, 3, dtype=torch.float64)
    x = decaying((8, 6, 9, 9), seed=1)

    def standardised(layer: nn.Conv2d) -> Tensor:
        weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
        layer._conv_forward(x, weight, layer.bias).square().sum().backward()
        gradient, layer.weight.grad = layer.weight.grad, None
        return gradient

    expected = standardised(layer)
    convert(layer, HOSVD(1.0))
    assert_close(standardised(layer), expected, **TIGHT)


def test_settings_changed_after_the_conversion_count() -> None:
    layer, plain = convert(nn.Conv2d(3, 4, 3, dtype=torch.float64), RandomTucker(1.0)), nn.Conv2d(3, 4, 3)
    plain.double().load_state_dict(layer.state_dict())
    for each in (layer, plain):
        each.stride, each.padding, each.dilation = (2, 2), (1, 2), (1, 2)
    x = decaying((4, 3, 9, 9), seed=1)
    got, expected = Run(layer, x), Run(plain, x)
    assert torch.equal(got.y, expected.y)
    assert_close(got.weight, expected.weight, **TIGHT)


def test_the_text_names_the_twin_and_its_settings() -> None:
    layer = convert(nn.Conv2d(3, 4, 3, padding=1), HOSVD(0.8))
    assert str(layer) == "FactoredConv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))"
    assert type(layer) is FactoredConv2d


def test_the_matrix_covers_every_option() -> None:
    """Each option of a convolution has a case with another value than its default, in each number of axes."""
    for plain in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        options = [case.options for case in LAYERS if case.plain is plain]
        for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
            assert any(name in each for each in options), (plain, name)
        assert {"same"} <= {each.get("padding") for each in options if isinstance(each.get("padding"), str)}
        assert {each.get("padding_mode") for each in options} >= {"reflect", "replicate", "circular"}
        assert any(len(case.shape) == {nn.Conv1d: 2, nn.Conv2d: 3, nn.Conv3d: 4}[plain] for case in LAYERS)
