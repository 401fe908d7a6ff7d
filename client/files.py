"""Rows of text from files, and scored rows into files: CSV, TSV, JSON lines, Parquet, plain lines; ``.gz`` of all but
Parquet. Never more than a few thousand rows are in memory.

A row that cannot be scored (no text, not UTF-8, broken JSON) is no exception: it goes through with an ``error`` that
names its number. Only what stops everything (no such column, a damaged file) is an :class:`InvalidFile`.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from client.errors import InvalidInput
from client.policy import Decision
from client.results import ModelInfo, Result

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "txt",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_FIELD_CHARACTERS = 1 << 24
"""Of one CSV field. A quote that is never closed would else swallow the file into memory."""
READ_ROWS = 4096
"""Rows that are decoded from a Parquet file at a time."""
GROUP_ROWS = 1 << 16
"""Rows in a row group of a Parquet file that is written."""
DERIVED = ("error", "action", "rule")
"""Keys that only some scored rows have: those of an earlier run must not stay."""
JSON_KEYS = ("scores", "flagged", "truncated", "model", "model_version", "request_id", *DERIVED)


class InvalidFile(InvalidInput):
    """A file cannot be read or written at all, or not any further."""


@dataclass(slots=True)
class Row:
    """One row of the input.

    :param number: from 1; a CSV's header is not counted.
    :param values: by column, what the output repeats.
    :param error: why it has no text to score; begins with the row's number.
    """

    number: int
    values: dict[str, Any]
    text: str | None
    error: str | None = None


@dataclass(slots=True)
class Chunk:
    """Rows that go into one request.

    :param batch: the rows as Arrow has them, where a Parquet file is written from a Parquet file; ``values`` is empty
        then.
    """

    rows: list[Row]
    batch: Any = None


@dataclass(slots=True)
class ScoredRow:
    """A row and what became of it: a result, or ``row.error``."""

    row: Row
    result: Result | None = None
    decision: Decision | None = None


@dataclass(slots=True)
class Scored:
    """A chunk's rows, scored; ``batch`` is the chunk's."""

    rows: list[ScoredRow]
    batch: Any = None


def file_format(path: Path) -> tuple[str, bool]:
    """The format that a file's name tells, and whether it is compressed.

    :raises InvalidFile: when the name tells none that is known.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    kind = FORMATS.get((suffixes[:-1] if compressed else suffixes)[-1] if len(suffixes) > compressed else "")
    if kind is None or (kind == "parquet" and compressed):
        raise InvalidFile(
            f"{path}: the name must end in {', '.join(FORMATS)}, or in .gz after one of them that is not Parquet"
        )
    return kind, compressed


def clean(text: str) -> str:
    """``text`` with U+FFFD for what is not UTF-8, which Python reads from files and JSON as lone surrogates."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


def text_row(number: int, line: bytes, column: str = "text") -> Row:
    """A row of plain text."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Row(number, {column: line.decode(errors="replace")}, None, f"row {number}: {_not_utf8(error)}")
    return Row(number, {column: text}, text)


def json_row(number: int, line: bytes, column: str = "text") -> Row:
    """A row that is a JSON object."""
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Row(number, {}, None, f"row {number}: {_not_utf8(error)}")
    except (ValueError, RecursionError) as error:
        return Row(number, {}, None, f"row {number}: is not JSON: {error}")
    if not isinstance(values, dict):
        return Row(number, {}, None, f"row {number}: is a JSON {type(values).__name__}, must be an object")
    text = values.get(column)
    if not isinstance(text, str):
        found = f"is {json.dumps(text)[:40]}" if column in values else "is missing"
        return Row(number, values, None, f"row {number}: {column!r} {found}, must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"{column!r} holds a lone surrogate at position {error.start}, which is no text"
        return Row(number, values, None, f"row {number}: {reason}")
    return Row(number, values, text)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}; convert the input first, "
        "e.g. iconv -f latin1 -t utf-8"
    )


# --- reading


class Source(Protocol):
    """A file of rows."""

    def kinds(self) -> dict[str, str]:
        """The columns in order, each with what its values are: ``str``, ``int``, ``float`` or ``bool``; ``str`` also
        where they are of several kinds. JSON lines are read once for it.
        """
        ...

    def rows(self, size: int, skip: int = 0) -> Iterator[Chunk]:
        """Chunks of at most ``size`` rows, from row ``skip + 1`` on.

        :raises InvalidFile: where the file cannot be read any further.
        """
        ...

    def done(self) -> float:
        """How much of the file has been read, in [0, 1]."""
        ...

    def close(self) -> None: ...


