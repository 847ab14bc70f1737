"""Data sets are downloaded whole, from a server on this machine, whatever goes wrong on the way."""

import errno
import importlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.published import SHELVES, Remote, pack, serve
from tests.data.scene_trees import write_ade20k
from tests.data.trees import write_cub200, write_lines
from tests.servers import Server
from tuckprop import zoo
from tuckprop.data import (
    _download,
    ade20k,
    cifar10,
    cifar100,
    cityscapes,
    cub200,
    datasets,
    flowers102,
    food101,
    imagenet,
    pets,
    voc2012,
)
from tuckprop.errors import DataError


@pytest.fixture
def remote(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Remote]:
    """Return what publishes a data set on the server."""
    return lambda name: Remote(name, server, monkeypatch, tmp_path)


ROOMS = (ade20k, cifar10, cifar100, cityscapes, cub200, flowers102, food101, imagenet, pets, voc2012)


def test_all_data_sets_with_addresses_are_on_the_shelves() -> None:
    assert set(SHELVES) == {room.PLACE.cache for room in ROOMS if room.PLACE.archives}


@pytest.mark.parametrize("name", SHELVES)
def test_a_data_set_is_downloaded_once(server: Server, remote: Callable[[str], Remote], name: str) -> None:
    published = remote(name)
    for _ in range(2):
        published.check()
    assert sorted(server.asked) == sorted(published.paths)
    assert published.beside() == [name]
    files = {path.relative_to(published.tree) for path in published.tree.rglob("*") if path.is_file()}
    assert {path.relative_to(published.root) for path in published.root.rglob("*") if path.is_file()} == files


def test_addresses_and_sums_are_torchvisions() -> None:
    zoo.import_torchvision()
    theirs = importlib.import_module("torchvision.datasets")
    flowers, voc = theirs.Flowers102, importlib.import_module("torchvision.datasets.voc").DATASET_YEAR_DICT["2012"]
    expected = {
        theirs.CIFAR10.url: theirs.CIFAR10.tgz_md5,
        theirs.CIFAR100.url: theirs.CIFAR100.tgz_md5,
        theirs.Food101._URL: theirs.Food101._MD5,
        theirs.SBDataset.url: theirs.SBDataset.md5,
        voc["url"]: voc["md5"],
        **dict(theirs.OxfordIIITPet._RESOURCES),
        **{flowers._download_url_prefix + file: md5 for file, md5 in flowers._file_dict.values()},
    }
    elsewhere = (cub200, ade20k)
    assert {
        archive.address: archive.md5 for room in ROOMS if room not in elsewhere for archive in room.PLACE.archives
    } == expected


