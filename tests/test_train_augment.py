from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import LABELS

from train.augment import FAMILIES, LEXICON, SLOTS, counterfactuals, mentions, misspelt, patterns


def replaced(text: str, seed: int = 0) -> str:
    texts, _ = counterfactuals([text], np.zeros((1, 1)), 1.0, seed)
    return texts[0]


def words(group: str, form: str) -> set[str]:
    return {wording.lower() for identity in LEXICON[group] for wording in getattr(identity, form)}


@pytest.mark.parametrize(
    ("text", "group", "form"),
    [
        ("A mosque is where Muslims pray", "religion", "plural"),
        ("He wrote about Judaism", "religion", "name"),
        ("She is a Buddhist.", "religion", "singular"),
        ("the Jewish holidays", "religion", "adjective"),
        ("a Muslim school", "religion", "adjective"),
        ("my refugees", "migration", "plural"),
        ("an elderly woman", "age", "adjective"),
        ("TRANS PEOPLE", "gender", "plural"),
        ("that woman there", "gender", "singular"),
        ("two blind men", "disability", "adjective"),
    ],
)
def test_the_form_of_a_mention_is_kept(text: str, group: str, form: str) -> None:
    first = mentions(text)[0]
    assert (first.group, first.form) == (group, form)
    for seed in range(20):
        new = replaced(text, seed)
        assert new != text
        found = {m.form for m in mentions(new) if m.group == group}
        assert found <= {form}, new


@pytest.mark.parametrize(
    "text",
    ["black coffee on a white table", "oh man, that was close", "a straight line", "polish the chairs", "blinds"],
)
def test_words_that_mean_something_else_are_left(text: str) -> None:
    assert mentions(text) == []


def test_all_mentions_of_one_identity_become_the_same_other_one() -> None:
    for seed in range(10):
        new = replaced("Muslims built it. A Muslim architect, and Islam since then.", seed)
        match = re.fullmatch(r"(\w+) built it. (An?) (\w+) architect, and (\w+) since then\.", new)
        assert match, new
        assert {"Jews": ("Jewish", "Judaism"), "atheists": ("atheist", "atheism")}.get(
            match[1], (match[1][:-1], match[1][:-1] + ("ity" if match[1] == "Christians" else "ism"))
        ) == (match[3], match[4])
        assert (match[2] == "An") == (match[3][0] in "aeiou")


def test_case_and_article_follow_the_old_word() -> None:
    assert {replaced("an immigrant", s) for s in range(30)} == {
        "a migrant", "a refugee", "an asylum seeker", "a foreigner",
    }  # fmt: skip
    assert all(replaced("IMMIGRANTS", s).isupper() for s in range(10))
    assert all(replaced("muslims", s).islower() for s in range(10))
    assert all(replaced("Immigrants came", s)[0].isupper() for s in range(10))


def test_as_many_counterfactuals_as_asked_for_with_the_labels_of_their_origin() -> None:
    texts = [f"a comment about {word} number {i}" for i in range(50) for word in ("Muslims", "gay people", "maps")]
    labels = np.array([[i % 2, np.nan] for i in range(len(texts))], np.float32)
    new, new_labels = counterfactuals(texts, labels, 0.5, 3)
    assert len(new) == len(new_labels) == 50  # half of the 100 that name an identity
    assert not set(new) & set(texts)
    for text, row in zip(new, new_labels, strict=True):
        number = text.split()[-1]
        same = [i for i, t in enumerate(texts) if t.split()[-1] == number and "maps" not in t]
        assert row[0] in labels[same, 0] and np.isnan(row[1])
    assert counterfactuals(texts, labels, 0.5, 3)[0] == new
    assert counterfactuals(texts, labels, 0.5, 4)[0] != new
    assert len(counterfactuals(texts, labels, 2.5, 3)[0]) == 250
    assert counterfactuals(texts, labels, 0.0, 3)[1].shape == (0, 2)
    assert len(set(counterfactuals(["only Islam"], labels[:1], 100.0, 3)[0])) == len(words("religion", "name")) - 1
    with pytest.raises(ValueError, match=r"-1.*at least 0"):
        counterfactuals(texts, labels, -1, 3)


def test_patterns_give_distinct_rows_of_every_kind() -> None:
    texts, labels = patterns(LABELS, 3000, 1)
    assert len(set(texts)) == 3000 and labels.shape == (3000, 6) and labels.dtype == np.float32
    assert (patterns(LABELS, 200, 1)[0], patterns(LABELS, 200, 2)[0]) == (texts[:200], patterns(LABELS, 200, 2)[0])
    assert patterns(LABELS, 200, 2)[0] != texts[:200]
    assert not any("{" in t or "}" in t or "\0" in t for t in texts)
    hate = labels[:, LABELS.index("identity_hate")]
    assert 0.3 < hate.mean() < 0.5 and not np.isnan(hate).any()
    assert set(np.unique(labels[~np.isnan(labels)])) == {0.0, 1.0}


def test_an_identity_tells_little_about_the_label() -> None:
    texts, labels = patterns(LABELS, 15_000, 1)
    hate = labels[:, LABELS.index("identity_hate")] == 1
    for word in ("Muslim", "gay", "women", "trans", "immigrant", "disabled", "black"):
        named = np.array([re.search(rf"\b{word}", t, re.I) is not None for t in texts])
        assert named.sum() > 50, word
        assert 0.35 < hate[named].mean() < 0.6, word
    for word in ("hate", "kill", "rats", "disgusting"):  # and neither does a hostile word
        said = np.array([re.search(rf"\b{word}\b", t, re.I) is not None for t in texts])
        assert 0.1 < hate[said].mean() < 0.85, word


def test_labels_of_other_tasks_follow_from_what_they_mean() -> None:
    texts, jigsaw = patterns(LABELS, 1500, 1)
    hate, toxic = jigsaw[:, 5], jigsaw[:, 0]
    same, binary = patterns(("regular", "hate"), 1500, 1)
    assert same == texts
    np.testing.assert_array_equal(binary, np.stack([1 - hate, hate], 1))
    three = patterns(("hate", "offensive", "neither"), 1500, 1)[1]
    np.testing.assert_array_equal(three.sum(1), 1)
    np.testing.assert_array_equal(three[:, 0], hate)
    assert three[(toxic == 1) & (hate == 0), 1].all()
    mixed = patterns(("toxicity", "sarcasm"), 10, 1)[1]
    np.testing.assert_array_equal(mixed[:, 0], toxic[:10])
    assert np.isnan(mixed[:, 1]).all()
    with pytest.raises(ValueError, match=r"none of the labels sarcasm"):
        patterns(("sarcasm",), 10, 1)
    with pytest.raises(ValueError, match=r"-1.*at least 0"):
        patterns(LABELS, -1, 1)


def test_every_slot_that_is_named_exists() -> None:
    known = {*SLOTS, "plural", "singular", "adjective", "name", "others"}
    everything = [p for f in FAMILIES.values() for p in f.patterns] + [e for s in SLOTS.values() for e in s]
    assert {name for text in everything for name in re.findall(r"\{(\w+)\}", text)} <= known


def test_misspelling_changes_a_word_and_leaves_short_ones() -> None:
    import random

    changed = [misspelt("we should meet on the old bridge", random.Random(s)) for s in range(30)]
    assert sum(c != "we should meet on the old bridge" for c in changed) > 20
    assert misspelt("I am so hot", random.Random(1)) == "I am so hot"
