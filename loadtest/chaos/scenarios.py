"""What is done to the fleet.

Each function causes one fault while callers ask, and says by :meth:`Stage.fault` when it began and by
:meth:`Stage.over` when it ended; what a SIGKILL does is over at once. The runner sees to the rest: callers, golden
comments afterwards, how long it took until the fleet was whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

from client import Retry, ToxicityClient, ToxicityError
from loadtest import corpus, overload, processes, watch
from loadtest.chaos import peers
from loadtest.chaos.callers import Golden, answers, ask_gateway, post
from loadtest.chaos.fleet import ChaosFailed, Fleet, until
from loadtest.chaos.verdict import Check, Limits
from loadtest.connections import FRAME, SETTINGS

AT_ONCE_S, AGAIN_S = 1.0, 5.0
"""A replica whose model's process died is not ready within the first, or serves again within the second."""
OUT_S = 4.0
"""After which Envoy has taken out a replica that hangs."""
CUT_S = 13.0
"""Envoy's limits for handshake, headers and a request are 5, 5 and 10 s."""
SILENT_S = 40.0
"""Envoy asks a connection every 30 s whether it is still there, and waits 5 s."""


class Skip(Exception):
    """The fault cannot be caused on this machine; the message says why."""


@dataclass
class Stage:
    """What a scenario works with.

    :ivar idle: connections, of which the scenario of that name opens so many.
    """

    fleet: Fleet
    golden: Golden
    idle: int = 10_000
    clock: Path | None = None
    began: float = 0.0
    ended: float = 0.0
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recovered_s: float | None = None

    def fault(self) -> None:
        self.began = self.ended = time.monotonic()

    def over(self) -> None:
        self.ended = time.monotonic()

    def check(self, what: str, held: object, said: str = "") -> None:
        self.checks.append(Check(what, bool(held), said))

    def within(self, what: str, condition: Callable[[], object], seconds: float) -> float | None:
        """Check that the condition holds within so many seconds."""
        took = until(condition, seconds)
        self.check(what, took is not None, f"not within {seconds:g} s" if took is None else f"after {took:.1f} s")
        return took

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class Scenario:
    """:ivar despite: callers are to be served well although the fault lasts; else, once it is over.
    :ivar needs: the fleet: ``near-empty``, ``clock`` (with a clock that can be set) or ``starter`` (which computes).
    """

    name: str
    what: str
    run: Callable[[Stage], None]
    limits: Limits = Limits()
    despite: bool = True
    needs: str = "near-empty"


def kill(pid: int) -> None:
    if not pid:
        raise ChaosFailed("there is no process to kill: it ended before")
    os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    return processes.living(pid) is None


# --- processes that end


def triton_killed(stage: Stage) -> None:
    victim = stage.fleet.replicas[0]
    triton, stubs = victim.triton, victim.stubs()
    prefix = watch.shared_memory_prefix(triton)
    held = watch.shared_memory(prefix) if prefix else {}
    stage.fault()
    kill(triton)
    stage.within("the processes of its models end", lambda: all(map(ended, [triton, *stubs])), 5.0)
    stage.within("it is started anew", lambda: victim.triton not in (0, triton), 20.0)
    stage.within(f"its {len(held)} files in /dev/shm are gone", lambda: held and not kept(held), 5.0)


def kept(names: Iterable[str]) -> list[str]:
    return [name for name in names if (watch.SHARED_MEMORY / name).exists()]


def stub_killed(part: str, number: int) -> Callable[[Stage], None]:
    def run(stage: Stage) -> None:
        victim = stage.fleet.replicas[number]
        dead = victim.stubs(f"toxicity_{part}")[0]
        pool = ThreadPoolExecutor(1)
        stage.fault()
        kill(dead)
        serving = pool.submit(until, lambda: answers(stage.fleet, victim.url, stage.golden), 30.0)
        not_ready_s = until(victim.unwell, AGAIN_S)
        out = until(lambda: victim.url not in stage.fleet.balancer.healthy(), AGAIN_S)
        serving_s = serving.result()
        pool.shutdown()
        by = [f"not ready after {not_ready_s:.1f} s" if not_ready_s is not None else "never not ready"]
        by.append("Envoy did not take it out" if out is None else "Envoy took it out")
        by.append("not serving after 30 s" if serving_s is None else f"serving again after {serving_s:.1f} s")
        again = serving_s is not None and serving_s <= AGAIN_S
        at_once = not_ready_s is not None and not_ready_s <= AT_ONCE_S and out is not None
        stage.check(
            f"serving again within {AGAIN_S:g} s, or not ready within {AT_ONCE_S:g} s and taken out",
            again or at_once,
            ", ".join(by),
        )

    return run


