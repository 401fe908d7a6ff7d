"""``python -m client.demo``: a table of sample comments and their scores, then the user's own."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Sequence

from client.__main__ import connect, connection_options
from client.errors import InvalidInput, ToxicityError
from client.results import ModelInfo, Result

SAMPLES = (
    "Thank you, that was a really helpful answer!",
    "I disagree: the second source does not support this claim.",
    "This is the worst film I have seen in years. Boring and far too long.",
    "Holy shit, that goal was amazing, well done mate",
    "You are such an idiot, nobody wants to read this.",
    "Shut up, you stupid little liar",
    "What the fuck is wrong with you?",
    "I know where you live and I will kill you.",
    "People like you from that country should leave.",
    "I hate Mondays.",
)
BOLD_RED, DIM, RESET = "\x1b[1;31m", "\x1b[2m", "\x1b[0m"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m client.demo",
        description="Score sample comments and show them as a table. In a terminal it then asks for your own.",
    )
    connection_options(parser)
    arguments = parser.parse_args(argv)
    try:
        with connect(parser, arguments) as client:
            table = Table(client.info())
            start = time.perf_counter()
            results = client.classify(SAMPLES)
            took_ms = (time.perf_counter() - start) * 1000
            print(table.head())
            for text, result in zip(SAMPLES, results, strict=True):
                print(table.row(text, result))
            print(f"\n{len(SAMPLES)} comments in {took_ms:.0f} ms. {table.legend()}")

            while sys.stdin.isatty() and (text := ask()):
                try:
                    start = time.perf_counter()
                    (result,) = client.classify([text])
                except InvalidInput as error:
                    print(error)
                    continue
                print(table.head())
                print(table.row(text, result))
                print(f"{(time.perf_counter() - start) * 1000:.0f} ms")
    except (ToxicityError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        print()
    return 0


def ask() -> str:
    """A comment of the user; empty when there are no more."""
    try:
        return input("\nyour comment (empty to end): ")
    except EOFError:
        print()
        return ""


class Table:
    """Lines of a table as wide as the terminal: a text, and a column of scores for each label."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.titles = [label.split("_") for label in info.labels]  # severe_toxic takes two short lines
        self.widths = [max(5, *map(len, words)) for words in self.titles]
        terminal = shutil.get_terminal_size((100, 24)).columns
        self.text_width = max(20, terminal - sum(self.widths) - 2 * len(self.widths))
        self.colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def head(self) -> str:
        lines = []
        for i in range(max(map(len, self.titles))):
            words = [title[i] if i < len(title) else "" for title in self.titles]
            cells = [word.rjust(width) for word, width in zip(words, self.widths, strict=True)]
            lines.append(self._line("" if i else "comment", cells))
        return "\n".join(lines)

    def row(self, text: str, result: Result) -> str:
        cells = []
        for label, width in zip(self.info.labels, self.widths, strict=True):
            positive = label in result.flagged
            cell = f"{result.scores[label]:.2f}{'*' if positive else ' '}".rjust(width)
            cells.append(f"{BOLD_RED if positive else DIM}{cell}{RESET}" if self.colours else cell)
        return self._line(text, cells)

    def legend(self) -> str:
        info = self.info
        return f"* = at or above the label's threshold. Model: {info.name}, version {info.version}, {info.precision}."

    def _line(self, text: str, cells: Sequence[str]) -> str:
        return "  ".join([fit(text, self.text_width), *cells]).rstrip()


def fit(text: str, width: int) -> str:
    """``text`` on one line of exactly ``width`` terminal columns, cut or padded, without control characters."""
    clean = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    shown, used = "", 0
    for i, character in enumerate(clean):
        columns = _columns(character)
        if used + columns > width - 1 and sum(map(_columns, clean[i:])) > width - used:
            return shown + "…" + " " * (width - used - 1)
        shown, used = shown + character, used + columns
    return shown + " " * (width - used)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Mn":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


if __name__ == "__main__":
    sys.exit(main())
