"""From settings to a model, its data, and a place to run: the steps that training, `plan` and `measure` share."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from tuckprop import GradientFilter, convert, freeze, plan, recompute, zoo
from tuckprop.convert import keep_frozen
from tuckprop.data import Loaded, load
from tuckprop.errors import ConfigError
from tuckprop.layers.recomputed_block import RecomputedBlock
from tuckprop.plan import CodecChoice, Select, choose_sites, names_beside
from tuckprop.train.classification import Classification
from tuckprop.train.segmentation import Segmentation
from tuckprop.train.settings import Compression, DataSettings, Machine, NetworkSettings
from tuckprop.train.task import Task


@dataclass(frozen=True)
class Prepared:
    """A network and its data.

    Attributes:
        model: The plain network, on its device, in train mode.
        name: The network's name.
        data: Batches, on the CPU.
        task: What the data is for.
        device: Where the model is.
        weights: What was loaded from a weight file or a hub; None without either.
    """

    model: nn.Module
    name: str
    data: Loaded
    task: Task
    device: torch.device
    weights: zoo.Loaded | None


def prepare(network: NetworkSettings, data: DataSettings, machine: Machine, seed: int) -> Prepared:
    """Read the data and make the network that fits it.

    Args:
        network: Which network.
        data: Which images.
        machine: Where to.
        seed: Decides split, subset and initial weights; also seeds PyTorch's global random state.

    Returns:
        Network and data.

    Raises:
        ConfigError: A setting has a value that cannot be used.
        DataError: Data or weights are missing or do not fit.
    """
    device = find_device(machine.device)
    if machine.threads is not None:
        if machine.threads < 1:
            raise ConfigError(f"threads: expected at least 1, got {machine.threads}")
        torch.set_num_threads(machine.threads)
    loaded = load(
        data.data,
        data.data_path,
        seed=seed,
        batch_size=data.batch_size,
        resolution=data.resolution,
        train_size=data.train_size,
        val_size=data.val_size,
        drop_last=data.drop_last,
        half=data.half,
    )
    name = network.model or loaded.network
    torch.manual_seed(seed)
    model = zoo.build(name, len(loaded.classes), loaded.channels)
    weights = _load_weights(model, name, network)
    model.to(device)
    if machine.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A data set says that it has a class for a pixel; those for classification need not speak of it.
    task: Task = Segmentation(len(loaded.classes)) if loaded.per_pixel else Classification()
    return Prepared(model, name, loaded, task, device, weights)


def _load_weights(model: nn.Module, name: str, network: NetworkSettings) -> zoo.Loaded | None:
    if network.pretrained and network.weights is not None:
        raise ConfigError(f"pretrained: expected it alone or weights from a file, got {network.weights} besides")
    if network.pretrained:
        return zoo.load_hub_weights(name, model)
    return None if network.weights is None else zoo.load_weights(model, network.weights)


def find_device(name: str | None) -> torch.device:
    """Return the device of that name; None takes a GPU where there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: expected one that this machine has, such as cpu, got {name!r}: {reason}") from error
    return device


def compress(prepared: Prepared, settings: Compression) -> tuple[str, ...]:
    """Freeze and convert the model as the settings say, in place.

    Args:
        prepared: A plain model, and the data whose first batch a byte budget is measured on.
        settings: How activations are kept.

    Returns:
        Names of the layers whose activations the paper counts, for every method the same; of the blocks, where those
        are computed again.

    Raises:
        ConfigError: A setting does not fit the model.
    """
    if settings.budget is not None and settings.codec is None:
        raise ConfigError("budget: expected a codec to set with it, got plain training; pass --codec subspace")
    model = prepared.model
    if settings.recompute:
        return _recompute(model, settings)
    choice = choose(prepared, settings)
    last, select = choice.last, choice.select
    keep_frozen(model, choice.frozen, batch_norms=choice.frozen_norms)
    sites = tuple(choose_sites(model, last=last, select=select))
    if choice.codec is not None and settings.budget is not None:
        images, _ = next(iter(prepared.data.train.serve()))
        planned = plan(
            model,
            images.to(prepared.device),
            choice.codec,
            last=last,
            select=select,
            pointwise=settings.pointwise,
            budget=settings.budget,
        )
        convert(model, planned)
    elif choice.codec is not None:
        convert(model, choice.codec, last=last, select=select, pointwise=settings.pointwise)
    elif last is not None:
        freeze(model, last=last, select=select)
    return sites