def shield_killed(stage: Stage) -> None:
    victim = stage.fleet.replicas[1]
    old = victim.shield
    stage.fault()
    kill(old)
    stage.within("it is started anew", lambda: victim.shield not in (0, old), 20.0)


def gateway_killed(stage: Stage) -> None:
    old = stage.fleet.gateway.pid
    stage.fault()
    kill(old)
    until(lambda: stage.fleet.gateway.pid not in (0, old), 10.0)


def envoy_killed(stage: Stage) -> None:
    old = stage.fleet.balancer.pid
    stage.fault()
    kill(old)
    until(lambda: stage.fleet.balancer.pid not in (0, old), 10.0)


def replica_hangs(stage: Stage) -> None:
    victim = stage.fleet.replicas[1]
    victim.hold.set()  # nobody is to end it for that from outside
    stopped = processes.tree(victim.triton)
    stage.fault()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        stage.within("Envoy takes it out", lambda: victim.url not in stage.fleet.balancer.healthy(), OUT_S)
        time.sleep(3.0)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):  # it was started anew
                os.kill(pid, signal.SIGCONT)
        victim.hold.clear()
    stage.over()


# --- disks and files


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[bool]:
    """``folder`` as a file system of that size, where we may make one; whether it is one."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1024 * megabytes)}k", "tmpfs", str(folder)]
    made = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(folder: Path, spare: int = 0) -> Path:
    """Write a file that leaves so many bytes."""
    file = folder / "filler"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(b"\0" * 4096):
            pass
    if spare:
        os.truncate(file, max(0, file.stat().st_size - spare))
    return file


def disk_full(stage: Stage) -> None:
    """What the gateway writes to, and then the place where a server puts its backends together."""
    gateway = stage.fleet.gateway
    mounted = os.path.ismount(gateway.disk)
    limit = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
    stage.fault()
    filler = None
    if mounted:
        filler = fill(gateway.disk)
    else:  # no file of the gateway grows any more
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
    stage.note(
        "the disk of the gateway's records was filled" if mounted else "by a limit on the size of the gateway's files"
    )
    try:
        tls = ssl.create_default_context(cafile=str(stage.fleet.secrets / "callers/ca.pem"))
        status = 0

        def refused() -> bool:
            nonlocal status
            with contextlib.suppress(OSError):
                status, _ = post(stage.fleet.door, tls, stage.golden.texts)
            return status not in (0, 200)

        took = until(refused, 5.0)
        stage.check("a decision that cannot be recorded is not answered", took is not None, f"HTTP {status}")
        time.sleep(2.0)
    finally:
        if filler is not None:
            filler.unlink()
        else:
            resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, limit)
    stage.over()
    with tempfile.TemporaryDirectory(prefix="tritox-chaos-") as place, small_disk(Path(place) / "tmp", 1) as made:
        if not made:
            stage.note("no small disk for a server to start on: root alone can mount one")
            return
        fill(Path(place) / "tmp", spare=100_000)
        free = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
        code, said = start_server(["--repository", str(stage.fleet.replicas[0].repository), *free], Path(place) / "tmp")
        without_paths = re.sub(r": '/[^']*'( -> '[^']*')?", "", said)
        stage.check("a server that cannot write where it starts says so, and ends", code == 2, without_paths)


def start_server(options: list[str], temporary: Path | None = None) -> tuple[int, str]:
    """How ``python -m serve`` ended, and its last line; a traceback is no message."""
    environment = {**os.environ, **({} if temporary is None else {"TMPDIR": str(temporary)})}
    call = [sys.executable, "-m", "serve", *options]
    try:
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return 124, "it did not end"
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    return (1 if "Traceback" in done.stderr else done.returncode), said


def read_only(stage: Stage) -> None:
    victim = stage.fleet.replicas[2 % len(stage.fleet.replicas)]
    folder = str(victim.repository)
    old = victim.triton
    victim.hold.set()
    stage.fault()
    bind = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    mounted = os.geteuid() == 0 and not any(
        subprocess.run(c, capture_output=True, check=False).returncode for c in bind
    )
    modes: list[tuple[Path, int]] = []
    if not mounted:
        if os.geteuid() == 0:
            raise Skip("root may write everywhere, and may not mount anything here")
        modes = [(file, file.stat().st_mode) for file in [victim.repository, *victim.repository.rglob("*")]]
        for file, mode in modes:
            file.chmod(mode & ~0o222)
    try:
        kill(old)
        victim.hold.clear()
        ready = f"{victim.name} starts on a repository that it cannot write to"
        stage.within(ready, lambda: victim.triton not in (0, old) and not victim.unwell(), 30.0)
        stage.check("and scores rightly", answers(stage.fleet, victim.url, stage.golden, 5.0))
        version = victim.repository / "toxicity/1/chaos"
        with contextlib.suppress(OSError):
            version.touch()
        stage.check("nothing could be written there", not version.exists())
    finally:
        victim.hold.clear()
        for file, mode in modes:
            file.chmod(mode)
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=False)
    stage.over()


def flip(file: Path, every: int = 64) -> bytes:
    """Damage a file as a bad disk would, here and there; returns what it was."""
    old = file.read_bytes()
    new = bytearray(old)
    for place in range(len(new) // 3, len(new), every):
        new[place] ^= 0x55
    file.write_bytes(bytes(new))
    return old


def damaged_file(stage: Stage) -> None:
    """Of the version that is served: the replica goes on, but does not start on it; the others serve."""
    victim = stage.fleet.replicas[0]
    file = next((victim.repository / "toxicity_encoder").glob("*/model.onnx"))
    stage.fault()
    good = flip(file)
    try:
        stage.check("what was loaded before goes on", answers(stage.fleet, victim.url, stage.golden, 5.0))
        ends, old = len(victim.ends), victim.triton
        kill(old)
        stage.within("it does not start on the damaged file", lambda: len(victim.ends) >= ends + 2, 30.0)
        said = victim.ends[-1]
        stage.check("and says why", "is not as it was exported" in said, said[:160])
        time.sleep(1.0)
        stage.check("nobody is sent to it", victim.url not in stage.fleet.balancer.healthy())
    finally:
        file.write_bytes(good)
    stage.over()


def damaged_version(stage: Stage) -> None:
    """A new version whose file is damaged on the way: it does not go live, and the old one serves on."""
    from export import near_empty

    victim = stage.fleet.replicas[1]
    kept = victim.repository.with_name("kept")
    shutil.copytree(victim.repository, kept, ignore=shutil.ignore_patterns("__pycache__"))
    new = near_empty.add_version(victim.repository)
    stage.fault()
    flip(victim.repository / f"toxicity_encoder/{new}/model.onnx")
    place = stage.fleet.secrets / "gateway"
    environment = {
        "TRITOX_CONTROL_KEY": (place / "control.key").read_text(encoding="utf-8").strip(),
        "TRITOX_CA": str(place / "ca.pem"),
        "TRITOX_CERTIFICATE": str(place / "cert.pem"),
        "TRITOX_CERTIFICATE_KEY": str(place / "key.pem"),
    }
    call = ["serve.rollout", "promote", str(new), "--repository", str(victim.repository), "--triton", victim.url]
    done = subprocess.run(
        [sys.executable, "-m", *call],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    stage.check("it is not promoted", done.returncode in (1, 2) and "Traceback" not in done.stderr, said[:160])
    stage.check("the old version serves on", answers(stage.fleet, victim.url, stage.golden, 5.0))
    # as it was, for what comes after
    for model in kept.iterdir():
        shutil.copy2(model / "config.pbtxt", victim.repository / model.name / "config.pbtxt")
        shutil.rmtree(victim.repository / model.name / str(new), ignore_errors=True)
    shutil.rmtree(kept)
    stage.over()


def damaged_switch(stage: Stage) -> None:
    """A new version that is the served one on disk, as compose's replicas read it, and damaged there: the gateway is
    told to switch to it.
    """
    from export import near_empty

    fleet, fresh = stage.fleet, stage.fleet.folder / "fresh"
    shutil.copytree(fleet.replicas[0].repository, fresh, ignore=shutil.ignore_patterns("__pycache__"))
    new = str(near_empty.add_version(fresh))
    call = [sys.executable, "-m", "export.repository", "promote", new, "--repository", str(fresh)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChaosFailed(f"version {new} could not be promoted: {done.stderr.strip()}")
    flip(fresh / f"toxicity_encoder/{new}/model.onnx")
    models = [model for model in fresh.iterdir() if model.is_dir() and not model.name.startswith(".")]
    places = [(model, replica.repository / model.name) for replica in fleet.replicas for model in models]
    configs = {place: (place / "config.pbtxt").read_bytes() for _, place in places}
    tls = ssl.create_default_context(cafile=str(fleet.secrets / "callers/ca.pem"))

    def switch() -> tuple[int, str]:
        status, said = ask_gateway(fleet.door, tls, "/models/switch", {"model": "toxicity", "reload": True}, 60.0)
        return status, " ".join(str(said).split())

    stage.fault()
    try:
        for model, place in places:
            shutil.copytree(model / new, place / new, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy2(model / "config.pbtxt", place / "config.pbtxt")
        status, said = switch()
        stage.check("the switch is refused", status == 409, f"{status} {said}"[:200])
        others = [replica.name for replica in fleet.replicas if answers(fleet, replica.url, stage.golden, 5.0)]
        least = len(fleet.replicas) - 1
        stage.check(
            "one replica at most has lost the old version", len(others) >= least, f"{', '.join(others)} have it"
        )
        time.sleep(2.0)
    finally:
        for place, config in configs.items():
            (place / "config.pbtxt").write_bytes(config)
            shutil.rmtree(place / new, ignore_errors=True)
        shutil.rmtree(fresh)
    stage.over()
    for replica in fleet.replicas:
        if replica.unwell():
            stage.note(f"{replica.name} was started anew by hand, once its files were right again")
            kill(replica.triton)


# --- time


def faketime() -> Path | None:
    """The library of the package ``libfaketime``. Debian's of that name (0.9.10) fails to sleep where the clock for
    spans of time is left alone.
    """
    spec = importlib.util.find_spec("libfaketime")
    places = spec.submodule_search_locations if spec is not None else None
    return next((file for place in places or () for file in Path(place).rglob("libfaketime.so.1")), None)


def clock_jumps(stage: Stage) -> None:
    """The clocks of the replicas and of the gateway, an hour ahead, then an hour back, to the right time. Envoy's
    stays, for libfaketime stops it. What measures spans of time (CLOCK_MONOTONIC) does not jump when a clock is set,
    and does not here. No clock is set to before the kernel's own, which libfaketime leaves alone: a wait for a lock
    until a moment (Triton has such) would be over before it began, as on no machine whose clock is set.
    """
    assert stage.clock is not None
    stage.fault()
    for jump, seconds in (("+1h", 3600), ("+0", 0)):
        stage.clock.write_text(jump + "\n", encoding="utf-8")
        time.sleep(4.0)
        moved = gateways_time(stage.fleet) - time.time()
        stage.check(f"the clock was set to {jump}", abs(moved - seconds) < 30, f"it is at {moved:+.0f} s")
    stage.over()


def gateways_time(fleet: Fleet) -> float:
    """What time the gateway believes it is, from an answer's ``date``."""
    url = f"http://127.0.0.1:{fleet.gateway.ports['plain']}/healthz"
    with urllib.request.urlopen(url, timeout=5) as reply:
        return parsedate_to_datetime(reply.headers["date"]).timestamp()


