"""Decision records: what was decided about a text, by which model, and why. Append-only; for appeals and audits.

>>> from client.records import Records
>>> with ToxicityClient() as client, Records("decisions.sqlite", key) as records:      # doctest: +SKIP
...     for text, result in zip(texts, client.classify(texts)):
...         records.add([decided(records.hash(text), None, result, client.info())])

A text is known by a keyed hash (HMAC-SHA-256): who has the key and a text finds its records, and nobody can find texts
by trying without it. The text itself is kept only where that is asked for.

Records are in an SQLite file, or in PostgreSQL. Both refuse to change or delete a row (a trigger does): what grows too
old goes with its file or table. They are written in groups, and :meth:`Records.add` returns when they are on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from client.errors import InvalidInput
from client.policy import Decision, Policy
from client.results import ModelInfo, Result

POSTGRES = ("postgresql://", "postgres://")
TABLE = "decisions"
KEY_VARIABLE = "TRITOX_RECORDS_KEY"
SHORTEST_KEY = 16
MOST_AT_ONCE = 1000
"""Records of one transaction."""
MOST_WAITING = 10_000
"""Calls that wait for the disk; more are refused."""
READ_ROWS = 1000
JSON_COLUMNS = ("scores", "thresholds", "flagged")
INDEXED = ("text_hash", "request_id")


class RecordsFailed(RuntimeError):
    """Records cannot be kept or read; the message says where, and never what."""


@dataclass(frozen=True)
class Record:
    """A decision.

    :param at: when, in UTC, such as ``2026-11-21T10:00:00.000+00:00``.
    :param text: ``None`` where texts are not kept.
    :param release: the training's version of the model. :param normalizer: of its code, the beginning of the SHA-256.
    :param thresholds: that held for the labels.
    :param policy, policy_sha256: the policy that decided, and its file's hash; with ``action`` and ``rule``, ``None``
        where none did.
    """

    at: str
    request_id: str
    text_hash: str
    text: str | None
    model: str
    model_version: str
    release: str
    normalizer: str
    scores: dict[str, float]
    thresholds: dict[str, float]
    flagged: list[str]
    truncated: bool
    policy: str | None = None
    policy_sha256: str | None = None
    action: str | None = None
    rule: str | None = None


COLUMNS = tuple(field.name for field in fields(Record))
REQUIRED = set(COLUMNS) - {"text", "policy", "policy_sha256", "action", "rule"}


def decided(
    text_hash: str,
    text: str | None,
    result: Result,
    info: ModelInfo,
    policy: Policy | None = None,
    decision: Decision | None = None,
) -> Record:
    """The record of a result.

    :param info: of the version that scored.
    :param policy, decision: where a policy decided.
    """
    return Record(
        datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        result.request_id,
        text_hash,
        text,
        result.model,
        result.model_version,
        info.release,
        info.normalizer,
        {label: round(score, 6) for label, score in result.scores.items()},
        dict(info.thresholds),
        list(result.flagged),
        result.truncated,
        policy.name if policy else None,
        policy.sha256 if policy else None,
        decision.action if decision else None,
        decision.rule if decision else None,
    )


def text_hash(text: str, key: str) -> str:
    """:raises InvalidInput: for a key that is too short."""
    if len(key) < SHORTEST_KEY:
        raise InvalidInput(
            f"the records' key has {len(key)} characters, must be at least {SHORTEST_KEY}",
            remedy=f"set {KEY_VARIABLE} to what `openssl rand -hex 16` prints, and keep it: no text is found without",
        )
    return hmac.new(key.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


class Records:
    """A table of decisions. One thread of its own writes; any may call.

    :param where: an SQLite file, or a ``postgresql://`` address.
    :param key: of the texts' hashes; by default the environment's ``TRITOX_RECORDS_KEY``.
    :param keep_text: write the texts, too.
    :param read_only: for :meth:`rows`; needs no key.
    :raises InvalidInput: for a key that is too short. :raises RecordsFailed: when it cannot be opened.
    """

    def __init__(self, where: str, key: str | None = None, *, keep_text: bool = False, read_only: bool = False) -> None:
        self.where, self.keep_text, self.read_only = where, keep_text, read_only
        self.key = key if key is not None else os.environ.get(KEY_VARIABLE, "")
        if not read_only:
            text_hash("", self.key)
        self.is_postgres = where.startswith(POSTGRES)
        self.shown = "the PostgreSQL server" if self.is_postgres else where  # an address may hold a password
        self._errors: tuple[type[Exception], ...] = (sqlite3.Error,)
        self._connection: Any = None
        self._closed = False
        self._tasks: queue.Queue[tuple[Any, Future[Any]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()
        try:
            self._submit(self._open).result()
        except BaseException:
            self.close()
            raise

    def hash(self, text: str) -> str:
        return text_hash(text, self.key)

    def add(self, records: Sequence[Record]) -> None:
        """Write records, all or none.

        :raises RecordsFailed: when they are not on disk.
        """
        self.start(records).result()

    def start(self, records: Sequence[Record]) -> Future[None]:
        """As :meth:`add`, for those who wait in their own way.

        :raises RecordsFailed: when too many wait already.
        """
        return self._submit([self._row(record) for record in records])

    def rows(
        self, *, request_id: str | None = None, since: str | None = None, until: str | None = None
    ) -> Iterator[Record]:
        """The records, the oldest first.

        :param since, until: beginnings of ``at``; ``until`` is left out itself.
        """
        wanted = [(f"{column} {sign} ", value) for column, sign, value in _wanted(request_id, since, until) if value]
        condition = " AND ".join(f"{test}{self._mark}" for test, _ in wanted) or "1 = 1"
        last = 0
        while True:
            query = (
                f"SELECT id, {', '.join(COLUMNS)} FROM {TABLE} WHERE {condition} AND id > {last} "
                f"ORDER BY id LIMIT {READ_ROWS}"
            )
            values = tuple(value for _, value in wanted)
            found = self._submit(lambda q=query, v=values: self._connection.execute(q, v).fetchall()).result()
            for number, *row in found:
                last = number
                yield _record(row)
            if len(found) < READ_ROWS:
                return

    def close(self) -> None:
        """Write what waits, and close."""
        if not self._closed:
            self._closed = True
            self._tasks.put(None)
            self._thread.join()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _mark(self) -> str:
        return "%s" if self.is_postgres else "?"

    def _row(self, record: Record) -> tuple[Any, ...]:
        values = {column: getattr(record, column) for column in COLUMNS}
        for column in JSON_COLUMNS:
            values[column] = json.dumps(values[column], ensure_ascii=False)
        values["truncated"] = int(record.truncated)
        if not self.keep_text:
            values["text"] = None
        # neither PostgreSQL's NUL nor SQLite's lone surrogates are texts
        return tuple(
            v.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if isinstance(v, str) else v
            for v in values.values()
        )

    # --- in the thread

    def _submit(self, task: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            raise RecordsFailed(f"{self.shown} was closed")
        try:
            self._tasks.put_nowait((task, future))
        except queue.Full:
            raise RecordsFailed(f"{self.shown} is too slow: {MOST_WAITING} calls wait for it") from None
        return future

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._tasks.get()
            if first is None:
                break
            batch, size = [first], len(first[0]) if isinstance(first[0], list) else MOST_AT_ONCE
            while size < MOST_AT_ONCE:  # what came meanwhile is written with it
                try:
                    task = self._tasks.get_nowait()
                except queue.Empty:
                    break
                if task is None:
                    ended = True
                    break
                batch.append(task)
                size += len(task[0]) if isinstance(task[0], list) else MOST_AT_ONCE
            rows = [row for task, _ in batch if isinstance(task, list) for row in task]
            self._settle([future for task, future in batch if isinstance(task, list)], partial(self._add, rows))
            for task, future in batch:
                if not isinstance(task, list):
                    self._settle([future], task)
        if self._connection is not None:
            with contextlib.suppress(*self._errors):
                self._connection.close()

    def _settle(self, futures: Sequence[Future[Any]], task: Callable[[], Any]) -> None:
        if not futures:
            return
        try:
            found = task()
        except self._errors as error:
            # the database's message may quote the row
            failed: BaseException = RecordsFailed(f"{self.shown} failed with {type(error).__name__}")
        except BaseException as error:
            failed = error
        else:
            for future in futures:
                future.set_result(found)
            return
        for future in futures:
            future.set_exception(failed)

    def _open(self) -> None:
        if self.is_postgres:
            self._connection, self._errors = open_postgres(self.where, "client", RecordsFailed)
        elif self.read_only:
            if not Path(self.where).is_file():
                raise RecordsFailed(f"there is no file {self.where}")
            self._connection = sqlite3.connect(f"{Path(self.where).resolve().as_uri()}?mode=ro", uri=True, timeout=10)
        else:
            self._connection = open_sqlite(self.where, RecordsFailed)
        if not self.read_only:
            for command in _schema(self.is_postgres):
                self._connection.execute(command)

    def _add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        command = f"INSERT INTO {TABLE} ({', '.join(COLUMNS)}) VALUES ({', '.join([self._mark] * len(COLUMNS))})"
        try:
            self._write(command, rows)
        except self._errors:
            if not (self.is_postgres and self._connection.closed):
                raise
            self._open()  # the server was restarted
            self._write(command, rows)

    def _write(self, command: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if self.is_postgres:
            with self._connection.transaction(), self._connection.cursor() as cursor:
                cursor.executemany(command, rows)
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(command, rows)
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise


def _wanted(request_id: str | None, since: str | None, until: str | None) -> list[tuple[str, str, str | None]]:
    return [("request_id", "=", request_id), ("at", ">=", since), ("at", "<", until)]


def _record(row: Sequence[Any]) -> Record:
    values = dict(zip(COLUMNS, row, strict=True))
    for column in JSON_COLUMNS:
        values[column] = json.loads(values[column])
    values["truncated"] = bool(values["truncated"])
    return Record(**values)


def open_postgres(where: str, extra: str, failed: type[Exception]) -> tuple[Any, tuple[type[Exception], ...]]:
    """A connection, and the errors that it raises.

    :param extra: of the project, that is to be installed. :param failed: raised where the driver is missing.
    """
    try:
        import psycopg
    except ModuleNotFoundError as error:
        raise failed(
            f"PostgreSQL needs {error.name}: pip install -e '.[{extra},postgres]' -c constraints.txt"
        ) from None
    return psycopg.connect(where, autocommit=True, connect_timeout=5), (psycopg.Error,)


def open_sqlite(where: str, failed: type[Exception]) -> sqlite3.Connection:
    """A file that holds comments, or may: it is for its owner alone. What is written survives a power cut.

    :param failed: raised where it cannot be written.
    """
    try:
        os.close(os.open(where, os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise failed(f"{where} cannot be written ({error.strerror})") from None
    connection = sqlite3.connect(where, isolation_level=None, timeout=10)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _schema(is_postgres: bool) -> Iterator[str]:
    """The table, and the triggers that let it grow only."""
    key = "id BIGINT GENERATED ALWAYS AS IDENTITY" if is_postgres else "id INTEGER"
    kinds = ((c, "INTEGER" if c == "truncated" else "TEXT", " NOT NULL" if c in REQUIRED else "") for c in COLUMNS)
    columns = ", ".join(f"{column} {kind}{rule}" for column, kind, rule in kinds)
    yield f"CREATE TABLE IF NOT EXISTS {TABLE} ({key} PRIMARY KEY, {columns})"
    for column in INDEXED:
        yield f"CREATE INDEX IF NOT EXISTS {TABLE}_{column} ON {TABLE} ({column})"
    if is_postgres:
        yield (
            f"CREATE OR REPLACE FUNCTION {TABLE}_stay() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'decisions are append-only'; END $$"
        )
        yield (
            f"CREATE OR REPLACE TRIGGER {TABLE}_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {TABLE}_stay()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        yield (
            f"CREATE TRIGGER IF NOT EXISTS {TABLE}_no_{event.lower()} BEFORE {event} ON {TABLE} "
            "BEGIN SELECT RAISE(ABORT, 'decisions are append-only'); END"
        )


def write_parquet(records: Records, out: Path) -> int:
    """Write all records to a Parquet file, whole or not at all; how many.

    :raises ModuleNotFoundError: when pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        message = "Parquet needs the package pyarrow: pip install -e '.[files]' -c constraints.txt"
        raise ModuleNotFoundError(message, name=error.name) from error
    schema = pa.schema(
        [pa.field(c, pa.bool_() if c == "truncated" else pa.string(), nullable=c not in REQUIRED) for c in COLUMNS]
    )
    scratch, count = out.with_name(f".{out.name}.tmp"), 0
    try:
        with pq.ParquetWriter(scratch, schema) as writer:
            batch: list[dict[str, Any]] = []
            for record in records.rows():
                row = {column: getattr(record, column) for column in COLUMNS}
                batch.append({**row, **{c: json.dumps(row[c], ensure_ascii=False) for c in JSON_COLUMNS}})
                count += 1
                if len(batch) == READ_ROWS:
                    writer.write_table(pa.Table.from_pylist(batch, schema))
                    batch = []
            writer.write_table(pa.Table.from_pylist(batch, schema))
        os.replace(scratch, out)
    finally:
        scratch.unlink(missing_ok=True)
    return count
