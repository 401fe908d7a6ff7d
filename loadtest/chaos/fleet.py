"""The fleet that is broken: replicas, Envoy and the gateway, each started as its container starts it.

``python -m serve`` starts its Triton anew. What ends all the same is started anew here, as Docker and Kubernetes do it;
and a replica that :mod:`serve.probe` calls dead is ended, as Kubernetes does it, but sooner.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from client import Credentials
from loadtest import processes
from loadtest.credentials import of_caller, of_service
from serve import certificates, probe
from serve.envoy import DOORS, Envoy
from serve.server import ServeError, die_with_parent, reserve_ports

KEY = "0123456789abcdef-chaos"
START_S = 120.0
STUB = "triton_python_backend_stub"
AGAIN_S, LONGEST_AGAIN_S = 0.1, 2.0
"""The pause before something that ended is started anew, and the longest one, of what ends again and again."""
LIVE_S, LIVE_FAILURES = 1.0, 3
"""How often a replica is asked whether it lives, and how often in a row it must not."""


class ChaosFailed(RuntimeError):
    """Nothing can be said, for the fleet or a fault could not be set up; the message says why."""


def until(condition: Callable[[], object], seconds: float, every_s: float = 0.05) -> float | None:
    """How long it took until the condition held; ``None`` when it did not within ``seconds``."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            return None
        time.sleep(every_s)
    return time.monotonic() - start


class Service(ABC):
    """A process that is started anew when it ends, until :meth:`stop`.

    :ivar ends: what it had said when it ended by itself, once for each end.
    :ivar hold: while it is set, what ends stays so.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.ends: list[str] = []
        self.hold = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    @property
    @abstractmethod
    def pid(self) -> int:
        """0 while there is none."""

    @abstractmethod
    def launch(self) -> None: ...

    @abstractmethod
    def wait(self) -> None:
        """Until it has ended."""

    @abstractmethod
    def said(self) -> str:
        """The end of its log."""

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let it end, and soon."""
        if pid := self.pid:
            processes.kill(pid)

    def stop(self) -> None:
        """End it, and all that it started."""
        self._stopping.set()
        self.end()
        self._thread.join(5.0)
        while self._thread.is_alive():
            if pid := self.pid:
                processes.kill(pid)
            self._thread.join(0.1)

    def _keep_alive(self) -> None:
        # in one thread, for a process that we start ends with the thread that started it
        pause = AGAIN_S
        while not self._stopping.is_set():
            start = time.monotonic()
            try:
                self.launch()
                self.wait()
                said = self.said()
            except ServeError as error:
                said = str(error)
            if not self._stopping.is_set():
                self.ends.append(said)
            pause = AGAIN_S if time.monotonic() - start > 10 else min(2 * pause, LONGEST_AGAIN_S)
            self._stopping.wait(pause)
            while self.hold.is_set() and not self._stopping.is_set():
                time.sleep(0.02)


