"""What is sent, and how the load changes over time."""

from __future__ import annotations

import argparse
import itertools
from collections import Counter

import pytest

from loadtest import corpus, traffic
from loadtest.shapes import SHAPES, at, stages
from loadtest.traffic import DISGUISES, INSULTS, MIXES, Mix, comments, parse_mix, sizes

TEXTS = corpus.generate(2000, seed=3)


def drawn(mix: Mix, count: int = 20_000, seed: int = 0) -> list[str]:
    return list(itertools.islice(comments(TEXTS, mix, seed), count))


def is_attack(text: str) -> bool:
    plain = text.rstrip("!").lower()
    return plain in {form for i in INSULTS for form in (i, i.translate(DISGUISES))}


def test_plain_is_the_corpus_in_order() -> None:
    texts = drawn(MIXES["plain"], 2000)
    first = TEXTS.index(texts[0])
    assert TEXTS[first:] + TEXTS[:first] == texts
    assert drawn(MIXES["life"], 500) == drawn(MIXES["life"], 500) != drawn(MIXES["life"], 500, seed=1)


def test_shares_are_those_of_the_mix() -> None:
    texts = drawn(Mix(foreign=0.3))
    assert sum(not t.isascii() for t in texts) / len(texts) == pytest.approx(0.3, abs=0.06)  # some words are ASCII
    texts = drawn(Mix(attacks=0.2))
    assert sum(map(is_attack, texts)) / len(texts) == pytest.approx(0.2, abs=0.05)
    once = len(set(TEXTS)) / len(TEXTS)
    texts = drawn(Mix(repeats=0.5), 1500)
    assert len(set(texts)) / len(texts) == pytest.approx(once * 0.5, abs=0.06)
    assert set(map(is_attack, drawn(Mix(attacks=1.0), 300))) == {True}


def test_an_attack_comes_in_bursts_of_near_copies() -> None:
    runs = [len(list(group)) for attack, group in itertools.groupby(drawn(Mix(attacks=0.1)), is_attack) if attack]
    assert min(runs[:-1]) >= 20 and len(runs) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [("none", "the mix is 'none', must be one of plain, life"), ("foreign=x", "the mix is 'foreign=x'")]
    + [("foreign=2", "foreign is 2.0, must be a share"), ("foreign=0.9,attacks=0.2", "come to 1.1, must be at most 1")],
)
def test_a_wrong_mix(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mix(text)


def test_requests_are_single_batches_or_mixed() -> None:
    def first(kind: str, most: int = 64) -> list[int]:
        return list(itertools.islice(sizes(kind, 16, 0, most), 5000))

    assert set(first("single")) == {1} and set(first("batch")) == {16}
    assert {size: n / 5000 for size, n in Counter(first("mixed")).items()} == pytest.approx(traffic.SIZES, abs=0.03)
    assert max(first("mixed", 8)) == 8
    arguments = argparse.Namespace(traffic="batch", batch=65, mix="plain", seed=0)
    with pytest.raises(ValueError, match="--batch is 65, the model takes at most 64"):
        traffic.requests(TEXTS, arguments, 10, 64)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_lasts_as_long_as_it_is_told_and_reaches_its_peak(shape: str) -> None:
    plan = stages(shape, 100, 60)
    assert sum(seconds for _, seconds in plan) == pytest.approx(60)
    loads = [load for load, _ in plan]
    assert max(loads) == 100 and min(loads) > 0
    if shape in ("ramp", "step"):
        assert loads == sorted(loads) and len(set(loads)) == len(loads)
    assert at(plan, 0) == loads[0] and at(plan, 59.9) == loads[-1] and at(plan, 60.1) is None
    assert at(stages("spike", 100, 60), 30) == 100 and at(stages("spike", 100, 60), 10) == 20


def test_an_unknown_shape() -> None:
    with pytest.raises(ValueError, match="the shape is 'wave', must be one of steady, ramp"):
        stages("wave", 1, 1)
