"""The comments to send: from a file, or made up from a seed.

Made-up comments are near the Jigsaw training comments in what costs a server: their length in words is log-normal with
median 33 and mean 58, so some are long enough to be cut; word frequencies fall as in any language (Zipf); and one
comment in ten repeats an earlier one, as greetings and spam do. They are not for judging quality.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
import sys
from pathlib import Path
from typing import Any, TextIO

COLUMNS = ("comment_text", "text")
MEDIAN_WORDS, MEAN_WORDS, MAX_WORDS = 33, 58, 1000
DUPLICATE_SHARE = 0.1
WORDS = (
    "the to of and a you i is that it in for this not on be are as have your with if but was or my can so what do "
    "just like page people no about all would think article time from there know will out up they don't one me more "
    "an get good how who why when then than because please thanks only really never always even still much really "
    "back over into after before again also wrong right true nothing something everyone comment post read write say "
    "said source talk edit user name first last world game team player vote news story money house country history "
    "stupid idiot shit hell damn fool liar trash awful lovely great thank sorry hello friend love hate kill die "
    "whatever seriously obviously literally apparently nonsense propaganda moderator deleted removed blocked reported"
).split()


class InvalidCorpus(ValueError):
    """A file of comments is missing, empty, or lacks its column."""


def generate(count: int = 5000, seed: int = 0) -> list[str]:
    """``count`` made-up comments; the same ones for the same seed."""
    rng = random.Random(seed)
    spread = math.sqrt(2 * math.log(MEAN_WORDS / MEDIAN_WORDS))  # of a log-normal with that mean and median
    frequencies = [1 / rank for rank in range(1, len(WORDS) + 1)]
    comments: list[str] = []
    while len(comments) < count:
        if comments and rng.random() < DUPLICATE_SHARE:
            comments.append(rng.choice(comments))
            continue
        words = min(MAX_WORDS, max(1, round(rng.lognormvariate(math.log(MEDIAN_WORDS), spread))))
        comments.append(_sentences(rng.choices(WORDS, frequencies, k=words), rng))
    return comments


def read(path: Path) -> list[str]:
    """The comments in a CSV file's column ``comment_text`` or ``text``, or the lines of any other file; also ``.gz``.

    :raises InvalidCorpus: when there are none.
    """
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            comments = _column(file, path) if is_csv else [line.rstrip("\r\n") for line in file]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:  # EOFError: a .gz that was cut short
        reason = getattr(error, "strerror", None) or error
        raise InvalidCorpus(f"{path} cannot be read ({reason}): give a text or CSV file in UTF-8") from None
    comments = [comment for comment in comments if comment]
    if not comments:
        raise InvalidCorpus(f"{path} holds no comments: give a file with one on each line, or a CSV")
    return comments


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file with the key ``text``, such as an artifact's validation comments.

    :raises InvalidCorpus: when a row is none, with its number, or there are none.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # not splitlines: texts may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidCorpus(f"{path} cannot be read ({reason}): give a JSON lines file in UTF-8") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row["text"], str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise InvalidCorpus(f'{path}, line {number} is not a JSON object such as {{"text": "..."}}') from None
        rows.append(row)
    if not rows:
        raise InvalidCorpus(f"{path} holds no comments: give a file with a JSON object on each line")
    return rows


def _column(file: TextIO, path: Path) -> list[str]:
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(file)
    found = [c for c in COLUMNS if c in (rows.fieldnames or ())]
    if not found:
        raise InvalidCorpus(f"{path} has the columns {rows.fieldnames}, must have one of {', '.join(COLUMNS)}")
    return [row[found[0]] or "" for row in rows]


def _sentences(words: list[str], rng: random.Random) -> str:
    """Capitals and full stops every few words; now and then a comment in capitals, as in life."""
    out, left = [], 0
    for i, word in enumerate(words):
        first = left == 0
        left = left - 1 if left else rng.randint(3, 15)
        last = left == 0 or i == len(words) - 1
        out.append((word.capitalize() if first else word) + (rng.choice(".....!?,") if last else ""))
    text = " ".join(out)
    return text.upper() if rng.random() < 0.03 else text
