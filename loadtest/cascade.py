"""``python -m loadtest.cascade``: how much faster a cascade is served than its encoder alone, and what it changes.

Both are models of one repository, on one Triton, with the cascade's cache off. The rate: a closed loop over the
artifact's validation comments, in rounds that alternate between the two (:mod:`loadtest.bench`). The answers: each
comment is sent to both once, and what they answer is compared with each other and with the labels. Nothing that trained
or tuned a stage has seen these comments.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tqdm import tqdm
from tritonclient.grpc import service_pb2 as pb

from client import wire
from loadtest import bench, corpus, report, traffic
from loadtest.contenders import ContenderFailed, SharedServer, Tritox, configure
from loadtest.generator import GeneratorFailed
from loadtest.limit import Encoder
from loadtest.slo import Verdict
from train.artifact import InvalidArtifact, Layout

TOLERANCE = 0.05
"""Mean difference of a cascade's scores from the encoder's: early stages have scores of their own."""

UNDER_WAY = 8
"""Requests at a time, where answers are compared: a queue is of no use there."""

TIMEOUT_S = 120.0


class Cascade(Tritox):
    tolerance = TOLERANCE


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    command = shlex.join(["python", "-m", "loadtest.cascade", *(sys.argv[1:] if argv is None else argv)])
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # its servers must end with it
    try:
        return run(arguments, command)
    except (
        *(bench.BenchFailed, corpus.InvalidCorpus, ContenderFailed, GeneratorFailed, InvalidArtifact),
        *(OSError, grpc.RpcError),
    ) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was written\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.cascade",
        description="Comments a second of a cascade and of its encoder alone, and the decisions in which they differ.",
        epilog="exit status: 0 all objectives met, 1 one was missed, 2 it could not be measured",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repository", type=Path, default=Path("model_repository"), help="holds both models")
    parser.add_argument("--model", default="toxicity", help="the model whose cascade is measured")
    parser.add_argument("--artifact", type=Path, default=Path("artifacts/starter"), help="of the model")
    parser.add_argument("--comments", type=traffic.whole, default=1 << 30, help="of its validation comments, at most")
    parser.add_argument("--requests", type=bench._sizes, default=[16], help="comments in a request, such as 1,16,64")
    parser.add_argument("--clients", type=traffic.whole, default=32, help="requests under way at the same time")
    parser.add_argument("--connections", type=traffic.whole, default=4, help="gRPC connections that they share")
    parser.add_argument("--generators", type=traffic.whole, default=1, help="processes of the load generator")
    parser.add_argument("--rounds", type=traffic.whole, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured in each round")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds under load before that")
    parser.add_argument("--min-ratio", type=float, default=10.0, help="objective: served rates")
    parser.add_argument("--max-changed", type=float, default=0.003, help="objective: share of decisions that differ")
    parser.add_argument("--max-auc-drop", type=float, default=0.003, help="objective: of the mean ROC-AUC")
    parser.add_argument("--out", type=Path, default=Path("results/cascade"), help="results, less .json and .md")
    parser.set_defaults(corpus=None, near_empty=False, allow_cache=False)
    return parser


def run(arguments: argparse.Namespace, command: str) -> int:
    """Measure, write, and say; returns the exit status."""
    labels = Layout(arguments.artifact).read_labels()
    rows = corpus.read_rows(arguments.artifact / "validation.jsonl")
    truth_of = {row["text"]: row["labels"] for row in rows}
    with ExitStack() as stack:
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-cascade-"))) / "repository"
        shutil.copytree(arguments.repository, repository, ignore=shutil.ignore_patterns("__pycache__"))
        configure(repository, arguments.model, {"max_queue_ms": 0})  # a refusal would be a gap in a closed loop
        about = switch_cache_off(repository / f"{arguments.model}_cascade")
        load = bench.read_traffic(arguments, Encoder.of(repository, arguments.model))
        shared = SharedServer(repository)
        stack.callback(shared.stop)
        encoder = f"{arguments.model}_encoder"
        alone, early = Tritox(shared, arguments.model, encoder), Cascade(shared, about["name"], encoder)
        for contender in (alone, early):
            contender.start()
        found = compare(alone, early, load.texts, np.array([truth_of[t] for t in load.texts]), labels, about["stages"])
        lines = arguments.out.with_suffix(".jsonl")
        lines.parent.mkdir(parents=True, exist_ok=True)
        lines.write_text("", encoding="utf-8")
        rounds = bench.measure([alone, early], load, arguments, lines)
    rates = [rate(rounds, size, alone.name, early.name) for size in arguments.requests]
    verdicts = [
        *(at_least(f"min_ratio_{each['per_request']}", arguments.min_ratio, each["ratio"]) for each in rates),
        at_most("max_changed", arguments.max_changed, found["changed_decisions"]),
        at_most("max_auc_drop", arguments.max_auc_drop, found["mean_roc_auc"][0] - found["mean_roc_auc"][1]),
    ]
    result = {
        **report.origin(),
        "command": command,
        "model": arguments.model,
        "stages": about["stages"],
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "answers": found,
        "rates": rates,
        "objectives": [asdict(verdict) for verdict in verdicts],
        "rounds": [asdict(turn) for turn in rounds],
    }
    report.write_json(arguments.out.with_suffix(".json"), result)
    arguments.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    lines.unlink()
    sys.stdout.write(f"\n{markdown(result)}\n" + "\n".join(report.verdict_lines(verdicts)) + "\n")
    sys.stdout.write(f"wrote {arguments.out}.json and .md\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


def switch_cache_off(model: Path) -> dict[str, Any]:
    """In the version that is served; returns the model's name and those of its stages.

    :raises BenchFailed: where there is no cascade.
    """
    versions = sorted((int(f.name), f) for f in model.glob("*") if f.name.isdigit())
    if not versions:
        raise bench.BenchFailed(f"{model.name} is not in the repository: write it with python -m export.cascade")
    file = versions[-1][1] / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "cache_bytes": 0}), encoding="utf-8")
    return {"name": model.name, "stages": [stage["name"] for stage in settings["stages"]]}


def answers(contender: Tritox, texts: Sequence[str], size: int = 16) -> Iterator[Any]:
    """What a model answers to the texts, request by request, in order."""
    options = wire.channel_options()
    with grpc.insecure_channel(f"{contender.host}:{contender.port}", options=options) as channel:
        call = channel.unary_unary(
            contender.path,
            request_serializer=lambda body: body,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        waiting: deque[Any] = deque()
        for start in range(0, len(texts), size):
            waiting.append(call.future(contender.body(texts[start : start + size]), timeout=TIMEOUT_S))
            if len(waiting) >= UNDER_WAY:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def output(response: Any, name: str, kind: type[np.generic]) -> np.ndarray:
    at = [each.name for each in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[at], kind).reshape(list(response.outputs[at].shape))


def compare(
    alone: Tritox, cascade: Tritox, texts: Sequence[str], truth: np.ndarray, labels: Any, stages: Sequence[str]
) -> dict[str, Any]:
    """What the two answer to each comment. :param truth: *Shape:* ``(comments, labels)``"""
    alone.resume()
    scores, by = [], np.zeros(0, np.int32)
    for contender in (alone, cascade):
        parts = []
        with tqdm(total=len(texts), desc=f"answers of {contender.model}", unit=" comments") as bar:
            for response in answers(contender, texts):
                parts.append(output(response, "scores", np.float32))
                if contender is cascade:
                    by = np.append(by, output(response, "stage", np.int32))
                bar.update(len(parts[-1]))
        scores.append(np.concatenate(parts))
    alone.pause()
    thresholds = np.array([labels.thresholds[name] for name in labels.labels])
    return {
        "comments": len(texts),
        # 0 is a comment that was under way already: a copy of one in the same moment
        "answered_by": {
            name: float((by == number).mean()) for number, name in enumerate(["a copy", *stages, "encoder"])
        },
        **differences(scores[0], scores[1], thresholds),
        "mean_roc_auc": [mean_roc_auc(each, truth) for each in scores],
    }


def differences(alone: np.ndarray, cascade: np.ndarray, thresholds: np.ndarray) -> dict[str, Any]:
    """*Shape of the scores:* ``(comments, labels)``"""
    changed = (alone >= thresholds) != (cascade >= thresholds)
    return {
        "changed_decisions": float(changed.mean()),
        "changed_comments": float(changed.any(axis=1).mean()),
        "missed": int((changed & (alone >= thresholds)).sum()),
        "invented": int((changed & (cascade >= thresholds)).sum()),
    }


def mean_roc_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Over the labels that have both kinds of comments; by ranks, ties in the middle of theirs."""
    areas = []
    for column, own in zip(scores.T, truth.T > 0.5, strict=True):
        positives, negatives = int(own.sum()), int((~own).sum())
        if positives and negatives:
            _, place, counts = np.unique(column, return_inverse=True, return_counts=True)
            ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
            areas.append((ranks[own].sum() - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas)) if areas else float("nan")