def _recompute(model: nn.Module, settings: Compression) -> tuple[str, ...]:
    """Convert the model so that its blocks are computed again; return the names of blocks and of layers beside them."""
    if settings.codec is None:
        raise ConfigError("recompute: expected a codec for the blocks' inputs, got plain training; pass --codec hosvd8")
    for name in ("select", "paper_layers", "paper_patches", "train_only", "pointwise", "budget"):
        if (value := getattr(settings, name)) != getattr(Compression(), name):
            raise ConfigError(f"recompute: expected it without {name}, got {name} {value!r}")
    layers = choose_sites(model, last=settings.last)
    recompute(model, settings.codec, last=settings.last)
    blocks = [name for name, module in model.named_modules() if isinstance(module, RecomputedBlock)]
    inside = tuple(f"{name}." for name in blocks)
    return (*blocks, *(name for name in layers if not name.startswith(inside)))


@dataclass(frozen=True)
class Choice:
    """Which layers are trained and compressed.

    Attributes:
        last: As `tuckprop.convert` takes it.
        select: As `tuckprop.convert` takes it.
        codec: As `tuckprop.convert` takes it; None trains the plain model.
        frozen: Names of modules to freeze besides what `last` freezes.
        frozen_norms: Keep batch norms among those in eval mode, as the others.
    """

    last: int | None
    select: Select | None
    codec: CodecChoice | None
    frozen: tuple[str, ...] = ()
    frozen_norms: bool = True


def choose(prepared: Prepared, settings: Compression) -> Choice:
    """Return which layers of the model the settings mean, and how each is compressed.

    Raises:
        ConfigError: The layers are given twice, the model has no such module, or the paper has no such list or patches.
    """
    pattern, count, codec = settings.select, settings.paper_layers, settings.codec
    if settings.paper_patches and (count is None or not isinstance(codec, GradientFilter)):
        raise ConfigError(
            "paper_patches: expected codec gradient_filter and paper_layers 5 or 10 beside it, got "
            f"{codec or 'plain'} and paper_layers {count}"
        )
    if settings.train_only is not None:
        return _choose_modules(prepared.model, settings.train_only, settings)
    if count is None:
        select = None if pattern is None else lambda name, module: fnmatchcase(name, pattern)
        return Choice(settings.last, select, codec)
    for name in ("last", "select"):
        if (value := getattr(settings, name)) is not None:
            raise ConfigError(
                f"paper_layers: expected it alone or {name}, got {count} and {name} {value!r}; the paper's list says "
                "which layers are trained and compressed"
            )
    layers = zoo.paper_layers(prepared.name, count)
    frozen = names_beside(prepared.model, zoo.paper_trained(prepared.name, count))
    by_layer = {name: GradientFilter(patch) for name, patch in zoo.paper_patches(prepared.name, count).items()}
    chosen: CodecChoice | None = by_layer if settings.paper_patches else codec
    return Choice(None, lambda name, module: name in layers, chosen, frozen)


def _choose_modules(model: nn.Module, names: tuple[str, ...], settings: Compression) -> Choice:
    """Return the choice of what is in the modules of these names."""
    for other in ("last", "paper_layers"):
        if (value := getattr(settings, other)) is not None:
            raise ConfigError(f"train_only: expected it alone or {other}, got {' '.join(names)} and {other} {value!r}")
    known = dict(model.named_modules())
    if absent := [name for name in names if name not in known]:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"train_only: expected names of modules such as {parts}, got {absent[0]!r}")
    pattern = settings.select

    def select(name: str, module: nn.Module) -> bool:
        inside = any(f"{name}.".startswith(f"{part}.") for part in names)
        return inside and (pattern is None or fnmatchcase(name, pattern))

    return Choice(None, select, settings.codec, names_beside(model, names), frozen_norms=False)
