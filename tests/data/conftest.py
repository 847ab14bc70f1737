"""Fixtures of this room."""

from tests.data.shared import shared_data

__all__ = ["shared_data"]