def open_source(path: Path, column: str, batches: bool = False) -> Source:
    """Open a file of any known format.

    :param column: that holds the texts.
    :param batches: keep the rows of a Parquet file as Arrow has them.
    :raises InvalidFile: when it cannot be read, or has no such column.
    """
    kind, compressed = file_format(path)
    try:
        if kind == "parquet":
            return ParquetSource(path, column, batches)
        if kind in DELIMITERS:
            return CsvSource(path, column, compressed, DELIMITERS[kind])
        return LineSource(path, column, compressed, kind)
    except OSError as error:
        raise InvalidFile(f"{path} cannot be read: {error.strerror or error}") from None


class _Bytes:
    """A file's bytes, unpacked; knows how far it is."""

    def __init__(self, path: Path, compressed: bool) -> None:
        self.path = path
        self.size = max(1, path.stat().st_size)
        self.raw = path.open("rb")
        self.file: IO[bytes] = gzip.GzipFile(fileobj=self.raw) if compressed else self.raw  # type: ignore[assignment]

    def done(self) -> float:
        return self.raw.tell() / self.size

    def close(self) -> None:
        self.file.close()
        self.raw.close()

    def broken(self, number: int, error: Exception) -> InvalidFile:
        return InvalidFile(f"{self.path} cannot be read after row {number}: {error}; repair it, or cut it off there")


class LineSource:
    """Lines that are texts, or JSON objects."""

    def __init__(self, path: Path, column: str, compressed: bool, kind: str) -> None:
        self.path, self.column = path, column
        self.compressed, self.kind = compressed, kind
        self.read = text_row if kind == "txt" else json_row
        self.bytes = _Bytes(path, compressed)
        self.done, self.close = self.bytes.done, self.bytes.close

    def kinds(self) -> dict[str, str]:
        if self.kind == "txt":
            return {self.column: "str"}
        found: dict[str, str] = {}
        again = LineSource(self.path, self.column, self.compressed, self.kind)
        for row in again._rows(0):
            for name, value in row.values.items():
                before = found.setdefault(name, "")
                if value is not None and before != "str":
                    found[name] = _joint(before, value)
        again.close()
        return {name: kind or "str" for name, kind in found.items()}

    def rows(self, size: int, skip: int = 0) -> Iterator[Chunk]:
        return _chunks(self._rows(skip), size)

    def _rows(self, skip: int) -> Iterator[Row]:
        number = 0
        try:
            for number, line in enumerate(self.bytes.file, 1):
                if number > skip:
                    line = line.removesuffix(b"\n").removesuffix(b"\r")
                    if number == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    yield self.read(number, line, self.column)
        except (OSError, EOFError, zlib.error) as error:
            raise self.bytes.broken(number, error) from None


def _joint(before: str, value: Any) -> str:
    """The kind of a JSON column that was ``before``, with one more value."""
    kind = type(value).__name__
    if kind not in ("int", "float", "bool") or (kind == "int" and not -(2**63) <= value < 2**63):
        return "str"
    if before in ("", kind):
        return kind
    return "float" if {before, kind} == {"int", "float"} else "str"


