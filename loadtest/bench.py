"""``python -m loadtest.bench``: how close serving comes to the bare encoder, and how far other servers do.

All contenders score the same comments, in a closed loop, in rounds that alternate between them, so that whatever else
the machine does hits them alike; the ones that wait are paused. Each round is written down when it ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from loadtest import bench_report, corpus, processes, responder, traffic
from loadtest.contenders import (
    CORES,
    RIVALS,
    Contender,
    ContenderFailed,
    Gateway,
    Limit,
    Served,
    SharedServer,
    Tritox,
    configure,
    rivals,
)
from loadtest.generator import GeneratorFailed, Load, Outcome, drive
from loadtest.limit import Encoder, score
from loadtest.report import cpu_model, git_commit, write_json
from loadtest.slo import percentile
from serve.server import with_huge_pages

MAX_GENERATOR_SHARE = 0.6
"""Of a core that a generator process may be busy, and of its own ceiling that it may reach: beyond, the load generator
is measured and not the server."""

MIN_REQUESTS = 20
CHECKED = 1000
"""Comments whose scores are compared, at most, in a round."""

PACKAGES = ("numpy", "onnxruntime", "nvidia-pytriton", "tokenizers", "grpcio")


class BenchFailed(ValueError):
    """The benchmark cannot run as asked."""


@dataclass
class Round:
    """One contender's turn: a line of the JSON lines file.

    :ivar per_request: comments in each request. :ivar served: what the server counted: see ``Tritox.derived``.
    :ivar generator_share: of a core, that each process of the load generator was busy.
    :ivar stolen_cores: that the machine's host gave to others meanwhile.
    :ivar invalid: the reasons why this round does not count.
    """

    round: int
    contender: str
    per_request: int
    comments_per_s: float = 0.0
    requests_per_s: float = 0.0
    requests: int = 0
    comments: int = 0
    seconds: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_comment: float | None = None
    memory_mb: float | None = None
    generator_share: float = 0.0
    stolen_cores: float = 0.0
    generator_ceiling: float | None = None
    checked: int = 0
    mean_difference: float | None = None
    max_difference: float | None = None
    served: dict[str, float] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    invalid: list[str] = field(default_factory=list)
    started: str = ""


@dataclass
class Traffic:
    """The comments that all contenders get, in the order in which they are sent.

    :ivar scores: that are expected. *Shape:* ``(comments, labels)``.
    """

    texts: list[str]
    scores: np.ndarray
    source: str

    def requests(self, size: int) -> tuple[list[list[str]], np.ndarray]:
        """The texts of each request, and their expected scores. *Shape:* ``(requests, size, labels)``."""
        whole = len(self.texts) // size * size
        texts = [self.texts[i : i + size] for i in range(0, whole, size)]
        return texts, self.scores[:whole].reshape(len(texts), size, -1)


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "loadtest.bench", *(sys.argv[1:] if argv is None else argv)])
    # so that a bench that is ended by a signal ends its servers, too: the paused ones would not hear of it
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # what our server gives itself, all contenders get
    os.environ["GLIBC_TUNABLES"] = with_huge_pages(os.environ.get("GLIBC_TUNABLES"))
    try:
        run(arguments, command)
    except (BenchFailed, corpus.InvalidCorpus, ContenderFailed, GeneratorFailed, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; the rounds that ended are in {arguments.out.with_suffix('.jsonl')}\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench",
        description="Comments a second: served, of the bare encoder, and of other servers on the same model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="what this server serves")
    parser.add_argument(
        "--model", action="append", dest="models", help="a model in it; several may be given (toxicity)"
    )
    parser.add_argument("--artifact", type=Path, default=Path("artifacts/starter"), help="what the rivals serve")
    parser.add_argument("--corpus", type=Path, help="JSON lines of text and scores, or text; by default the artifact's")
    parser.add_argument("--comments", type=traffic.whole, default=4096, help="of the corpus, drawn at random")
    parser.add_argument(
        "--contenders",
        type=_names,
        help="of limit, tritox, gateway and the rivals; by default all installed but gateway",
    )
    parser.add_argument("--requests", type=_sizes, default=[1, 16], help="comments in a request, such as 1,16,64")
    parser.add_argument("--clients", type=traffic.whole, default=16, help="requests under way at the same time")
    parser.add_argument("--connections", type=traffic.whole, default=4, help="gRPC connections that they share")
    parser.add_argument("--generators", type=traffic.whole, default=1, help="processes of the load generator")
    parser.add_argument("--rounds", type=traffic.whole, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured in each round")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds under load before that")
    parser.add_argument("--search", action="store_true", help="try each contender's settings first, and keep the best")
    parser.add_argument("--search-seconds", type=float, default=4.0, help="for each of them and each request size")
    parser.add_argument("--settings", type=Path, help="JSON of settings by contender, as --search writes it")
    parser.add_argument("--near-empty", action="store_true", help="put an encoder that does nothing in place of ours")
    parser.add_argument("--allow-cache", action="store_true", help="count rounds in which a cache answered")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="results, less .json, .jsonl, .md, .svg"
    )
    return parser


def _sizes(text: str) -> list[int]:
    return [traffic.whole(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def run(arguments: argparse.Namespace, command: str) -> None:
    """Everything: prepare, measure, report.

    :raises BenchFailed: when it cannot be done as asked.
    """
    models = arguments.models or ["toxicity"]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-bench-")))
        repository = scratch / "repository"
        if arguments.near_empty:
            from export import near_empty

            near_empty.write(arguments.repository, repository, models[0])
        else:
            shutil.copytree(arguments.repository, repository, ignore=shutil.ignore_patterns("__pycache__"))
        # a closed loop waits for itself: a refusal would only be a gap in the measurement
        configure(repository, models[0], {"max_queue_ms": 0})
        encoder = Encoder.of(repository, models[0])
        shared = SharedServer(repository)
        ours = [Tritox(shared, model, f"{models[0]}_encoder") for model in models]
        wanted = check_names(arguments.contenders, ["limit", *(c.name for c in ours), "gateway", *RIVALS])
        settings = read_settings(arguments.settings)
        traffic = read_traffic(arguments, encoder)
        missing: dict[str, str] = {}
        contenders: list[Contender] = [Limit(encoder, traffic.texts), *ours]
        if wanted is not None and "gateway" in wanted:  # a path to our server, so only where it is asked for
            contenders.append(Gateway(ours[0]))
        if not arguments.near_empty and (wanted is None or set(wanted) & set(RIVALS)):
            contenders += find_rivals(arguments, encoder, traffic, scratch / "rival", missing)
        chosen = [c for c in contenders if wanted is None or c.name in wanted]
        for contender in chosen:
            contender.settings = settings.get(contender.name, contender.settings)
        searched = search(chosen, traffic, arguments, missing) if arguments.search else {}
        started = start(chosen, stack, missing)
        if not started:
            raise BenchFailed(f"no contender could be started: {missing}")
        lines = arguments.out.with_suffix(".jsonl")
        lines.parent.mkdir(parents=True, exist_ok=True)
        lines.write_text("", encoding="utf-8")
        rounds = measure(started, traffic, arguments, lines)
        about = {
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": git_commit(),
            "command": command,
            "machine": machine(),
            "versions": versions(),
            "corpus": {"source": traffic.source, "comments": len(traffic.texts), **lengths(encoder, traffic.texts)},
            "near_empty": arguments.near_empty,
            "clients": arguments.clients,
            "connections": arguments.connections,
            "seconds": arguments.seconds,
            "contenders": {
                c.name: {
                    "settings": c.settings,
                    "versions": c.versions(),
                    "note": c.note,
                    "searched": searched.get(c.name),
                }
                for c in started
            },
            "not_measured": missing,
        }
    summary = bench_report.summarize([asdict(r) for r in rounds])
    result = {**about, "summary": summary, "rounds": [asdict(r) for r in rounds]}
    text = bench_report.markdown(result)
    arguments.out.with_suffix(".svg").write_text(bench_report.svg(summary), encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    write_json(arguments.out.with_suffix(".json"), result)
    sys.stdout.write(f"\n{text}\nwrote {arguments.out}.json, .jsonl, .md and .svg\n")


def read_traffic(arguments: argparse.Namespace, encoder: Encoder) -> Traffic:
    """The comments, and what they must score: as recorded in the corpus, else what the graph gives to each alone."""
    file = arguments.corpus or arguments.artifact / "validation.jsonl"
    if arguments.corpus is None and not file.is_file():
        source, rows = "generated, seed 0", [{"text": text} for text in corpus.generate()]
    elif file.suffix == ".jsonl":
        source, rows = str(file), corpus.read_rows(file)
    else:
        source, rows = str(file), [{"text": text} for text in corpus.read(file)]
    random.Random(0).shuffle(rows)
    rows = rows[: arguments.comments]
    if max(arguments.requests) > len(rows):
        raise BenchFailed(f"requests of {max(arguments.requests)} comments, but the corpus has {len(rows)}")
    texts = [row["text"] for row in rows]
    if not arguments.near_empty and all("scores" in row for row in rows):
        return Traffic(texts, np.array([row["scores"] for row in rows]), source)
    return Traffic(texts, score(encoder, tqdm(encoder.rows(texts), desc="expected scores", unit=" comments")), source)


def find_rivals(
    arguments: argparse.Namespace, encoder: Encoder, traffic: Traffic, folder: Path, missing: dict[str, str]
) -> list[Contender]:
    """The rivals, with the model that they load in ``folder``; those that cannot have it are noted with the reason.

    :raises BenchFailed: when there is no model for any of them.
    """
    from loadtest.rivals.__main__ import add_int8
    from loadtest.rivals.convert import convert

    try:
        convert(arguments.artifact, folder)
    except (ValueError, OSError) as error:
        raise BenchFailed(f"{error}; or leave the rivals out with --contenders limit,tritox") from None
    found = rivals(folder, encoder, traffic.texts)
    try:
        add_int8(arguments.repository, (arguments.models or ["toxicity"])[0], folder)
    except OSError as error:
        missing.update({rival.name: str(error) for rival in found if rival.settings.get("engine") == "onnx"})
    return found


def check_names(wanted: list[str] | None, known: Sequence[str]) -> list[str] | None:
    """:raises BenchFailed: for names that no contender has."""
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise BenchFailed(f"--contenders has {', '.join(unknown)}, known are {', '.join(known)}")
    return wanted


def read_settings(file: Path | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        settings: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise BenchFailed(f"--settings {file} cannot be read ({error}): give a file that --search wrote") from None
    return settings


def start(chosen: Sequence[Contender], stack: ExitStack, missing: dict[str, str]) -> list[Contender]:
    """Start and pause each; those that cannot are noted with the reason, and left out."""
    started = []
    for contender in tqdm(chosen, desc="starting", unit=" servers"):
        if contender.name in missing:
            continue
        stack.callback(contender.stop)
        try:
            contender.start()
        except ContenderFailed as error:
            missing[contender.name] = str(error)
            tqdm.write(f"{contender.name} is left out: {error}")
            continue
        contender.pause()
        started.append(contender)
    return started


def search(
    chosen: Sequence[Contender], traffic: Traffic, arguments: argparse.Namespace, missing: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Give each contender the settings that score most comments a second, over the request sizes; returns all tried.

    They are also written beside the results, for ``--settings``.
    """
    tried: dict[str, list[dict[str, Any]]] = {}
    grid = [(contender, settings) for contender in chosen for settings in contender.grid()]
    for contender, settings in tqdm(grid, desc="search", unit=" settings"):
        if contender.name in missing:
            continue
        contender.settings = settings
        rates = []
        try:
            contender.start()
            for size in arguments.requests:
                turn = take_turn(contender, traffic, size, 0, arguments, arguments.search_seconds, None)
                rates.append(0.0 if turn.invalid and turn.errors else turn.comments_per_s)
        except (ContenderFailed, GeneratorFailed) as error:
            tqdm.write(f"{contender.name} with {settings}: {error}")
            if "not installed" in str(error):
                missing[contender.name] = str(error)
            rates = [0.0]
        finally:
            contender.stop()
        overall = float(np.exp(np.mean(np.log(np.maximum(rates, 1e-9)))))
        tried.setdefault(contender.name, []).append({"settings": settings, "comments_per_s": rates, "overall": overall})
        best = {name: max(trials, key=lambda t: float(t["overall"]))["settings"] for name, trials in tried.items()}
        write_json(arguments.out.with_name(f"{arguments.out.name}.settings.json"), best)
        contender.settings = best[contender.name]
    return tried


