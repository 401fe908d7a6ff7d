"""``python -m serve.probe live|ready``: whether the Triton of this machine lives, or can answer.

Triton's own answer is not enough: each Python model has a process of its own, and Triton 2.51 neither starts one again
that died nor becomes unready then, while every request to that model fails. So the processes are looked at, too.
``python -m serve`` watches them, and starts Triton anew (:mod:`serve.watchdog`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
STUB = "triton_python_b"
"""As /proc shortens the name of ``triton_python_backend_stub``."""
AGAIN_S = 0.3
"""A model that is being unloaded ends its process, too, and for a moment nobody has taken note of it."""
STARTING_S = 120.0
"""A Triton that is no older loads its models, and does not answer yet. ``python -m serve`` waits no longer."""
_TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """What ``/proc`` tells of a process.

    :param name: 15 characters at most. :param state: ``Z`` it died and nobody took note, ``T`` it was stopped, ...
    :param born: seconds since the machine was started. :param exit_code: negative for a signal; 0 where it runs.
    """

    pid: int
    name: str
    state: str
    parent: int
    born: float
    exit_code: int


def look_at(pid: int) -> Process | None:
    """``None`` where there is no such process."""
    try:
        before, _, after = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    fields = after.split()
    # numbers as in proc(5), less 3
    born, status = int(fields[19]) / _TICKS, int(fields[49])
    code = os.waitstatus_to_exitcode(status) if fields[0] == "Z" else 0
    return Process(pid, before.partition("(")[2], fields[0], int(fields[1]), born, code)


def processes() -> Iterator[Process]:
    for folder in PROC.glob("[0-9]*"):
        if found := look_at(int(folder.name)):
            yield found


def command_line(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def ending(exit_code: int) -> str:
    """How a process ended, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def servers(http_port: int) -> list[Process]:
    """The ``tritonserver`` processes that were started with this port."""
    option = f"--http-port={http_port}"
    return [each for each in processes() if each.name == "tritonserver" and option in command_line(each.pid)]


def dead_stubs(http_port: int) -> int:
    """How many processes of models have died, which Triton does not clear away, or were stopped."""
    owners = {server.pid for server in servers(http_port)}
    return sum(each.name == STUB and each.state in "ZT" and each.parent in owners for each in processes())


def is_starting(http_port: int) -> bool:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return any(now - server.born < STARTING_S for server in servers(http_port))


def check(what: str, host: str, http_port: int, timeout_s: float) -> str | None:
    """Why it is not ``live`` or ``ready``; ``None`` where it is."""
    if dead_stubs(http_port):
        time.sleep(AGAIN_S)
        if dead := dead_stubs(http_port):
            return f"{dead} of the models' processes died or were stopped, and Triton starts none again: start it anew"
    # asked last: if Triton was ended while the processes were looked at, their death is no longer seen, this is
    url = f"http://{host}:{http_port}/v2/health/{what}"
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            pass
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}: a model is not loaded"
    except OSError as error:
        if what == "live" and is_starting(http_port):
            return None  # the watchdog started it anew, say: it is not to be ended for that
        return f"{url} does not answer ({getattr(error, 'reason', error)})"
    return None


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.probe",
        description="Ask the Triton of this machine whether it lives, or is ready, and look whether the processes of "
        "its models are alive. Exit codes: 0 yes, 1 no, and standard error says why.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("what", choices=("live", "ready"), help="live: it need not be started anew; ready: it can answer")
    p.add_argument("--host", default="127.0.0.1", help="address of Triton's HTTP port")
    p.add_argument("--http-port", type=int, default=8000, help="Triton's HTTP port")
    p.add_argument("--timeout", type=float, default=2.0, help="seconds that it may take to answer")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    reason = check(arguments.what, arguments.host, arguments.http_port, arguments.timeout)
    if reason:
        sys.stderr.write(f"not {arguments.what}: {reason}\n")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