class Command(Service):
    """One of our own commands.

    :param log: the file that it writes to.
    """

    def __init__(self, name: str, command: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(name)
        # what a killed one leaves behind goes with the fleet
        self.command, self.log = command, log
        self.environment = {"TMPDIR": str(log.parent), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        process = self._process
        return 0 if process is None or process.poll() is not None else process.pid

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait()

    def said(self) -> str:
        """Its last error, else its last lines."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        errors = [line for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else " ".join(lines[-3:])


class Replica(Command):
    """A Triton with a repository of its own."""

    def __init__(
        self, number: int, folder: Path, repository: Path, secrets: Path, environment: Mapping[str, str]
    ) -> None:
        self.repository, self.ready_file = repository, folder / f"triton{number}.ready"
        self.ports = reserve_ports("127.0.0.1", {"grpc": 0, "http": 0, "metrics": 0})
        place = secrets / "triton"
        ports = [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        tls = ["--certificate", str(place / "cert.pem"), "--key", str(place / "key.pem"), "--ca", str(place / "ca.pem")]
        control = ["--model-control", "--control-key", str(place / "control.key")]
        ready = ["--ready-file", str(self.ready_file), "--repository", str(repository)]
        command = ["serve", "--shield", *ports, *tls, *control, *ready]
        super().__init__(f"triton{number}", command, folder / f"triton{number}.log", environment)
        self._prober = threading.Thread(target=self._probe, daemon=True)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def triton(self) -> int:
        """Triton's process; 0 while there is none."""
        for pid in processes.tree(self.pid) if self.pid else []:
            if (found := probe.look_at(pid)) is not None and found.name == "tritonserver":
                return pid
        return 0

    @property
    def shield(self) -> int:
        """The process before gRPC's port; 0 while there is none."""
        found = processes.tree(self.pid) if self.pid else []
        return next((pid for pid in found if "serve.shield" in probe.command_line(pid)), 0)

    def stubs(self, model: str = "") -> list[int]:
        """The processes of its Python models, or of one of them."""
        found = []
        for pid in processes.tree(self.triton) if self.triton else []:
            words = probe.command_line(pid)
            if words and words[0].endswith(STUB) and (not model or any(f"/{model}/" in word for word in words)):
                found.append(pid)
        return found

    def unwell(self, what: str = "ready") -> str | None:
        """What its probe says against it."""
        if not self.ready_file.exists():
            return "it is starting"
        return probe.check(what, "127.0.0.1", self.ports["http"], 2.0)

    def start(self) -> None:
        super().start()
        self._prober.start()

    def launch(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        super().launch()

    def end(self) -> None:
        # it cleans up, and need not wait for Triton's own way to end
        triton = self.triton
        if pid := self.pid:
            os.kill(pid, signal.SIGTERM)
        if triton:
            processes.kill(triton)

    def stop(self) -> None:
        super().stop()
        for file in Path("/dev/shm").glob(f"tritox_*_{self.ports['grpc']}_*"):  # of what was killed before
            file.unlink(missing_ok=True)

    def _probe(self) -> None:
        failures = 0
        while not self._stopping.wait(LIVE_S):
            pid, started = self.pid, self.ready_file.exists()
            failures = failures + 1 if pid and started and not self.hold.is_set() and self.unwell("live") else 0
            if failures >= LIVE_FAILURES:
                processes.kill(pid)
                failures = 0


class Gateway(Command):
    """:param disk: a folder for what callers suggest and for the records of decisions."""

    def __init__(
        self,
        folder: Path,
        secrets: Path,
        triton: str,
        replicas: list[str],
        disk: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.ports = reserve_ports("127.0.0.1", {"tls": 0, "plain": 0})
        self.disk = disk
        place = secrets / "gateway"
        cert, key, ca = (str(place / name) for name in ("cert.pem", "key.pem", "ca.pem"))
        environment = {
            **environment,
            "TRITOX_URL": triton,
            "TRITOX_CONTROL_URL": ",".join(replicas),
            "TRITOX_CA": ca,
            "TRITOX_CERTIFICATE": cert,
            "TRITOX_CERTIFICATE_KEY": key,
            "TRITOX_RECORDS_KEY": "0123456789abcdef-records",
        }
        command = ["serve.gateway", "--port", str(self.ports["tls"]), "--plain-port", str(self.ports["plain"])]
        command += ["--keys", str(secrets / "keys/keys.txt"), "--control-key", str(place / "control.key"), "--quiet"]
        command += ["--certificate", cert, "--certificate-key", key, "--ca", ca]
        command += ["--feedback", str(disk / "feedback.sqlite"), "--records", str(disk / "records.sqlite")]
        super().__init__("gateway", command, folder / "gateway.log", environment)

    def answers(self) -> bool:
        return _answers(f"http://127.0.0.1:{self.ports['plain']}/healthz")


class Balancer(Service):
    """Envoy with the configuration that ships."""

    def __init__(self, replicas: list[Replica], gateway: int, ports: dict[str, int], secrets: Path) -> None:
        super().__init__("envoy")
        addresses = [("127.0.0.1", replica.ports["grpc"]) for replica in replicas]
        behind = [("127.0.0.1", gateway)]
        self.envoy = Envoy(addresses, secrets / "envoy", secrets / "keys", behind, ports=ports)

    @property
    def pid(self) -> int:
        return self.envoy.pid

    def launch(self) -> None:
        self.envoy.stop()  # what is left of the one before
        self.envoy.start()

    def wait(self) -> None:
        self.envoy.wait()

    def said(self) -> str:
        return self.envoy.said()

    def stop(self) -> None:
        super().stop()
        self.envoy.stop()

    def healthy(self) -> list[str]:
        """The replicas that take requests; none where Envoy does not answer."""
        try:
            return self.envoy.healthy()
        except (OSError, ValueError, StopIteration):
            return []

    def has_gateway(self) -> bool:
        """Whether it sends callers of HTTP to the gateway."""
        try:
            return sum(self.envoy.stats(r"^cluster\.gateway\.membership_healthy$").values()) == 1
        except OSError:
            return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


@dataclass
class Fleet:
    """:ivar folder: its logs, certificates and repositories."""

    folder: Path
    replicas: list[Replica]
    balancer: Balancer
    gateway: Gateway

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def door(self) -> tuple[str, int]:
        return "127.0.0.1", self.balancer.envoy.ports["door"]

    @property
    def caller(self) -> Credentials:
        return of_caller(self.secrets, KEY)

    @property
    def service(self) -> Credentials:
        """Of one behind the door."""
        return of_service(self.secrets)

    @property
    def services(self) -> list[Service]:
        return [*self.replicas, self.balancer, self.gateway]

    def whole(self) -> bool:
        """Every replica is well by its probe and by Envoy, and the gateway answers."""
        return (
            all(replica.pid and replica.ready_file.exists() for replica in self.replicas)
            and len(self.balancer.healthy()) == len(self.replicas)
            and self.gateway.answers()
            and self.balancer.has_gateway()
            and not any(replica.unwell() for replica in self.replicas)
        )

    def stop(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda service: service.stop(), self.services))


@contextlib.contextmanager
def fleet(
    repository: Path, count: int, folder: Path, disk: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Fleet]:
    """A fleet whose replicas have copies of ``repository``, whole at first.

    :param disk: for what the gateway writes. :param environment: of the replicas and the gateway.
    :raises ChaosFailed: when it does not become whole.
    """
    secrets = folder / "secrets"
    (secrets / "keys").mkdir(parents=True)
    (secrets / "keys/keys.txt").write_text(f"{KEY} name=chaos admin\n", encoding="utf-8")
    certificates.make(secrets, ["127.0.0.1"])
    replicas = []
    for number in range(1, count + 1):
        copy = folder / f"repository{number}"
        shutil.copytree(repository, copy, ignore=shutil.ignore_patterns("__pycache__"))
        replicas.append(Replica(number, folder, copy, secrets, environment or {}))
    # the two must know each other's
    ports = reserve_ports("127.0.0.1", dict.fromkeys(DOORS, 0))
    urls = [replica.url for replica in replicas]
    gateway = Gateway(folder, secrets, f"127.0.0.1:{ports['services']}", urls, disk, environment or {})
    balancer = Balancer(replicas, gateway.ports["tls"], ports, secrets)
    running = Fleet(folder, replicas, balancer, gateway)
    try:
        for service in running.services:
            service.start()
        if until(running.whole, START_S, 0.2) is None:
            said = {service.name: service.said() for service in running.services if service.pid}
            raise ChaosFailed(f"the fleet was not whole after {START_S:g} s: {json.dumps(said)}")
        yield running
    finally:
        running.stop()
