"""The processes of a server: how much CPU they used, and a pause while another server is measured."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from serve.probe import look_at

TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> list[int]:
    """``root``, its descendants, and what else is in their sessions: a child that outlived its parent, say."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    if root not in parents:
        return []
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    # a session that one of them leads; that of the caller is none of them
    own = {sessions[pid] for pid in found if sessions[pid] in found}
    return found + [pid for pid in parents if sessions[pid] in own and pid not in found]


def living(pid: int) -> str | None:
    """The name of a process, 15 characters at most; ``None`` where it is gone, or dead."""
    found = look_at(pid)
    return None if found is None or found.state in "ZX" else found.name


def cpu_s(root: int) -> float:
    """Seconds of CPU that the processes of a server used since they started."""
    total = 0
    for pid in tree(root):
        if (fields := _stat(pid)) is not None:
            total += sum(int(ticks) for ticks in fields[11:15])  # its own, and of children that ended
    return total / TICKS


def stolen_s() -> float:
    """Seconds of CPU, of all cores, that this machine's host gave to others since it started: what it takes, no program
    here can use. 0 where the system does not tell.
    """
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) / TICKS if len(fields) > 8 else 0.0


def memory_bytes(root: int) -> int:
    """Resident memory of the processes of a server; what they share is counted in each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(fields[21]) * page for pid in tree(root) if (fields := _stat(pid)) is not None)


def pause(root: int) -> None:
    """Stop them where they are: an idle server that polls would take CPU from the one that is measured."""
    for pid in tree(root):
        _signal(pid, signal.SIGSTOP)


def resume(root: int) -> None:
    """Go on, children first: a parent that watches over them must not find one that does not answer."""
    for pid in reversed(tree(root)):
        _signal(pid, signal.SIGCONT)


def kill(root: int) -> None:
    for pid in tree(root):
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` from the state on; ``None`` where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