def measure(
    contenders: Sequence[Contender], traffic: Traffic, arguments: argparse.Namespace, lines: Path
) -> list[Round]:
    """All rounds; each is appended to ``lines`` when it ends."""
    rounds = []
    ceilings: dict[tuple[str, int], float] = {}
    total = arguments.rounds * len(arguments.requests) * len(contenders)
    with tqdm(total=total, desc="benchmark", unit=" rounds") as bar, lines.open("a", encoding="utf-8") as out:
        for number, size, contender in _turns(contenders, arguments):
            bar.set_postfix_str(f"{contender.name}, {size} a request")
            contender.resume()
            try:
                turn = take_turn(contender, traffic, size, number, arguments, arguments.seconds, ceilings)
            except GeneratorFailed as error:
                turn = Round(number, contender.name, size, invalid=[str(error)])
            finally:
                contender.pause()
            for reason in turn.invalid:
                tqdm.write(f"INVALID: round {number} of {contender.name}, {size} a request: {reason}")
            rounds.append(turn)
            out.write(json.dumps(asdict(turn)) + "\n")
            out.flush()
            bar.update()
    return rounds


def _turns(contenders: Sequence[Contender], arguments: argparse.Namespace) -> Iterator[tuple[int, int, Contender]]:
    """Every round begins with another contender, so that none always follows the same one."""
    for number in range(arguments.rounds):
        at = number % len(contenders)
        for size in arguments.requests:
            for contender in [*contenders[at:], *contenders[:at]]:
                yield number, size, contender


