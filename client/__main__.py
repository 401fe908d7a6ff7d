"""``python -m client TEXT...``: scores of texts as JSON lines; ``--in FILE --out FILE``: of a file's rows."""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from client.errors import InvalidInput, ToxicityError

if TYPE_CHECKING:
    from client import ModelInfo, ToxicityClient
    from client.bulk import Progress, Scorer
    from client.files import Chunk

EXAMPLES = """\
examples:
  python -m client "You are an idiot" "Have a nice day"
  python -m client --policy standard "You are an idiot"       # and what to do: allow, review or block
  python -m client --in comments.csv.gz --column comment_text --out scored.parquet
  python -m client - < comments.txt > scores.jsonl            # a line is a text
  python -m client --jsonl - < rows.jsonl > out.jsonl         # a line is an object with a "text"; other keys are kept
  python -m client -- "-1 for this idea"                      # a text that begins with a dash
  python -m client replay --help                              # recorded decisions, made again (-- replay is a text)

Files: .csv .tsv .jsonl .parquet, .txt (a line is a text; input only), and .gz of all but Parquet. A command that was
interrupted or killed goes on where it was when it is given again.

exit codes: 0 all scored, 1 stopped by an error, 2 wrong usage, 3 done, but some rows bear an error, 130 interrupted
"""
CHUNK_BYTES = 1 << 16
SOME_BAD = 3


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["replay"]:
        from client.replay import main as replay

        return replay(given[1:])
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Score comments on a Tritox server. Prints one line of JSON for each text, or writes a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text; a lone - reads one text a line from stdin")
    parser.add_argument("--jsonl", action="store_true", help="the lines of stdin are JSON objects")
    parser.add_argument("--in", dest="source", type=Path, metavar="FILE", help="score the rows of this file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --in: write this file (default: JSON to stdout)")
    parser.add_argument("--column", default="text", help="column or key that holds the texts (default: %(default)s)")
    parser.add_argument(
        "--policy", metavar="NAME|FILE", help="add an action: strict, standard, lenient, or a YAML file"
    )
    parser.add_argument("--in-flight", type=_positive, default=4, metavar="N", help="requests at a time (default: 4)")
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="wait so long for a server that is busy or away (default: 60 with --in, else 0)",
    )
    parser.add_argument("--restart", action="store_true", help="with --out: drop what an earlier run left")
    connection_options(parser)
    arguments = parser.parse_args(argv)
    _check_usage(parser, arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # JSON is UTF-8, whatever the terminal's language
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")

    try:
        with connect(parser, arguments) as client:
            return _score(client, arguments)
    except (ToxicityError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        # whoever read our output has left; keep Python from saying so when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, say
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _check_usage(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from_stdin = arguments.texts == ["-"]
    if bool(arguments.texts) == (arguments.source is not None):
        parser.error("give texts, or - for stdin, or --in FILE: one of them")
    if "-" in arguments.texts and not from_stdin:
        parser.error("- reads from stdin and must stand alone")
    if arguments.jsonl and not from_stdin:
        parser.error("--jsonl is for lines of stdin: python -m client --jsonl - < rows.jsonl")
    if arguments.out and not arguments.source:
        parser.error("--out is for --in; redirect the output of texts and of stdin: > FILE")
    if arguments.restart and not arguments.out:
        parser.error("--restart is for --out, which keeps what was scored before an interruption")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}, must be at least 1")
    return number


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


def _score(client: ToxicityClient, arguments: argparse.Namespace) -> int:
    from client.bulk import Progress, Scorer
    from client.files import FORMATS, Chunk, Row, open_source
    from client.policy import Policy

    policy = Policy.read(arguments.policy) if arguments.policy else None
    info = client.info()
    if policy:
        policy.check(info.labels)
    progress = Progress()
    patience_s = arguments.patience if arguments.patience is not None else 60.0 if arguments.source else 0.0
    scorer = Scorer(client, policy, arguments.in_flight, patience_s, note=progress.say_once)
    if arguments.out:
        return _score_file(arguments, info, scorer, progress)
    if arguments.source:
        with closing(open_source(arguments.source, arguments.column)) as source:
            return print_scores(scorer, source.rows(info.max_batch_size), progress)
    if arguments.texts == ["-"]:
        chunks = line_chunks(sys.stdin.fileno(), info.max_batch_size, arguments.jsonl, arguments.column)
        return print_scores(scorer, chunks, progress)
    for text in arguments.texts:
        if len(text) < 256 and Path(text).suffix in FORMATS and Path(text).is_file():
            progress.say(f"note: {text} was scored as a text; --in {text} scores its rows")
    rows = [Row(number, {"text": text}, text) for number, text in enumerate(arguments.texts, 1)]
    size = info.max_batch_size
    return print_scores(scorer, (Chunk(rows[i : i + size]) for i in range(0, len(rows), size)), progress)


def _score_file(arguments: argparse.Namespace, info: ModelInfo, scorer: Scorer, progress: Progress) -> int:
    from client.bulk import Partial, fingerprint, run
    from client.files import InvalidFile, file_format, open_source, open_writer

    out: Path = arguments.out
    if out.is_dir() or out.resolve() == arguments.source.resolve():
        raise InvalidFile(f"{out} is {'a folder' if out.is_dir() else 'the input, too'}: give another file to --out")
    job = {
        "input": fingerprint(arguments.source),
        "column": arguments.column,
        "model": info.name,
        "labels": list(info.labels),
        "policy": scorer.policy and scorer.policy.sha256,
    }
    with closing(open_source(arguments.source, arguments.column, file_format(out)[0] == "parquet")) as source:
        writer = open_writer(out, source, info, scorer.policy is not None)
        with closing(Partial(out, writer, job, info.version, arguments.restart)) as partial:
            progress.before = partial.tally.rows
            if partial.tally.rows:
                progress.say(f"going on after row {partial.tally.rows:,}, where {partial.path} ends")
            if len(partial.versions) > 1:
                progress.say(
                    f"note: versions {', '.join(partial.versions)} of the model; each row says which scored it"
                )
            try:
                run(source, scorer, partial, info.max_batch_size, progress)
            except (ToxicityError, OSError, KeyboardInterrupt):
                done = f"stopped after row {partial.tally.rows:,}, see {partial.path}"
                progress.say(f"{done}: the same command goes on there")
                raise
    progress.say(f"wrote {out}: {partial.tally}")
    return SOME_BAD if partial.tally.errors else 0


def line_chunks(descriptor: int, size: int, jsonl: bool = False, column: str = "text") -> Iterator[Chunk | None]:
    """The lines that have arrived at an open file, at most ``size`` in a chunk; a ``None`` when the next ones have not.

    So a slow pipe is answered line by line, a file in bulk.

    :param jsonl: a line is a JSON object whose ``column`` is the text, else it is the text.
    """
    from client.files import Chunk, json_row, text_row

    read = json_row if jsonl else text_row
    number, rest = 0, b""
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        data = os.read(descriptor, CHUNK_BYTES)
        *lines, rest = (rest + data).split(b"\n")
        if not data and rest:
            lines = [rest]
        for start in range(0, len(lines), size):
            rows = []
            for line in lines[start : start + size]:
                number += 1
                rows.append(read(number, line.removesuffix(b"\r"), column))
            yield Chunk(rows)
        if not data:
            return


def print_scores(scorer: Scorer, chunks: Iterable[Chunk | None], progress: Progress) -> int:
    """A line of JSON for each row, as soon as it and those before it are done."""
    from client.bulk import Tally
    from client.files import to_json

    tally = Tally()
    for scored in scorer.score(chunks):
        tally.add(scored)
        progress.errors(scored)
        sys.stdout.write("".join(to_json(row) + "\n" for row in scored.rows))
        sys.stdout.flush()
    if tally.errors > progress.NAMED:
        progress.say(str(tally))
    return SOME_BAD if tally.errors else 0


if __name__ == "__main__":
    sys.exit(main())