# --- too much


def overloaded(stage: Stage) -> None:
    """Three times what the fleet can answer, by :mod:`loadtest.overload`; those who ask for golden comments are among
    those who may be refused.
    """
    host, port = stage.fleet.door
    plan = overload.Plan(
        factor=3.0, seconds=10.0, warmup_s=2.0, capacity_s=4.0, normal_s=4.0, rows=1, users=8, seed=0, timeout_s=10.0
    )
    bodies = overload.make_bodies(corpus.generate(seed=0), plan.rows, "toxicity", plan.timeout_s)
    stage.fault()
    run = asyncio.run(overload.measure(f"{host}:{port}", bodies, plan, None, stage.fleet.caller))
    stage.over()
    offered = len(run.overload.samples) / run.overload.seconds * plan.rows / run.capacity
    stage.check(
        "it was offered three times its capacity", offered >= 2.5, f"{offered:.1f} × {run.capacity:.0f} a second"
    )
    refused = run.overload.ms(run.overload.refused, 0.99)
    stage.check(
        "each request was answered or refused",
        run.other_failures == 0,
        f"{len(run.overload.good)} and {len(run.overload.refused)} of {len(run.overload.samples)}, "
        f"{run.other_failures} failed otherwise",
    )
    goodput = run.overload.comments_per_s / run.capacity
    stage.note(f"meanwhile it answered {goodput:.0%} of its capacity")
    if refused is not None:
        stage.note(f"99% of refusals within {refused:.0f} ms")
    recovered = run.recovery_s()
    stage.check(
        "half the load is answered as before afterwards",
        recovered is not None and recovered <= overload.MAX_RECOVERY_S,
        "never" if recovered is None else f"after {recovered:.1f} s",
    )


