"""The paper's predictions as closed forms: pure functions of sizes, ranks and retained variance.

`storage` counts elements, `cost` multiply-adds, `speed` their ratios; `error` bounds what is lost. Each docstring says
whether its formula is the authors' or derived here.
"""

from tuckprop.theory import cost, error, speed, storage
from tuckprop.theory.convolution import Convolution

__all__ = ["Convolution", "cost", "error", "speed", "storage"]