class CsvSource:
    """A CSV with a header. Its values stay strings."""

    def __init__(self, path: Path, column: str, compressed: bool, delimiter: str) -> None:
        self.path = path
        self.column = column
        self.bytes = _Bytes(path, compressed)
        self.done, self.close = self.bytes.done, self.bytes.close
        try:
            self._read_header(delimiter)
        except BaseException:
            self.close()
            raise

    def _read_header(self, delimiter: str) -> None:
        # what is not UTF-8 comes as lone surrogates, so that it spoils only the row that it is in
        text = io.TextIOWrapper(self.bytes.file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        self.reader = csv.reader(text, delimiter=delimiter)
        try:
            header = [clean(name) for name in next(self.reader, [])]
        except (csv.Error, OSError, EOFError, zlib.error) as error:
            raise self.bytes.broken(0, error) from None
        if twice := [name for name in header if header.count(name) > 1]:
            raise InvalidFile(f"{self.path} has two columns {twice[0]!r}: rename one of them")
        self.columns = tuple(header)
        _must_have(self.path, self.column, self.columns)
        self.at = header.index(self.column)

    def kinds(self) -> dict[str, str]:
        return dict.fromkeys(self.columns, "str")

    def rows(self, size: int, skip: int = 0) -> Iterator[Chunk]:
        return _chunks(self._rows(skip), size)

    def _rows(self, skip: int) -> Iterator[Row]:
        number, width = 0, len(self.columns)
        try:
            for fields in self.reader:
                if not fields:
                    continue  # an empty line, as at the end of many files
                number += 1
                if number <= skip:
                    continue
                where = f"row {number} (line {self.reader.line_num})"
                whole = list(map(clean, fields))
                values = dict(zip(self.columns, whole, strict=False))
                if len(fields) != width:
                    error = f"{where}: has {len(fields)} fields, the header has {width}"
                    yield Row(number, values, None, error)
                elif whole[self.at] != fields[self.at]:
                    raw = fields[self.at].encode("utf-8", "surrogateescape")
                    yield Row(number, values, None, f"{where}: {_not_utf8(_decode_error(raw))}")
                else:
                    yield Row(number, values, fields[self.at])
        except (csv.Error, OSError, EOFError, zlib.error) as error:
            raise self.bytes.broken(number, error) from None


def _decode_error(raw: bytes) -> UnicodeDecodeError:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError(raw)


class ParquetSource:
    """A Parquet file with a column of strings."""

    def __init__(self, path: Path, column: str, batches: bool) -> None:
        pa, pq = arrow()
        self.path, self.column, self.batches = path, column, batches
        try:
            self.file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise InvalidFile(f"{path} is no Parquet file: {error}") from None
        self.schema = self.file.schema_arrow
        self.columns = tuple(self.schema.names)
        _must_have(path, column, self.columns)
        kind = self.schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
        if not any(is_text(kind) for is_text in texts):
            raise InvalidFile(f"{path}: the column {column!r} is {kind}, must be string: name another with --column")
        self.total = self.file.metadata.num_rows
        self.number = 0

    def kinds(self) -> dict[str, str]:
        return dict.fromkeys(self.columns, "str")

    def done(self) -> float:
        return float(self.number / max(1, self.total))

    def close(self) -> None:
        self.file.close()

    def rows(self, size: int, skip: int = 0) -> Iterator[Chunk]:
        pa, _ = arrow()
        group = 0
        while group < self.file.num_row_groups:  # those that were read before need not be decoded
            in_group = self.file.metadata.row_group(group).num_rows
            if self.number + in_group > skip:
                break
            self.number, group = self.number + in_group, group + 1
        if group == self.file.num_row_groups:
            return
        groups = list(range(group, self.file.num_row_groups))
        try:
            for batch in self.file.iter_batches(READ_ROWS, row_groups=groups, use_threads=False):
                if self.number + batch.num_rows <= skip:
                    self.number += batch.num_rows
                    continue
                late = max(0, skip - self.number)
                self.number += late
                for start in range(late, batch.num_rows, size):
                    chunk = self._chunk(batch.slice(start, size))
                    self.number += len(chunk.rows)
                    yield chunk
        except (pa.ArrowException, OSError) as error:
            raise InvalidFile(f"{self.path} cannot be read after row {self.number}: {error}") from None

    def _chunk(self, batch: Any) -> Chunk:
        return arrow_chunk(batch, self.column, self.number + 1, self.batches)


def arrow_chunk(batch: Any, column: str, first: int, keep: bool) -> Chunk:
    """The rows of a RecordBatch.

    :param first: the number of the first row.
    :param keep: leave the other columns in Arrow; else they become the rows' values.
    """
    pa, _ = arrow()
    at = batch.schema.get_field_index(column)
    texts = batch.column(at)
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    # as bytes: Arrow does not check that strings are UTF-8, and Python would refuse the whole column
    rows, spoilt = [], False
    for number, raw in enumerate(texts.cast(pa.large_binary()).to_pylist(), first):
        if raw is None:
            rows.append(Row(number, {}, None, f"row {number}: {column!r} is null, must be a string"))
            continue
        row = text_row(number, raw, column)
        spoilt = spoilt or row.error is not None
        rows.append(row)
    if spoilt:
        fixed = pa.array([row.values.get(column) for row in rows], pa.string()).cast(batch.schema.field(at).type)
        batch = batch.set_column(at, batch.schema.field(at), fixed)
    if keep:
        for row in rows:
            row.values = {}
        return Chunk(rows, batch)
    for i, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type):  # Python has no nanoseconds
            times = batch.column(i).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(i, field.name, times)
    for row, values in zip(rows, batch.to_pylist(), strict=True):
        row.values = values
    return Chunk(rows)


