from __future__ import annotations

import random
import re
import unicodedata

import pytest

from train.normalizer import normalize_text
from train.obfuscation import ATTACKS, CYRILLIC, GREEK, INVISIBLE, MIXED, SEPARATORS, obfuscate

TEXTS = [
    "You are a stupid idiot and nobody likes you.",
    "The article needs a source for this claim, and a better map of the town.",
    "shut up",
    "",
    "no",
] * 40


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_repeatable_and_follows_its_seed(attack: str) -> None:
    first = obfuscate(TEXTS, attack, seed=1)
    assert first == obfuscate(TEXTS, attack, seed=1)
    assert first != obfuscate(TEXTS, attack, seed=2)
    assert first[:7] == obfuscate(TEXTS[:7], attack, seed=1)
    assert first[0] != first[5]  # the same text at another place
    assert {text for text in first if len(text) < 3} == {"", "no"}  # short words are left


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_words_is_kept(attack: str, share: float) -> None:
    words = ["stupid", "idiot", "house", "nation"] * 500
    hit = sum(a != b for a, b in zip(words, obfuscate(words, attack, 3, share), strict=True))
    assert hit / len(words) == pytest.approx(share, abs=0.05)


def test_leet_replaces_several_letters_of_a_word() -> None:
    out = obfuscate(["stupidities"] * 200, "leet", 5, share=1.0)
    changed = [sum(a != b for a, b in zip("stupidities", word, strict=True)) for word in out]
    assert min(changed) >= 1 and sum(changed) / len(changed) > 5
    assert {c for word in out for c in word if not c.isalpha()} <= set("43@1!05$7")


def test_spacing_takes_one_separator_a_word() -> None:
    for word in obfuscate(["stupid"] * 50, "spacing", 5, share=1.0):
        assert re.fullmatch(r"s(.)t\1u\1p\1i\1d", word) and word[1] in SEPARATORS
    texts = obfuscate(["you stupid idiot"] * 400, "spacing", 5, share=1.0)
    assert any("y o u   s t u p i d   i d i o t" in text for text in texts)


def test_invisible_characters_are_all_that_is_added() -> None:
    for before, after in zip(TEXTS, obfuscate(TEXTS, "zero_width", 5), strict=True):
        assert "".join(c for c in after if c not in INVISIBLE) == before
        assert not re.search(rf"(?<!\w)[{INVISIBLE}]|[{INVISIBLE}](?!\w)", after)  # inside words alone


def test_lookalikes_are_what_they_are_said_to_be() -> None:
    for table, scripts in (
        (CYRILLIC, {"CYRILLIC"}),
        (GREEK, {"GREEK"}),
        (MIXED, {"CYRILLIC", "GREEK", "LATIN", "ARMENIAN", "SMALL"}),
    ):
        for letter, alike in table.items():
            assert letter.isascii() and alike
            for character in alike:
                assert not character.isascii()
                assert unicodedata.name(character).split()[0] in scripts, unicodedata.name(character)
    words = obfuscate(["stupid"] * 300, "homoglyph", 5, share=1.0)
    assert all(len(word) == 6 and word != "stupid" for word in words)
    assert any(unicodedata.normalize("NFKC", w) == "stupid" and "\uff00" < w[0] for w in words)  # fullwidth


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_normalizer_reads_most_of_what_was_attacked(attack: str) -> None:
    """The two have no table in common, so not all; how much that costs a classifier is measured, not asserted here."""
    words = " ".join(TEXTS).lower().split()
    read = normalize_text(" \n".join(obfuscate(words, attack, 7))).lower().split()
    back = sum(word in words for word in read) / len(words)
    assert back > 0.95, f"{back:.2f}"


def test_wrong_calls_say_what_they_got() -> None:
    with pytest.raises(ValueError, match="no attack is called 'rot13': choose one of leet, spacing"):
        obfuscate(["a"], "rot13", 1)
    with pytest.raises(ValueError, match="share is 1.5, must lie in"):
        obfuscate(["a"], "leet", 1, share=1.5)
    assert ATTACKS["leet"]("toast", random.Random(1), share=0.0) == "toast"
