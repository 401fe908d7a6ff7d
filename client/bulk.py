"""Scores rows with several requests in flight, in order, in bounded memory, into a file that survives a kill.

While it runs, ``OUT.partial`` holds what is scored and ``OUT.partial.json`` says how much of that is whole, and of what
input and options it is. The same command goes on there. ``OUT`` itself appears at the end, at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from client.errors import InvalidInput, ServerUnavailable, ToxicityError
from client.files import Chunk, InvalidFile, Row, Scored, ScoredRow, Source, Writer
from client.policy import Policy
from client.results import Result

CHECKPOINT_S = 1.0
"""A kill costs no more than what was scored since the last checkpoint."""
CHECKPOINT_ROWS = 8192
"""Rows in memory between two checkpoints, at most."""
SAMPLE_BYTES = 1 << 16
"""Of the input's beginning and end, by which it is known again."""


class Client(Protocol):
    """What is asked for scores: a :class:`client.ToxicityClient`."""

    def classify(self, texts: Sequence[str], timeout: float | None = None) -> list[Result]: ...


@dataclass
class Scorer:
    """Asks for the scores of chunks, from several threads.

    :param in_flight: requests at a time.
    :param patience_s: how long a chunk waits for a server that is busy or away.
    """

    client: Client
    policy: Policy | None = None
    in_flight: int = 4
    patience_s: float = 0.0
    note: Callable[[str], None] = lambda message: None

    def score(self, chunks: Iterable[Chunk | None]) -> Iterator[Scored]:
        """The chunks with their results, in order. Reads at most ``2 * in_flight`` chunks ahead of what was taken.

        :param chunks: a ``None`` among them says that no more may come for a while: what is under way is given first.
        :raises ToxicityError: what :meth:`ToxicityClient.classify` raises, unless it is about a text: that is the
            row's error.
        """
        self._stop, self._any = threading.Event(), False
        pool = ThreadPoolExecutor(self.in_flight, thread_name_prefix="score")
        waiting: deque[Future[Scored]] = deque()
        try:
            for chunk in chunks:
                if chunk is not None:
                    waiting.append(pool.submit(self._chunk, chunk))
                while waiting and (chunk is None or len(waiting) >= 2 * self.in_flight or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _chunk(self, chunk: Chunk) -> Scored:
        rows = [row for row in chunk.rows if row.error is None]
        results = dict(zip((row.number for row in rows), self._results(rows), strict=True))
        scored = []
        for row in chunk.rows:
            result = results.get(row.number)
            scored.append(ScoredRow(row, result, self.policy.decide(result) if self.policy and result else None))
        return Scored(scored, chunk.batch)

    def _results(self, rows: list[Row]) -> list[Result | None]:
        """Of each row; ``None`` where the server refuses its text, which the others must not suffer from.

        :raises InvalidInput: when nothing was ever accepted and all of several rows are refused: it is not the texts.
        """
        if not rows:
            return []
        try:
            results: list[Result | None] = list(self._ask([row.text or "" for row in rows]))
            self._any = True
            return results
        except InvalidInput as error:
            if len(rows) == 1:
                rows[0].error = f"row {rows[0].number}: {error}"
                return [None]
            half = len(rows) // 2
            results = self._results(rows[:half]) + self._results(rows[half:])
            if not self._any:
                raise
            return results

    def _ask(self, texts: list[str]) -> list[Result]:
        started, pause_s = time.monotonic(), 0.1
        while True:
            try:
                return self.client.classify(texts)
            except ServerUnavailable as error:
                pause_s = min(pause_s * 2, 5.0) * random.uniform(0.5, 1.0)
                if time.monotonic() + pause_s - started > self.patience_s:
                    raise
                self.note(f"waiting for the server: {error}")
                if self._stop.wait(pause_s):
                    raise


@dataclass
class Tally:
    """What has been done."""

    rows: int = 0
    errors: int = 0
    actions: Counter[str] = field(default_factory=Counter)

    def add(self, scored: Scored) -> None:
        self.rows += len(scored.rows)
        self.errors += sum(row.row.error is not None for row in scored.rows)
        self.actions.update(row.decision.action for row in scored.rows if row.decision)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "errors": self.errors, "actions": dict(self.actions)}

    def __str__(self) -> str:
        parts = [f"{self.rows:,} rows", *(f"{count:,} {action}" for action, count in self.actions.most_common())]
        return ", ".join(parts + [f"{self.errors:,} not scored: see their error"] * (self.errors > 0))