def rate(rounds: Sequence[bench.Round], size: int, alone: str, cascade: str) -> dict[str, Any]:
    """Medians of the valid rounds; the ratio is formed within each round."""
    turns = {
        name: {t.round: t for t in rounds if (t.contender, t.per_request) == (name, size) and not t.invalid}
        for name in (alone, cascade)
    }
    both = sorted(set(turns[alone]) & set(turns[cascade]))
    if not both:
        raise bench.BenchFailed(f"no round of {size} comments a request is valid of both: see the lines above")
    ratios = [turns[cascade][n].comments_per_s / turns[alone][n].comments_per_s for n in both]
    cpu = [
        (turns[alone][n].cpu_us_per_comment or 0.0) / (turns[cascade][n].cpu_us_per_comment or float("nan"))
        for n in both
    ]
    out: dict[str, Any] = {"per_request": size, "rounds": len(both), "ratio": statistics.median(ratios)}
    out |= {"least": min(ratios), "greatest": max(ratios), "cpu_ratio": statistics.median(cpu)}
    for key, name in (("alone", alone), ("cascade", cascade)):
        out[key] = {
            field: statistics.median([getattr(turns[name][n], field) for n in both])
            for field in ("comments_per_s", "p50_ms", "p99_ms", "cpu_us_per_comment", "generator_share", "stolen_cores")
        }
    return out


