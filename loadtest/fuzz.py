"""``python -m loadtest.fuzz``: a million wrong requests, over gRPC and HTTP, and right ones between them.

A real Triton with a near-empty model, behind the real Envoy and gateway. Workers send what
:mod:`loadtest.fuzz_shots` makes up, as fast as the machine allows, by :mod:`loadtest.fuzz_doors`. Each shot must be
over by its deadline; each right one must be answered with the scores that the server gave when nobody disturbed it;
every process of the servers must live; memory, file descriptors and shared memory must stay flat; and no comment may
get into a log.

A shot is found again by its seed, worker and number: what was sent last before a process died is written to a file,
and ``--replay`` sends it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from client import Credentials, ToxicityClient, ToxicityError
from loadtest import processes, report
from loadtest.credentials import of_service
from loadtest.fuzz_doors import Addresses, Report, Shooter, Trouble, shoot_alone
from loadtest.fuzz_shots import CANARY, MODEL, TEXTS, Reach, make
from loadtest.overload import positive
from loadtest.slo import Verdict
from loadtest.traffic import whole
from loadtest.watch import resident_bytes, shared_memory, shared_memory_prefix
from serve import certificates
from serve.envoy import Envoy
from serve.server import ServeError, die_with_parent

MAX_GROWTH = 0.05
WARM_UP_SHARE = 0.2
"""Of the run, in which caches and pools may still fill: the tenth behind it is what the last tenth is compared with."""
FEW = {"descriptors": 16, "shared_memory": 1 << 20}
"""More than this must have come for it to be growth: single connections, and steps of a pool."""
LOOK_S, START_S, END_S = 0.5, 120.0, 30.0


class FuzzFailed(RuntimeError):
    """The servers did not start, or nothing could be sent."""


@dataclass
class Servers:
    """What is shot at.

    :ivar credentials: for gRPC. :ivar roots: the processes that were started, by name; Triton is a child of its own.
    :ivar logs: what they wrote, by name.
    """

    addresses: Addresses
    credentials: Credentials | None
    roots: Mapping[str, int]
    prefix: str
    logs: Mapping[str, Path]

    def pids(self) -> dict[int, str]:
        """The processes that live, with what they are; a dead one that nobody has buried is none."""
        return {
            pid: f"{name} {found}"
            for name, root in self.roots.items()
            for pid in processes.tree(root)
            if (found := processes.living(pid)) is not None
        }

    def missing(self, alive: Mapping[int, str]) -> list[str]:
        """Which of the processes that were alive do not live any more."""
        now = self.pids()
        return [f"{name} (process {pid})" for pid, name in alive.items() if pid not in now]


@contextlib.contextmanager
def started(
    command: Sequence[str], pattern: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], re.Match[str]]]:
    """A server as a process, once it printed a line that matches; its standard error goes to ``log``. Ended by Ctrl-C.

    :raises FuzzFailed: when it does not print it.
    """
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env={n: value for n, value in os.environ.items() if n != "TRITOX_GATEWAY_KEYS"} | dict(environment or {}),
        )
    try:
        assert process.stdout is not None
        match = next((found for line in process.stdout if (found := re.search(pattern, line))), None)
        if match is None:
            tail = log.read_text(errors="replace")[-500:]
            raise FuzzFailed(f"`{shlex.join(('python', '-m', *command))}` did not start: {tail}")
        yield process, match
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            processes.kill(process.pid)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def servers(repository: Path, folder: Path, reach: Reach) -> Iterator[Servers]:
    """Triton and the gateway, as an operator starts them, on free ports; for callers behind Envoy, as in a fleet.

    :param folder: for their logs and files.
    :raises FuzzFailed: when one does not start.
    """
    free = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    logs = {name: folder / f"{name}.log" for name in ("triton", "gateway")}
    roots = {}
    secrets, behind = folder / "secrets", reach == "callers"
    environment, credentials = {}, None
    call = ["serve", "--repository", str(repository), "--log-level", "info", *free]
    if behind:
        certificates.make(secrets, ["localhost"])
        files = [secrets / "triton" / name for name in ("cert.pem", "key.pem", "ca.pem")]
        call += [
            "--shield",
            *(f"--{name}={file}" for name, file in zip(("certificate", "key", "ca"), files, strict=True)),
        ]
        credentials = replace(of_service(secrets), server_name="envoy")
        environment = {
            "TRITOX_CA": str(credentials.ca),
            "TRITOX_CERTIFICATE": str(credentials.certificate),
            "TRITOX_CERTIFICATE_KEY": str(credentials.key),
            "TRITOX_SERVER_NAME": str(credentials.server_name),
        }
    with contextlib.ExitStack() as stack:
        pattern = r"ready: gRPC (\S+):(\d+), HTTP http://(\S+):(\d+),"
        triton, match = stack.enter_context(started(call, pattern, logs["triton"]))
        grpc, http = (match[1], int(match[2])), (match[3], int(match[4]))
        roots["triton"] = triton.pid
        if behind:
            envoy = stack.enter_context(Envoy([grpc], secrets / "envoy", secrets / "keys", logs=folder))
            roots["envoy"] = envoy.pid
            logs |= {name: folder / f"{name}.log" for name in ("envoy", "envoy.access")}
            grpc = ("localhost", envoy.ports["services"])
        url = f"{grpc[0]}:{grpc[1]}"
        asks = ("serve.gateway", "--triton", url, "--port", "0", "--feedback", str(folder / "feedback.sqlite"))
        gateway, found = stack.enter_context(
            started(asks, r"gateway: http://(\S+):(\d+) ", logs["gateway"], environment)
        )
        roots["gateway"] = gateway.pid
        prefix = next(filter(None, map(shared_memory_prefix, processes.tree(triton.pid))), None)
        if prefix is None:
            raise FuzzFailed("Triton has no prefix for its shared memory")
        addresses: Addresses = {"grpc": grpc, "http": http, "gateway": (found[1], int(found[2]))}
        up = Servers(addresses, credentials, roots, prefix, logs)
        deadline = time.monotonic() + START_S
        while not ready(up):
            if time.monotonic() > deadline:
                raise FuzzFailed(f"the gateway was not ready after {START_S:g} s")
            time.sleep(0.1)
        yield up


def ready(up: Servers) -> bool:
    """Whether both say that they can answer."""
    for door, path in (("http", "/v2/health/ready"), ("gateway", "/readyz")):
        host, port = up.addresses[door]  # type: ignore[index]
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10):
                pass
        except OSError:
            return False
    return True


def reference(up: Servers) -> np.ndarray:
    """What the server answers to each of ``TEXTS`` alone. *Shape:* ``(texts, labels)``"""
    host, port = up.addresses["grpc"]
    with ToxicityClient(f"{host}:{port}", model=MODEL, timeout=30, credentials=up.credentials) as client:
        return np.array([list(client.classify([text])[0].scores.values()) for text in TEXTS], np.float32)


@dataclass
class Sample:
    """One look at the servers: bytes by process, file descriptors, bytes of shared memory."""

    at_s: float
    memory: dict[str, int]
    descriptors: int
    shared_memory: int

    def of(self, name: str) -> int:
        return sum(self.memory.values()) if name == "memory" else int(getattr(self, name))


def look(up: Servers, start_s: float) -> Sample:
    pids, memory, descriptors = up.pids(), {}, 0
    for pid, name in pids.items():
        memory[f"{name} {pid}"] = resident_bytes(pid)
        with contextlib.suppress(OSError):
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.perf_counter() - start_s, memory, descriptors, sum(shared_memory(up.prefix).values()))


def growth(samples: Sequence[Sample], name: str) -> float | None:
    """Of the last tenth of a run over the tenth behind its first fifth, less one; ``None`` where it is too short."""
    values = [sample.of(name) for sample in samples]
    tenth = len(values) // 10
    if tenth < 1:
        return None
    begin = int(len(values) * WARM_UP_SHARE)
    first, last = (sum(part) / tenth for part in (values[begin : begin + tenth], values[-tenth:]))
    if last - first <= FEW.get(name, 0):
        return min(0.0, last / first - 1) if first else 0.0
    return last / first - 1 if first else None


@dataclass
class Outcome:
    """What a run came to.

    :ivar dead: the servers' processes that died, or came.
    :ivar canaries: lines with a piece of a comment, by log. :ivar log_bytes: how much was written.
    """

    total: Report = field(default_factory=Report)
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    rings: list[dict[str, Any]] = field(default_factory=list)
    ready: bool = False
    right_after: bool = False
    canaries: dict[str, int] = field(default_factory=dict)
    log_bytes: dict[str, int] = field(default_factory=dict)


def work(
    pipe: Pipe,
    seed: int,
    worker: int,
    count: int,
    addresses: Addresses,
    credentials: Credentials | None,
    scores: np.ndarray,
    deadline_s: float,
    reach: Reach,
) -> None:
    """A worker's process: says what it did about once a second, and in the end what it sent last."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(found: Report) -> bool:
        pipe.send(found)
        return not pipe.poll()

    shot_of = partial(make, reach=reach)
    shooter = Shooter(seed, worker, range(count), addresses, scores, deadline_s, tell, shot_of, credentials)
    pipe.send(shooter.run())
    pipe.send([{"seed": seed, **entry} for entry in shooter.ring])


