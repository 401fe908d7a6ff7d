"""``python -m loadtest.client_cost``: what the client itself costs, and what it gains by joining single comments.

Three ways to score the same comments, for each of the two clients, in turns that alternate:

- *batches*: few callers, each with lists of ``--batch`` comments;
- *joined*: ``--callers`` callers with one comment each at a time, which ``score`` joins into requests;
- *single*: as many callers, each with a request of its own.

Beside a stub (:mod:`loadtest.responder`) that takes as long as a server which scores 10,000 comments a second; beside a
real one (``--url``) the rates are what users get. CPU is that of this process, all its threads, and the steadier number
of the two. With ``--comment-us 0`` nothing but the client takes time, and all ways are compared by their CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import AsyncToxicityClient, Batching, ServerBusy, ToxicityClient, ToxicityError
from loadtest import corpus
from loadtest.report import origin, write_json
from loadtest.responder import Responder

MOST_CPU_US, MOST_IMPORT_S, LEAST_SHARE = 60.0, 0.5, 0.7
WAYS = ("batches", "joined", "single")
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: ``cpu_us`` of this process for a comment."""

    comments: int
    seconds: float
    cpu_us: float

    @property
    def comments_per_s(self) -> float:
        return self.comments / self.seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.client_cost",
        description="Measure the client's own cost. Exits with 1 when a goal is missed.",
    )
    parser.add_argument("--url", help="a real server; by default a stub")
    parser.add_argument(
        "--comment-us", type=float, default=100.0, help="the stub takes so long for each comment (default: %(default)g)"
    )
    parser.add_argument("--batch", type=int, default=32, help="comments in a batch (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=256, help="with one comment each (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each turn (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="of all turns; the median counts (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="text or CSV file of comments; by default made-up ones")
    parser.add_argument("--json", type=Path, help="file to write")
    arguments = parser.parse_args(argv)
    for name in ("batch", "callers", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}, must be at least 1")
    texts = corpus.read(arguments.corpus) if arguments.corpus else corpus.generate(1000, seed=0)

    turns: dict[tuple[str, str], list[Turn]] = {(kind, way): [] for kind in ("threads", "asyncio") for way in WAYS}
    with ExitStack() as stack:
        stub = None if arguments.url else stack.enter_context(Responder("model", comment_s=arguments.comment_us / 1e6))
        url = arguments.url or (stub.url if stub else "")
        try:
            for _ in range(arguments.rounds):
                for (kind, way), done in turns.items():
                    measure = by_threads if kind == "threads" else by_tasks
                    done.append(measure(url, way, texts, arguments.batch, arguments.callers, arguments.seconds))
        except ToxicityError as error:
            hint = "; `python -m export.repository configure max_queue_ms=0` lets all of them wait"
            parser.exit(1, f"error: {error}{hint if isinstance(error, ServerBusy) else ''}\n")
    found = {
        kind: {way: median(turns[kind, way]) for way in WAYS} | shares(turns, kind) for kind in ("threads", "asyncio")
    }
    import_s = [import_cost() for _ in range(3)]
    result = {
        **origin(),
        "command": shlex.join(["python", "-m", "loadtest.client_cost", *(argv if argv is not None else sys.argv[1:])]),
        "server": arguments.url or f"stub, {arguments.comment_us:g} us a comment",
        "batch": arguments.batch,
        "callers": arguments.callers,
        "import_s": min(import_s),
        **found,
        "turns": {f"{kind} {way}": [asdict(turn) for turn in done] for (kind, way), done in turns.items()},
    }
    sys.stdout.write(f"{table(result)}\n")
    if arguments.json:
        write_json(arguments.json, result)
    return 0 if met(result) else 1


def table(result: dict[str, Any]) -> str:
    out = [f"{'':<18}{'comments/s':>12}{'CPU us a comment':>18}"]
    for kind in ("threads", "asyncio"):
        for way in WAYS:
            turn = result[kind][way]
            out.append(f"{kind:<9}{way:<9}{turn['comments_per_s']:>12.0f}{turn['cpu_us']:>18.1f}")
        share, gain = result[kind]["joined_to_batches"], result[kind]["joined_to_single"]
        out.append(f"{kind}: joined reach {share:.0%} of batches (goal {LEAST_SHARE:.0%}), {gain:.1f} times single")
    out.append(f"import: {result['import_s']:.2f} s (goal {MOST_IMPORT_S:g} s); batches: goal {MOST_CPU_US:g} us")
    return "\n".join(out)


def met(result: dict[str, Any]) -> bool:
    """Whether the goals are."""
    return bool(result["import_s"] <= MOST_IMPORT_S) and all(
        result[kind]["joined_to_batches"] >= LEAST_SHARE and result[kind]["batches"]["cpu_us"] <= MOST_CPU_US
        for kind in ("threads", "asyncio")
    )


def median(turns: list[Turn]) -> dict[str, float]:
    return {
        "comments_per_s": statistics.median(turn.comments_per_s for turn in turns),
        "cpu_us": statistics.median(turn.cpu_us for turn in turns),
    }


def shares(turns: dict[tuple[str, str], list[Turn]], kind: str) -> dict[str, float]:
    """Rates of joined comments to the others', in turns that followed each other."""
    rate = {way: [turn.comments_per_s for turn in turns[kind, way]] for way in WAYS}
    pairs = {other: zip(rate["joined"], rate[other], strict=True) for other in ("batches", "single")}
    return {f"joined_to_{other}": statistics.median(a / b for a, b in pair) for other, pair in pairs.items()}


def plan(way: str, batch: int, callers: int) -> int:
    """Callers of a way: as many comments are asked for at once in each."""
    return max(1, callers // batch) if way == "batches" else callers


def by_threads(url: str, way: str, texts: list[str], batch: int, callers: int, seconds: float) -> Turn:
    counts: list[int] = []
    failures: list[ToxicityError] = []
    with ToxicityClient(url, timeout=TIMEOUT_S, batching=Batching(size=batch)) as client:
        client.classify(texts[:1])
        until = 0.0
        gate = threading.Event()

        def caller(number: int) -> None:
            source, count = itertools.cycle(texts[number:] + texts[:number]), 0
            ask = _ask(client, way, source, batch)
            gate.wait()
            try:
                while time.perf_counter() < until:
                    ask()
                    count += batch if way == "batches" else 1
            except ToxicityError as error:
                failures.append(error)
            counts.append(count)

        threads = [threading.Thread(target=caller, args=(k,)) for k in range(plan(way, batch, callers))]
        for thread in threads:
            thread.start()
        cpu, start = time.process_time(), time.perf_counter()
        until = start + seconds
        gate.set()
        for thread in threads:
            thread.join()
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
    if failures:
        raise failures[0]
    return Turn(sum(counts), took, cpu / sum(counts) * 1e6)


def by_tasks(url: str, way: str, texts: list[str], batch: int, callers: int, seconds: float) -> Turn:
    async def go() -> Turn:
        async with AsyncToxicityClient(url, timeout=TIMEOUT_S, batching=Batching(size=batch)) as client:
            await client.classify(texts[:1])

            async def caller(number: int) -> int:
                source, count = itertools.cycle(texts[number:] + texts[:number]), 0
                ask = _ask(client, way, source, batch)
                while time.perf_counter() < until:
                    await ask()
                    count += batch if way == "batches" else 1
                return count

            cpu, start = time.process_time(), time.perf_counter()
            until = start + seconds
            counts = await asyncio.gather(*(caller(k) for k in range(plan(way, batch, callers))))
            took, cpu = time.perf_counter() - start, time.process_time() - cpu
        return Turn(sum(counts), took, cpu / sum(counts) * 1e6)

    return asyncio.run(go())


def _ask(
    client: ToxicityClient | AsyncToxicityClient, way: str, source: Iterator[str], batch: int
) -> Callable[[], Any]:
    if way == "joined":
        return lambda: client.score(next(source))
    size = batch if way == "batches" else 1
    return lambda: client.classify(list(itertools.islice(source, size)))


def import_cost() -> float:
    """Seconds that a new interpreter takes to import both clients."""
    code = "import time; t = time.perf_counter(); import client; client.ToxicityClient; client.AsyncToxicityClient"
    command = [sys.executable, "-c", f"{code}; print(time.perf_counter() - t)"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
