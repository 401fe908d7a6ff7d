"""Texts to scores by hashed n-grams: features of words and characters, and one row of small integers for each.

Made for the first stage of a cascade, which has microseconds for a comment: no tokenizer and no loop over comments or
words, only NumPy over the bytes of a whole batch. It needs NumPy alone, and export copies this file beside the models
that score with it; so it imports nothing of ours.

A text is lower-cased and cut; bytes that are no letter, digit or sign of :data:`SIGNS` become one space. Features are
all runs of so many characters (bytes), spaces included, and all runs of so many words. Each is hashed to a bucket; a
bucket that training kept has a row of weights, one per label, and the square of its inverse document frequency. A
bucket counts once in a text::

    logit = (sum of the rows of a text) / sqrt(sum of their squares) * scale + intercept

Rows are small integers and three of them lie in one INT64, so a sum is exact and costs one addition for three labels:
scores depend neither on the batch nor on the processor.

Sources: Joulin et al., "Bag of tricks for efficient text classification", 2016; Weinberger et al., "Feature hashing for
large scale multitask learning", 2009.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

SIGNS = b"!?*#@$%"
"""Signs that tell something: they stay as they are."""

SPACE, END = 32, 0
CHUNK = 64
"""Texts that are looked at together: their arrays stay in the processor's cache."""

LANE = 21
"""Bits of a label's sum; three fit into an INT64."""

BASE = np.uint32(0x02000327)
"""Of the polynomial that hashes a run of bytes; odd, so that it has an inverse."""

INVERSE = np.uint32(pow(int(BASE), -1, 2**32))
MIX = np.uint32(0x9E3779B1), np.uint32(0x2C1B3C6D)


@dataclass(frozen=True)
class HashSettings:
    """Which features a text has.

    :param bits: there are 2 ** bits buckets.
    :param characters: lengths of the runs of characters.
    :param words: longest run of words; 0 for none.
    :param max_bytes: of a text in UTF-8 are read.
    """

    bits: int = 20
    characters: tuple[int, ...] = (3, 4, 5)
    words: int = 2
    max_bytes: int = 800

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 24:
            raise ValueError(f"bits is {self.bits}, must lie in [8, 24]")
        if any(not 1 <= n <= 8 for n in self.characters):
            raise ValueError(f"characters is {list(self.characters)}, each must lie in [1, 8]")
        if self.words < 0 or not (self.words or self.characters):
            raise ValueError(f"words is {self.words}, must be at least 0, and 1 where there are no runs of characters")
        # at most one feature of a kind starts at each byte, and adds up to 255
        limit = (2 ** (LANE - 1) - 1) // 255 // (len(self.characters) + self.words) - 2
        if not 1 <= self.max_bytes <= limit:
            raise ValueError(f"max_bytes is {self.max_bytes}, must lie in [1, {limit}] with these features")


