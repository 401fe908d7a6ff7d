"""``python -m loadtest.switches``: the served version is changed again and again under load; no answer may be lost.

A near-empty model has two versions, whose scores and thresholds differ in every comment. Users ask all the while, with
clients that stay and with clients that are made anew for each request, while ``python -m serve.rollout`` lets the
versions take turns. Each answer says which version it is of, and must be, in every score and decision, what that
version answers when nobody changes anything. A request that fails counts, although the client could ask again: retries
are off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client import Result, Retry, ToxicityClient, ToxicityError
from loadtest import report
from loadtest.histogram import Histogram
from loadtest.traffic import whole
from serve.server import ServeError, TritonServer

TEXTS = [f"comment number {n}, " + "and more of it, " * (n % 5) for n in range(64)]
SIZES = (1, 4, 16)
"""Comments in a request, one after the other."""
PAUSE_S = 0.005
NEWCOMER_S = 0.02
"""The pause of those who make a client for each request."""
Answer = tuple[tuple[float, ...], tuple[str, ...]]


class SwitchFailed(RuntimeError):
    """The version could not be changed; the message is what the command said."""


class Users:
    """Ask until they are told to stop, and compare what they get.

    :param reference: for each version, what it answers to each of ``TEXTS``.
    :param pause_s: of those who stay, between two requests.
    """

    def __init__(
        self, url: str, model: str, reference: Mapping[str, Sequence[Answer]], pause_s: float = PAUSE_S
    ) -> None:
        self.url, self.model, self.reference, self.pause_s = url, model, reference, pause_s
        self.versions: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.wrong = self.mixed = 0
        self.times = Histogram()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, stay: int, newcomers: int) -> None:
        for number in range(stay + newcomers):
            target = self._stay if number < stay else self._come_and_go
            self._threads.append(threading.Thread(target=target, args=(number,), daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def requests(self) -> int:
        return sum(self.versions.values()) + sum(self.failures.values())

    def _client(self) -> ToxicityClient:
        return ToxicityClient(self.url, model=self.model, timeout=30, retry=Retry(attempts=1))

    def _stay(self, number: int) -> None:
        with self._client() as client:
            for turn in itertools.count(number):
                if self._stop.wait(self.pause_s):
                    return
                self._ask(client, turn)

    def _come_and_go(self, number: int) -> None:
        turn = number
        while not self._stop.wait(NEWCOMER_S):
            with self._client() as client:
                self._ask(client, turn := turn + 1)

    def _ask(self, client: ToxicityClient, turn: int) -> None:
        size = SIZES[turn % len(SIZES)]
        places = [(turn * 7 + n) % len(TEXTS) for n in range(size)]
        start = time.perf_counter()
        try:
            results = client.classify([TEXTS[place] for place in places])
        except ToxicityError as error:
            with self._lock:
                self.failures[f"{type(error).__name__}: {error}"] += 1
            return
        took_ms = 1000 * (time.perf_counter() - start)
        versions = {result.model_version for result in results}
        wrong = sum(answer(r) != self.reference[r.model_version][p] for p, r in zip(places, results, strict=True))
        with self._lock:
            self.versions["+".join(sorted(versions))] += 1
            self.mixed += len(versions) > 1
            self.wrong += wrong
            self.times.add(took_ms)


def answer(result: Result) -> Answer:
    return tuple(round(score, 5) for score in result.scores.values()), result.flagged


def change(server: TritonServer, repository: Path, model: str, number: int) -> float:
    """Let a version take over, as an operator would; the seconds that it took.

    :raises SwitchFailed: when the command says so.
    """
    where = ["--repository", str(repository), "--name", model, "--triton", server.grpc_url]
    call = [sys.executable, "-m", "serve.rollout", "promote", str(number), *where]
    start = time.perf_counter()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SwitchFailed(f"{shlex.join(call[1:])} ended with {done.returncode}: {done.stderr.strip()}")
    return time.perf_counter() - start


def reference(url: str, model: str) -> list[Answer]:
    """What the served version answers to ``TEXTS``, each alone."""
    with ToxicityClient(url, model=model, timeout=30) as client:
        return [answer(client.classify([text])[0]) for text in TEXTS]


def run(source: Path, model: str, switches: int, users: int, newcomers: int) -> dict[str, Any]:
    """Start a server, and change its version ``switches`` times under load.

    :raises SwitchFailed: when a change fails.
    """
    from export import near_empty

    with tempfile.TemporaryDirectory(prefix="tritox-switches-") as folder:
        repository = Path(folder) / "models"
        near_empty.write(source, repository, model)
        old = int(next(f.name for f in (repository / model).iterdir() if f.is_dir()))
        new = near_empty.add_version(repository, model)
        with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, model_control=True) as server:
            found = {str(old): reference(server.grpc_url, model)}
            change(server, repository, model, new)
            found[str(new)] = reference(server.grpc_url, model)
            for one, other in zip(found[str(old)], found[str(new)], strict=True):
                if one == other:
                    raise SwitchFailed("the two versions give a comment the same answer: nothing could be seen")
            crew = Users(server.grpc_url, model, found)
            crew.start(users, newcomers)
            start, took = time.perf_counter(), []
            try:
                for turn in range(switches):
                    took.append(change(server, repository, model, old if turn % 2 == 0 else new))
                    sys.stderr.write(
                        f"\rswitch {turn + 1} of {switches}: {crew.requests} requests, "
                        f"{sum(crew.failures.values())} failed, {crew.wrong + crew.mixed} wrong "
                    )
                    sys.stderr.flush()
            finally:
                crew.stop()
                sys.stderr.write("\n")
            seconds = time.perf_counter() - start
    percentiles = {name: crew.times.percentile(share) for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {
        "switches": switches,
        "seconds": round(seconds, 3),
        "requests": crew.requests,
        "failed": sum(crew.failures.values()),
        "failures": dict(crew.failures.most_common(20)),
        "wrong_answers": crew.wrong,
        "mixed_requests": crew.mixed,
        "versions": dict(crew.versions),
        "switch_s": {"median": round(sorted(took)[len(took) // 2], 3), "longest": round(max(took), 3)},
        "request_ms": {name: None if value is None else round(value, 3) for name, value in percentiles.items()},
        "users": users,
        "newcomers": newcomers,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    rows = [
        ("changes of the served version", f"{result['switches']}"),
        ("requests meanwhile", f"{result['requests']:,}"),
        ("failed", f"{result['failed']}"),
        ("answers that were not those of the version that they named", f"{result['wrong_answers']}"),
        ("requests answered by two versions", f"{result['mixed_requests']}"),
        (
            "a change, median and longest",
            f"{result['switch_s']['median']:.1f} s, {result['switch_s']['longest']:.1f} s",
        ),
        (
            "a request, median and 99th percentile",
            " ms, ".join(f"{v:.1f}" for v in result["request_ms"].values()) + " ms",
        ),
    ]
    where = f"{result['machine']['cores']} cores of {result['machine']['cpu']}, load included"
    source = f"commit {(result['commit'] or 'unknown')[:12]}; `{result['command']}`"
    return "\n".join(
        ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows), "", f"{where}; {source}."]
    )


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.switches",
        description="Change the served version of a near-empty model under load, and check every answer. Exits with 0 "
        "when none was lost or wrong, 1 when one was, 2 when nothing could be measured.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"), help="its tokenizer is used")
    p.add_argument("--name", default="toxicity", help="the model's name there")
    p.add_argument("--switches", type=whole, default=100, help="changes of the version")
    p.add_argument("--users", type=whole, default=4, help="who keep their client")
    p.add_argument("--newcomers", type=whole, default=1, help="who make a client for each request")
    p.add_argument("--json", type=Path, help="file to write the result to")
    p.add_argument("--table", type=Path, metavar="JSON", help="measure nothing: write this result's table into --page")
    p.add_argument("--page", type=Path, default=Path("serve/OPERATIONS.md"), help="that has a place for the table")
    arguments = p.parse_args(argv)
    if arguments.table:
        report.insert(arguments.page, "switches", markdown(json.loads(arguments.table.read_text(encoding="utf-8"))))
        return 0
    try:
        result = run(arguments.repository, arguments.name, arguments.switches, arguments.users, arguments.newcomers)
    except (SwitchFailed, ServeError, ToxicityError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    command = shlex.join(["python", "-m", "loadtest.switches", *(sys.argv[1:] if argv is None else argv)])
    result = {**report.origin(), "command": command, **result}
    sys.stdout.write(markdown(result) + "\n")
    for failure, count in result["failures"].items():
        sys.stderr.write(f"{count} times: {failure}\n")
    if arguments.json:
        report.write_json(arguments.json, result)
    return 1 if result["failed"] or result["wrong_answers"] or result["mixed_requests"] else 0


if __name__ == "__main__":
    sys.exit(main())
