"""A cache of comments' scores: exact, bounded in bytes, the longest unused goes first.

The key is a comment itself (the full text, or its full bytes), so a hit has compared all of it: no hash stands for a
comment. Stands beside the ``model.py`` that uses it; written there by the exporter: change
``export/templates/cascade_cache.py`` instead.
"""

import sys
from collections import OrderedDict

LARGEST_SHARE = 16
"""An entry of more than this part of the cache is not stored: one flood of text does not push out everything else."""
ROUNDING_BYTES = 16
"""What the allocator adds to an object, at most."""

Key = str | bytes


class CommentCache:
    """Not safe for several threads by itself: its user holds a lock.

    :param max_bytes: of keys, values and the table together; 0 switches the cache off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: OrderedDict[Key, bytes] = OrderedDict()
        self.content_bytes = 0

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def used_bytes(self) -> int:
        return self.content_bytes + sys.getsizeof(self.entries)

    def get(self, key: Key) -> bytes | None:
        value = self.entries.get(key)
        if value is not None:
            self.entries.move_to_end(key)
        return value

    def put(self, key: Key, value: bytes) -> None:
        if not self.max_bytes:
            return
        size = entry_bytes(key, value)
        if size * LARGEST_SHARE > self.max_bytes or key in self.entries:
            return
        self.entries[key] = value
        self.content_bytes += size
        while self.used_bytes > self.max_bytes and self.entries:
            self.content_bytes -= entry_bytes(*self.entries.popitem(last=False))


def entry_bytes(key: Key, value: bytes) -> int:
    return sys.getsizeof(key) + sys.getsizeof(value) + 2 * ROUNDING_BYTES