@dataclass(frozen=True)
class HashedModel:
    """Weights of hashed n-grams.

    :param buckets: those that have a row, ascending, INT32. *Shape:* ``(rows,)``
    :param codes: INT8. *Shape:* ``(rows, labels)``
    :param squares: of the rows' inverse document frequencies, in any unit, UINT8. *Shape:* ``(rows,)``
    :param scales: what 1 of a code is worth, FP64. *Shape:* ``(labels,)``
    :param intercepts: FP64. *Shape:* ``(labels,)``
    """

    settings: HashSettings
    buckets: np.ndarray
    codes: np.ndarray
    squares: np.ndarray
    scales: np.ndarray
    intercepts: np.ndarray

    def __post_init__(self) -> None:
        columns = np.column_stack((self.squares.astype(np.int64), self.codes.astype(np.int64)))
        lanes = np.zeros((-(-columns.shape[1] // 3), len(columns) + 1), np.int64)
        for i in range(columns.shape[1]):
            lanes[i // 3, 1:] += columns[:, i] << LANE * (i % 3)
        places = np.zeros(2**self.settings.bits, np.int32)  # row 0 is of all buckets that have none
        places[self.buckets] = np.arange(1, len(columns) + 1)
        object.__setattr__(self, "_lanes", lanes)
        object.__setattr__(self, "_places", places)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text and label, FP64. *Shape:* ``(texts, labels)``."""
        parts = [self._logits(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.scales)))

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        lanes: np.ndarray = self._lanes  # type: ignore[attr-defined]
        found, bounds = distinct(features(texts, self.settings), self._places, len(texts))  # type: ignore[attr-defined]
        sums = np.zeros((len(texts), 1 + len(self.scales)))
        for number, lane in enumerate(lanes):
            rest = np.add.reduceat(lane.take(found), bounds[:-1])
            for i in range(3 * number, min(3 * number + 3, sums.shape[1])):
                # the lowest lane with its sign; then it is taken away, and the next one is the lowest
                low = ((rest + (1 << (LANE - 1))) & ((1 << LANE) - 1)) - (1 << (LANE - 1))
                sums[:, i] = low
                rest = (rest - low) >> LANE
        lengths = np.sqrt(np.maximum(sums[:, :1], 1.0))
        return np.asarray(sums[:, 1:] / lengths * self.scales + self.intercepts)

    def calibrated(self, slope: float, offsets: np.ndarray) -> HashedModel:
        """The model whose logits are ``slope * logits + offsets``. *Shape of offsets:* ``(labels,)``."""
        return replace(self, scales=slope * self.scales, intercepts=slope * self.intercepts + offsets)

    def save(self, path: Path) -> None:
        """Write it as ``.npz``, without pickles; which buckets have rows is stored as a bit each."""
        used = np.zeros(2**self.settings.bits, bool)
        used[self.buckets] = True
        np.savez_compressed(
            path,
            settings=np.array(json.dumps(asdict(self.settings))),
            used=np.packbits(used),
            codes=np.ascontiguousarray(self.codes.T),  # a label's codes are like each other
            squares=self.squares,
            scales=self.scales,
            intercepts=self.intercepts,
        )


def load(path: Path) -> HashedModel:
    """Read what :meth:`HashedModel.save` wrote.

    :raises ValueError: for a file that holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            raw: dict[str, Any] = json.loads(str(found["settings"]))
            settings = HashSettings(**{**raw, "characters": tuple(raw["characters"])})
            buckets = np.flatnonzero(np.unpackbits(found["used"])).astype(np.int32)
            codes, squares = np.ascontiguousarray(found["codes"].T), found["squares"]
            if not len(buckets) == len(codes) == len(squares):
                raise ValueError(f"{len(codes)} rows for {len(buckets)} buckets")
            return HashedModel(settings, buckets, codes, squares, found["scales"], found["intercepts"])
    except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} holds no hashed n-grams ({error}): restore it, or train again") from None


def distinct(
    kinds: Sequence[tuple[np.ndarray, np.ndarray]], places: np.ndarray, texts: int
) -> tuple[np.ndarray, np.ndarray]:
    """The places of each text's buckets, each once, in order, text by text; and the bounds of the texts in them.

    Place 0, which stands for all buckets that are left out, is the first of every text.

    :param kinds: as :func:`features` gives them.
    :param places: of each bucket, at most as many as there are buckets. *Shape:* ``(2 ** bits,)``
    :returns: *Shapes:* ``(found,)``, ``(texts + 1,)``
    """
    shift = len(places).bit_length()
    kind: Any = np.int32 if texts << shift < 2**31 else np.int64
    first = np.arange(texts + 1, dtype=kind) << shift
    keys = np.empty(texts + sum(len(buckets) for buckets, _ in kinds), kind)
    keys[:texts] = first[:-1]
    end = texts
    for buckets, rows in kinds:
        part = keys[end : end + len(buckets)]
        part[:] = rows
        part <<= shift
        part |= places.take(buckets)
        end += len(buckets)
    keys.sort()
    once = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=once[1:])
    keys = keys[once]
    return keys & ((1 << shift) - 1), np.searchsorted(keys, first)


def features(texts: Sequence[str], settings: HashSettings) -> list[tuple[np.ndarray, np.ndarray]]:
    """The features of all texts, kind by kind: their buckets (INT32), and which text each is of (INT64).

    A kind is one length of runs. *Shape of each:* ``(features,)``
    """
    if not texts:
        return []
    letters, starts, ends = _letters(texts, settings)
    found = []
    # runs of characters: one starts at every byte of a text, and the last ones hang over into the zeros behind it
    values = letters.astype(np.uint32) + np.uint32(1)
    inside = np.flatnonzero(letters != END)
    rows = np.repeat(np.arange(len(texts)), ends - starts)
    run = values
    for length in range(1, max(settings.characters, default=0) + 1):
        if length > 1:
            run = run[:-1] * BASE + values[length - 1 :]
        if length in settings.characters:
            found.append((_bucket(run[inside], length, settings.bits), rows))
    if not settings.words:
        return found

    # a word's hash is the difference of two sums of the text so far, moved to where it would stand alone
    word = letters > SPACE
    edges = np.flatnonzero(word[1:] != word[:-1]) + 1  # every text begins and ends with a space
    first, behind = edges[::2], edges[1::2]
    powers = np.cumprod(np.full(len(letters), BASE), dtype=np.uint32)
    back = np.cumprod(np.full(len(letters), INVERSE), dtype=np.uint32)
    total = np.concatenate((np.zeros(1, np.uint32), np.cumsum(values * powers, dtype=np.uint32)))
    words = (total[behind] - total[first]) * back[first]
    rows = np.searchsorted(starts, first, side="right") - 1
    run = words
    for length in range(1, settings.words + 1):
        if length > 1:
            run = run[:-1] * BASE + words[length - 1 :] * MIX[1]
        same = rows[: len(run)] == rows[length - 1 :]
        found.append((_bucket(run[same], 100 + length, settings.bits), rows[: len(run)][same]))
    return found


def _letters(texts: Sequence[str], settings: HashSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of all texts that features are made of, and where each text starts and ends in them."""
    apart = b" " + b"\0" * (max(settings.characters, default=1) + 1)
    most = settings.max_bytes
    cut = [text[:most].lower().encode("utf-8", "replace")[:most] for text in texts]
    # a zero inside a text would end it
    joined = b"".join([b" " + (text.replace(b"\0", b" ") if b"\0" in text else text) + apart for text in cut])
    letters = _CLASSES[np.frombuffer(joined, np.uint8)]
    keep = np.ones(len(letters), bool)
    keep[1:] = (letters[1:] != SPACE) | (letters[:-1] != SPACE)
    letters = letters[keep]
    text = letters != END
    edges = np.flatnonzero(np.diff(text, prepend=False, append=False))
    return letters, edges[::2], edges[1::2]


def _bucket(hashes: np.ndarray, kind: int, bits: int) -> np.ndarray:
    """The bucket of each hash; ``kind`` keeps runs of different lengths apart. INT32."""
    mixed = (hashes + np.uint32(kind * 0x01000193)) * MIX[0]
    mixed ^= mixed >> np.uint32(15)
    mixed *= MIX[1]
    return (mixed >> np.uint32(32 - bits)).astype(np.int32)


def _classes() -> np.ndarray:
    """What each byte counts as. *Shape:* ``(256,)``, UINT8."""
    kept = np.zeros(256, bool)
    kept[[*b"0123456789abcdefghijklmnopqrstuvwxyz", *SIGNS]] = True
    kept[128:] = True
    kept[END] = True
    return np.where(kept, np.arange(256), SPACE).astype(np.uint8)


_CLASSES = _classes()
