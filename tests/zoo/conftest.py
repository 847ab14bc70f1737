"""Fixtures of this room."""

from tests.data.shared import shared_data
from tests.servers import server

__all__ = ["server", "shared_data"]