def merged(reports: Sequence[Report]) -> Report:
    total = Report()
    for each in reports:
        total.done += each.done
        total.outcomes.update(each.outcomes)
        total.right += each.right
        total.again += each.again
        total.beside += each.beside
        total.slowest_s = max(total.slowest_s, each.slowest_s)
        total.counts.update(each.counts)
        total.troubles += each.troubles
    return total


def shoot(up: Servers, arguments: argparse.Namespace) -> Outcome:
    """All of it, until it is done, time is up, or a server's process has died."""
    requests, seed, workers, seconds = arguments.requests, arguments.seed, arguments.workers, arguments.seconds
    scores = reference(up)
    outcome, alive = Outcome(), up.pids()
    context = multiprocessing.get_context("spawn")
    crew: list[Any] = []
    latest: dict[int, Report] = {}
    for worker in range(workers):
        count = requests // workers + (worker < requests % workers)
        here, there = context.Pipe()
        servers_and_more = (up.addresses, up.credentials, scores, arguments.deadline, arguments.reach)
        given = (there, seed, worker, count, *servers_and_more)
        process = context.Process(target=work, args=given, daemon=True)
        process.start()
        there.close()
        crew.append((process, here))
    start, stopped, left = time.perf_counter(), False, dict(enumerate(pipe for _, pipe in crew))
    try:
        while left:
            for number, pipe in list(left.items()):
                try:
                    while pipe.poll():
                        message = pipe.recv()
                        if isinstance(message, list):
                            outcome.rings += message
                            del left[number]
                            break
                        latest[number] = message
                except EOFError:
                    raise FuzzFailed(f"worker {number} ended without a word: see its traceback above") from None
            sample = look(up, start)
            outcome.samples.append(sample)
            outcome.dead = up.missing(alive)
            total = merged(list(latest.values()))
            late = seconds is not None and sample.at_s > seconds
            if (outcome.dead or late) and not stopped:
                stopped = True
                for pipe in left.values():
                    with contextlib.suppress(OSError):
                        pipe.send("stop")
            sys.stderr.write(
                f"\r{total.done:,} of {requests:,} requests in {sample.at_s:.0f} s, {total.right:,} right, "
                f"{dict(total.counts) or 'no trouble'}, {sample.of('memory') / 1e6:.0f} MB "
            )
            sys.stderr.flush()
            time.sleep(LOOK_S)
    finally:
        sys.stderr.write("\n")
        for process, pipe in crew:
            process.join(1)
            if process.is_alive():
                process.terminate()
            process.join()
            pipe.close()
    outcome.total, outcome.seconds = merged(list(latest.values())), time.perf_counter() - start
    outcome.ready = not outcome.dead and ready(up)
    if outcome.ready:
        with contextlib.suppress(ToxicityError):
            outcome.right_after = bool(np.abs(reference(up) - scores).max() <= 1e-6)
        outcome.dead = up.missing(alive)
    return outcome


