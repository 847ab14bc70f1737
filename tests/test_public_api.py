"""The names that are promised, and their signatures."""

import inspect
import re
from dataclasses import FrozenInstanceError, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import tuckprop
from tuckprop import errors
from tuckprop.codecs import Codec, codecs
from tuckprop.layers import all_twins
from tuckprop.registry import Registry

PROMISED = {"convert", "revert", "freeze", "plan", "measure", "Dense", "HOSVD", "SVD", "GradientFilter", "errors"}


def test_the_names() -> None:
    assert set(tuckprop.__all__) >= PROMISED
    assert tuckprop.__all__ == sorted(tuckprop.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    for name in tuckprop.__all__:
        assert getattr(tuckprop, name) is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", tuckprop.__version__)


def test_the_signatures() -> None:
    assert str(inspect.signature(tuckprop.convert)).split(" -> ")[0] == (
        "(model: torch.nn.modules.module.Module, codec: "
        "tuckprop.codecs._base.Codec | collections.abc.Mapping[str, tuckprop.codecs._base.Codec] | tuckprop.plan.Plan, "
        "*, last: int | None = None, select: "
        "collections.abc.Callable[[str, torch.nn.modules.module.Module], bool] | None = None, pointwise: bool = True)"
    )
    assert list(inspect.signature(tuckprop.revert).parameters) == ["model"]
    assert list(inspect.signature(tuckprop.plan).parameters)[:3] == ["model", "example_input", "codec"]
    assert list(inspect.signature(tuckprop.measure).parameters) == ["model", "loss_fn"]


def test_the_defaults_of_the_codecs() -> None:
    assert tuckprop.HOSVD() == tuckprop.HOSVD(epsilon=0.8)
    assert tuckprop.SVD() == tuckprop.SVD(epsilon=0.8)
    assert tuckprop.GradientFilter() == tuckprop.GradientFilter(patch=2)
    assert tuckprop.Dense() == tuckprop.Dense()


@pytest.mark.parametrize("name", codecs)
def test_a_codec_is_a_frozen_value_that_prints_as_it_is_made(name: str) -> None:
    kind = codecs[name]
    codec = kind()
    assert isinstance(codec, Codec)
    assert is_dataclass(codec)
    assert hash(codec) == hash(kind())
    assert eval(repr(codec), {kind.__name__: kind}) == codec
    assert kind.label
    for field in vars(codec):
        with pytest.raises(FrozenInstanceError):
            setattr(codec, field, None)


def test_every_error_is_a_tuckprop_error_and_of_a_builtin_kind() -> None:
    leaves = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TuckpropError)
    ]
    assert len(leaves) >= 4
    for kind in leaves:
        assert issubclass(kind, errors.TuckpropError)
        if kind is not errors.TuckpropError:
            assert issubclass(kind, (ValueError, TypeError, OSError)), kind
    assert issubclass(errors.TuckpropWarning, UserWarning)


def test_a_registry_refuses_duplicates_and_lists_what_it_knows() -> None:
    registry: Registry[int] = Registry("colour")
    assert registry.add("red", 1) == 1
    assert registry.register("blue")(2) == 2
    assert (list(registry), len(registry), "red" in registry, "green" in registry) == (["red", "blue"], 2, True, False)
    with pytest.raises(errors.ConfigError, match=r"^colour 'red' is registered already, as 1$"):
        registry.add("red", 3)
    assert registry["red"] == 1
    with pytest.raises(errors.ConfigError, match=r"^unknown colour 'green'; known: red, blue$"):
        registry["green"]
    with pytest.raises(errors.ConfigError, match="known: none"):
        Registry("colour")["red"]


def test_every_convolution_and_linear_layer_of_torch_has_a_twin() -> None:
    promised = {
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    }  # fmt: skip
    assert promised <= {plain for plain, _ in all_twins()}


def test_the_docstrings_examples_run() -> None:
    """The example of `convert`, as a reader would paste it."""
    text = inspect.getdoc(tuckprop.convert)
    lines = [line.partition(">>> ")[2] for line in text.splitlines() if ">>> " in line]
    assert len(lines) >= 3
    scope = {"nn": nn, "torch": torch, "tuckprop": tuckprop}
    for line in lines:
        exec(line, scope)
    assert any(type(m).__module__.startswith("tuckprop") for m in scope["model"].modules())


def test_every_test_module_says_what_it_is_about() -> None:
    for path in Path(__file__).parent.rglob("test_*.py"):
        assert path.read_text().startswith('"""'), path.name
