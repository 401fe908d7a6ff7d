"""The language of a text, as far as its script tells it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence

SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HEBREW": "iw",
    "THAI": "th",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
}
"""Unicode's name of a script to the language that is most written in it. Latin script says nothing here."""

LEAST_SHARE = 0.9
"""Of the letters. Look-alike letters of another script, as they disguise an insult, must not turn its language."""

MAX_LETTERS = 1000


def detect(text: str, default: str) -> str:
    """The language of a script that is not Latin, where nearly all letters are of it; else ``default``."""
    if text.isascii():
        return default
    letters = [c for c in text if c.isalpha()][:MAX_LETTERS]
    if all(c.isascii() for c in letters):
        return default
    counts = Counter(SCRIPTS.get(unicodedata.name(c, "").split(" ")[0].split("-")[0], "") for c in letters)
    if counts["ja"]:  # which is written with Chinese characters, too
        counts["ja"] += counts.pop("zh", 0)
    language, count = counts.most_common(1)[0]
    return language if language and count >= LEAST_SHARE * len(letters) else default


def unsupported(requested: Sequence[str], supported: Collection[str]) -> list[str]:
    """Those of the languages that are not supported; ``en-GB`` is where ``en`` is."""
    known = {language.lower() for language in supported}
    return [code for code in requested if not {code.lower(), code.lower().partition("-")[0]} & known]
