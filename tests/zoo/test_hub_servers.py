"""Public weights come from a server on this machine, as from the hubs: once, whole, and again after a failure."""

import errno
import hashlib
import importlib
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.servers import Server
from tests.zoo.releases import released
from tuckprop import zoo
from tuckprop.errors import DataError
from tuckprop.zoo import mcunet_weights
from tuckprop.zoo.hub import import_timm

THEIRS = {"resnet18": "resnet18", "mobilenetv2": "mobilenet_v2"}
TIMM, REPOSITORY = "test_resnet", "timm/test_resnet.r160_in1k"
FAULTS = ("cut", "short", "chunks", "reset", "dropped", "missing")


def saved(content: object) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@dataclass
class Published:
    """Weights on the server.

    Attributes:
        network: The name of the network that they are for.
        source: A network that has them.
        path: Where they are on the server.
        kept: The file that the hub's client keeps.
    """

    network: str
    source: nn.Module
    path: str
    kept: Path

    def load(self) -> None:
        """Load them into a fresh network, and compare."""
        model = zoo.build(self.network, 1000)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        loaded = zoo.load_hub_weights(self.network, model)
        assert loaded.fresh == ()
        for name, value in self.source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        assert any(not torch.equal(before[name], value) for name, value in self.source.state_dict().items())

    def fails(self, said: str) -> None:
        """Load them, and check that this fails with one clear text that leaves the network as it was."""
        model = zoo.build(self.network, 1000)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(
            DataError, match=rf"^network '{self.network}': cannot download .*{said}.*; use --weights FILE, .*$"
        ) as caught:
            zoo.load_hub_weights(self.network, model)
        assert "\n" not in str(caught.value)
        for name, value in before.items():
            assert torch.equal(model.state_dict()[name], value), name


def hashed(name: str, content: bytes) -> str:
    """Return a file's name with the first digits of its hash, as PyTorch's hub checks it."""
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def publish_torchvision(server: Server, monkeypatch: pytest.MonkeyPatch, checkpoints: Path, network: str) -> Published:
    source = zoo.build(network, 1000)
    content = saved(source.state_dict())
    name = hashed(network, content)
    server.files[f"/models/{name}"] = content
    zoo.import_torchvision()
    enum = importlib.import_module("torchvision.models").get_model_weights(THEIRS[network])
    monkeypatch.setattr(enum, "url", property(lambda weights: f"{server.url}/models/{name}"))
    return Published(network, source, f"/models/{name}", checkpoints / name)


def publish_mcunet(server: Server, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Published:
    source = zoo.build("mcunet_bn", 1000)
    path = urlsplit(mcunet_weights.URL).path
    server.files[path] = saved({"state_dict": released(source), "epoch": 3})
    monkeypatch.setattr(mcunet_weights, "URL", server.url + path)
    return Published("mcunet_bn", source, path, checkpoints / Path(path).name)


def publish_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch, checkpoints: Path) -> Published:
    """Publish weights of a network of timm's that is not in the Hugging Face hub."""
    source = import_timm().create_model(TIMM)
    content = saved(source.state_dict())
    name = hashed("resnet", content)
    server.files[f"/releases/{name}"] = content
    registry = importlib.import_module("timm.models._registry")._model_pretrained_cfgs
    config = replace(registry[TIMM], hf_hub_id=None, url=f"{server.url}/releases/{name}")
    monkeypatch.setitem(registry, TIMM, config)
    # timm's default.
    monkeypatch.setattr(importlib.import_module("timm.models._builder"), "_CHECK_HASH", False)
    return Published(f"timm:{TIMM}", source, f"/releases/{name}", checkpoints / name)


