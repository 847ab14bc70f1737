"""A mark for what needs a C compiler."""

import pytest

from tuckprop.native import _build

needs_compiler = pytest.mark.skipif(_build.library() is None, reason="no C compiler here")
