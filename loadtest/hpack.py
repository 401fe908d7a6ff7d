"""The path of a call, out of HTTP/2's compressed headers (HPACK, RFC 7541), for the stub server."""

from __future__ import annotations

from collections import deque

from loadtest.connections import integer

PATH, OVERHEAD, TABLE_BYTES = b":path", 32, 4096
# RFC 7541, appendix A: the names are needed in full, as their lengths count towards the size of a client's table
STATIC = tuple(
    name.encode()
    for name in (
        ":authority :method :method :path :path :scheme :scheme "
        ":status :status :status :status :status :status :status "
        "accept-charset accept-encoding accept-language accept-ranges accept access-control-allow-origin age allow "
        "authorization cache-control content-disposition content-encoding content-language content-length "
        "content-location content-range content-type cookie date etag expect expires from host if-match "
        "if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards "
        "proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie "
        "strict-transport-security transfer-encoding user-agent vary via www-authenticate"
    ).split()
)


class Headers:
    """One connection's headers, as its client sends them. The newest entry of the client's table is the first."""

    def __init__(self) -> None:
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._size, self._limit = 0, TABLE_BYTES
        self._known: dict[bytes, bytes] = {}  # blocks that change nothing, until the table changes

    def path(self, block: bytes) -> bytes:
        """The value of ``:path`` in a header block; every block of a connection must be given, in order.

        :raises OSError: when there is none, or a text is in Huffman's code, which gRPC's C core and ours do not use.
        """
        if block in self._known:
            return self._known[block]
        found, at, changed = b"", 0, False
        while at < len(block):
            first = block[at]
            if first & 0xE0 == 0x20:
                self._limit, at = integer(block, at, 5)
                self._evict()
                changed = True
                continue
            if first & 0x80:
                index, at = integer(block, at, 7)
                name, value = self._entry(index)
            else:
                index, at = integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name, _ = self._entry(index)
                else:
                    name, at = _text(block, at)
                value, at = _text(block, at)
                if first & 0x40:
                    self._table.appendleft((name, value))
                    self._size += len(name) + len(value) + OVERHEAD
                    self._evict()
                    changed = True
            if name == PATH:
                found = value
        if not found:
            raise OSError("a request without a path")
        if changed:
            self._known.clear()
        else:
            self._known[block] = found
        return found

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if index <= len(STATIC):
            return STATIC[index - 1], b""
        if index - len(STATIC) > len(self._table):
            raise OSError(f"the header field {index} was never sent")
        return self._table[index - len(STATIC) - 1]

    def _evict(self) -> None:
        while self._size > self._limit and self._table:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + OVERHEAD


def _text(block: bytes, at: int) -> tuple[bytes, int]:
    if block[at] & 0x80:
        raise OSError("a header in Huffman's code, which this stub server cannot read")
    length, at = integer(block, at, 7)
    return block[at : at + length], at + length
