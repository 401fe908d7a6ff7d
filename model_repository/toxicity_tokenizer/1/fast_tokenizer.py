"""Texts to token ids with a faster library than ``tokenizers``, where it gives the same ids: else with ``tokenizers``.

``tokenizers`` is the reference. For WordPiece, the library ``nanotoken`` gave the same ids on all of a million real and
fuzzed texts, at a fraction of the time (``python -m export.tokenizers_check``; ``export/RESULTS.md``, where the other
libraries are, too). It is young: 0.1.0 (September 2026) is its only release, by one author, called alpha by himself.
MIT licence; wheels for Linux x86-64 and aarch64 and every Python from 3.10 on. So it is used only

- where somebody installed it: the extra ``fast`` brings it (and ``dev``, for tests), pinned; ``serve`` does not;
- for a tokenizer that it supports (WordPiece), and that it reads as the reference does: the golden comments and
  :func:`sample` are tokenized by both when a version is loaded;
- as long as it goes on so: one text in :data:`AUDIT_EVERY` is tokenized by both while serving, too.

Where one of these fails, the log says why and the reference does the work from then on.

Stands beside the ``model.py`` that uses it, in its version folder. Written there by the exporter: change
``export/templates/fast_tokenizer.py`` instead.
"""

import importlib
import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

log = logging.getLogger(__name__)

PACKAGE = "nanotoken"

CACHE_ENTRIES = 1 << 17
"""Words that the fast library remembers, at each of its two levels: about 16 MB an instance. Its own default is eight
times as much."""

AUDIT_EVERY = 1000
"""Texts from one that both libraries tokenize to the next."""

PADDING = -1
"""Fills the rows of :func:`pad`: no token has this id."""


class FastTokenizer:
    """One tokenizer, loaded by the reference and, where it can be trusted, by the fast library.

    :param path: of a ``tokenizer.json``. Its own truncation and padding are ignored.
    :param golden: texts that both must agree on, besides :func:`sample`.
    :param fast: whether the fast library may be used.
    :ivar library: the name of the one in use.
    :ivar reason: why it is the reference; ``None`` where it is not.
    :ivar tail: how many special tokens stand behind a text, such as [SEP].
    """

    def __init__(
        self, path: Path, golden: Sequence[str] = (), fast: bool = True, audit_every: int = AUDIT_EVERY
    ) -> None:
        definition = json.loads(path.read_text(encoding="utf-8"))
        definition["truncation"] = definition["padding"] = None
        text = json.dumps(definition)
        self.tokenizer = Tokenizer.from_str(text)
        self.tail: int = self.tokenizer.encode("a").special_tokens_mask[::-1].index(0)
        self.audit_every = audit_every
        self.until_audit = audit_every
        self.fast: Any = None
        self.library, self.reason = "tokenizers", None if fast else "it was asked for"
        if not fast:
            return
        try:
            self.fast = load(text)
            self.library = PACKAGE
        except BaseException as error:
            self.give_up(refusal(error))
            return
        self.audit([*golden, *sample()])

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids with special tokens, nothing cut off.

        :param texts: without lone surrogates, as all that is decoded from UTF-8.
        :returns: the ids of all texts, one behind the other (int32), and how many each text has (int64).
        :raises TypeError: for a text with a lone surrogate.
        """
        texts = list(texts)
        if self.fast is not None and texts:
            self.until_audit -= len(texts)
            if self.until_audit <= 0:
                self.audit([texts[self.until_audit % len(texts)]])
                self.until_audit = self.audit_every
        if self.fast is not None:
            try:
                ids, offsets = self.fast(texts)
                return ids.astype(np.int32), np.diff(offsets)
            except UnicodeEncodeError:
                pass  # a lone surrogate: the caller's mistake, which the reference refuses too
            except BaseException as error:
                self.give_up(refusal(error))
        return self.reference(texts)

    def reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`encode_batch`, always by ``tokenizers``."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]
        lengths = np.array([len(row) for row in rows], np.int64)
        return np.fromiter((i for row in rows for i in row), np.int32, int(lengths.sum())), lengths

    def audit(self, texts: Sequence[str]) -> None:
        """Have both libraries tokenize ``texts``; give the fast one up where they differ."""
        expected, lengths = self.reference(texts)
        try:
            ids, offsets = self.fast(list(texts))
        except BaseException as error:
            self.give_up(refusal(error))
            return
        found = np.diff(offsets)
        if np.array_equal(found, lengths) and np.array_equal(ids, expected):
            return
        ends = np.cumsum(lengths)
        for i, end in enumerate(ends):
            start = end - lengths[i]
            mine = ids[offsets[i] : offsets[i + 1]]
            if not np.array_equal(mine, expected[start:end]):
                self.give_up(f"it gives other token ids for {ascii(texts[i][:80])} than tokenizers do")
                return

    def give_up(self, reason: str) -> None:
        self.fast, self.library, self.reason = None, "tokenizers", reason
        log.warning("%s is not used: %s; tokenizers do the work", PACKAGE, reason)


def load(definition: str) -> Callable[[list[str]], tuple[np.ndarray, np.ndarray]]:
    """The fast library's tokenizer: texts to ids and the offsets where each text's ids start, and the last one's end.

    :param definition: the contents of a ``tokenizer.json``.
    :raises ModuleNotFoundError: where the library is not installed.
    :raises ValueError: for a tokenizer that it does not support.
    """
    library: Any = importlib.import_module(PACKAGE)
    library.set_cache_entries(CACHE_ENTRIES)
    encode = library.Tokenizer.from_json(definition).backend.encode_batch
    return lambda texts: encode(texts, parallel=False)


def refusal(error: BaseException) -> str:
    """Why the fast library cannot be used. A panic of its Rust code is no ``Exception``, but an end of neither us.

    :raises KeyboardInterrupt, SystemExit: when ``error`` is one.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    if isinstance(error, ModuleNotFoundError):
        return "it is not installed"
    return f"{type(error).__name__}: {error}"


