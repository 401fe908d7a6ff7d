"""``python -m serve.gateway.spans_eval``: how well spans agree with what people marked as toxic.

The data are those of SemEval-2021 Task 5, "Toxic Spans Detection", and so is the measure: the F1 of characters in each
comment (1 where neither side marked any), averaged over comments. Each model's settings are searched on one part of the
sample and reported on the other. Words left out, and words left out and scored alone, are measured side by side.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import csv
import gzip
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import Result, ToxicityClient
from serve.gateway import spans

LEAST = [step / 4 for step in range(-12, 13)]
MARGINS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, math.inf)
RULES: dict[str, Callable[[spans.Word], Mapping[str, float]]] = {
    "left out and alone": lambda word: word.weight,
    "left out": lambda word: word.fall,
    "alone": lambda word: word.alone,
}
SERVED = "left out and alone"


@dataclass(frozen=True)
class Comment:
    text: str
    marked: frozenset[int]


def read(path: Path) -> list[Comment]:
    """Comments of a CSV with the columns ``spans`` (a list of code points) and ``text``, gzipped or not.

    :raises ValueError: for a row that cannot be read, with its number.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"spans", "text"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {rows.fieldnames}, must have spans and text")
        comments = []
        for number, row in enumerate(rows, 1):
            try:
                marked = frozenset(int(place) for place in ast.literal_eval(row["spans"]))
            except (ValueError, SyntaxError, TypeError) as error:
                raise ValueError(f"{path}, row {number}: spans {row['spans']!r} is no list of numbers") from error
            if marked and not 0 <= min(marked) <= max(marked) < len(row["text"]):
                raise ValueError(f"{path}, row {number}: span beyond the text's {len(row['text'])} characters")
            comments.append(Comment(row["text"], marked))
    return comments


def character_f1(found: Iterable[int], marked: Iterable[int]) -> float:
    found, marked = set(found), set(marked)
    if not found and not marked:
        return 1.0
    return 2 * len(found & marked) / (len(found) + len(marked))


class Blocking:
    """The blocking client behind the asynchronous client's face; one comment is measured at a time."""

    def __init__(self, client: ToxicityClient) -> None:
        self._client = client
        self.texts = 0

    async def classify(self, texts: Sequence[str], /) -> list[Result]:
        self.texts += len(texts)
        return self._client.classify(texts)


@dataclass
class Weighed:
    """A comment, its words, and the characters of the spans that any settings give."""

    comment: Comment
    words: list[spans.Word]

    def f1(self, rule: str, least: float, margin: float) -> float:
        chosen = spans.counting([RULES[rule](word) for word in self.words], least, margin)
        found = spans.joined(self.comment.text, self.words, chosen)
        return character_f1((i for span in found for i in range(span.begin, span.end)), self.comment.marked)


def mean_f1(comments: Sequence[Weighed], rule: str, least: float, margin: float) -> float:
    return statistics.fmean(each.f1(rule, least, margin) for each in comments)


def interval(values: Sequence[float], draws: int = 1000) -> list[float]:
    """95% of the means of samples drawn from ``values`` with replacement."""
    rng = random.Random(1)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    return [round(means[int(draws * 0.025)], 4), round(means[int(draws * 0.975) - 1], 4)]


def weigh(model: str, url: str | None, comments: Sequence[Comment], timeout: float) -> tuple[list[Weighed], Any, float]:
    """Words and weights of every comment, what the server says of the model, and the texts that a comment cost."""
    with ToxicityClient(url, model=model, timeout=timeout) as client:
        info, asked = client.info(), Blocking(client)
        weighed = []
        for number, comment in enumerate(comments, 1):
            weighed.append(
                Weighed(comment, asyncio.run(spans.weigh(asked, comment.text, max_tokens=info.max_tokens or 128)))
            )
            if number % 50 == 0:
                sys.stderr.write(f"{model}: {number} of {len(comments)} comments\n")
    return weighed, info, asked.texts / len(comments)


