"""Seeded attacks on comments: what people write so that a filter does not read the word.

They measure how much a classifier loses when comments are disguised, with the text normalizer on and off. The tables
here are written from what attackers use and are not the normalizer's: a sign that only one of the two knows counts
against the normalizer, as it does in service.

An attack hits each word of three Latin letters or more with probability 0.5 (:data:`SHARE`), whatever the word
means: an attack on the rude words alone would tell the classifier which words are rude. Apart from the letters of the
words that are hit, the text stays as it is.

Sources: Hosseini et al., "Deceiving Google's Perspective API Built for Detecting Toxic Comments", 2017 (spacing and
misspelling); Boucher et al., "Bad Characters: Imperceptible NLP Attacks", 2021 (invisible characters, homoglyphs).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Protocol

SHARE = 0.5
"""Probability that a word is hit."""

WORD = re.compile(r"[A-Za-z]{3,}")

LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7"}

SEPARATORS = " .-_*"

CYRILLIC = {
    "a": "а", "b": "Ь", "c": "с", "d": "ԁ", "e": "е", "h": "һ", "i": "і", "j": "ј", "k": "к",
    "m": "м", "n": "п", "o": "о", "p": "р", "q": "ԛ", "r": "г", "s": "ѕ", "t": "т", "w": "ԝ",
    "x": "х", "y": "у", "A": "А", "B": "В", "C": "С", "E": "Е", "H": "Н", "I": "І", "J": "Ј",
    "K": "К", "M": "М", "O": "О", "P": "Р", "S": "Ѕ", "T": "Т", "X": "Х", "Y": "У",
}  # fmt: skip
GREEK = {
    "a": "α", "e": "ε", "i": "ι", "k": "κ", "n": "η", "o": "ο", "p": "ρ", "t": "τ", "u": "υ",
    "v": "ν", "w": "ω", "x": "χ", "y": "γ", "A": "Α", "B": "Β", "E": "Ε", "H": "Η", "I": "Ι",
    "K": "Κ", "M": "Μ", "N": "Ν", "O": "Ο", "P": "Ρ", "T": "Τ", "X": "Χ", "Y": "Υ", "Z": "Ζ",
}  # fmt: skip
MIXED = {
    "a": "аɑα", "c": "сϲ", "d": "ԁ", "e": "еҽ", "g": "ɡ", "h": "һ", "i": "іıⅰ", "j": "ј", "l": "ⅼӏ",
    "o": "оοօ", "p": "рρ", "s": "ѕꜱ", "u": "սυ", "v": "ѵν", "w": "ԝѡ", "x": "хⅹ", "y": "уү",
}  # fmt: skip
"""Several look-alikes a letter, from several scripts, as the converters on the web draw them."""

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
"""Zero-width space, non-joiner and joiner; word joiner; byte order mark; soft hyphen."""


class Attack(Protocol):
    """What each of :data:`ATTACKS` is: a text and a source of chance to a text; ``share`` of its words are hit."""

    def __call__(self, text: str, rng: random.Random, share: float = SHARE) -> str: ...


def leet(text: str, rng: random.Random, share: float = SHARE) -> str:
    """Digits and signs for letters: of a word that is hit, each of a, e, i, o, s, t with probability 0.75."""

    def disguise(word: str) -> str:
        return _letters(word, rng, 0.75, LEET)

    return _hit(text, rng, share, disguise)


def spacing(text: str, rng: random.Random, share: float = SHARE) -> str:
    """A space, dot, hyphen, underscore or star between all letters of a word that is hit, one sign for the word.

    Two neighbours that are both spaced apart by spaces stand three spaces apart, or nobody could read them.
    """
    out: list[str] = []
    end = 0
    previous_end = -2  # where the last word that was spaced apart by spaces ended
    for match in WORD.finditer(text):
        if rng.random() >= share:
            continue
        separator = rng.choice(SEPARATORS)
        between = text[end : match.start()]
        if separator == " ":
            if previous_end == end and between == " ":
                between = "   "
            previous_end = match.end()
        out += [between, separator.join(match[0])]
        end = match.end()
    return "".join([*out, text[end:]])


def homoglyph(text: str, rng: random.Random, share: float = SHARE) -> str:
    """Look-alikes for letters: a word that is hit is written in Cyrillic, in Greek, in a mix of scripts or fullwidth.

    Fullwidth replaces all letters, the others each letter that has a look-alike with probability 0.7.
    """

    def disguise(word: str) -> str:
        style = rng.choice(("cyrillic", "greek", "mixed", "fullwidth"))
        if style == "fullwidth":
            return "".join(chr(ord(letter) + 0xFEE0) for letter in word)
        table = {"cyrillic": CYRILLIC, "greek": GREEK, "mixed": MIXED}[style]
        return _letters(word, rng, 0.7, table)

    return _hit(text, rng, share, disguise)


def zero_width(text: str, rng: random.Random, share: float = SHARE) -> str:
    """Invisible characters in a word that is hit: between two letters with probability 0.6, at one place at least."""

    def disguise(word: str) -> str:
        sure = rng.randrange(1, len(word))
        return "".join(
            rng.choice(INVISIBLE) + letter if i == sure or (i and rng.random() < 0.6) else letter
            for i, letter in enumerate(word)
        )

    return _hit(text, rng, share, disguise)


ATTACKS: dict[str, Attack] = {"leet": leet, "spacing": spacing, "homoglyph": homoglyph, "zero_width": zero_width}


def obfuscate(texts: Sequence[str], attack: str, seed: int, share: float = SHARE) -> list[str]:
    """``texts`` after one attack. A text's result depends on the seed and its place, not on its neighbours.

    :param attack: a name in :data:`ATTACKS`.
    :param share: probability that a word is hit, in [0, 1].
    :raises ValueError: for an unknown attack or a share outside [0, 1].
    """
    if attack not in ATTACKS:
        raise ValueError(f"no attack is called {attack!r}: choose one of {', '.join(ATTACKS)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, must lie in [0, 1]")
    function = ATTACKS[attack]
    return [function(text, random.Random(f"{seed} {attack} {i}"), share) for i, text in enumerate(texts)]


def _hit(text: str, rng: random.Random, share: float, disguise: Callable[[str], str]) -> str:
    return WORD.sub(lambda match: disguise(match[0]) if rng.random() < share else match[0], text)


def _letters(word: str, rng: random.Random, chance: float, table: dict[str, str]) -> str:
    """``word`` with letters replaced from ``table``, each with a ``chance``, at least one if there is one."""
    places = [i for i, letter in enumerate(word) if letter in table or letter.lower() in table]
    hit = {i for i in places if rng.random() < chance} or set(places[:1])
    letters = list(word)
    for i in sorted(hit):
        letters[i] = rng.choice(table.get(word[i]) or table[word[i].lower()])
    return "".join(letters)