FAULTS = {
    "cut": "cut short or damaged: expected the MD5 sum",
    "short": "the next try fetches it anew",
    "chunks": "IncompleteRead",
    "reset": "reset by peer",
    "dropped": "closed connection without response",
    "missing": "HTTP Error 404: Not Found",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_download_that_fails_goes_on_at_the_next_try(
    server: Server, remote: Callable[[str], Remote], fault: str
) -> None:
    published = remote("pets")
    images, annotations = published.paths
    server.faults[annotations] = [fault]
    published.fails(FAULTS[fault])
    # Nothing is where it would be taken for the data set; the first archive is whole, and waits.
    assert published.beside() == ["pets.partial"]
    assert [path.name for path in (published.root.parent / "pets.partial").iterdir()] == ["images.tar.gz"]
    published.check()
    assert Counter(server.asked) == {images: 1, annotations: 2}
    assert published.beside() == ["pets"]


def test_the_error_names_the_address(server: Server, remote: Callable[[str], Remote]) -> None:
    published = remote("cub200")
    server.faults[published.paths[0]] = ["missing"]
    published.fails(f"({server.url}{published.paths[0]}: HTTP Error 404")
    assert published.beside() == []


def test_without_a_server_the_error_says_so(server: Server, remote: Callable[[str], Remote]) -> None:
    published = remote("food101")
    server.close()
    published.fails("Connection refused")


class Stop:
    """Let something work a few times, and then raise."""

    def __init__(self, works: Callable[..., object], times: int, error: BaseException) -> None:
        self.works, self.left, self.error = works, times, error

    def __call__(self, *arguments: object) -> object:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return self.works(*arguments)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_an_unpacking_that_is_cut_off_is_not_taken_for_the_data_set(
    server: Server, remote: Callable[[str], Remote], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    published = remote("cub200")
    with monkeypatch.context() as patch:
        stop = Stop(tarfile.TarFile.makefile, 5, error)
        patch.setattr(tarfile.TarFile, "makefile", lambda *arguments: stop(*arguments))
        if isinstance(error, OSError):
            published.fails("CUB_200_2011.tgz cannot be unpacked: [Errno 28] No space left on device")
        else:
            with pytest.raises(KeyboardInterrupt):
                datasets["cub200"].read(None)
    assert stop.left == 0
    assert published.beside() == ["cub200.partial"]
    assert [path.name for path in (published.root.parent / "cub200.partial").iterdir()] == ["CUB_200_2011.tgz"]
    published.check()
    assert server.asked == published.paths


def test_what_a_killed_run_left_is_cleaned_up(server: Server, remote: Callable[[str], Remote]) -> None:
    published = remote("cub200")
    partial = published.root.parent / "cub200.partial"
    shutil.copytree(published.tree, partial / "unpacking")
    for path in (partial / "unpacking").rglob("*.jpg"):
        path.unlink()
    (partial / "CUB_200_2011.tgz.unchecked.0a.partial").write_bytes(b"half")
    # Its name is there, its bytes never reached the disk.
    (partial / "CUB_200_2011.tgz").write_bytes(b"")
    published.check()
    assert published.beside() == ["cub200"]
    assert server.asked == published.paths


# Of VOC it is all but SBD that has arrived then.
@pytest.mark.parametrize(("name", "times"), [("voc2012", 1), *(("cub200", times) for times in range(6))])
def test_a_move_that_is_cut_off_is_finished_without_a_server(
    server: Server, remote: Callable[[str], Remote], monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    published = remote(name)
    # Its folders are there, so that files are moved one by one: three lists, and a folder of images of each class.
    (published.root / "CUB_200_2011" / "images").mkdir(parents=True)
    with monkeypatch.context() as patch:
        stop = Stop(_download._put, times, KeyboardInterrupt())
        patch.setattr(_download, "_put", stop)
        with pytest.raises(KeyboardInterrupt):
            datasets[name].read(None)
    assert stop.left == 0
    server.files.clear()
    published.check()
    assert published.beside() == [name]
    assert server.asked == published.paths


@pytest.mark.parametrize("times", [0, 1, 4])
def test_a_copy_to_another_disk_that_is_cut_off_leaves_no_half_file(
    server: Server, remote: Callable[[str], Remote], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    published, rename = remote("cub200"), Path.rename

    def across(self: Path, target: Path) -> Path:
        if "whole" in self.parts:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    def half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[: 3 if stop.left == 0 else None])
        stop()

    monkeypatch.setattr(Path, "rename", across)
    stop = Stop(lambda: None, times, KeyboardInterrupt())
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", half)
        with pytest.raises(KeyboardInterrupt):
            datasets["cub200"].read(None)
    server.files.clear()
    published.check()
    assert published.beside() == ["cub200"]
    for path in (path for path in published.tree.rglob("*") if path.is_file()):
        assert (published.root / path.relative_to(published.tree)).read_bytes() == path.read_bytes()
    assert not list(published.root.rglob("*.partial"))


def test_what_a_user_put_there_stays(server: Server, remote: Callable[[str], Remote]) -> None:
    published = remote("cub200")
    mine = {
        "notes.txt": b"of my own",
        "CUB_200_2011/notes.txt": b"more",
        # The same list, but for an empty line.
        "CUB_200_2011/images.txt": (published.tree / "CUB_200_2011" / "images.txt").read_bytes() + b"\n",
        "CUB_200_2011/images/001.Albatross/mine.jpg": b"a bird",
    }
    for name, content in mine.items():
        (published.root / name).parent.mkdir(parents=True, exist_ok=True)
        (published.root / name).write_bytes(content)
    server.faults[published.paths[0]] = ["cut"]
    published.fails("cut short")
    published.check()
    assert {name: (published.root / name).read_bytes() for name in mine} == mine


def test_the_folder_may_be_a_link(remote: Callable[[str], Remote], tmp_path: Path) -> None:
    published = remote("voc2012")
    published.root.parent.mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    published.root.symlink_to(tmp_path / "disk" / "voc")
    published.check()
    assert published.root.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir() if path.suffix != ".lock"] == ["voc"]


def test_two_at_once_download_once(server: Server, remote: Callable[[str], Remote]) -> None:
    published = remote("pets")
    server.faults = {path: ["slow"] for path in published.paths}
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(datasets["pets"].read(None)[0].labels.tolist())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [datasets["pets"].read(published.tree)[0].labels.tolist()] * 3
    assert Counter(server.asked) == dict.fromkeys(published.paths, 1)


def test_a_full_disk_leaves_nothing_behind(remote: Callable[[str], Remote], tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    published = remote("cub200")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files of this process cannot grow beyond that.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        published.fails("[Errno 27] File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert published.beside() == []
    published.check()


def test_a_cache_that_cannot_be_written_is_named(
    remote: Callable[[str], Remote], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = remote("cub200")
    (tmp_path / "cache").write_text("no folder")
    published.fails("tuckprop")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into an archive, whatever its name."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no filter")
@pytest.mark.parametrize("name", ["../../../evil.txt", "images/../../../../evil.txt"])
def test_a_tar_that_leads_elsewhere_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        tar.add(write_cub200(tmp_path / "tree") / "CUB_200_2011", "CUB_200_2011")
        add(tar, name, b"evil")
    serve(server, monkeypatch, cub200, {"CUB_200_2011.tgz": (tmp_path / "x.tgz").read_bytes()})
    with pytest.raises(DataError, match=r"tgz cannot be unpacked: .*outside the destination.*--data-path"):
        datasets["cub200"].read(None)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "cache" / "tuckprop" / "cub200").exists()


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="this Python has no filter")
def test_absolute_paths_stay_within(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "evil.txt"
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        tar.add(write_cub200(tmp_path / "tree") / "CUB_200_2011", "CUB_200_2011")
        add(tar, str(outside), b"evil")
    shutil.make_archive(str(tmp_path / "x"), "zip", write_ade20k(tmp_path / "tree"), "ADEChallengeData2016")
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as file:
        file.writestr(str(outside), b"evil")
        file.writestr("../../../outside/evil.txt", b"evil")
    serve(server, monkeypatch, cub200, {"CUB_200_2011.tgz": (tmp_path / "x.tgz").read_bytes()})
    serve(server, monkeypatch, ade20k, {"ADEChallengeData2016.zip": (tmp_path / "x.zip").read_bytes()})
    for name in ("cub200", "ade20k"):
        assert len(datasets[name].read(None)[0].labels) > 1
    assert not outside.parent.exists()


def test_a_tar_that_is_not_compressed_may_be_called_tgz(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = pack(write_cub200(tmp_path / "tree") / "CUB_200_2011", "x.tar", tmp_path)
    serve(server, monkeypatch, cub200, {"CUB_200_2011.tgz": content})
    assert datasets["cub200"].read(None)[0].labels.tolist() == [0, 1, 199, 0]


def test_other_files_than_the_data_sets_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_lines(tmp_path / "other" / "images.txt", "1 a.jpg")
    serve(server, monkeypatch, cub200, {"CUB_200_2011.tgz": pack(tmp_path / "other", "x.tgz", tmp_path)})
    with pytest.raises(DataError, match=r"files in CUB_200_2011\.tgz, other files are in there.*--data-path"):
        datasets["cub200"].read(None)
    assert not (tmp_path / "cache" / "tuckprop" / "cub200").exists()
