"""``python -m loadtest.tune``: the serving settings that suit this machine, measured on it and written down.

One setting after the other is varied while the others stay (instances and threads together). The servers with its
values are measured in turns, in rounds, under the same load; a value replaces the one before it only when it scores
clearly more comments a second. What won is written into the repository by ``export.repository configure``; the version
and its files stay as they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from loadtest import corpus
from loadtest.contenders import ContenderFailed, SharedServer, Tritox, configure
from loadtest.generator import GeneratorFailed, Load, drive
from loadtest.report import origin, write_json
from loadtest.slo import percentile
from serve.server import ServeError

CLEARLY = 1.02
"""A value must be so many times as fast as the one in use to replace it: less is noise."""


class TuneFailed(ValueError):
    """The settings cannot be searched as asked."""


@dataclass
class Trial:
    """Settings that were tried.

    :ivar rates: comments a second of each round, by comments in a request; ``p99_ms`` likewise.
    """

    settings: dict[str, int]
    rates: dict[int, list[float]] = field(default_factory=dict)
    p99_ms: dict[int, list[float]] = field(default_factory=dict)

    def overall(self) -> float:
        """The geometric mean over the request sizes, of the median rates; 0 where a size was not answered."""
        medians = [float(np.median(rates)) for rates in self.rates.values() if rates]
        whole = medians and len(medians) == len(self.rates) and min(medians) > 0
        return float(np.exp(np.mean(np.log(medians)))) if whole else 0.0

    def row(self) -> dict[str, Any]:
        middle = {size: round(float(np.median(rates)), 1) for size, rates in self.rates.items() if rates}
        p99 = {size: round(float(np.median(values)), 1) for size, values in self.p99_ms.items() if values}
        return {"settings": self.settings, "comments_per_s": middle, "p99_ms": p99, "rounds": self.rates}


def steps(cores: int) -> list[list[dict[str, int]]]:
    """What is varied, in order: for each step, the values that are compared with those in use."""
    shapes = dict.fromkeys((count, max(1, cores // count)) for count in (1, cores // 4, cores // 2, cores) if count)
    return [
        [{"instances": count, "intra_op_threads": threads} for count, threads in shapes],
        [{"max_batch_tokens": tokens} for tokens in (64, 128, 256, 512, 0)],
        [{"preferred_batch_size": rows} for rows in (8, 16, 32, 0)],
        [{"queue_delay_us": delay} for delay in (0, 500, 2000)],
        [{"tokenizers": count} for count in dict.fromkeys((1, max(1, cores // 4), max(1, cores // 2)))],
    ]


def search(arguments: argparse.Namespace, texts: Sequence[str]) -> tuple[dict[str, int], list[list[Trial]]]:
    """The best settings, and what was tried in each step. The repository itself is not touched."""
    best = configure(arguments.repository, arguments.name, {})
    done: list[list[Trial]] = []
    for values in steps(arguments.cores):
        tried = [Trial({**best, **value}) for value in values]
        if best not in [trial.settings for trial in tried]:
            tried.insert(0, Trial(dict(best)))
        if len(tried) == 1:
            continue
        compare(tried, arguments, texts)
        done.append(tried)
        now = next(trial for trial in tried if trial.settings == best)
        winner = max(tried, key=Trial.overall)
        if winner.overall() > CLEARLY * now.overall():
            best = winner.settings
        elif not now.overall():
            raise TuneFailed(f"no server with the settings in use answered: {now.settings}")
    return best, done


def compare(tried: Sequence[Trial], arguments: argparse.Namespace, texts: Sequence[str]) -> None:
    """Measure all in turns; those that wait are paused."""
    with ExitStack() as stack:
        servers = []
        for trial in tried:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-tune-"))) / "repository"
            shutil.copytree(arguments.repository, folder, ignore=shutil.ignore_patterns("__pycache__"))
            # a closed loop waits for itself: nothing is refused
            configure(folder, arguments.name, {**trial.settings, "max_queue_ms": 0})
            server = Tritox(SharedServer(folder), arguments.name, f"{arguments.name}_encoder")
            stack.callback(server.stop)
            server.start()
            server.pause()
            servers.append(server)
        turns = [(size, i) for _ in range(arguments.rounds) for size in arguments.requests for i in range(len(tried))]
        varied = [k for k in tried[0].settings if len({trial.settings[k] for trial in tried}) > 1]
        for size, i in tqdm(turns, desc=", ".join(varied), unit=" turns"):
            trial, server = tried[i], servers[i]
            rates, p99 = trial.rates.setdefault(size, []), trial.p99_ms.setdefault(size, [])
            requests = [texts[at : at + size] for at in range(0, len(texts) - size + 1, size)]
            load = Load(
                server.protocol,
                server.host,
                server.port,
                server.path,
                [server.body(request) for request in requests],
                [size] * len(requests),
                clients=arguments.clients,
                warm_up_s=min(1.0, arguments.seconds),
                seconds=arguments.seconds,
            )
            server.resume()
            try:
                outcome = drive(load)
            except GeneratorFailed as error:
                tqdm.write(f"{trial.settings}: {error}")
                continue
            finally:
                server.pause()
            if outcome.errors:
                tqdm.write(f"{trial.settings}: {outcome.errors.total()} requests failed ({outcome.errors})")
                continue
            rates.append(outcome.comments / outcome.seconds)
            p99.append(percentile(sorted(outcome.latencies_ms), 0.99) or 0.0)


def table(done: Sequence[Sequence[Trial]], best: Mapping[str, int], sizes: Sequence[int]) -> str:
    """All that was tried, for reading; ``*`` marks what won its step."""
    lines = []
    for tried in done:
        varied = [k for k in tried[0].settings if len({trial.settings[k] for trial in tried}) > 1]
        lines.append(" ".join(varied))
        for trial in tried:
            row, chosen = trial.row(), all(trial.settings[k] == best[k] for k in varied)
            rates, p99 = row["comments_per_s"], row["p99_ms"]
            cells = [f"{n:>4} a request: {rates.get(n, 0):>8.1f}/s, p99 {p99.get(n, 0):>7.1f} ms" for n in sizes]
            shown = " ".join(str(trial.settings[k]) for k in varied)
            lines.append(f"{'*' if chosen else ' '} {shown:<8}{'   '.join(cells)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        rows = corpus.read(arguments.corpus) if arguments.corpus is not None else list(corpus.generate())
        texts = list(rows)[: arguments.comments]
        if len(texts) < max(arguments.requests):
            raise TuneFailed(f"requests of {max(arguments.requests)} comments, but the corpus has {len(texts)}")
        best, done = search(arguments, texts)
        sys.stdout.write(f"{table(done, best, arguments.requests)}\n")
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            steps_tried = [[trial.row() for trial in tried] for tried in done]
            write_json(arguments.out, {**origin(), "chosen": best, "steps": steps_tried})
        shown = " ".join(f"{key}={value}" for key, value in best.items())
        if arguments.dry_run:
            sys.stdout.write(f"\nbest here: {shown}; nothing was written\n")
            return 0
        configure(arguments.repository, arguments.name, best)
        sys.stdout.write(f"\nwritten to {arguments.repository}: {shown}\n")
    except (TuneFailed, ContenderFailed, ServeError, corpus.InvalidCorpus, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the repository is as it was\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m loadtest.tune",
        description="Find the serving settings that score most comments a second on this machine, and write them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--repository", type=Path, default=Path("model_repository"))
    p.add_argument("--name", default="toxicity", help="model in it")
    p.add_argument("--corpus", type=Path, help="comments to send, one a line; by default generated ones")
    p.add_argument("--comments", type=int, default=2000, help="of the corpus, the first")
    p.add_argument("--requests", type=_numbers, default=[1, 16], help="comments in a request, such as 1,16")
    p.add_argument("--clients", type=int, default=16, help="requests under way at the same time")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=4.0, help="measured in each turn")
    p.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="that the encoder may fill")
    p.add_argument("--dry-run", action="store_true", help="write nothing into the repository")
    p.add_argument("--out", type=Path, help="JSON file for all that was measured")
    return p


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isdecimal() and int(part) > 0]
    if len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers of at least 1, such as 1,16")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
