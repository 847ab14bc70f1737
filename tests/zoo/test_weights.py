"""Weights from files."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tuckprop import zoo
from tuckprop.errors import DataError
from tuckprop.train.checkpoint import save_checkpoint


def network(classes: int = 10) -> nn.Module:
    return zoo.build("digits_cnn", classes, 1)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_torch_files_load_bare_or_wrapped(tmp_path: Path, wrap: str | None) -> None:
    source, target = network(), network()
    state = source.state_dict()
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, tmp_path / "w.pt")
    loaded = zoo.load_weights(target, tmp_path / "w.pt")
    assert same(source, target)
    assert (len(loaded.loaded), loaded.fresh) == (10, ())


def test_a_checkpoint_of_a_run_loads(tmp_path: Path) -> None:
    source, target = network(), network()
    save_checkpoint(tmp_path / "checkpoint.pt", {"seed": 1}, {"model": source.state_dict(), "epochs": [{"loss": 1.0}]})
    zoo.load_weights(target, tmp_path / "checkpoint.pt")
    assert same(source, target)


def test_safetensors_load(tmp_path: Path) -> None:
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    zoo.load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_another_number_of_classes_keeps_the_fresh_classifier(tmp_path: Path) -> None:
    source, target = network(7), network(10)
    head = target[-1].weight.clone()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    loaded = zoo.load_weights(target, tmp_path / "w.pt")
    assert loaded.fresh == ("11.weight", "11.bias")
    assert "11.weight" in str(loaded)
    assert torch.equal(target[-1].weight, head)
    assert torch.equal(target[0].weight, source[0].weight)


def test_a_file_without_classifier_keeps_the_fresh_one(tmp_path: Path) -> None:
    state = {name: value for name, value in network().state_dict().items() if not name.startswith("11.")}
    torch.save(state, tmp_path / "w.pt")
    assert zoo.load_weights(network(), tmp_path / "w.pt").fresh == ("11.weight", "11.bias")


def test_a_classifier_kept_as_a_convolution_loads(tmp_path: Path) -> None:
    source, target = network(), network()
    state = source.state_dict()
    state["11.weight"] = state["11.weight"][:, :, None, None]
    torch.save(state, tmp_path / "w.pt")
    zoo.load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_mismatches_are_listed_together_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.weight"] = state["0.weight"][:5]
    del state["2.bias"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pt")
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(DataError) as error:
        zoo.load_weights(target, tmp_path / "w.pt")
    for text in ("2.bias is missing", "extra is unexpected", "0.weight: expected (32, 1, 3, 3), got (5, 1, 3, 3)"):
        assert text in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_the_classifiers_own_convolution_must_fit(tmp_path: Path) -> None:
    # Only the last Linear layer may differ, not what feeds it.
    torch.save(zoo.build("mcunet", 10).state_dict(), tmp_path / "w.pt")
    with pytest.raises(DataError, match="does not match"):
        zoo.load_weights(zoo.build("mcunet_bn", 10), tmp_path / "w.pt")


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {proof}",)

    torch.save({"0.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(DataError, match="safely"):
        zoo.load_weights(network(), tmp_path / "w.pt")
    assert not proof.exists()


def write_other(path: Path, kind: str) -> None:
    """Write what is no state dict: text, a whole network, or a compiled one."""
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "network":
        torch.save(nn.Linear(2, 2), path)
    else:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["text", "network", "compiled"])
def test_nobody_is_advised_to_load_a_wrong_file_unsafely(tmp_path: Path, kind: str) -> None:
    write_other(tmp_path / "w.pt", kind)
    with pytest.raises(DataError, match=r"w\.pt is not a file .*expected a state dict, as torch\.save") as error:
        zoo.load_weights(network(), tmp_path / "w.pt")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 3000])
def test_damaged_files_are_named(tmp_path: Path, name: str, keep: int) -> None:
    state = network().state_dict()
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(DataError, match=name):
        zoo.load_weights(network(), tmp_path / name)


def test_a_missing_file_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is none"):
        zoo.load_weights(network(), tmp_path / "absent.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="state dict"):
        zoo.load_weights(network(), tmp_path / "list.pt")
