"""Terms that name an identity: how decisions about comments that hold them are counted, in rollouts and for drift."""

from __future__ import annotations

import re
from collections.abc import Sequence

TERMS: tuple[str, ...] = (
    *("woman", "man", "female", "male", "trans", "transgender", "nonbinary", "non-binary", "cis"),
    *("gay", "lesbian", "bisexual", "homosexual", "heterosexual", "straight", "queer", "lgbt", "lgbtq"),
    *("muslim", "christian", "jewish", "catholic", "protestant", "buddhist", "sikh", "taoist", "hindu", "atheist"),
    *("african american", "african", "american", "black", "white", "asian", "indian", "middle eastern", "european"),
    *("hispanic", "latino", "latina", "latinx", "mexican", "canadian", "chinese", "japanese"),
    *("blind", "deaf", "paralyzed", "disabled"),
    *("old", "older", "young", "younger", "elderly", "middle aged", "middle-aged", "teenage"),
    *("millenial", "millennial"),
)
"""Those that training measures bias on (``train.bias.IDENTITY_TERMS``; a test compares them)."""


class Identities:
    """:param terms: in lower case. Where one is part of another, the longer one counts: "african american" is neither
    "african" nor "american".
    """

    def __init__(self, terms: Sequence[str] = TERMS) -> None:
        self.terms = tuple(terms)
        longest = sorted(map(re.escape, terms), key=len, reverse=True)
        self._term = re.compile(r"\b(" + "|".join(longest) + r")\b") if terms else None

    def named(self, text: str) -> set[str]:
        return set(self._term.findall(text.lower())) if self._term else set()
