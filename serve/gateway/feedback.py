"""Suggested scores: kept in SQLite or PostgreSQL, and written as a training file.

::

    python -m serve.gateway.feedback --store feedback.sqlite --out suggested.csv
    python -m serve.gateway.feedback --store postgresql://user@host/db --out suggested.csv --triton 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from client import ToxicityClient, ToxicityError
from client.records import open_postgres, open_sqlite
from serve.gateway.attributes import LABELS, PRODUCTION
from serve.gateway.perspective import Suggestion

POSTGRES = ("postgresql://", "postgres://")
COLUMNS = (
    *("at", "text", "scores", "span_scores", "languages"),
    *("session_id", "community_id", "client_token", "key_name", "model", "model_version"),
)
TABLE = "suggested_scores"

T = TypeVar("T")


class StoreFailed(RuntimeError):
    """Suggested scores cannot be kept or read; the message says where, and never what."""


@dataclass(frozen=True)
class Origin:
    """Whence a suggestion came, and the model that it may disagree with."""

    key: str
    model: str
    version: str


class Store:
    """A table of suggested scores. One thread of its own does all the work, and each suggestion is on disk when
    :meth:`add` returns.

    :param where: an SQLite file, or a ``postgresql://`` address.
    :raises StoreFailed: when it cannot be opened.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.is_postgres = where.startswith(POSTGRES)
        self.shown = "the PostgreSQL server" if self.is_postgres else where  # an address may hold a password
        self._errors: tuple[type[Exception], ...] = (sqlite3.Error,)
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        try:
            self._thread.submit(self._work, self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def add(self, suggestion: Suggestion, origin: Origin) -> None:
        """:raises StoreFailed: when it is not stored."""
        row = (
            datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            suggestion.text,
            json.dumps(suggestion.scores),
            json.dumps(suggestion.span_scores),
            json.dumps(suggestion.languages),
            suggestion.session_id,
            suggestion.community_id,
            suggestion.client_token,
            *(origin.key, origin.model, origin.version),
        )
        # PostgreSQL has no NUL in a text
        clean = tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)
        mark = "%s" if self.is_postgres else "?"
        command = f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) VALUES ({', '.join([mark] * len(COLUMNS))})"
        await asyncio.wrap_future(self._thread.submit(self._work, lambda: self._execute(command, clean)))

    def rows(self) -> list[dict[str, Any]]:
        """All suggestions, the oldest first."""
        query = f"SELECT {', '.join(COLUMNS)} FROM {TABLE} ORDER BY id"
        found = self._thread.submit(self._work, lambda: self._connection.execute(query).fetchall()).result()
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in found]
        for row in rows:
            row["scores"] = json.loads(row["scores"])
        return rows

    def close(self) -> None:
        if self._connection is not None:
            self._thread.submit(self._connection.close).result()
        self._thread.shutdown()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- in the thread

    def _work(self, task: Callable[[], T]) -> T:
        try:
            return task()
        except self._errors as error:
            # the database's message may quote the row
            raise StoreFailed(f"{self.shown} failed with {type(error).__name__}") from None

    def _open(self) -> None:
        key = "id INTEGER PRIMARY KEY"
        if self.is_postgres:
            self._connection, self._errors = open_postgres(self.where, "gateway", StoreFailed)
            key = "id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
        else:
            self._connection = open_sqlite(self.where, StoreFailed)
        columns = ", ".join(f"{c} TEXT" + (" NOT NULL" if c in COLUMNS[:5] else "") for c in COLUMNS)
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} ({key}, {columns})")

    def _execute(self, command: str, row: Sequence[Any]) -> None:
        if self.is_postgres and self._connection.closed:
            self._open()
        try:
            self._connection.execute(command, row)
        except self._errors:
            if not (self.is_postgres and self._connection.closed):
                raise
            self._open()  # the server was restarted
            self._connection.execute(command, row)


def merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each text, the mean of what was suggested for each label. Scores of spans are left out."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for attribute, value in row["scores"].items():
            values[row["text"]][LABELS[attribute]].append(value)
    return {
        text: {label: sum(given) / len(given) for label, given in labels.items()} for text, labels in values.items()
    }


def training_rows(
    suggested: Mapping[str, Mapping[str, float]], labels: Sequence[str], decide: Callable[[str], Sequence[str]] | None
) -> Iterator[tuple[str, list[int]]]:
    """Texts with 0 or 1 for each label; those with a label that nobody knows are left out.

    A label counts from 0.5 on. What is not toxic at all has no other label either.

    :param decide: gives the labels that a model sees in a text, for labels that nobody suggested a score of.
    """
    for text, scores in suggested.items():
        known = {label: int(score >= 0.5) for label, score in scores.items()}
        if known.get("toxic") == 0:
            known = {**dict.fromkeys(labels, 0), **known}
        if decide is not None and any(label not in known for label in labels):
            seen = decide(text)
            known = {**{label: int(label in seen) for label in labels}, **known}
        if all(label in known for label in labels):
            yield text, [known[label] for label in labels]


def export(store: Store, out: Path, labels: Sequence[str], decide: Callable[[str], Sequence[str]] | None) -> str:
    """Write a CSV file that ``python -m train fit --data`` reads; what was written, in words."""
    suggested = merged(store.rows())
    rows = list(training_rows(suggested, labels, decide))
    scratch = out.with_name(f".{out.name}.tmp")
    with scratch.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["id", "comment_text", *labels])
        for number, (text, values) in enumerate(rows, 1):
            writer.writerow([number, text, *values])
    os.replace(scratch, out)
    left = len(suggested) - len(rows)
    said = f"wrote {out}: {len(rows)} comments"
    if left:
        said += (
            f"; {left} left out, since nobody suggested a score of some label: --triton HOST:PORT takes those from the "
            "model, --labels asks for fewer"
        )
    return said


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m serve.gateway.feedback",
        description="Write the suggested scores as a CSV file to train on, in the format of Jigsaw's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--store", default="feedback.sqlite", metavar="FILE|URL", help="as it was given to the gateway")
    p.add_argument("--out", type=Path, required=True, help="the CSV file")
    p.add_argument("--labels", default=",".join(dict.fromkeys(PRODUCTION.values())), help="columns, between commas")
    p.add_argument("--triton", help="host:port of a server whose model decides on the labels without a suggestion")
    p.add_argument("--model", default="toxicity", help="its name there")
    arguments = p.parse_args(argv)
    labels = [label for label in arguments.labels.split(",") if label]
    if not labels or set(labels) - set(LABELS.values()):
        p.error(f"--labels is {arguments.labels!r}, must be some of {', '.join(dict.fromkeys(LABELS.values()))}")
    if not arguments.store.startswith(POSTGRES) and not Path(arguments.store).is_file():
        p.error(f"there is no file {arguments.store}")
    try:
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(Store(arguments.store))
            decide = None
            if arguments.triton:
                client = stack.enter_context(ToxicityClient(arguments.triton, model=arguments.model, timeout=30))
                decide = lambda text: client.classify([text])[0].flagged  # noqa: E731
            sys.stdout.write(export(store, arguments.out, labels, decide) + "\n")
            return 0
    except (StoreFailed, ToxicityError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
