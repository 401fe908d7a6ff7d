"""``python -m loadtest.overload``: more load than a server can take, and what it makes of it.

A server that is overloaded must go on answering as much as it can, in time, and refuse the rest at once; and be itself
again when the load is gone. The run finds the capacity in a closed loop, offers half of it (what is normal), then a
multiple of it whatever the answers, then half of it again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from client import Credentials, ModelInfo, ToxicityClient, ToxicityError
from loadtest import corpus, report
from loadtest.open_loop import Body, Generator, Sent, body
from loadtest.slo import DEFAULT_PATH, Verdict, read_slo
from loadtest.watch import Watch, listener
from serve.server import take_turns

BODIES = 512
WINDOW_S = 0.5
"""The recovery is watched in steps of this length."""
FIRST_S, SETTLE_S = 5.0, 5.0
"""A first overload, which the capacity is taken from where it answers more than the closed loop; then a rest."""
NORMAL_SHARE, NORMAL_FACTOR = 0.5, 2.0
"""Normal is what half of the capacity has; up to twice its p99 counts as normal again."""
MOST_STOLEN = 0.1
"""Cores that a virtual machine's host may take more during the overload than when the capacity was measured."""
MEET_S = 30.0
"""That a server may take to say what it serves."""
MIN_OFFERED, MIN_GOODPUT, MAX_GROWTH, MAX_RECOVERY_S, MAX_REFUSAL_MS = 0.95, 0.9, 0.03, 2.0, 250.0


@dataclass(frozen=True)
class Plan:
    """How long each phase lasts, and how hard it is.

    :param rows: comments in each request.
    :param users: of the closed loop that finds the capacity.
    """

    factor: float
    seconds: float
    warmup_s: float
    capacity_s: float
    normal_s: float
    rows: int
    users: int
    seed: int
    timeout_s: float


@dataclass
class Run:
    """What was measured.

    :ivar capacity: comments a second.
    """

    capacity: float
    closed: Sent
    normal: Sent
    overload: Sent
    after: Sent
    watch: Watch | None

    @property
    def offered_share(self) -> float:
        """Requests that left when they were due, as a share of all."""
        return 1 - self.overload.late / max(1, len(self.overload.samples))

    @property
    def other_failures(self) -> int:
        """Requests that were neither answered nor refused, in all phases but the closed loop."""
        phases = (self.normal, self.overload, self.after)
        return sum(len(p.samples) - len(p.good) - len(p.refused) for p in phases)

    def recovery_s(self) -> float | None:
        """Seconds from the end of the overload to the first window without refusals whose p99 is normal again.

        ``None`` when there is no such window.
        """
        limit_ms = NORMAL_FACTOR * (self.normal.ms(self.normal.good, 0.99) or 0.0)
        for step in range(int(self.after.seconds / WINDOW_S)):
            begin_s = self.after.start_s + step * WINDOW_S
            window = [s for s in self.after.samples if begin_s <= s.start_s < begin_s + WINDOW_S]
            p99_ms = self.after.ms(window, 0.99)
            if p99_ms is not None and p99_ms <= limit_ms and all(s.error is None for s in window):
                return step * WINDOW_S
        return None

    def memory_growth(self) -> float | None:
        """Over the overload, without its first tenth, in which queues fill."""
        if self.watch is None:
            return None
        begin_s = self.overload.start_s - self.watch.start_s
        return self.watch.growth(begin_s + 0.1 * self.overload.seconds, begin_s + self.overload.seconds)


async def measure(
    url: str, bodies: Sequence[Body], plan: Plan, watch: Watch | None, credentials: Credentials | None = None
) -> Run:
    """Run all phases."""
    turns = itertools.cycle(bodies)
    rng = random.Random(plan.seed)
    memory = asyncio.create_task(watch.run()) if watch else None
    try:
        async with Generator(url, timeout_s=plan.timeout_s, credentials=credentials) as generator:
            await generator.closed(turns, plan.users, plan.warmup_s)
            closed = await generator.closed(turns, plan.users, plan.capacity_s)
            capacity = closed.comments_per_s
            if not capacity:
                raise ValueError(f"no request was answered in {plan.capacity_s:g} s: {closed.details or 'no answer'}")
            # larger batches than those of the closed loop may answer more, and take memory, once
            (first,) = await generator.open(
                turns, [(plan.factor * capacity / plan.rows, min(FIRST_S, plan.seconds / 2))], rng
            )
            capacity = max(capacity, first.comments_per_s)
            rate = capacity / plan.rows
            phases = [
                (NORMAL_SHARE * rate, min(SETTLE_S, plan.normal_s)),
                (NORMAL_SHARE * rate, plan.normal_s),
                (plan.factor * rate, plan.seconds),
                (NORMAL_SHARE * rate, plan.normal_s),
            ]
            _, normal, overload, after = await generator.open(turns, phases, rng)
    finally:
        if memory:
            memory.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await memory
    return Run(capacity, closed, normal, overload, after, watch)


