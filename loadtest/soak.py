"""``python -m loadtest.soak``: mixed load for a long time on a server of its own, and what it leaves behind.

Requests of 1, 16 and 64 comments; short, long, empty, repeated and non-ASCII ones; at a share of the capacity. What a
busy server refuses is sent again, as a client that must have its answer does; a request that stays without one has
failed. At the end the server is stopped: it must leave no shared memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import ModelInfo, ToxicityError
from loadtest import corpus, report
from loadtest.open_loop import Body, Generator, Sent, body
from loadtest.overload import MAX_GROWTH, MIN_OFFERED, meet, positive
from loadtest.slo import Verdict
from loadtest.watch import Watch, listener, shared_memory, shared_memory_prefix
from serve.server import die_with_parent

SIZES = {1: 0.9, 16: 0.08, 64: 0.02}
"""How often a request has so many comments: about a third of the comments come in each size."""
KINDS = {"corpus": 0.45, "short": 0.15, "long": 0.1, "empty": 0.05, "repeated": 0.15, "non-ASCII": 0.1}
SCRIPTS = (
    "Ты полный идиот, уйди отсюда",
    "你真是个白痴",
    "أنت غبي جدا",
    "तुम बेवकूफ हो",
    "¡Qué imbécil eres, tío!",
    "🤡🤡 l0ser 🖕🏽",
)
BODIES = 1000
WARMUP_SHARE = 0.2
"""Of the time, in which caches and memory pools may still fill: memory is compared behind it."""


class ServerFailed(RuntimeError):
    """The server did not start, or did not stop."""


@dataclass
class Soak:
    """What was measured.

    :ivar capacity: requests of the mix a second.
    :ivar again: refusals that were sent again.
    :ivar left: shared memory after the server had stopped: name, bytes.
    """

    capacity: float
    sent: Sent
    again: int
    watch: Watch
    shared: list[dict[str, int]]
    left: dict[str, int]

    @property
    def failures(self) -> int:
        return len(self.sent.samples) - len(self.sent.good)

    @property
    def offered_share(self) -> float:
        return 1 - self.sent.late / max(1, len(self.sent.samples))

    def growth(self) -> float | None:
        begin_s = self.sent.start_s - self.watch.start_s
        return self.watch.growth(begin_s + WARMUP_SHARE * self.sent.seconds, begin_s + self.sent.seconds)


def mixed(rng: random.Random, texts: Sequence[str]) -> Iterator[str]:
    """Comments of all kinds, without end."""
    repeated = max(texts[:100], key=len)
    while True:
        (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
        if kind == "corpus":
            yield rng.choice(texts)
        elif kind == "short":
            yield " ".join(rng.choices(corpus.WORDS, k=rng.randint(1, 3)))
        elif kind == "long":
            yield " ".join(rng.choices(corpus.WORDS, k=rng.randint(500, 5000)))
        elif kind == "empty":
            yield rng.choice(("", " ", "\n\t "))
        elif kind == "repeated":
            yield repeated
        else:
            yield " ".join(rng.choices(SCRIPTS, k=rng.randint(1, 5)))


def make_bodies(rng: random.Random, texts: Sequence[str], model: ModelInfo, timeout_s: float) -> list[Body]:
    comments = mixed(rng, texts)
    sizes = rng.choices(list(SIZES), list(SIZES.values()), k=BODIES - len(SIZES))
    sizes += SIZES  # each at least once
    rng.shuffle(sizes)
    return [
        body(list(itertools.islice(comments, min(size, model.max_batch_size))), model.name, timeout_s) for size in sizes
    ]


async def run(url: str, bodies: Sequence[Body], arguments: argparse.Namespace, watch: Watch, prefix: str) -> Soak:
    """Everything but the server's end."""
    turns, rng, seconds = itertools.cycle(bodies), random.Random(arguments.seed), arguments.minutes * 60
    shared: list[dict[str, int]] = [shared_memory(prefix)]
    memory = asyncio.create_task(watch.run())
    try:
        async with Generator(url, timeout_s=arguments.timeout, patience_s=arguments.timeout) as generator:
            await generator.closed(turns, arguments.users, arguments.warmup)
            closed = await generator.closed(turns, arguments.users, arguments.capacity_seconds)
            capacity = len(closed.good) / closed.seconds
            if not capacity:
                raise ValueError(f"no request was answered in {closed.seconds:g} s: {closed.details or 'no answer'}")
            generator.again = 0
            (sent,) = await generator.open(turns, [(arguments.share * capacity, seconds)], rng)
            shared.append(shared_memory(prefix))
            return Soak(capacity, sent, generator.again, watch, shared, {})
    finally:
        memory.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await memory


