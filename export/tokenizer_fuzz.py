"""Texts on which tokenizers may differ: a seeded stream, by class."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence

SPECIALS = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "[unused1]", "<s>", "</s>", "<unk>", "<mask>", "<pad>")
SPACES = (
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
    "\u200a\u2028\u2029\u202f\u205f\u3000\u200b\u200c\u200d\u2060\ufeff"
)
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u061c\u115f\u180e\u202e\ufe0f"
LOOKALIKES = {"a": "аα@", "e": "еε3", "i": "іι1!", "o": "оο0", "c": "сϲ", "p": "рρ", "s": "ѕ5$", "y": "уγ", "u": "υц"}
EMOJI = ("👩", "👨", "👧", "🏳️", "🏴", "❤️", "👍", "🤦", "🇩", "🇪", "🇺", "🇸", "1️⃣", "#️⃣", "🔥", "💀", "🖕", "☠", "™", "🫠")
EMOJI_PARTS = ("\u200d", "\ufe0f", "\ufe0e", "🏻", "🏽", "🏿", "\u20e3", "♂️", "♀️", "\U000e0067", "\U000e007f")


def assigned() -> list[str]:
    """All code points that Python's Unicode data knows, private ones and surrogates left out."""
    return [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


class Fuzzer:
    """:param comments: real ones, to be mutated. :param vocabulary: the tokenizer's pieces."""

    def __init__(self, comments: Sequence[str], vocabulary: Sequence[str], seed: int) -> None:
        self.rng = random.Random(seed)
        self.comments = list(comments)
        self.vocabulary = list(vocabulary)
        self.letters = assigned()
        self.marks = [c for c in self.letters if unicodedata.category(c).startswith("M")]
        self.controls = [c for c in self.letters if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")]
        self.changing = [c for c in self.letters if c != c.lower() or c != unicodedata.normalize("NFKD", c)]
        self.classes: dict[str, Callable[[], str]] = {
            "any code points": self.any_code_points,
            "assigned code points": lambda: self.mixed(self.letters),
            "one block of code points": self.one_block,
            "letters with marks": self.with_marks,
            "letters that case or accents change": lambda: self.mixed(self.changing),
            "emoji": self.emoji,
            "control characters": lambda: self.mixed(self.controls),
            "spaces": lambda: self.mixed(list(SPACES)),
            "special tokens": self.special_tokens,
            "pieces of the vocabulary": self.pieces,
            "very long words": self.long_words,
            "comments: spliced": self.spliced,
            "comments: case": self.case,
            "comments: look-alikes": self.lookalikes,
            "comments: invisible": lambda: self.inserted(INVISIBLE),
            "comments: edited": lambda: self.inserted(self.letters, drop=True),
            "comments: decomposed": self.decomposed,
        }

    def stream(self, texts: int) -> Iterator[tuple[str, str]]:
        """Pairs of class and text, the classes in turn."""
        yield from [("empty", ""), ("empty", " "), ("empty", "\n"), ("empty", "\u200b")][:texts]
        names = list(self.classes)
        for i in range(texts - 4):
            name = names[i % len(names)]
            yield name, self.classes[name]()

    def comment(self, most: int = 100) -> str:
        """A piece of a real comment, at most so many characters."""
        text = self.rng.choice(self.comments)
        start = self.rng.randrange(max(len(text) - most, 0) + 1)
        return text[start : start + self.rng.randint(1, most)]

    def any_code_points(self) -> str:
        def one() -> str:
            point = int(self.rng.random() * (0x110000 - 0x800))
            return chr(point if point < 0xD800 else point + 0x800)

        return "".join(one() for _ in range(self.rng.randint(1, 20)))

    def mixed(self, letters: Sequence[str]) -> str:
        """Some of ``letters``, between words or inside them."""
        chosen = self.rng.choices(letters, k=self.rng.randint(1, 12))
        return self.rng.choice(("", " ", "a", "the ", "X. ")).join([*chosen, self.comment(20)])

    def one_block(self) -> str:
        start = self.rng.randrange(0, len(self.letters) - 128)
        return "".join(self.rng.choices([*self.letters[start : start + 128], " "], k=self.rng.randint(1, 30)))

    def with_marks(self) -> str:
        parts = list(self.comment(30))
        for _ in range(self.rng.randint(1, 12)):
            parts.insert(self.rng.randint(0, len(parts)), self.rng.choice(self.marks))
        return "".join(parts)

    def emoji(self) -> str:
        parts = self.rng.choices((*EMOJI, *EMOJI_PARTS, " ", "a", "ok"), k=self.rng.randint(1, 16))
        return "".join(parts) + self.comment(20)

    def special_tokens(self) -> str:
        parts = [self.comment(15) for _ in range(self.rng.randint(0, 3))]
        for _ in range(self.rng.randint(1, 4)):
            token = self.rng.choice(SPECIALS)
            change = self.rng.random()
            if change < 0.1:
                token = token.lower()
            elif change < 0.2:
                at = self.rng.randint(0, len(token))
                token = token[:at] + self.rng.choice((" ", "\u200b", "\u0301", "[", "")) + token[at + 1 :]
            parts.insert(self.rng.randint(0, len(parts)), token)
        return self.rng.choice(("", " ", "\u00a0", "\n", "\u0301")).join(parts)

    def pieces(self) -> str:
        parts = self.rng.choices(self.vocabulary, k=self.rng.randint(1, 12))
        if self.rng.random() < 0.5:
            parts = [part.removeprefix("##").removeprefix("▁") for part in parts]
        return self.rng.choice(("", " ", "##")).join(parts)

    def long_words(self) -> str:
        """Around the length (100 characters) from which a word is unknown as a whole."""
        length = self.rng.choice((98, 99, 100, 101, 102, self.rng.randint(50, 400)))
        letters = self.rng.choice(("a", "ab", "é", "e\u0301", "ß", "ж", "𝕒", "a\u200b", "1", "un", "aI\u0307", "ﬁ"))
        word = (letters * length)[:length]
        if self.rng.random() < 0.3:
            at = self.rng.randrange(length)
            word = word[:at] + self.rng.choice(self.letters) + word[at:]
        return f"{self.comment(10)} {word}{self.rng.choice(('', ' ', '.', chr(0x301)))}{self.comment(10)}"

    def spliced(self) -> str:
        return "".join(self.comment(60) for _ in range(self.rng.randint(2, 4)))

    def case(self) -> str:
        text = self.comment()
        flip = self.rng.random()
        return "".join(c.swapcase() if self.rng.random() < flip else c for c in text)

    def lookalikes(self) -> str:
        share = self.rng.random()
        return "".join(
            self.rng.choice(LOOKALIKES[c.lower()]) if c.lower() in LOOKALIKES and self.rng.random() < share else c
            for c in self.comment()
        )

    def inserted(self, letters: Sequence[str], drop: bool = False) -> str:
        parts = list(self.comment())
        for _ in range(self.rng.randint(1, 5)):
            if drop and parts and self.rng.random() < 0.5:
                del parts[self.rng.randrange(len(parts))]
            parts.insert(self.rng.randint(0, len(parts)), self.rng.choice(letters))
        return "".join(parts)

    def decomposed(self) -> str:
        text = "".join(
            self.rng.choice(self.changing) if c.isalpha() and self.rng.random() < 0.2 else c for c in self.comment()
        )
        return unicodedata.normalize(self.rng.choice(("NFD", "NFC", "NFKD", "NFKC")), text)