@pytest.fixture(params=["resnet18", "mobilenetv2", "mcunet_bn", "timm"])
def published(
    request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Published:
    """Publish one network's weights after the other's, for torch.hub."""
    checkpoints = tmp_path / "cache" / "hub" / "checkpoints"
    torch.manual_seed(11)
    if request.param in THEIRS:
        return publish_torchvision(server, monkeypatch, checkpoints, request.param)
    publish = {"mcunet_bn": publish_mcunet, "timm": publish_elsewhere}[request.param]
    return publish(server, monkeypatch, checkpoints)


def test_weights_are_downloaded_once(server: Server, published: Published) -> None:
    for _ in range(2):
        published.load()
    assert server.asked == [published.path]
    assert [path.name for path in published.kept.parent.iterdir()] == [published.kept.name]


def test_after_a_download_that_failed_the_next_is_whole(server: Server, published: Published) -> None:
    said = {
        "cut": "cut short or damaged, and is removed" if published.network == "mcunet_bn" else "invalid hash value",
        "chunks": "IncompleteRead",
        "reset": "reset by peer",
        "dropped": "closed connection without response",
        "missing": "HTTP Error 404",
    }
    said["short"] = said["cut"]
    assert set(said) == set(FAULTS)
    for fault in FAULTS:
        server.faults[published.path] = [fault]
        published.fails(said[fault])
        assert not list(published.kept.parent.iterdir())
    published.load()
    assert server.asked == [published.path] * (len(FAULTS) + 1)


@pytest.mark.parametrize("published", [*THEIRS, "mcunet_bn"], indirect=True)
def test_a_damaged_file_in_the_cache_is_fetched_anew(server: Server, published: Published) -> None:
    published.kept.parent.mkdir(parents=True)
    published.kept.write_bytes(server.files[published.path][:5000])
    published.fails(f"{published.kept.name} was cut short or damaged, and is removed from {published.kept.parent}")
    published.load()
    assert server.asked == [published.path]


@pytest.mark.parametrize(
    "error",
    [MemoryError("no room"), OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many")],
    ids=repr,
)
def test_a_whole_file_stays_where_the_machine_is_at_fault(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    published = publish_mcunet(server, monkeypatch, tmp_path / "cache" / "hub" / "checkpoints")
    published.load()

    def fail(*arguments: object, **settings: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        published.fails(str(error).partition("] ")[2] or str(error))
    published.load()
    assert server.asked == [published.path]


def test_a_page_in_place_of_mcunets_file_is_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = publish_mcunet(server, monkeypatch, tmp_path / "cache" / "hub" / "checkpoints")
    whole = server.files[published.path]
    for other in (b"<html>moved</html>", saved({"weights": {}}), saved([1, 2])):
        server.files[published.path] = other
        published.fails("cut short or damaged")
    server.files[published.path] = whole
    published.load()


def test_without_a_server_a_file_is_advised(server: Server, published: Published) -> None:
    server.close()
    published.fails("Connection refused")


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Published:
    """Publish timm's weights as the Hugging Face hub does, in the format of today."""
    constants = importlib.import_module("huggingface_hub.constants")
    client = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # It waits between its tries.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    # A client knows the proxies of the time that it was made.
    client.close_session()
    torch.manual_seed(11)
    source = import_timm().create_model(TIMM)
    path = f"/{REPOSITORY}/resolve/main/model.safetensors"
    server.files[path] = safetensors.torch.save(dict(source.state_dict()))
    server.headers = {"ETag": '"0a1b2c"', "X-Repo-Commit": "0123456789abcdef0123456789abcdef01234567"}
    return Published(f"timm:{TIMM}", source, path, tmp_path / "hub")


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("https://host/gcvit_tiny_224_nvidia-ac783954.pth", True),
        ("https://host/IN1K-vit.h.14-300e.pth.tar", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_timm_checks_a_hash_where_there_is_one_and_is_as_it_was_then(
    monkeypatch: pytest.MonkeyPatch, url: str, checked: bool, before: bool
) -> None:
    timm, model = import_timm(), zoo.build(f"timm:{TIMM}", 1000)
    builder = importlib.import_module("timm.models._builder")
    monkeypatch.setattr(builder, "_CHECK_HASH", before)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: SimpleNamespace(url=url, classifier="fc"))
    create, seen = timm.create_model, []

    def create_model(name: str, pretrained: bool, in_chans: int) -> nn.Module:
        seen.append(builder._CHECK_HASH)
        return create(name, in_chans=in_chans)

    monkeypatch.setattr(timm, "create_model", create_model)
    zoo.load_hub_weights(f"timm:{TIMM}", model)
    assert seen == [checked]
    assert builder._CHECK_HASH is before


def asked(server: Server) -> list[str]:
    """Return the files asked for; a client may ask for other things besides."""
    return [path for path in server.asked if "/resolve/" in path]


def blobs(hub: Published) -> list[Path]:
    """Return the files that the client keeps."""
    return [path for path in hub.kept.rglob("*") if path.is_file() and path.parent.name == "blobs"]


def test_timms_weights_are_downloaded_once(server: Server, hub: Published) -> None:
    for _ in range(2):
        hub.load()
    assert asked(server) == [hub.path]
    assert len(blobs(hub)) == 1


def test_timms_weights_may_be_in_the_format_of_before(server: Server, hub: Published) -> None:
    del server.files[hub.path]
    path = hub.path.replace("model.safetensors", "pytorch_model.bin")
    server.files[path] = saved(hub.source.state_dict())
    for _ in range(2):
        hub.load()
    assert asked(server) == [path]


def test_timms_client_goes_on_where_it_was_cut_off(server: Server, hub: Published) -> None:
    server.faults[hub.path] = ["cut"]
    hub.load()
    assert asked(server) == [hub.path] * 2


@pytest.mark.parametrize(
    ("fault", "times", "said"),
    [("dropped", 6, "disconnected"), ("reset", 1, "reset by peer"), ("short", 1, "Consistency"), ("missing", 1, "404")],
)
def test_after_a_download_of_timms_that_failed_the_next_is_whole(
    server: Server, hub: Published, fault: str, times: int, said: str
) -> None:
    server.faults[hub.path] = [fault] * times
    hub.fails(said)
    assert server.faults[hub.path] == []
    assert blobs(hub) == []
    hub.load()
    assert asked(server) == [hub.path] * (times + 1)


def test_without_timms_hub_a_file_is_advised(server: Server, hub: Published) -> None:
    server.close()
    hub.fails("")


def test_where_timms_weights_are_there_no_hub_is_needed(server: Server, hub: Published) -> None:
    hub.load()
    server.close()
    hub.load()
