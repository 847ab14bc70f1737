"""Compressed recomputation: gradient checkpointing whose kept input is in a codec's form."""

import glob
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from torch import nn

from tuckprop.codecs import Codec, Dense
from tuckprop.convert import carry_out, keep_frozen
from tuckprop.errors import ConfigError
from tuckprop.layers._twin import Site, become_twin, require_module
from tuckprop.layers.recomputed_block import RecomputedBlock, recomputed
from tuckprop.plan import CodecChoice, chooser, decide, is_compressible


def recompute(
    model: nn.Module,
    codec: CodecChoice,
    *,
    last: int | None = None,
    blocks: str | Collection[str] | None = None,
) -> nn.Module:
    """Make each block of `model` keep its input alone, in the codec's form, and run once more in backward; in place.

    Takes the least memory of all that tuckprop does, for one more forward a step. What lies inside a block is not kept,
    so that a codec may keep the block's input nearly exactly: `HOSVD8(epsilon=0.99)`, say. Layers outside the blocks
    are converted as `tuckprop.convert` does; layers inside keep what the codec `Dense()` keeps, for as long as the
    block is computed again. `tuckprop.revert` undoes it.

    The gradients of a block are those at the input that was kept. So, unlike those of `convert`, the input gradients
    are approximate too, and the rectifiers' masks with them; with `Dense()` all are PyTorch's to rounding.

    A block must compute from its arguments, its own parameters and its own buffers alone, with PyTorch's default random
    numbers if any, and must leave its arguments as they are; most of what breaks this is told by an error. Hooks on
    modules inside a block run twice, once without a graph. While backward computes a block again, stand-ins are in the
    place of its parameters, as with `torch.func.functional_call`: other threads should not read them from the model
    then. Under `nn.DataParallel` blocks stay plain.

    Args:
        model: Any model.
        codec: How inputs are kept: a config, or a mapping from name patterns (as in `fnmatch`) to configs, in which
            blocks are found by their own names.
        last: As for `tuckprop.convert`; only blocks with a layer that is trained are computed again.
        blocks: Name patterns of the blocks, as in `fnmatch`; where one block has another inside, the outer one counts.
            By default what `find_blocks` returns.

    Returns:
        `model`.

    Raises:
        ConfigError: A bad argument, a model that is converted already, no block, or a codec that cannot serve one.

    Example:
        >>> block = lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), block(), block())
        >>> model = tuckprop.recompute(model, tuckprop.HOSVD8(epsilon=0.99), blocks=["1", "2"])
    """
    require_module(model, "recompute")
    choose = chooser(codec)
    modules = dict(model.named_modules())
    whole = decide(model, Dense(), last=last)
    names = _choose(model, blocks, {site.name for site in whole.sites})
    trained = [name for name in names if not _owners(name, modules[name]).issubset(whole.frozen)]
    if not trained:
        raise ConfigError(f"recompute(last={last}): none of the blocks ({', '.join(names)}) has a layer to train")
    sites = {name: Site(name, _serving(name, modules[name], choose(name))) for name in trained}
    inside: dict[str, Codec] = {f"{glob.escape(name)}.*": Dense() for name in trained}
    outside = codec if isinstance(codec, Mapping) else {"*": codec}
    # Chosen before any class changes, so that a bad argument leaves the model as it was.
    plan = decide(model, inside | {k: v for k, v in outside.items() if k not in inside}, last=last)
    carry_out(model, plan)
    keep_frozen(model, plan.frozen)
    for name, site in sites.items():
        become_twin(modules[name], recomputed(type(modules[name])), site)
    return model


def find_blocks(model: nn.Module) -> list[str]:
    """Return the names of a network's blocks: what it repeats, with two or more convolutions or Linear layers in it.

    Those are the innermost members of an `nn.Sequential` or `nn.ModuleList` that have as many and are no plain
    `nn.Sequential` or `nn.ModuleList` themselves: ResNet's BasicBlock, MobileNetV2's InvertedResidual, a layer of a
    transformer.
    """
    modules = dict(model.named_modules())
    lists = (nn.Sequential, nn.ModuleList)
    found: list[str] = []
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]] if name else None
        layers = sum(is_compressible(part) for part in module.modules())
        if type(module) in lists or type(module).forward is nn.Module.forward or is_compressible(module):
            continue
        if isinstance(parent, lists) and layers > 1:
            found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _owners(name: str, block: nn.Module) -> set[str]:
    """Return the full names of the modules of a block that have parameters of their own."""
    return {f"{name}.{part}" if part else name for part, m in block.named_modules() if m._parameters}


def _choose(model: nn.Module, blocks: str | Collection[str] | None, layers: Collection[str]) -> list[str]:
    """Return the names of the blocks that are asked for, in the model's order; `layers` are never blocks."""
    if blocks is None:
        if names := find_blocks(model):
            return names
        raise ConfigError(
            f"recompute(blocks=...): this {type(model).__name__} repeats no block of two convolutions or Linear layers "
            "or more; name some by patterns"
        )
    patterns = [blocks] if isinstance(blocks, str) else list(blocks)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"recompute(blocks=...): expected one pattern of names or more, got {blocks!r}")
    insides = [n for n, m in model.named_modules() if n and n not in layers and any(True for _ in m.children())]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in insides):
            known = ", ".join(insides[:8]) + (", ..." if len(insides) > 8 else "")
            raise ConfigError(
                "recompute(blocks=...): expected patterns of names of modules that have modules inside "
                f"({known}), got {pattern!r}, which matches none"
            )
    matching = [name for name in insides if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return [name for name in matching if not any(name.startswith(f"{other}.") for other in matching)]


def _serving(name: str, block: nn.Module, codec: Codec | None) -> Codec:
    """Return the codec for the input of a block."""
    if codec is None:
        raise ConfigError(f"recompute(codec=...): no pattern of the mapping matches the block {name!r}")
    if reason := RecomputedBlock.refusal(block) or codec.refusal(block):
        raise ConfigError(f"recompute: {codec!r} at {name!r}: {reason}")
    return codec


__all__ = ["find_blocks", "recompute"]
