"""Which words made the score: each is left out of the comment, and scored alone.

A word's weight for a label is a sum of two log-odds: those of the word scored alone, and the fall of the comment's when
the word is left out. Leaving out is not enough: in "you idiot, you moron" either word alone keeps the score up. As a
probability (0.5 is a weight of 0) the weight is what a span's ``scores`` hold.

::

    text ─ units ─▶ words, or runs of words ─ weigh: one batch ─▶ weights ─ counting ─▶ joined ─▶ spans

``sentences`` is what Perspective's ``spanScores`` were: each sentence scored as a text of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

MAX_VARIANTS = 128
"""Texts that one comment costs at most, itself included: half of them are single words."""

MAX_SENTENCES = 32
"""Texts that ``sentences`` sends at most."""

MAX_TOKENS = 128
"""What a model reads of a comment, unless the caller knows better. A word is at least one token."""

THRESHOLD = 0.5
"""A word counts from this score on."""

MARGIN = 3.0
"""A word does not count where the comment's strongest word weighs so much more, in log-odds: 20 times the odds."""

# A run of letters with spaces between ("i d i o t") is one word; so is each sign of a script that writes no spaces.
_UNSPACED = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"
_WORD = re.compile(rf"(?<!\S)\w(?: \w){{2,}}(?!\w)\S*|{_UNSPACED}|(?:(?!{_UNSPACED})\S)+")
_BEFORE = "\"'“”‘’«»‹›„([{<¿¡"
_AFTER = "\"'“”‘’«»‹›)]}>.,;:!?…、。！？"
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+|\n")


class Scored(Protocol):
    @property
    def scores(self) -> Mapping[str, float]: ...


class Classifier(Protocol):
    """The part of the asynchronous client that is used here."""

    async def classify(self, texts: Sequence[str], /) -> Sequence[Scored]: ...


class Span(NamedTuple):
    """A part of a text.

    :param begin: first code point. :param end: the code point after the last.
    :param scores: for each label asked for, in [0, 1].
    """

    begin: int
    end: int
    scores: dict[str, float]

    def utf16(self, text: str) -> tuple[int, int]:
        """``begin`` and ``end`` in UTF-16 code units, as Perspective API and JavaScript's strings count."""
        begin = utf16_length(text[: self.begin])
        return begin, begin + utf16_length(text[self.begin : self.end])


@dataclass(frozen=True, slots=True)
class Word:
    """A word or a run of words of a text.

    :param fall: of the text's log-odds when the word is left out, for each label.
    :param alone: log-odds of the word alone, for each label.
    """

    begin: int
    end: int
    fall: Mapping[str, float]
    alone: Mapping[str, float]

    @property
    def weight(self) -> dict[str, float]:
        return {label: fall + self.alone[label] for label, fall in self.fall.items()}


def utf16_length(text: str) -> int:
    return len(text) + sum(ord(c) > 0xFFFF for c in text)


async def spans(
    client: Classifier,
    text: str,
    labels: Sequence[str] | None = None,
    *,
    threshold: float = THRESHOLD,
    margin: float = MARGIN,
    max_tokens: int = MAX_TOKENS,
) -> list[Span]:
    """The parts of ``text`` that made its scores, in order; words that stand side by side are one span.

    The client is given one list, of at most ``MAX_VARIANTS`` texts. A comment with more words than fit is taken apart
    into runs of words instead; words beyond ``max_tokens`` are not looked at, the model does not read them either.

    :param labels: of the model; by default all. A word counts when it does for one of them.
    :param threshold: score from which a word counts, between 0 and 1.
    :param margin: largest distance to the label's strongest word, in log-odds, above 0.
    :raises ValueError: for a label that the model does not have.
    """
    if not 0 < threshold < 1 or not margin > 0:
        raise ValueError(f"threshold {threshold} must lie between 0 and 1, and margin {margin} above 0")
    words = await weigh(client, text, labels, max_tokens)
    chosen = counting([word.weight for word in words], math.log(threshold / (1 - threshold)), margin)
    return joined(text, words, chosen)