def at_least(name: str, target: float, measured: float) -> Verdict:
    return Verdict(name, target, measured, measured >= target)


def at_most(name: str, target: float, measured: float) -> Verdict:
    return Verdict(name, target, measured, measured <= target)


def markdown(result: dict[str, Any]) -> str:
    """What was measured, as a page."""
    found, machine = result["answers"], result["machine"]
    before, after = found["mean_roc_auc"]
    lines = [
        f"{machine['cores']} cores of {machine['cpu']}, load generator included, cache off; {result['clients']} "
        f"clients, {result['seconds']:g} s a turn, medians of interleaved rounds; commit "
        f"{str(result['commit'])[:12]}, {result['finished']}, `{result['command']}`.",
        "",
        f"| comments a request | {result['model']}, comments/s | cascade, comments/s | ratio (least-greatest) | CPU µs "
        "a comment | its ratio | p99 ms | rounds |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in result["rates"]:
        alone, own = each["alone"], each["cascade"]
        lines.append(
            f"| {each['per_request']} | {alone['comments_per_s']:,.0f} | {own['comments_per_s']:,.0f} | "
            f"**{each['ratio']:.1f}** ({each['least']:.1f}-{each['greatest']:.1f}) | "
            f"{alone['cpu_us_per_comment']:,.0f} -> {own['cpu_us_per_comment']:,.0f} | {each['cpu_ratio']:.1f} | "
            f"{alone['p99_ms']:,.0f} -> {own['p99_ms']:,.0f} | {each['rounds']} |"
        )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["answered_by"].items() if share)
    lines += [
        "",
        f"Of {found['comments']:,} validation comments, each sent to both once: answered by {shares}. "
        f"**{found['changed_decisions']:.3%}** of the decisions differ, of {found['changed_comments']:.2%} of the "
        f"comments ({found['missed']} flags missed, {found['invented']} invented). Mean ROC-AUC {before:.4f} -> "
        f"{after:.4f} ({after - before:+.4f}).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
