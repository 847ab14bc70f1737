"""CIFAR-10 in each of the forms that people have it in."""

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from tests.data.trees import CLASSES, pictures, write_batches, write_folder, write_zip
from tuckprop.data.cifar10 import read_cifar10
from tuckprop.errors import DataError


def rewrite(path: Path, **changes: object) -> None:
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(batch | {key.encode(): value for key, value in changes.items()}, protocol=2))


@pytest.mark.parametrize("inside", [False, True])
def test_original_batches_give_their_images_in_order(tmp_path: Path, inside: bool) -> None:
    root = write_batches(tmp_path)
    found, classes = read_cifar10(root / "cifar-10-batches-py" if inside else root)
    images = np.concatenate([pictures(10, seed=number)[0] for number in range(1, 6)])
    assert classes == CLASSES
    assert found.labels.tolist() == [number % 10 for number in range(10)] * 5
    decoded = found.decode(torch.arange(50), 224)
    np.testing.assert_array_equal(decoded.permute(0, 2, 3, 1).numpy(), images)


def test_pickles_of_newer_protocols_and_numpy_are_read_too(tmp_path: Path) -> None:
    root = write_batches(tmp_path)
    path = root / "cifar-10-batches-py" / "data_batch_1"
    batch = {key.decode(): value for key, value in pickle.loads(path.read_bytes()).items()}
    path.write_bytes(pickle.dumps(batch, protocol=4))
    assert len(read_cifar10(root)[0].labels) == 50


def test_folder_and_zip_are_read_with_cifars_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x" / "train")
    archive = write_zip(folder, tmp_path / "train.zip")
    for path in (tmp_path / "x", folder, archive):
        found, classes = read_cifar10(path)
        assert classes == CLASSES
        assert found.labels.tolist() == sorted(number % 10 for number in range(30))


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    root = write_batches(tmp_path)
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {proof}",)

    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataError, match=r"data_batch_3.*system"):
        read_cifar10(root)
    assert not proof.exists()


def test_damaged_batches_are_named(tmp_path: Path) -> None:
    root = write_batches(tmp_path)
    path = root / "cifar-10-batches-py" / "data_batch_2"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(DataError, match="data_batch_2"):
        read_cifar10(root)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match=r"data_batch_2.*list"):
        read_cifar10(root)
    path.write_bytes(whole)
    rewrite(path, labels=[0] * 9 + [10])
    with pytest.raises(DataError, match=r"data_batch_2.*0 to 9, got 10"):
        read_cifar10(root)
    rewrite(path, labels=[0] * 9)
    with pytest.raises(DataError, match=r"data_batch_2.*list of 10"):
        read_cifar10(root)
    rewrite(path, labels=[0] * 10, data=np.zeros((10, 3071), np.uint8))
    with pytest.raises(DataError, match=r"data_batch_2.*3072.*3071"):
        read_cifar10(root)
    path.unlink()
    with pytest.raises(DataError, match="lacks data_batch_2"):
        read_cifar10(root)


def test_a_missing_path_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing at .*absent.*cifar-10-python\.tar\.gz"):
        read_cifar10(tmp_path / "absent")


def test_offline_it_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str, file: str) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError, match=r"no route to host.*cifar-10-python\.tar\.gz.*--data-path"):
        read_cifar10(None)