@contextlib.contextmanager
def server(repository: Path, timeout_s: float = 180.0) -> Iterator[str]:
    """``python -m serve`` on free ports, as a process; its gRPC address. Stopped with SIGINT, as by Ctrl-C.

    :raises ServerFailed: when it does not start, or ends with an error.
    """
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    command = [sys.executable, "-m", "serve", "--repository", str(repository), "--log-level", "error", *ports]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=die_with_parent
    )
    assert process.stdout is not None
    try:
        address = next((m[1] for line in process.stdout if (m := re.search(r"ready: gRPC (\S+),", line))), None)
        if address is None:
            raise ServerFailed(f"`{shlex.join(command[1:])}` did not start: what it wrote above says why")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -signal.SIGKILL
        process.stdout.close()
    if code:
        raise ServerFailed(f"the server ended with {code}, must be 0")


def judge(soak: Soak) -> list[Verdict]:
    """What could not be measured is not met."""
    growth, answered = soak.growth(), len(soak.sent.good)
    return [
        Verdict("memory_growth", MAX_GROWTH, growth, growth is not None and growth <= MAX_GROWTH),
        Verdict("failed_requests", 0, soak.failures, soak.failures == 0),
        Verdict("shared_memory_left", 0, len(soak.left), not soak.left),
        Verdict("min_answered", 1, answered, answered >= 1),
    ]


def table(soak: Soak, verdicts: Sequence[Verdict]) -> str:
    sent, rows = soak.sent, soak.watch.rows
    lines = report.verdict_lines(verdicts)
    lines.append(
        f"{len(sent.samples)} requests in {sent.seconds:.0f} s, {soak.failures} failed, {soak.again} refused and sent "
        f"again; {sent.comments_per_s:.1f} comments/s; p50 {sent.ms(sent.good, 0.5) or 0:.0f} ms, p99 "
        f"{sent.ms(sent.good, 0.99) or 0:.0f} ms"
    )
    lines += [f"{status}: {text}" for status, text in sorted(sent.details.items())]
    if rows:
        first, last = (sum(sizes.values()) / 1e6 for _, sizes in (rows[0], rows[-1]))
        shared = [sum(sizes.values()) / 1e6 for sizes in soak.shared]
        lines.append(
            f"{len(rows[-1][1])} processes hold {last:.0f} MB, at the start {first:.0f} MB; shared memory "
            f"{shared[-1]:.0f} MB, at the start {shared[0]:.0f} MB"
        )
    if soak.offered_share < MIN_OFFERED:
        lines.append(f"INVALID: only {soak.offered_share:.1%} of the requests left in time: lower --share")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.soak",
        description="Mixed load on a server that is started for it. Exits with 0 when all objectives are met, 1 when "
        "one is missed, 2 when the test could not run, 3 when the load could not be offered (INVALID).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--minutes", type=positive, default=30.0)
    p.add_argument("--share", type=positive, default=0.7, help="of the capacity")
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="Triton model repository")
    p.add_argument("--model", default="toxicity")
    p.add_argument("--users", type=int, default=4, help="of the closed loop that finds the capacity")
    p.add_argument("--warmup", type=positive, default=15.0, help="seconds before anything is measured")
    p.add_argument("--capacity-seconds", type=positive, default=20.0, help="of that closed loop")
    p.add_argument("--timeout", type=positive, default=30.0, help="seconds within which each request must be answered")
    p.add_argument("--every", type=positive, default=1.0, help="seconds between two looks at the memory")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, help="file to write the result to")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if arguments.users < 1:
            raise ValueError(f"--users is {arguments.users}, must be at least 1")
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        with server(arguments.repository) as url:
            _, model = meet(url, arguments.model)
            triton = listener(int(url.rpartition(":")[2]))
            prefix = shared_memory_prefix(triton) if triton else None
            if triton is None or prefix is None:
                raise ServerFailed(f"no process of ours listens on {url}, or it has no prefix for its shared memory")
            texts = corpus.generate(seed=arguments.seed)
            bodies = make_bodies(random.Random(arguments.seed), texts, model, arguments.timeout)
            soak = asyncio.run(run(url, bodies, arguments, Watch(triton, arguments.every), prefix))
        soak.left = shared_memory(prefix)
    except (ValueError, OSError, ToxicityError, ServerFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    verdicts = judge(soak)
    valid, met = soak.offered_share >= MIN_OFFERED, all(v.met for v in verdicts)
    sys.stdout.write(table(soak, verdicts) + "\n")
    if arguments.json:
        command = shlex.join(["python", "-m", "loadtest.soak", *(sys.argv[1:] if argv is None else argv)])
        report.write_json(arguments.json, result(soak, verdicts, valid, met, command, model))
    return 3 if not valid else 0 if met else 1


def result(
    soak: Soak, verdicts: Sequence[Verdict], valid: bool, met: bool, command: str, model: ModelInfo
) -> dict[str, Any]:
    """The content of a result file."""
    return {
        **report.origin(),
        "command": command,
        "model": asdict(model),
        "valid": valid,
        "met": met,
        "verdicts": [asdict(v) for v in verdicts],
        "capacity_requests_per_s": soak.capacity,
        "refused_and_sent_again": soak.again,
        "load": soak.sent.to_json(),
        "shared_memory_bytes": [sum(sizes.values()) for sizes in soak.shared],
        "shared_memory_left": soak.left,
        "memory": soak.watch.to_json(),
    }


if __name__ == "__main__":
    sys.exit(main())