def measure(model: str, url: str | None, comments: Sequence[Comment], tuning: int, timeout: float) -> dict[str, Any]:
    """F1 of one model by each rule: settings from the first ``tuning`` comments, F1 of the others."""
    weighed, info, texts = weigh(model, url, comments, timeout)
    first, rest = weighed[:tuning], weighed[tuning:]
    rules: dict[str, Any] = {}
    for rule in RULES:
        searched = [(mean_f1(first, rule, least, margin), least, margin) for least in LEAST for margin in MARGINS]
        tuning_f1, *best = max(searched)
        each = [one.f1(rule, *best) for one in rest]
        rules[rule] = {
            "f1": round(statistics.fmean(each), 4),
            "interval_95": interval(each),
            "tuning_f1": round(tuning_f1, 4),
            "least_log_odds": best[0],
            "margin_log_odds": None if math.isinf(best[1]) else best[1],
        }
    report: dict[str, Any] = {
        "model": model,
        "version": info.version,
        "precision": info.precision,
        "texts_per_comment": round(texts, 1),
        "rules": rules,
    }
    least = spans.log_odds(spans.THRESHOLD)
    each = [one.f1(SERVED, least, spans.MARGIN) for one in rest]
    report["as served"] = {"f1": round(statistics.fmean(each), 4), "interval_95": interval(each)}
    return report


def trivial(comments: Sequence[Comment]) -> dict[str, float]:
    """F1 of marking everything, and of marking nothing."""
    return {
        "everything": round(statistics.fmean(character_f1(range(len(c.text)), c.marked) for c in comments), 4),
        "nothing": round(statistics.fmean(character_f1((), c.marked) for c in comments), 4),
    }


def markdown(report: dict[str, Any]) -> str:
    """A table of a report: one row for each model and rule, and the trivial answers."""
    lines = ["| words that count by | model | F1 | 95% interval |", "|---|---|---:|---:|"]
    for model in report["models"]:
        rows = {
            "as served": model["as served"],
            **{f"{rule}, tuned": each for rule, each in model["rules"].items()},
        }
        for name, row in rows.items():
            low, high = row["interval_95"]
            lines.append(f"| {name} | `{model['model']}` | {row['f1']:.3f} | {low:.3f} to {high:.3f} |")
    lines += [f"| {name} | | {value:.3f} | |" for name, value in report["trivial"].items()]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.gateway.spans_eval",
        description=__doc__.split("\n\n")[0].split(": ", 1)[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--data", type=Path, required=True, help="CSV with the columns spans and text")
    p.add_argument("--url", help="host:port of the server's gRPC port; by default TRITOX_URL, else 127.0.0.1:8001")
    p.add_argument("--model", action="append", help="of the server; repeat it to compare. By default toxicity")
    p.add_argument("--comments", type=int, default=600, help="sample drawn from the data, 0 for all")
    p.add_argument("--tuning", type=float, default=0.5, help="share of the sample that settings are searched on")
    p.add_argument("--seed", type=int, default=11, help="of the sample")
    p.add_argument("--timeout", type=float, default=120.0, help="seconds that one comment may take")
    p.add_argument("--out", type=Path, help="write the report to this JSON file")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        comments = read(arguments.data)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    random.Random(arguments.seed).shuffle(comments)
    sample = comments[: arguments.comments] if arguments.comments else comments
    tuning = round(len(sample) * arguments.tuning)
    if not 0 < tuning < len(sample):
        sys.stderr.write(f"error: {tuning} of {len(sample)} comments to tune on: both parts need one at least\n")
        return 2
    models = [
        measure(model, arguments.url, sample, tuning, arguments.timeout) for model in arguments.model or ["toxicity"]
    ]
    report = {
        "data": arguments.data.name,
        "seed": arguments.seed,
        "comments_in_data": len(comments),
        "comments_tuned_on": tuning,
        "comments_measured": len(sample) - tuning,
        "of_these_without_a_mark": sum(not comment.marked for comment in sample[tuning:]),
        "measure": "F1 of characters in a comment, mean over comments",
        "trivial": trivial(sample[tuning:]),
        "models": models,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    text = json.dumps(report, indent=2) + "\n"
    sys.stdout.write(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        part = arguments.out.with_name(f"{arguments.out.name}.part")
        part.write_text(text)
        os.replace(part, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
