"""Import torchvision, also where its compiled operators do not match the installed torch.

torchvision 0.28.0, as it is published, has no usable compiled operators beside a CPU build of torch. Its import stops
at `torchvision::nms`, for which it registers a shape function, before any network is reached. Declaring the schemas
that it misses is enough to import it; the operators themselves (for detection) stay unavailable.
"""

import importlib
import sys
from types import ModuleType

import torch

from tuckprop.errors import ConfigError

_MISSING = "operator torchvision::nms does not exist"
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# A library's declarations live as long as the object.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return the torchvision package.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise ConfigError(
            f"torchvision is needed here ({error}); install it: pip install 'tuckprop[models]'"
        ) from error
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    _libraries.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
