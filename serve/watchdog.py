"""Looks after a Triton that runs, and starts it anew when it ended, or when a process of one of its models did.

Triton 2.51 neither starts a model's process again nor becomes unready: requests to that model fail from then on, each
after a second. Its control API can load the model anew, but then the old one stays behind, with its other processes and
their memory, and Triton no longer ends in order. A process that was stopped (SIGSTOP) for more than a second, and goes
on, takes all of Triton with it. And once a version could not be loaded, Triton is not ready until it is,
though another one serves, and nobody wants that one any more. So Triton is ended at once, which callers and load
balancers see as a refused connection, and started as at the beginning: files verified, golden comments scored.

What is left to others: a process that runs and hangs in its own code looks well from outside. Requests to it meet their
deadlines, and Envoy takes the replica out.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from serve.probe import STUB, command_line, ending, look_at, processes
from serve.server import SelfTestFailed, ServeError, TritonServer

LOOK_S = 0.2
SCAN_S = 5.0
"""Between two scans for processes of new models; there is one more when Triton's log says that a model was loaded."""
DEAD_S = 0.3
"""A model that is unloaded ends its processes, too. Triton clears those away within milliseconds."""
LOADING_S = 3.0
"""A process that dies while its model loads is cleared away by Triton, after a second; the model is refused."""
STOPPED_S = 2.0
UNREADY_S = 10.0
"""From the last time that a model was loaded, or could not be. Whoever tried may be about to try again."""
WITHIN_S = 600.0
RESTARTS = 3


class GaveUp(ServeError):
    """Triton was started anew as often as it may be, and it ended again."""


@dataclass
class Stub:
    """A process of a model.

    :param name: Triton's name of the model's instance, such as ``toxicity_encoder_0_1``.
    :param born: when it was started, in seconds since the machine was. :param loaded: its model has been, with it.
    :param bad_since: when it was first seen dead or stopped.
    """

    name: str
    born: float
    loaded: bool
    bad_since: float | None = None

    def is_of(self, model: str) -> bool:
        return re.fullmatch(rf"{re.escape(model)}(_\d+)+", self.name) is not None


class Watchdog:
    """Call :meth:`look` every ``LOOK_S`` seconds, from the thread that started the server: Triton ends with it.

    :param restarts: how often Triton may be started anew within ``WITHIN_S`` seconds.
    :param ready: told ``False`` before Triton is ended, and ``True`` when it is back.
    """

    def __init__(
        self, server: TritonServer, restarts: int = RESTARTS, ready: Callable[[bool], None] = lambda yes: None
    ) -> None:
        self.server, self.restarts, self.ready = server, restarts, ready
        self._times: deque[float] = deque()
        self._asked = 0.0
        self._begin()

    def watch(self) -> NoReturn:
        """:raises ServeError: once Triton cannot be kept up."""
        while True:
            time.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Start Triton anew if it has to be.

        :raises GaveUp: when it was too often. :raises SelfTestFailed: when a model no longer scores as it did.
        """
        if why := self.wrong():
            start = time.monotonic()
            self.ready(False)
            self._restart(why)
            self.ready(True)
            say(f"ready again after {time.monotonic() - start:.1f} s")

    def wrong(self) -> str | None:
        """What has died or stopped; ``None`` where all is well."""
        if not self.server.is_running():
            return f"Triton ended by itself ({ending(self.server.exit_code)})"
        if self.server.shield_has_ended():
            return "the shield before Triton's gRPC port ended by itself"
        now = time.monotonic()
        self._scan(now)
        for pid, stub in list(self._stubs.items()):
            found = look_at(pid)
            if found is None:  # unloaded, and cleared away
                del self._stubs[pid]
            elif found.state not in "ZT":
                stub.bad_since = None
            elif stub.bad_since is None:
                stub.bad_since = now
            elif found.state == "T" and now - stub.bad_since >= STOPPED_S:
                return f"process {pid} of {stub.name or 'a model'} was stopped"
            elif found.state == "Z" and now - stub.bad_since >= (DEAD_S if stub.loaded else LOADING_S):
                return f"process {pid} of {stub.name or 'a model'} died ({ending(found.exit_code)})"
        if self._unready(now):
            return "Triton is not ready for a version that it could not load, and that nobody wants any more"
        return None

    def _unready(self, now: float) -> bool:
        """Where what is loaded is not what the repository says, there may be nothing good to start anew with."""
        failed_at = self.server.load_failed_at
        if failed_at is None or now - self._asked < 1.0:
            return False
        self._asked = now
        last = max(failed_at, *dict(self.server.loads).values())
        if time.clock_gettime(time.CLOCK_BOOTTIME) - last < UNREADY_S or self.server.is_ready():
            return False
        return self.server.serves_what_the_disk_says()

    def _begin(self) -> None:
        # Triton's own process is watched for being stopped alone; that it ended is seen otherwise
        self._stubs = {self.server.pid: Stub("Triton", 0.0, True)}
        self._scanned = self._newest = -1.0
        self._scan(time.monotonic(), loaded=True)

    def _scan(self, now: float, loaded: bool = False) -> None:
        """Find processes of models that were loaded since. It takes some milliseconds, and is not done at each look."""
        loads = dict(self.server.loads)
        newest = max(loads.values(), default=0.0)
        if newest == self._newest and now - self._scanned < SCAN_S:
            return
        self._newest, self._scanned = newest, now
        for each in processes():
            if each.name == STUB and each.parent == self.server.pid and each.pid not in self._stubs:
                self._stubs[each.pid] = Stub(instance(each.pid), each.born, loaded)
        for stub in self._stubs.values():
            stub.loaded |= any(at >= stub.born and stub.is_of(model) for model, at in loads.items())

    def _restart(self, why: str) -> None:
        while True:
            while self._times and time.monotonic() - self._times[0] > WITHIN_S:
                self._times.popleft()
            if len(self._times) >= self.restarts:
                raise GaveUp(
                    f"{why}; Triton was started anew {len(self._times)} times within {WITHIN_S:.0f} s, the limit is "
                    f"--restarts {self.restarts}: see its log, and docker/RUNBOOK.md"
                )
            self._times.append(time.monotonic())
            say(f"{why}; Triton is started anew ({len(self._times)} of {self.restarts} within {WITHIN_S:.0f} s)")
            try:
                self.server.restart()
            except SelfTestFailed:
                raise
            except ServeError as error:
                why = f"it could not be started: {error}"
            else:
                break
        self._begin()


def instance(pid: int) -> str:
    """Triton's name of the model's instance, which it gives to its process; empty where that has ended."""
    words = command_line(pid)
    return words[8] if len(words) > 8 else ""


def say(text: str) -> None:
    sys.stderr.write(f"watchdog: {text}\n")
    sys.stderr.flush()