def _must_have(path: Path, column: str, columns: Sequence[str]) -> None:
    if column not in columns:
        raise InvalidFile(
            f"{path} has no column {column!r}, it has {', '.join(map(repr, columns)) or 'none'}: name the one that "
            "holds the texts with --column"
        )


def _chunks(rows: Iterator[Row], size: int) -> Iterator[Chunk]:
    while chunk := list(itertools.islice(rows, size)):
        yield Chunk(chunk)


def arrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``.

    :raises ModuleNotFoundError: with what to install.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        message = "Parquet files need the package pyarrow: pip install -e '.[files]' -c constraints.txt"
        raise ModuleNotFoundError(message, name=error.name) from error
    return pa, pq


# --- writing


class Writer(Protocol):
    """Turns scored rows into bytes that are appended to a partial file, block by block, and that file into the output.

    A file can be cut off after any block, and goes on there.
    """

    def head(self) -> bytes: ...

    def block(self, chunks: Sequence[Scored]) -> bytes: ...

    def finish(self, partial: Path, out: Path) -> None:
        """Put the output in its place, whole, at once."""
        ...


def open_writer(path: Path, source: Source, info: ModelInfo, policy: bool) -> Writer:
    """A writer of the format that the file's name tells.

    :param policy: the rows bear a decision.
    :raises InvalidFile: when the input's columns cannot stand beside those of the results.
    """
    kind, compressed = file_format(path)
    if kind == "txt":
        raise InvalidFile(f"{path}: plain text has no place for scores: write .jsonl, .csv or .parquet")
    kinds = {} if kind == "jsonl" and isinstance(source, LineSource) else source.kinds()
    added = JSON_KEYS if kind == "jsonl" else result_columns(info.labels, policy)
    if both := [name for name in kinds if name in added]:
        raise InvalidFile(f"the input has a column {both[0]!r}, and so have the results: rename it in the input")
    writer: Writer
    if kind == "jsonl":
        writer = JsonlWriter()
    elif kind == "parquet":
        writer = ParquetWriter(source, kinds, info.labels, policy)
    else:
        writer = CsvWriter(tuple(kinds), info.labels, policy, DELIMITERS[kind])
    return GzipWriter(writer) if compressed else writer


def result_columns(labels: Sequence[str], policy: bool) -> tuple[str, ...]:
    """The columns that results add to a table."""
    decision = ("action", "rule") if policy else ()
    return (*(f"score_{label}" for label in labels), "flagged", "truncated", "model_version", *decision, "error")


def to_json(scored: ScoredRow) -> str:
    """One line: the row's own values, the result, the decision; or the error."""
    values = {key: value for key, value in scored.row.values.items() if key not in DERIVED}
    if scored.result is not None:
        values |= scored.result.to_dict()
    if scored.decision is not None:
        values |= {"action": scored.decision.action, "rule": scored.decision.rule}
    if scored.row.error is not None:
        values["error"] = scored.row.error
    return dumps(values)


def dumps(value: Any) -> str:
    """JSON that every reader takes: no NaN, and lone surrogates escaped."""
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        line = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_plain)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    return line


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class JsonlWriter:
    def head(self) -> bytes:
        return b""

    def block(self, chunks: Sequence[Scored]) -> bytes:
        return "".join(to_json(row) + "\n" for chunk in chunks for row in chunk.rows).encode()

    def finish(self, partial: Path, out: Path) -> None:
        os.replace(partial, out)


class CsvWriter:
    def __init__(self, columns: Sequence[str], labels: Sequence[str], policy: bool, delimiter: str) -> None:
        self.columns, self.labels, self.policy, self.delimiter = columns, labels, policy, delimiter

    def head(self) -> bytes:
        return self._lines([(*self.columns, *result_columns(self.labels, self.policy))])

    def block(self, chunks: Sequence[Scored]) -> bytes:
        return self._lines(self._cells(row) for chunk in chunks for row in chunk.rows)

    def finish(self, partial: Path, out: Path) -> None:
        os.replace(partial, out)

    def _cells(self, scored: ScoredRow) -> list[str]:
        cells = [_cell(scored.row.values.get(name)) for name in self.columns]
        if (result := scored.result) is not None:
            cells += [f"{result.scores[label]:.6f}" for label in self.labels]
            cells += [" ".join(result.flagged), _cell(result.truncated), result.model_version]
        else:
            cells += [""] * (len(self.labels) + 3)
        if self.policy:
            cells += [scored.decision.action, scored.decision.rule] if scored.decision else ["", ""]
        return [*cells, scored.row.error or ""]

    def _lines(self, rows: Any) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="\n").writerows(rows)
        return clean(text.getvalue()).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return dumps(value) if isinstance(value, (bool, int, float, list, dict)) else str(_plain(value))


