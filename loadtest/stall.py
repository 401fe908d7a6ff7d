"""``python -m loadtest.stall``: what a load test says of a server that stands still for a second, side by side.

A closed loop of a few users, each of whom waits for an answer before asking again, sends nothing while the server
stands still: it counts one slow request for each user, which no percentile shows. An open loop goes on sending, and
counts from when each request was due, as those who wait do.

The more requests the few users make besides, the deeper the closed loop hides the stall: the stub answers within
``SERVICE_S``, so that the two slow requests stay below the hundredth part on a machine that is slow, too.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shlex
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest import report
from loadtest.generator import GeneratorFailed
from loadtest.open_loop import Body, Generator, body
from loadtest.overload import positive
from loadtest.poisson import Crew, Outcome
from loadtest.responder import Responder
from loadtest.slo import Measured, measure
from loadtest.traffic import whole

SERVICE_S, PARALLEL = 0.002, 16
"""Of the stub server: it is far from busy, so that only the stall can make it slow."""
SHOWN_SHARE = 0.5
"""A p99 that reaches so much of the stall shows it."""


def stall(responder: Responder, after_s: float, seconds: float) -> threading.Thread:
    """Let the server stand still a while from now; the thread has ended when it goes on."""

    def run() -> None:
        time.sleep(after_s)
        responder.stall(seconds)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def closed_loop(ask: Body, users: int, seconds: float, stall_s: float) -> Measured:
    """The naive way."""

    async def run(url: str) -> Measured:
        async with Generator(url, timeout_s=stall_s + 10) as generator:
            sent = await generator.closed(itertools.repeat(ask), users, seconds)
        return measure(sent.samples)

    with Responder("model", service_s=SERVICE_S, parallel=PARALLEL) as responder:
        stalled = stall(responder, (seconds - stall_s) / 2, stall_s)
        measured = asyncio.run(run(responder.url))
        stalled.join()
    return measured


def open_loop(ask: Body, rate: float, seconds: float, stall_s: float) -> Outcome:
    """The honest one."""
    with (
        Responder("model", service_s=SERVICE_S, parallel=PARALLEL) as responder,
        Crew([ask], timeout_s=stall_s + 10) as crew,
    ):
        stalled = stall(responder, (seconds - stall_s) / 2, stall_s)
        outcome = crew.run([responder.url], [(rate, seconds)])
        stalled.join()
    return outcome


def table(closed: Measured, opened: Measured, stall_s: float) -> str:
    lines = [f"{'':<24}{'closed loop':>14}{'open loop':>14}"]
    for name in ("requests", "requests_per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms"):
        values = [getattr(m, name) for m in (closed, opened)]
        lines.append(f"{name:<24}" + "".join(f"{'-' if v is None else f'{v:.1f}':>14}" for v in values))
    marks = ["yes" if shows(m, stall_s) else "no" for m in (closed, opened)]
    lines.append(f"{f'p99 shows {stall_s:g} s of stall':<24}" + "".join(f"{mark:>14}" for mark in marks))
    return "\n".join(lines)


def shows(measured: Measured, stall_s: float) -> bool:
    """Whether the p99 tells of the stall."""
    return measured.p99_ms is not None and measured.p99_ms >= SHOWN_SHARE * 1000 * stall_s


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.stall",
        description="A stub server stands still while it is loaded: what a closed loop makes of it, and an open "
        "one. Exits with 0 when the open loop's p99 shows it and the closed loop's does not, 1 when not, 2 when "
        "nothing could be measured, 3 when the load could not be offered (INVALID).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--seconds", type=positive, default=10.0, help="of each loop")
    p.add_argument("--stall", type=positive, default=1.0, help="seconds, in the middle")
    p.add_argument("--users", type=whole, default=2, help="of the closed loop")
    p.add_argument("--rate", type=positive, default=100.0, help="requests a second of the open loop")
    p.add_argument("--json", type=Path, help="file to write the result to")
    arguments = p.parse_args(argv)
    if arguments.stall > arguments.seconds / 2:
        p.error(f"--stall is {arguments.stall:g}, must be at most half of --seconds, {arguments.seconds / 2:g}")
    ask = body(["What a lovely day"], "toxicity", 60.0)
    try:
        closed = closed_loop(ask, arguments.users, arguments.seconds, arguments.stall)
        outcome = open_loop(ask, arguments.rate, arguments.seconds, arguments.stall)
    except (OSError, GeneratorFailed) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    opened, reason = outcome.measured(), outcome.invalid()
    sys.stdout.write(table(closed, opened, arguments.stall) + "\n")
    if reason is not None:
        sys.stdout.write(f"INVALID: {reason}\n")
    told = shows(opened, arguments.stall) and not shows(closed, arguments.stall)
    if arguments.json:
        command = shlex.join(["python", "-m", "loadtest.stall", *(sys.argv[1:] if argv is None else argv)])
        found: dict[str, Any] = {"closed_loop": asdict(closed), "open_loop": asdict(opened)}
        extra = {"stall_s": arguments.stall, "valid": reason is None, "shown_only_by_the_open_loop": told}
        report.write_json(arguments.json, {**report.origin(), "command": command, **extra, **found})
    return 3 if reason is not None else 0 if told else 1


if __name__ == "__main__":
    sys.exit(main())