def cut_within(sockets: Sequence[socket.socket], seconds: float, drip: bytes = b"") -> tuple[int, float]:
    """How many connections the other side ended within so many seconds, and when the last of these was.

    :param drip: a byte of it is sent on each, every second.
    """
    start = time.monotonic()
    left, last, turn = list(sockets), 0.0, 0
    while left and time.monotonic() - start < seconds:
        for each in list(left):
            try:
                if drip and turn % 10 == 0:
                    each.send(drip[turn // 10 % len(drip) :][:1])
                each.settimeout(0.001)
                gone = each.recv(65536) == b""
            except (TimeoutError, ssl.SSLWantReadError):
                continue
            except OSError:
                gone = True
            if gone:
                left.remove(each)
                last = time.monotonic() - start
        turn += 1
        time.sleep(0.1)
    return len(sockets) - len(left), last


def slow_senders(stage: Stage) -> None:
    """Who sends nothing, headers byte by byte, or a body byte by byte."""
    tls = ssl.create_default_context(cafile=str(stage.fleet.secrets / "callers/ca.pem"))
    host, port = stage.fleet.door
    count = 100
    with contextlib.ExitStack() as stack:

        def connect(encrypt: bool) -> socket.socket:
            raw = socket.create_connection((host, port), timeout=10)
            return stack.enter_context(tls.wrap_socket(raw, server_hostname=host) if encrypt else raw)

        stage.fault()
        silent = [connect(False) for _ in range(count)]
        headers, bodies = ([connect(True) for _ in range(count)] for _ in range(2))
        for each in headers:
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        for each in bodies:
            each.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        with ThreadPoolExecutor(3) as pool:
            jobs = {
                "no handshake": pool.submit(cut_within, silent, CUT_S),
                "headers byte by byte": pool.submit(cut_within, headers, CUT_S, b"slow"),
                "a body byte by byte": pool.submit(cut_within, bodies, CUT_S, b" "),
            }
            for what, job in jobs.items():
                cut, last_s = job.result()
                stage.check(f"{what}: all are cut", cut == count, f"{cut} of {count}, the last after {last_s:.1f} s")
    stage.over()


def half_open(stage: Stage) -> None:
    """Peers that are gone without a word: they opened HTTP/2, and answer nothing any more. To Envoy this looks as if
    the line was cut: its PING has no answer.
    """
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + FRAME.pack(0, 0, SETTINGS, 0, 0)
    tls = ssl.create_default_context(cafile=str(stage.fleet.secrets / "callers/ca.pem"))
    tls.set_alpn_protocols(["h2"])
    host, port = stage.fleet.door
    count = 100
    with contextlib.ExitStack() as stack:
        stage.fault()
        gone = []
        for _ in range(count):
            raw = socket.create_connection((host, port), timeout=10)
            each = stack.enter_context(tls.wrap_socket(raw, server_hostname=host))
            each.sendall(preface)
            gone.append(each)
        cut, last_s = cut_within(gone, SILENT_S)
        stage.check("all are cut", cut == count, f"{cut} of {count}, the last after {last_s:.1f} s")
    stage.over()


def idle_connections(stage: Stage) -> None:
    """At the door, and fewer at a replica and at the gateway, which only services reach."""
    fleet, place = stage.fleet, stage.fleet.secrets
    envoy, replica, gateway = fleet.balancer, fleet.replicas[0], fleet.gateway
    wanted = min(stage.idle, peers.most_files() - peers.SPARE)
    if wanted < stage.idle:
        raise Skip(
            f"{stage.idle} connections need as many file descriptors, {peers.most_files()} are allowed: ulimit -n"
        )
    inside = [("127.0.0.1", replica.ports["grpc"]), ("127.0.0.1", gateway.ports["tls"])]
    few = max(1, wanted // 10)
    pids = {"Envoy": envoy.pid, "Triton": replica.triton, "the gateway": gateway.pid}
    before = {name: watch.resident_bytes(pid) for name, pid in pids.items()}
    pair = (place / "gateway/cert.pem", place / "gateway/key.pem")
    stage.fault()
    with (
        peers.Peers([fleet.door], wanted, place / "callers/ca.pem") as many,
        peers.Peers(inside, few, place / "gateway/ca.pem", pair) as some,
    ):
        found = [many.said(), some.said()]
        for said, where in zip(found, ("at the door", "at a replica and the gateway"), strict=True):
            what = f"{said.get('wanted', 0)} connections are open {where}"
            how = said.get("error") or f"after {said['seconds']:.0f} s"
            stage.check(what, said["open"] == said.get("wanted"), how)
        time.sleep(3.0)
        after = {name: watch.resident_bytes(pid) for name, pid in pids.items()}
        stage.note(
            "memory with them, and without: "
            + ", ".join(f"{name} {after[name] / 1e6:.0f} and {before[name] / 1e6:.0f} MB" for name in pids)
        )
        closed = many.end()["closed"]
        stage.check("none at the door was closed", closed == 0, f"{closed} were")
    stage.over()
    stage.within(
        "Envoy has let go of them",
        lambda: sum(envoy.envoy.stats("^http.door.downstream_cx_active$").values()) < few,
        10.0,
    )


# --- memory

GROUPS = Path("/sys/fs/cgroup")


@dataclass
class MemoryLimit:
    """Processes that together may take so many bytes more than now; the kernel kills one of them beyond that."""

    pids: Sequence[int]
    growth: int

    def __enter__(self) -> MemoryLimit:
        second = (GROUPS / "cgroup.controllers").is_file()
        parent = GROUPS if second else GROUPS / "memory"
        self.group: Path | None = parent / f"tritox-chaos-{os.getpid()}"
        try:
            self.group.mkdir()
            names = ("memory.max", "memory.events") if second else ("memory.limit_in_bytes", "memory.oom_control")
            # what processes had before they came is not counted
            (self.group / names[0]).write_text(str(self.growth), encoding="utf-8")
            for pid in self.pids:
                (self.group / "cgroup.procs").write_text(str(pid), encoding="utf-8")
            self.events = self.group / names[1]
            self.how = f"a control group with {self.growth >> 20} MB for what is new"
        except OSError:
            with contextlib.suppress(OSError):
                self.group.rmdir()
            self.group = None
            for pid in self.pids:
                size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
                hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
                resource.prlimit(pid, resource.RLIMIT_AS, (size + self.growth, hard))
            self.how = f"RLIMIT_AS, {self.growth >> 20} MB above what each process had"
        return self

    def hit(self) -> bool:
        """Whether the kernel killed one of them; where there is no group, whether one of them ended."""
        if self.group is None:
            return any(map(ended, self.pids))
        words = self.events.read_text(encoding="utf-8").split()
        return "oom_kill" in words and int(words[words.index("oom_kill") + 1]) > 0

    def __exit__(self, *_: object) -> None:
        group = self.group
        if group is not None:
            if until(lambda: not (group / "cgroup.procs").read_text().strip(), 30.0) is not None:
                until(lambda: _removed(group), 5.0)
            return
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                hard = resource.prlimit(pid, resource.RLIMIT_AS)[1]
                resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return not group.exists()
    return True


def memory_limit(stage: Stage) -> None:
    """A replica that may take little more memory is asked for a lot, by others than those who are watched."""
    victim = stage.fleet.replicas[1]
    old, pids = victim.triton, processes.tree(victim.triton)
    big = ["long comment " * 4000] * 64
    stage.fault()
    with MemoryLimit(pids, 24 << 20) as limit, ThreadPoolExecutor(8) as pool:
        stage.note(f"by {limit.how}")

        def ask(_: int) -> None:
            with (
                contextlib.suppress(ToxicityError),
                ToxicityClient(
                    victim.url, credentials=stage.fleet.service, timeout=8, retry=Retry(attempts=1)
                ) as client,
            ):
                client.classify(big)

        asked = [pool.submit(ask, n) for n in range(16)]
        took = until(limit.hit, 20.0)
        for job in asked:
            job.cancel()
        stage.check("the limit was hit", took is not None, "" if took is None else f"after {took:.1f} s")
        # Triton starts no model's process again: it has to end, too
        stage.within("the replica was started anew", lambda: victim.triton not in (0, old), 30.0)
    stage.over()


STUB_LIMITS = Limits(recovery_s=AGAIN_S)
SCENARIOS = [
    Scenario("triton-killed", "SIGKILL of Triton", triton_killed),
    # Triton takes a second for each error of a dead model
    Scenario("encoder-killed", "SIGKILL of the encoder's Python process", stub_killed("encoder", 0), STUB_LIMITS),
    Scenario("tokenizer-killed", "SIGKILL of the tokenizer's Python process", stub_killed("tokenizer", 1), STUB_LIMITS),
    Scenario("shield-killed", "SIGKILL of the shield before a Triton's gRPC port", shield_killed),
    Scenario("gateway-killed", "SIGKILL of the gateway", gateway_killed, Limits(http_errors=None, recovery_s=10.0)),
    Scenario(
        "envoy-killed",
        "SIGKILL of Envoy",
        envoy_killed,
        Limits(grpc_errors=None, http_errors=None, recovery_s=5.0),
    ),
    Scenario(
        "replica-hangs",
        "SIGSTOP of a replica: connections half open behind Envoy",
        replica_hangs,
        Limits(recovery_s=5.0),
    ),
    Scenario("disk-full", "disk full", disk_full, Limits(http_errors=None, recovery_s=2.0), despite=False),
    Scenario("read-only", "read-only repository, and SIGKILL of Triton", read_only),
    Scenario("damaged-file", "model file damaged, and SIGKILL of Triton", damaged_file),
    Scenario("damaged-version", "new version damaged on its way", damaged_version),
    Scenario("damaged-switch", "damaged version on disk, and a switch to it", damaged_switch),
    Scenario("slow-senders", "300 slow-loris connections", slow_senders),
    Scenario("half-open", "100 half-open connections", half_open),
    Scenario("idle-connections", "10,000 idle connections", idle_connections),
    Scenario("memory-limit", "memory limit of a replica", memory_limit),
    Scenario("clock-jumps", "clock set an hour ahead, then an hour back", clock_jumps, needs="clock"),
    Scenario(
        "overloaded",
        "3 × overload for 10 s",
        overloaded,
        Limits(grpc_errors=None, http_errors=None),
        despite=False,
        needs="starter",
    ),
]