def run(arguments: argparse.Namespace) -> Outcome:
    """:raises FuzzFailed: when it cannot be tried."""
    from export import near_empty

    with tempfile.TemporaryDirectory(prefix="tritox-fuzz-") as scratch:
        folder = Path(scratch)
        near_empty.write(arguments.repository, folder / "models", MODEL)
        with servers(folder / "models", folder, arguments.reach) as up:
            outcome = shoot(up, arguments)
        for name, log in up.logs.items():  # now that all is written
            outcome.log_bytes[name] = log.stat().st_size
            with log.open("rb") as lines:
                outcome.canaries[name] = sum(CANARY.encode() in line for line in lines)
        if arguments.logs:
            arguments.logs.mkdir(parents=True, exist_ok=True)
            for log in up.logs.values():
                (arguments.logs / log.name).write_bytes(log.read_bytes())
    return outcome


def verdicts(outcome: Outcome) -> list[Verdict]:
    """What could not be measured is not met."""
    counts = outcome.total.counts
    found = [
        Verdict("crashes", 0, len(outcome.dead), not outcome.dead),
        *(Verdict(name, 0, counts[key], counts[key] == 0) for name, key in TROUBLES.items()),
        Verdict("min_right_answers", 1, outcome.total.right, outcome.total.right >= 1),
        Verdict("min_ready_and_right_at_the_end", 1, int(outcome.right_after), outcome.right_after),
        Verdict("comments_in_logs", 0, sum(outcome.canaries.values()), not any(outcome.canaries.values())),
    ]
    for name in ("memory", "descriptors", "shared_memory"):
        grown = growth(outcome.samples, name)
        found.append(Verdict(f"{name}_growth", MAX_GROWTH, grown, grown is not None and grown <= MAX_GROWTH))
    return found