def judge(run: Run, p99_ms: float) -> list[Verdict]:
    """What could not be measured is not met."""
    overload = run.overload

    def at_most(name: str, target: float, value: float | None) -> Verdict:
        return Verdict(name, target, value, value is not None and value <= target)

    goodput = overload.comments_per_s / run.capacity
    return [
        at_most("accepted_p99_ms", p99_ms, overload.ms(overload.good, 0.99)),
        Verdict("min_goodput", MIN_GOODPUT, goodput, goodput >= MIN_GOODPUT),
        at_most("refusal_p99_ms", MAX_REFUSAL_MS, overload.ms(overload.refused, 0.99) if overload.refused else 0.0),
        at_most("other_failures", 0, run.other_failures),
        at_most("memory_growth", MAX_GROWTH, run.memory_growth()),
        at_most("recovery_s", MAX_RECOVERY_S, run.recovery_s()),
    ]


def table(run: Run, plan: Plan, verdicts: Sequence[Verdict]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}"

    lines = [
        f"{'phase':<10}{'offered/s':>10}{'answered/s':>11}{'p50 ms':>8}{'p99 ms':>8}{'refused/s':>10}{'p99 ms':>8}"
        f"{'stolen':>8}"
    ]
    phases = (("capacity", run.closed), ("normal", run.normal), ("overload", run.overload), ("after", run.after))
    for name, sent in phases:
        offered = sum(s.comments for s in sent.samples) / sent.seconds
        cells = (offered, sent.comments_per_s, sent.ms(sent.good, 0.5), sent.ms(sent.good, 0.99))
        refused = sum(s.comments for s in sent.refused) / sent.seconds
        row = [*(shown(cell) for cell in (*cells, refused, sent.ms(sent.refused, 0.99))), f"{sent.stolen:.2f}"]
        widths = (10, 11, 8, 8, 10, 8, 8)
        lines.append(f"{name:<10}" + "".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    lines += report.verdict_lines(verdicts)
    lines += [f"{status}: {text}" for status, text in sorted(run.overload.details.items())]
    lines.append(f"the capacity is {run.capacity:.1f} comments/s")
    lines.append(
        f"the generator took {run.overload.cpu:.2f} cores; {run.offered_share:.1%} of its requests left in time"
    )
    if run.overload.stolen > run.closed.stolen + MOST_STOLEN:
        lines.append(
            f"the machine's host took {run.overload.stolen:.2f} cores during the overload, {run.closed.stolen:.2f} "
            "when the capacity was measured: the two do not compare"
        )
    if run.watch is None:
        lines.append("memory was not measured: run this on the server's machine, as the server's user")
    if run.offered_share < MIN_OFFERED:
        lines.append(
            f"INVALID: only {run.offered_share:.1%} left in time, must be {MIN_OFFERED:.0%}: the generator could not "
            f"offer {plan.factor:g} x {run.capacity:.0f} comments/s; send more comments in a request (--batch), or "
            "run it on another machine"
        )
    return "\n".join(lines)


def make_bodies(texts: Sequence[str], rows: int, model: str, timeout_s: float, most: int = BODIES) -> list[Body]:
    """Requests of ``rows`` comments, all different as far as there are comments."""
    turns = itertools.cycle(texts)
    count = max(1, min(most, len(texts) // rows))
    return [body(list(itertools.islice(turns, rows)), model, timeout_s) for _ in range(count)]


def find_server(url: str) -> Watch | None:
    """The server's processes, where it runs on this machine."""
    port = url.rpartition(":")[2]
    found = listener(int(port)) if port.isdecimal() else None
    return None if found is None else Watch(found)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.overload",
        description="Overload a server and judge what it makes of it. Exits with 0 when all objectives are met, 1 when "
        "one is missed, 2 when the test could not run, 3 when the load could not be offered (INVALID).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--url", help="host:port of the server's gRPC port; by default $TRITOX_URL, else 127.0.0.1:8001")
    p.add_argument("--model", default="toxicity")
    p.add_argument("--factor", type=positive, default=3.0, help="offer so many times the capacity")
    p.add_argument("--seconds", type=positive, default=60.0, help="of overload")
    p.add_argument("--warmup", type=positive, default=10.0, help="seconds before anything is measured")
    p.add_argument("--capacity-seconds", type=positive, default=15.0, help="of the closed loop that finds the capacity")
    p.add_argument("--normal-seconds", type=positive, default=15.0, help="at half the capacity, before and after")
    p.add_argument("--users", type=int, default=16, help="of that closed loop")
    p.add_argument("--batch", type=int, default=1, help="comments in each request")
    p.add_argument("--timeout", type=positive, default=10.0, help="seconds that a request may take")
    p.add_argument("--corpus", type=Path, help="text file, a comment a line, or CSV; by default made-up comments")
    p.add_argument("--seed", type=int, default=0, help="of the made-up comments and of the moments of sending")
    p.add_argument("--slo", type=Path, default=DEFAULT_PATH, help="YAML file of objectives; its p99_ms is used")
    p.add_argument("--json", type=Path, help="file to write the result to")
    return p


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        for name in ("users", "batch"):
            if getattr(arguments, name) < 1:
                raise ValueError(f"--{name} is {getattr(arguments, name)}, must be at least 1")
        slo = read_slo(arguments.slo)
        if slo.p99_ms is None:
            raise ValueError(f"{arguments.slo} has no p99_ms, which accepted requests are held to: add one")
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)  # fail now, not after the run
        texts = corpus.read(arguments.corpus) if arguments.corpus else corpus.generate(seed=arguments.seed)
        url, model = meet(arguments.url, arguments.model)
        if arguments.batch > model.max_batch_size:
            raise ValueError(f"--batch is {arguments.batch}, the model takes at most {model.max_batch_size}")
        plan = Plan(
            arguments.factor,
            arguments.seconds,
            arguments.warmup,
            arguments.capacity_seconds,
            arguments.normal_seconds,
            arguments.batch,
            arguments.users,
            arguments.seed,
            arguments.timeout,
        )
        bodies = make_bodies(texts, plan.rows, model.name, plan.timeout_s)
        run = asyncio.run(measure(url, bodies, plan, find_server(url)))
    except (ValueError, OSError, ToxicityError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    verdicts = judge(run, slo.p99_ms)
    valid, met = run.offered_share >= MIN_OFFERED, all(v.met for v in verdicts)
    sys.stdout.write(table(run, plan, verdicts) + "\n")
    if arguments.json:
        command = ["python", "-m", "loadtest.overload", *(sys.argv[1:] if argv is None else argv)]
        report.write_json(arguments.json, result(run, plan, verdicts, valid, met, shlex.join(command), model))
    return 3 if not valid else 0 if met else 1


def meet(url: str | None, model: str) -> tuple[str, ModelInfo]:
    """The server's address and what it serves. One that is busy has ``MEET_S`` to say so.

    :raises ToxicityError: when it cannot be reached or has no such model.
    """
    with ToxicityClient(url, model=model, timeout=MEET_S) as client:
        return client.url, client.info()


def result(
    run: Run, plan: Plan, verdicts: Sequence[Verdict], valid: bool, met: bool, command: str, model: ModelInfo
) -> dict[str, Any]:
    """The content of a result file."""
    return {
        **report.origin(),
        "command": command,
        "model": asdict(model),
        "plan": asdict(plan),
        "valid": valid,
        "met": met,
        "verdicts": [asdict(v) for v in verdicts],
        "capacity_comments_per_s": run.capacity,
        "offered_share": run.offered_share,
        "recovery_s": run.recovery_s(),
        "phases": {name: getattr(run, name).to_json() for name in ("closed", "normal", "overload", "after")},
        "memory": run.watch.to_json() if run.watch else None,
    }


if __name__ == "__main__":
    take_turns()  # it shares the server's cores
    sys.exit(main())
