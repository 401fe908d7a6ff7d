"""The server's processes on this machine: which they are, what memory they hold, what they leave in /dev/shm."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.processes import tree

PROC, SHARED_MEMORY = Path("/proc"), Path("/dev/shm")
LISTENING = "0A"


def listener(port: int) -> int | None:
    """The process that listens on a TCP port of this machine; ``None`` where there is none that we may look into."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        file = PROC / "net" / table
        for line in file.read_text().splitlines()[1:] if file.is_file() else ():
            words = line.split()
            if words[3] == LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{words[9]}]")
    if not sockets:
        return None
    for process in PROC.glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # it ended, or is another user's
            continue
    return None


def resident_bytes(process: int) -> int:
    """Resident memory; 0 for a process that is gone."""
    try:
        match = re.search(r"^VmRSS:\s+(\d+) kB", (PROC / str(process) / "status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def shared_memory_prefix(server: int) -> str | None:
    """What the names of the server's shared memory begin with, from its command line."""
    try:
        words = (PROC / str(server) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next(
        (word.partition("shm-region-prefix-name=")[2] for word in words if "shm-region-prefix-name=" in word), None
    )


def shared_memory(prefix: str) -> dict[str, int]:
    """Files in /dev/shm whose names begin so, with their sizes in bytes."""
    found = {}
    for file in SHARED_MEMORY.glob(f"{prefix}*"):
        try:
            found[file.name] = file.stat().st_size
        except OSError:  # it went just now
            continue
    return found


@dataclass
class Watch:
    """Samples of the server's memory.

    :ivar rows: ``(seconds since the start, bytes of each process)``.
    """

    server: int
    every_s: float = 0.5
    rows: list[tuple[float, dict[int, int]]] = field(default_factory=list)
    start_s: float = field(default_factory=time.perf_counter)

    def look(self) -> None:
        now_s = time.perf_counter() - self.start_s
        self.rows.append((now_s, {process: resident_bytes(process) for process in tree(self.server)}))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(self.every_s)

    def growth(self, since_s: float, until_s: float) -> float | None:
        """Resident memory of all processes in the last tenth of a time over that in the first tenth, less one.

        Means of a tenth, as single samples jump. ``None`` where there are too few.
        """
        totals = [sum(sizes.values()) for at_s, sizes in self.rows if since_s <= at_s <= until_s]
        part = max(1, len(totals) // 10)
        if len(totals) < 2:
            return None
        first, last = sum(totals[:part]) / part, sum(totals[-part:]) / part
        return last / first - 1 if first else None

    def to_json(self, most: int = 200) -> list[dict[str, object]]:
        """At most so many rows, evenly spread: seconds, and MB in all and of each process."""
        step = max(1, -(-len(self.rows) // most))
        return [
            {
                "s": round(at_s, 1),
                "mb": round(sum(sizes.values()) / 1e6, 1),
                "processes": {str(process): round(size / 1e6, 1) for process, size in sizes.items()},
            }
            for at_s, sizes in self.rows[::step]
        ]