def take_turn(
    contender: Contender,
    traffic: Traffic,
    size: int,
    number: int,
    arguments: argparse.Namespace,
    seconds: float,
    ceilings: dict[tuple[str, int], float] | None,
) -> Round:
    """Measure one contender once.

    :param ceilings: of the load generator, by protocol and request size: filled as needed. ``None`` asks for none.
    """
    turn = Round(number, contender.name, size, started=datetime.now(timezone.utc).isoformat(timespec="seconds"))
    if isinstance(contender, Limit):
        assert contender.bench is not None
        before_s, started_s = processes.stolen_s(), time.perf_counter()
        comments, rate, cpu = contender.bench.measure(seconds)
        turn.stolen_cores = (processes.stolen_s() - before_s) / (time.perf_counter() - started_s)
        turn.comments, turn.comments_per_s, turn.seconds = comments, rate, seconds
        turn.cpu_us_per_comment = cpu / comments * 1e6
        return turn
    assert isinstance(contender, Served)
    texts, expected = traffic.requests(size)
    load = Load(
        contender.protocol,
        contender.host,
        contender.port,
        contender.path_of(size),
        [contender.body(part) for part in texts],
        [size] * len(texts),
        clients=arguments.clients,
        connections=arguments.connections,
        warm_up_s=arguments.warm_up,
        seconds=seconds,
        first=number * len(texts) // 7 % len(texts),  # rounds do not all begin with the same comments
    )
    marks: list[tuple[float, float, dict[str, float]]] = []

    def mark() -> None:
        marks.append((processes.cpu_s(contender.root), processes.stolen_s(), contender.counters()))

    outcome = drive(load, arguments.generators, mark, mark)
    (cpu_before, stolen_before, before), (cpu_after, stolen_after, after) = marks
    fill(turn, outcome, arguments.generators)
    turn.stolen_cores = (stolen_after - stolen_before) / outcome.seconds
    if outcome.comments:
        turn.cpu_us_per_comment = (cpu_after - cpu_before) / outcome.comments * 1e6
    turn.memory_mb = processes.memory_bytes(contender.root) / 1e6
    turn.served = contender.derived(before, after)
    if ceilings is not None and outcome.answers:
        key = contender.protocol, size
        if key not in ceilings:
            ceilings[key] = responder.ceiling(load, next(iter(outcome.answers.values())))
        turn.generator_ceiling = ceilings[key] * arguments.generators
    check_answers(turn, outcome, contender, expected)
    turn.invalid = reasons(turn, contender, arguments.allow_cache)
    return turn