def arrow_fields(labels: Sequence[str], policy: bool) -> list[Any]:
    """:func:`result_columns`, with their types."""
    pa, _ = arrow()
    types = {"flagged": pa.list_(pa.string()), "truncated": pa.bool_()}
    types |= {f"score_{label}": pa.float32() for label in labels}
    return [pa.field(name, types.get(name, pa.string())) for name in result_columns(labels, policy)]


def with_results(kept: Any, rows: Sequence[ScoredRow], schema: Any) -> Any:
    """A RecordBatch of ``schema``: the columns of ``kept``, then those of :func:`arrow_fields`."""
    pa, _ = arrow()
    values: list[dict[str, Any]] = []
    for scored in rows:
        row: dict[str, Any] = {"error": scored.row.error}
        if (result := scored.result) is not None:
            row |= {f"score_{label}": score for label, score in result.scores.items()}
            row |= {"flagged": list(result.flagged), "truncated": result.truncated}
            row["model_version"] = result.model_version
        if scored.decision is not None:
            row |= {"action": scored.decision.action, "rule": scored.decision.rule}
        values.append(row)
    added = pa.RecordBatch.from_pylist(values, pa.schema(list(schema)[kept.num_columns :]))
    return pa.RecordBatch.from_arrays([*kept.columns, *added.columns], schema=schema)


class ParquetWriter:
    """Blocks are Arrow streams, one after the other; at the end they become a Parquet file, a row group at a time."""

    def __init__(self, source: Source, kinds: dict[str, str], labels: Sequence[str], policy: bool) -> None:
        pa, _ = arrow()
        self.kinds = kinds
        types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        if isinstance(source, ParquetSource):
            self.kept = source.schema
        else:
            self.kept = pa.schema([pa.field(name, types[kind]) for name, kind in kinds.items()])
        self.schema = pa.schema([*self.kept, *arrow_fields(labels, policy)], self.kept.metadata)

    def head(self) -> bytes:
        return b""

    def block(self, chunks: Sequence[Scored]) -> bytes:
        pa, _ = arrow()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as stream:
            for chunk in chunks:
                kept = chunk.batch if chunk.batch is not None else self._kept(chunk.rows)
                stream.write_batch(with_results(kept, chunk.rows, self.schema))
        return bytes(sink.getvalue())

    def _kept(self, rows: Sequence[ScoredRow]) -> Any:
        pa, _ = arrow()
        values = [
            {name: _typed(scored.row.values.get(name), kind) for name, kind in self.kinds.items()} for scored in rows
        ]
        return pa.RecordBatch.from_pylist(values, self.kept)

    def finish(self, partial: Path, out: Path) -> None:
        pa, pq = arrow()
        whole = out.with_name(out.name + ".finishing")
        with pq.ParquetWriter(whole, self.schema) as file, partial.open("rb") as blocks:
            waiting: list[Any] = []
            while blocks.peek(1):
                with pa.ipc.open_stream(blocks) as stream:
                    waiting += stream
                if sum(batch.num_rows for batch in waiting) >= GROUP_ROWS:
                    file.write_table(pa.Table.from_batches(waiting, self.schema))
                    waiting = []
            if waiting:
                file.write_table(pa.Table.from_batches(waiting, self.schema))
        with whole.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(whole, out)
        partial.unlink()


def _typed(value: Any, kind: str) -> Any:
    if value is None or (kind == "str" and isinstance(value, str)):
        return value if value is None else clean(value)
    return clean(dumps(value)) if kind == "str" else value


class GzipWriter:
    """Each block is a gzip member of its own; a file of several members is a gzip file."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.finish = writer.finish

    def head(self) -> bytes:
        return gzip.compress(self.writer.head(), mtime=0)

    def block(self, chunks: Sequence[Scored]) -> bytes:
        return gzip.compress(self.writer.block(chunks), mtime=0)