class Partial:
    """The unfinished output of a job.

    :param job: what must be the same for going on: the input, the options, the labels.
    :param version: of the model; another one may go on, as each row says which it was.
    :ivar tally: of the rows that are done.
    :ivar versions: of the model, that scored them.
    :raises InvalidFile: when another process writes it, or it is of another job; when it cannot be written.
    """

    def __init__(
        self, out: Path, writer: Writer, job: dict[str, Any], version: str = "", restart: bool = False
    ) -> None:
        self.out, self.writer, self.job = out, writer, job
        self.versions = [version]
        self.path = out.with_name(out.name + ".partial")
        self.record = out.with_name(out.name + ".partial.json")
        self.tally = Tally()
        try:
            self.file: IO[bytes] = open(self.path, "ab")  # noqa: SIM115  (closed by close)
        except OSError as error:
            raise InvalidFile(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._go_on(restart)
        except BlockingIOError:
            self.file.close()
            raise InvalidFile(f"{self.path} is being written by another process: wait for it, or stop it") from None
        except BaseException:
            self.file.close()
            raise

    def _go_on(self, restart: bool) -> None:
        before = self._read_record()
        if restart or before is None or before["bytes"] > self.path.stat().st_size:
            self.record.unlink(missing_ok=True)
            self.file.truncate(0)
            self.file.seek(0, os.SEEK_END)
            self.file.write(self.writer.head())
            return
        if changed := [key for key, value in self.job.items() if before["job"].get(key) != value]:
            raise InvalidFile(
                f"{self.path} was begun with another {changed[0]} ({before['job'].get(changed[0])!r}, now "
                f"{self.job[changed[0]]!r}): go on as it was begun, or drop it with --restart"
            )
        self.tally = Tally(before["rows"], before["errors"], Counter(before["actions"]))
        self.versions = [version for version in before["versions"] if version != self.versions[0]] + self.versions
        self.file.truncate(before["bytes"])
        self.file.seek(0, os.SEEK_END)

    def _read_record(self) -> Any:
        try:
            return json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def append(self, chunks: Sequence[Scored]) -> None:
        """Write rows that are done, then that they are: whatever happens in between, they count once."""
        self.file.write(self.writer.block(chunks))
        self.file.flush()
        os.fsync(self.file.fileno())
        for chunk in chunks:
            self.tally.add(chunk)
        written = os.fstat(self.file.fileno()).st_size
        record = {**self.tally.to_dict(), "bytes": written, "versions": self.versions, "job": self.job}
        new = self.record.with_name(self.record.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.record)

    def finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.writer.finish(self.path, self.out)
        self.record.unlink(missing_ok=True)

    def close(self) -> None:
        self.file.close()


def fingerprint(path: Path) -> str:
    """By which an input is known again: its size, its beginning and its end. A copy elsewhere is the same."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def run(source: Source, scorer: Scorer, partial: Partial, size: int, progress: Progress) -> None:
    """Score what is left of ``source``, and put the output in its place.

    :param size: rows in a request.
    """
    waiting: list[Scored] = []
    rows, saved = 0, time.monotonic()
    try:
        for chunk in scorer.score(source.rows(size, skip=partial.tally.rows)):
            progress.errors(chunk)
            waiting.append(chunk)
            rows += len(chunk.rows)
            if rows >= CHECKPOINT_ROWS or time.monotonic() - saved >= CHECKPOINT_S:
                partial.append(waiting)
                waiting, rows, saved = [], 0, time.monotonic()
            progress.show(partial.tally.rows + rows, source.done())
    except ToxicityError:  # the server is lost: what it did give is kept
        if waiting:
            partial.append(waiting)
        raise
    if waiting:
        partial.append(waiting)
    partial.finish()


class Progress:
    """One line on a terminal, stderr: how far, how fast, how long still. And what else is to be said.

    :ivar before: rows of an earlier run, which do not count for the speed.
    """

    WIDTH = 24
    EVERY_S = 0.1
    NAMED = 10

    def __init__(self, stream: Any = None) -> None:
        self.stream = stream or sys.stderr
        self.on = self.stream.isatty()
        self.before = self.bad = 0
        self.started = self.shown = time.monotonic()
        self.from_part: float | None = None
        self.drawn = self.said = False

    def show(self, rows: int, part: float) -> None:
        """:param part: of the input that was read, in [0, 1]."""
        now = time.monotonic()
        if self.from_part is None:
            self.from_part = part
        if not self.on or now - self.shown < self.EVERY_S:
            return
        self.shown = now
        took_s = now - self.started
        bar = ("#" * round(part * self.WIDTH)).ljust(self.WIDTH)
        left = ""
        if part > self.from_part:
            left = f", {_clock(took_s * (1 - part) / (part - self.from_part))} left"
        line = f"{part:4.0%} |{bar}| {rows:,} rows, {(rows - self.before) / took_s:,.0f}/s{left}"
        self.stream.write(f"\r{line}\x1b[K")
        self.stream.flush()
        self.drawn = True

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        self.close()
        self.stream.write(message + "\n")
        self.stream.flush()

    def errors(self, scored: Scored) -> None:
        """Name the first rows that have one."""
        for row in scored.rows:
            if row.row.error is not None and self.bad < self.NAMED:
                self.bad += 1
                self.say(f"error: {row.row.error}")

    def say_once(self, message: str) -> None:
        """What many threads may say at the same time: only the first is heard."""
        if not self.said:
            self.said = True
            self.say(message)

    def close(self) -> None:
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
            self.drawn = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
