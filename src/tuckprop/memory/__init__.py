"""Three numbers that are never mixed: bytes held for backward, the paper's count, the peak."""

from tuckprop.memory.census import Census, census
from tuckprop.memory.heap import keep_freed_memory, return_freed_memory
from tuckprop.memory.measure import MemoryReport, SiteBytes, measure
from tuckprop.memory.paper import PaperCounter
from tuckprop.memory.peak import allocator_peak, peak_rss

__all__ = [
    "Census",
    "MemoryReport",
    "PaperCounter",
    "SiteBytes",
    "allocator_peak",
    "census",
    "keep_freed_memory",
    "measure",
    "peak_rss",
    "return_freed_memory",
]