async def weigh(
    client: Classifier, text: str, labels: Sequence[str] | None = None, max_tokens: int = MAX_TOKENS
) -> list[Word]:
    """The words of ``text``, or runs of words, and what speaks for each.

    :raises ValueError: for a label that the model does not have.
    """
    places = units(text, (MAX_VARIANTS - 1) // 2, max_tokens)
    if not places:
        return []
    without = [text[:begin] + text[end:] for begin, end in places]
    alone = [text[begin:end] for begin, end in places]
    whole, *results = await client.classify([text, *without, *alone])
    names = check_labels(labels, whole.scores)
    n = len(places)
    return [
        Word(
            *place,
            fall={label: log_odds(whole.scores[label]) - log_odds(left.scores[label]) for label in names},
            alone={label: log_odds(single.scores[label]) for label in names},
        )
        for place, left, single in zip(places, results[:n], results[n:], strict=True)
    ]


def counting(weights: Sequence[Mapping[str, float]], least: float, margin: float) -> list[bool]:
    """Which words count: for one label, at ``least`` or above, and within ``margin`` of the label's strongest word."""
    labels = list(weights[0]) if weights else []
    strongest = {label: max(each[label] for each in weights) for label in labels}
    return [any(each[label] >= max(least, strongest[label] - margin) for label in labels) for each in weights]


def joined(text: str, words: Sequence[Word], chosen: Sequence[bool]) -> list[Span]:
    """A span for each chosen word, with its best scores; neighbours with no more than spaces between are one."""
    found: list[Span] = []
    for word, counts in zip(words, chosen, strict=True):
        if not counts:
            continue
        begin, scores = word.begin, {label: probability(value) for label, value in word.weight.items()}
        if found and not text[found[-1].end : begin].strip():
            last = found.pop()
            begin, scores = last.begin, {label: max(score, last.scores[label]) for label, score in scores.items()}
        found.append(Span(begin, word.end, scores))
    return found


async def sentences(
    client: Classifier, text: str, labels: Sequence[str] | None = None, whole: Scored | None = None
) -> list[Span]:
    """The sentences of ``text``, without the space around them, each with its scores as a text of its own.

    A single sentence is the whole text, with its scores. The client is given at most ``MAX_SENTENCES`` texts: what a
    longer comment has beyond them stands together with the last.

    :param whole: the text's own result, where it is known: a single sentence then costs nothing.
    :raises ValueError: for a label that the model does not have.
    """
    places = sentence_places(text)
    if not places:
        return []
    if len(places) == 1 and whole is not None:
        results: Sequence[Scored] = [whole]
    else:
        results = await client.classify([text[begin:end] for begin, end in places])
    names = check_labels(labels, results[0].scores)
    return [
        Span(begin, end, {label: result.scores[label] for label in names})
        for (begin, end), result in zip(places, results, strict=True)
    ]


def sentence_places(text: str, most: int = MAX_SENTENCES) -> list[tuple[int, int]]:
    """Sentences of ``text``, as code points from and to; one that is alone goes from the first to the last."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    edges = [0, *ends, len(text)]
    places = []
    for begin, end in zip(edges, edges[1:], strict=False):
        part = text[begin:end]
        if part.strip():
            places.append((begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())))
    if len(places) > most:
        places[most - 1 :] = [(places[most - 1][0], places[-1][1])]
    return [(0, len(text))] if len(places) == 1 else places


def units(text: str, most: int, max_tokens: int = MAX_TOKENS) -> list[tuple[int, int]]:
    """The first ``max_tokens`` words, as code points from and to; in ``most`` runs of words where there are more.

    Quotes, brackets and the marks that end a sentence are no part of a word, unless there is nothing else in it.
    """
    places: list[tuple[int, int]] = []
    for match in _WORD.finditer(text):
        if len(places) == max_tokens:
            break
        word = match.group()
        begin = match.start() + len(word) - len(word.lstrip(_BEFORE))
        end = match.start() + len(word.rstrip(_AFTER))
        places.append((begin, end) if begin < end else match.span())
    if len(places) <= most:
        return places
    edges = [round(i * len(places) / most) for i in range(most + 1)]
    return [(places[a][0], places[b - 1][1]) for a, b in zip(edges, edges[1:], strict=False)]


def check_labels(labels: Sequence[str] | None, scores: Mapping[str, float]) -> list[str]:
    unknown = [label for label in labels or () if label not in scores]
    if unknown:
        raise ValueError(f"the model has no label {', '.join(unknown)}: it has {', '.join(scores)}")
    return list(scores) if labels is None else list(labels)


def log_odds(score: float) -> float:
    """Of a probability, which is kept off 0 and 1: beyond that the scores say nothing more."""
    kept = min(max(score, 1e-6), 1 - 1e-6)
    return math.log(kept / (1 - kept))


def probability(weight: float) -> float:
    return 1 / (1 + math.exp(-weight))
