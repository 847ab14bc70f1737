"""Tells an activation that is packed again from one that is packed for the first time.

`torch.utils.checkpoint` runs a block twice: in forward, and in backward, to have again what it did not keep. Where both
runs pack, the second must store what the first did, and not move the state a second time. Its reentrant kind packs in
backward alone, and moves the state there.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from tuckprop.codecs._recent import Recent


@dataclass
class Recomputation:
    """What a tracker has packed outside of a backward pass.

    Attributes:
        packed: Keys of those activations, of the last few.
    """

    packed: Recent[Hashable, None] = field(default_factory=Recent)

    def repeats(self, key: Hashable) -> bool:
        """Say whether an activation of this key is packed again, in backward, after it was in forward."""
        if torch._C._current_graph_task_id() != -1:
            return key in self.packed
        self.packed[key] = None
        return False
