"""``python -m client TEXT...``: scores of texts as JSON lines."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from client.errors import InvalidInput, ToxicityError

if TYPE_CHECKING:
    from client import ToxicityClient

EXAMPLES = """\
examples:
  python -m client "You are an idiot" "Have a nice day"
  python -m client - < comments.txt > scores.jsonl      # a line is a text
  python -m client --jsonl - < rows.jsonl > out.jsonl   # a line is an object with a "text"; other keys are kept
  python -m client -- "-1 for this idea"                # a text that begins with a dash
"""
CHUNK_BYTES = 1 << 16


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Score comments on a Tritox server. Prints one line of JSON for each text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text; a lone - reads one text a line from stdin")
    parser.add_argument("--jsonl", action="store_true", help='the lines of stdin are JSON objects with a "text"')
    connection_options(parser)
    arguments = parser.parse_args(argv)
    from_stdin = arguments.texts == ["-"]
    if "-" in arguments.texts and not from_stdin:
        parser.error("- reads from stdin and must stand alone")
    if arguments.jsonl and not from_stdin:
        parser.error("--jsonl is for lines of stdin: python -m client --jsonl - < rows.jsonl")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's language

    try:
        with connect(parser, arguments) as client:
            if from_stdin:
                return score_lines(client, sys.stdin.fileno(), arguments.jsonl)
            print_scores(client, [{"text": text} for text in arguments.texts])
            return 0
    except (ToxicityError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        # whoever read our output has left; keep Python from saying so when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def connection_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which server to ask."""
    parser.add_argument("--url", help="host:port of the server's gRPC port (default: $TRITOX_URL, else 127.0.0.1:8001)")
    parser.add_argument("--model", default="toxicity", help="the model's name on the server (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each batch (default: %(default)g)")


def connect(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> ToxicityClient:
    from client import ToxicityClient

    try:
        return ToxicityClient(arguments.url, model=arguments.model, timeout=arguments.timeout)
    except InvalidInput as error:
        parser.error(str(error))


def score_lines(client: ToxicityClient, descriptor: int, jsonl: bool = False) -> int:
    """Score each line of an open file; lines that cannot be read are named on stderr and left out.

    :param jsonl: a line is a JSON object with a ``text``, else it is the text.
    :returns: the exit code, 1 when a line was left out.
    """
    bad = 0
    for batch in line_batches(descriptor):
        rows = []
        for number, line in batch:
            try:
                rows.append(json_row(line.decode()) if jsonl else {"text": line.decode()})
            except UnicodeDecodeError as error:
                bad += 1
                sys.stderr.write(
                    f"error: line {number} was not scored, it is not UTF-8: byte 0x{line[error.start]:02x} at position "
                    f"{error.start}; convert the input first, e.g. iconv -f latin1 -t utf-8\n"
                )
            except ValueError as error:
                bad += 1
                sys.stderr.write(f"error: line {number} was not scored, {error}\n")
        size = client.info().max_batch_size
        for start in range(0, len(rows), size):
            print_scores(client, rows[start : start + size])
    return 1 if bad else 0


def json_row(line: str) -> dict[str, Any]:
    """:raises ValueError: when the line is no JSON object with a text that UTF-8 can express."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError('it must be a JSON object with a "text" that is a string')
    try:
        row["text"].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its text holds a lone surrogate at position {error.start}") from None
    return row


def line_batches(descriptor: int) -> Iterator[list[tuple[int, bytes]]]:
    """The lines that have arrived, numbered from 1: a slow pipe is answered line by line, a file in bulk."""
    number, rest = 1, b""
    while chunk := os.read(descriptor, CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [(number + i, line.removesuffix(b"\r")) for i, line in enumerate(lines)]
            number += len(lines)
    if rest:
        yield [(number, rest)]


def print_scores(client: ToxicityClient, rows: list[dict[str, Any]]) -> None:
    """Each row, with its result added."""
    for row, result in zip(rows, client.classify([row["text"] for row in rows]), strict=True):
        sys.stdout.write(json.dumps({**row, **result.to_dict()}, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