def fill(turn: Round, outcome: Outcome, generators: int) -> None:
    turn.requests, turn.comments, turn.seconds = outcome.requests, outcome.comments, outcome.seconds
    turn.requests_per_s = outcome.requests / outcome.seconds
    turn.comments_per_s = outcome.comments / outcome.seconds
    ordered = sorted(outcome.latencies_ms)
    turn.p50_ms, turn.p99_ms = percentile(ordered, 0.5), percentile(ordered, 0.99)
    turn.generator_share = outcome.cpu_s / outcome.seconds / generators
    turn.errors = dict(outcome.errors)


def check_answers(turn: Round, outcome: Outcome, contender: Served, expected: np.ndarray) -> None:
    """Compare scores with those expected; a body that cannot be read counts as an error."""
    most = max(1, CHECKED // turn.per_request)
    numbers = sorted(outcome.answers)
    differences = []
    for number in numbers[:: -(-len(numbers) // most) or 1]:
        try:
            found = contender.scores(outcome.answers[number])
            if found.shape != expected[number].shape:
                raise ValueError(f"scores of the shape {found.shape}, must be {expected[number].shape}")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            turn.errors[f"unreadable answer: {error}"] = turn.errors.get(f"unreadable answer: {error}", 0) + 1
            continue
        differences.append(np.abs(found - expected[number]))
    if differences:
        every = np.concatenate(differences)
        turn.checked = len(every)
        turn.mean_difference, turn.max_difference = float(every.mean()), float(every.max())


def reasons(turn: Round, contender: Served, allow_cache: bool = False) -> list[str]:
    """Why a round does not count; empty for one that does."""
    found = [f"{count} failed: {error}" for error, count in turn.errors.items()]
    if turn.requests < MIN_REQUESTS:
        found.append(f"{turn.requests} requests, must be at least {MIN_REQUESTS}: use more --seconds")
    if turn.generator_share > MAX_GENERATOR_SHARE:
        found.append(
            f"the load generator was busy for {turn.generator_share:.0%} of the time, allowed are "
            f"{MAX_GENERATOR_SHARE:.0%}: use more --generators"
        )
    if turn.generator_ceiling and turn.requests_per_s > MAX_GENERATOR_SHARE * turn.generator_ceiling:
        found.append(
            f"{turn.requests_per_s:.0f} requests/s are more than {MAX_GENERATOR_SHARE:.0%} of what the load generator "
            f"can make, {turn.generator_ceiling:.0f}: use more --generators"
        )
    if not turn.checked:
        found.append("no score was compared with the expected one")
    elif not (turn.mean_difference or 0.0) <= contender.tolerance:  # "not <=", so that NaN counts too
        found.append(
            f"scores differ from the expected ones by {turn.mean_difference:.4f} on average, allowed are "
            f"{contender.tolerance}: not the same model, or mixed-up answers"
        )
    if turn.served.get("cache_hits") and not allow_cache:
        found.append(f"{turn.served['cache_hits']:.0f} answers came from a cache: switch it off, or say --allow-cache")
    return found


def machine() -> dict[str, Any]:
    """What decides on speed: the processor, how many cores of it, and which instructions for INT8."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except FileNotFoundError:  # not Linux
        words = set()
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    return {
        "cpu": cpu_model(),
        "cores": CORES,
        "flags": [flag for flag in known if flag in words],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[2], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = package_version(package)
        except PackageNotFoundError:
            continue
    if binary := shutil.which("tritonserver"):
        found["tritonserver"] = binary
    return found


def lengths(encoder: Encoder, texts: Sequence[str]) -> dict[str, float]:
    """How long the comments are, in tokens that the model reads."""
    tokens = [len(row) for row in encoder.rows(texts)]
    return {"mean_tokens": round(float(np.mean(tokens)), 1), "median_tokens": float(np.median(tokens))}


if __name__ == "__main__":
    sys.exit(main())