def sample(texts: int = 500, seed: int = 1) -> list[str]:
    """Texts on which tokenizers tend to differ: all kinds of spaces, marks, scripts, special tokens, long words."""
    rng = random.Random(seed)
    found = [*HARD]
    for i in range(max(texts - len(HARD), 0)):
        # each text from a block of 256 code points of its own, so that marks follow letters; no surrogates
        block = rng.choice((0, 1, 2, 3, 4, 6, 9, 0x20, 0x30, 0x4E, 0xAC, 0xFE, 0xFF, 0x1F6, 0x200, rng.randrange(0xD8)))
        letters = [chr(256 * block + rng.randrange(256)) for _ in range(rng.randrange(1, 24))]
        words = rng.choices(("you", " ", "IDIOT", "##s", "'", "[SEP]", ".", "\u0301", "\n", "é", *HARD), k=6)
        mixed = letters + words
        if i % 2:
            rng.shuffle(mixed)
        found.append("".join(mixed))
    return found


HARD = (
    "",
    " ",
    "\x00",
    "[CLS] [SEP][PAD] [UNK]x[MASK]",
    "[cls] [ SEP ] [SEP",
    "a" * 100,
    "a" * 101,
    "é" * 100,
    "e\u0301" * 101,
    "##ing ##s #s",
    "a\u200bb\u200dc\ufeffd\u00ade",
    "a\u00a0b\u2003c\u3000d\u2028e\x85f\x0bg\x0ch",
    "ΑΣ Σ ΌΣΟΣ. İstanbul ß ẞ ŒUVRE ǅ",
    "ﬁ ｆｕｌｌ ① ℌ 𝕳𝖊𝖑𝖑𝖔",
    "東京x 한국어 \u1112\u1161\u11ab カ\u3099 ก็ \u0915\u094d\u0937",
    "👩‍👩‍👧‍👦👍🏽🇩🇪1️⃣❤️",
    "z\u0321\u0334\u0315\u0350a\u0310\u0489l",
    "…—“”‘’«»¿¡§†‡•·`^$+<=>|~",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000e0001",
)


def pad(ids: np.ndarray, lengths: np.ndarray, max_tokens: int, tail: int) -> tuple[np.ndarray, np.ndarray]:
    """What :meth:`FastTokenizer.encode_batch` gives as a table, rows longer than ``max_tokens`` cut.

    :param tail: so many tokens at the end of a row are kept when it is cut, such as [SEP].
    :returns: ids (rows, tokens of the longest), int32, filled up with :data:`PADDING`; and whether a row was cut.
    """
    kept = np.minimum(lengths, max_tokens)
    truncated = lengths > max_tokens
    columns = np.arange(kept.max(initial=0))
    ends = np.cumsum(lengths)
    index = (ends - lengths)[:, None] + columns
    if tail and truncated.any():
        index[truncated, max_tokens - tail :] = ends[truncated, None] - np.arange(tail, 0, -1)
    inside = columns < kept[:, None]
    table = np.full(index.shape, PADDING, np.int32)
    table[inside] = ids[index[inside]]
    return table, truncated
