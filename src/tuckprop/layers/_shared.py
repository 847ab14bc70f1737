"""One tensor that several layers read is packed once."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tuckprop.codecs import Packed

# The tensor's version and, by codec, its form. An entry lives as long as the tensor itself, which the forms must not
# keep alive: they are made from a detached alias.
_forms: WeakIdKeyDictionary = WeakIdKeyDictionary()


def shared(x: Tensor, codec: Hashable, compress: Callable[[Tensor], Packed | None]) -> Packed | None:
    """Return the form of `x` under `codec`: the one made for another layer, if `x` has not changed since, or a new one.

    Args:
        x: The activation.
        codec: What the form depends on besides `x`.
        compress: Makes the form, or returns None where there is none; called without gradients.

    Returns:
        The form, or None.
    """
    version, forms = _forms.get(x, (-1, {}))
    if version != x._version:
        forms = {}
        _forms[x] = (x._version, forms)
    if codec not in forms:
        with torch.no_grad():
            forms[codec] = compress(x.detach())
    packed: Packed | None = forms[codec]
    return packed