TROUBLES = {"hangs": "hang", "wrong_answers": "wrong", "gateway_errors": "error", "lost_connections": "lost"}


def content(outcome: Outcome, arguments: argparse.Namespace, judged: Sequence[Verdict]) -> dict[str, Any]:
    """Of the result file."""
    kinds: dict[str, Counter[str]] = {}
    for (door, kind, status), count in sorted(outcome.total.outcomes.items()):
        kinds.setdefault(f"{door}: {kind}", Counter())[status] += count
    step = max(1, -(-len(outcome.samples) // 200))
    return {
        "seed": arguments.seed,
        "reach": arguments.reach,
        "workers": arguments.workers,
        "deadline_s": arguments.deadline,
        "requests": outcome.total.done,
        "seconds": round(outcome.seconds, 1),
        "met": all(verdict.met for verdict in judged),
        "verdicts": [asdict(verdict) for verdict in judged],
        "right": outcome.total.right,
        "refused_and_sent_again": outcome.total.again,
        "failed_beside_a_broken_one_and_sent_again": outcome.total.beside,
        "slowest_s": round(outcome.total.slowest_s, 3),
        "dead": outcome.dead,
        "troubles": [asdict(trouble) for trouble in outcome.total.troubles],
        "kinds": {kind: dict(counts.most_common()) for kind, counts in kinds.items()},
        "log_bytes": outcome.log_bytes,
        "samples": [
            {
                "s": round(each.at_s, 1),
                "mb": round(each.of("memory") / 1e6, 1),
                "descriptors": each.descriptors,
                "shared_memory_mb": round(each.shared_memory / 1e6, 1),
                "processes": {name: round(size / 1e6, 1) for name, size in each.memory.items()},
            }
            for each in outcome.samples[::step]
        ],
    }


DOOR_NAMES = {"grpc": "gRPC", "http": "Triton's HTTP", "gateway": "gateway"}


def markdown(result: Mapping[str, Any]) -> str:
    """The result as tables."""
    asked = Counter[str]()
    for kind, counts in result["kinds"].items():
        asked[kind.partition(":")[0]] += sum(n for status, n in counts.items() if not status.startswith("connection"))
    rows = [
        f"| {name.replace('_', ' ')} | {at_least(name)} {bar(name, v['target'])} | {bar(name, v['measured'])} | "
        f"{'ok' if v['met'] else '**missed**'} |"
        for v in result["verdicts"]
        for name in [v["name"]]
    ]
    machine = result["machine"]
    doors = ", ".join(f"{DOOR_NAMES[door]} {count:,}" for door, count in asked.items())
    return "\n".join(
        [
            "| | objective | measured | |",
            "|---|---:|---:|---|",
            *rows,
            "",
            f"{result['requests']:,} requests in {result['seconds']:.0f} s ({doors}), {result['right']:,} of them "
            f"right and rightly answered; the slowest took {result['slowest_s']:.1f} s. "
            f"{result['failed_beside_a_broken_one_and_sent_again']:,} times a right one failed as Triton had joined it "
            f"with a broken one, and was sent again. `{result['command']}`, commit "
            f"{(result['commit'] or 'unknown')[:12]}, {machine['cores']} cores of {machine['cpu']}.",
        ]
    )


def at_least(name: str) -> str:
    return "≥" if name.startswith("min_") else "≤"


def bar(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.1%}" if name.endswith("growth") else f"{value:,.0f}"


def replay(arguments: argparse.Namespace) -> int:
    """Send shots again, one by one, and stop at the first that kills a process or makes trouble."""
    from export import near_empty

    wanted = shots_of(arguments.replay)
    with tempfile.TemporaryDirectory(prefix="tritox-fuzz-") as scratch:
        folder = Path(scratch)
        near_empty.write(arguments.repository, folder / "models", MODEL)
        with servers(folder / "models", folder, arguments.reach) as up:
            scores, alive = reference(up), up.pids()
            for seed, worker, index in wanted:
                shot = make(seed, worker, index, arguments.reach)
                done = shoot_alone(shot, up.addresses, scores, arguments.deadline, up.credentials)
                if len(wanted) == 1:
                    sys.stdout.write(f"{shot.path} {shot.headers}\n{shot.data[:2000]!r}\n")
                    time.sleep(1)  # a process that dies of it may need a moment
                answers = ", ".join(status for _, _, status in done.outcomes)
                sys.stdout.write(f"{seed}/{worker}/{index}: {shot.door}, {shot.kind}: {answers}\n")
                sys.stdout.flush()
                if (dead := up.missing(alive)) or done.troubles:
                    why = f"died: {', '.join(dead)}" if dead else done.troubles[0].detail
                    sys.stdout.write(f"{why}\n")
                    return 1
            time.sleep(1)
            dead = up.missing(alive)
            sys.stdout.write(f"{len(wanted)} shots; died: {', '.join(dead) or 'nothing'}\n")
            return 1 if dead else 0


def shots_of(named: str) -> list[tuple[int, int, int]]:
    """``SEED/WORKER/INDEX``, ``SEED/WORKER/FIRST-LAST``, or a file with the last shots before a crash.

    :raises ValueError: when it is none of these.
    """
    if match := re.fullmatch(r"(\d+)/(\d+)/(\d+)(?:-(\d+))?", named):
        seed, worker, first = (int(number) for number in match.groups()[:3])
        return [(seed, worker, index) for index in range(first, int(match[4] or first) + 1)]
    try:
        entries = json.loads(Path(named).read_text(encoding="utf-8"))["shots"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"--replay {named} is no SEED/WORKER/INDEX and no file of shots ({error})") from None
    entries.sort(key=lambda entry: entry["over"] is not None)  # those first that had no answer
    return [(entry["seed"], entry["worker"], entry["index"]) for entry in entries]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.fuzz",
        description="Shoot wrong requests at a Triton and a gateway that are started for it, and right ones between "
        "them. Exits with 0 when all objectives are met, 1 when one is missed, 2 when the test could not run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--requests", type=whole, default=1_000_000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--reach",
        choices=("callers", "all"),
        default="callers",
        help="callers: through Envoy, and the gateway, as in a fleet; all: Triton itself, its HTTP and streams too, "
        "without Envoy and shield, where it may well die",
    )
    p.add_argument("--seconds", type=positive, help="end after so long, however many were sent")
    p.add_argument("--workers", type=whole, default=2, help="processes that send")
    p.add_argument("--deadline", type=positive, default=15.0, help="seconds within which each request must be over")
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="its tokenizer is used")
    p.add_argument("--json", type=Path, help="file to write the result to")
    p.add_argument("--crash", type=Path, default=Path("results/fuzz-crash.json"), help="file for the last shots before")
    p.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the servers' logs there")
    p.add_argument("--replay", metavar="SHOT", help="SEED/WORKER/INDEX, SEED/WORKER/FIRST-LAST, or a crash's file")
    p.add_argument("--table", type=Path, metavar="JSON", help="send nothing: write this result's table into --page")
    p.add_argument("--page", type=Path, default=Path("docker/README.md"), help="that has a place for the table")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if arguments.table is not None:
            result = json.loads(arguments.table.read_text(encoding="utf-8"))
            report.insert(arguments.page, "fuzz", markdown(result))
            return 0
        if arguments.replay is not None:
            return replay(arguments)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        outcome = run(arguments)
    except (FuzzFailed, ServeError, ToxicityError, OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    judged = verdicts(outcome)
    command = shlex.join(["python", "-m", "loadtest.fuzz", *(sys.argv[1:] if argv is None else argv)])
    result = {**report.origin(), "command": command, **content(outcome, arguments, judged)}
    if arguments.json:
        report.write_json(arguments.json, result)
    sys.stdout.write("\n".join(report.verdict_lines(judged)) + "\n")
    for trouble in outcome.total.troubles[:20]:
        sys.stdout.write(told(trouble, arguments.seed) + "\n")
    if outcome.dead or outcome.total.troubles:
        report.write_json(arguments.crash, {"dead": outcome.dead, "shots": outcome.rings})
        sys.stdout.write(
            f"died: {', '.join(outcome.dead) or 'nothing'}. The last shots are in {arguments.crash}: --replay\n"
        )
    return 0 if all(verdict.met for verdict in judged) else 1


def told(trouble: Trouble, seed: int) -> str:
    return f"{trouble.what}: {seed}/{trouble.worker}/{trouble.index}: {trouble.kind}: {trouble.detail}"


if __name__ == "__main__":
    sys.exit(main())
