"""Spans: where words begin and end, which of them count, and how well they agree with people, on a real server."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.gateway import spans as module
from serve.gateway.spans import MAX_SENTENCES, MAX_VARIANTS, Span, sentence_places, sentences, spans, units
from serve.gateway.spans_eval import Blocking, character_f1, read
from serve.gateway.spans_eval import main as evaluate

texts = st.text(st.sampled_from("ab .,!?\n\"'🖕白e\u0301\u200d\u00a0—(") | st.characters(codec="utf-8"), max_size=80)


patient = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine


@dataclass(frozen=True)
class Scores:
    scores: Mapping[str, float]


class Words:
    """A model whose log-odds are known: the sum of its words' and -2."""

    def __init__(self, **odds: float) -> None:
        self.odds, self.asked = odds, [""][:0]

    async def classify(self, texts: Sequence[str], /) -> list[Scores]:
        self.asked += texts
        found = [sum(self.odds.get(word, 0.0) for word in re.findall(r"\w+", text)) - 2 for text in texts]
        return [Scores({"rude": 1 / (1 + math.exp(-odds)), "calm": 0.001}) for odds in found]


def found(client: Words, text: str, **options: Any) -> list[str]:
    return [text[span.begin : span.end] for span in asyncio.run(spans(client, text, **options))]


@patient
@given(texts, st.integers(1, 9), st.integers(1, 40))
def test_words_lie_in_the_text_in_order_and_are_not_empty(text: str, most: int, max_tokens: int) -> None:
    places = units(text, most, max_tokens)
    assert len(places) <= most
    assert all(0 <= begin < end <= len(text) and text[begin:end].strip() for begin, end in places)
    assert all(a[1] <= b[0] for a, b in pairwise(places))
    if len(units(text, 99, 99)) < min(most, max_tokens):
        outside = set(range(len(text))) - {i for begin, end in places for i in range(begin, end)}
        assert all(text[i].isspace() or text[i] in module._BEFORE + module._AFTER for i in outside)


@patient
@given(texts)
def test_utf16_offsets_cut_the_same_part_out(text: str) -> None:
    data = text.encode("utf-16-le")
    for begin, end in units(text, 99):
        a, b = Span(begin, end, {}).utf16(text)
        assert data[2 * a : 2 * b].decode("utf-16-le") == text[begin:end]


@patient
@given(texts)
def test_sentences_hold_all_that_is_not_space(text: str) -> None:
    places = sentence_places(text, 4)
    assert len(places) <= 4
    assert "".join("".join(text[a:b].split()) for a, b in places) == "".join(text.split())
    assert places == [(0, len(text))] or all(text[a:b] == text[a:b].strip() for a, b in places)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"You (idiot)!", he said.', ["You", "idiot", "he", "said"]),
        ("what an i d i o t!", ["what", "an", "i d i o t"]),
        ("I saw a b", ["I", "saw", "a", "b"]),
        ("sh*t f*** @ss #1", ["sh*t", "f***", "@ss", "#1"]),
        ("你是 白痴", ["你", "是", "白", "痴"]),
        ("fuḱ 👩‍👩‍👧!", ["fuḱ", "👩‍👩‍👧"]),
        ("?! ...", ["?!", "..."]),
        ("", []),
    ],
)
def test_what_a_word_is(text: str, words: list[str]) -> None:
    assert [text[begin:end] for begin, end in units(text, 99)] == words


def test_the_words_that_made_the_score_and_their_weights() -> None:
    model, text = Words(stupid=5.0, idiot=4.0, you=0.5, nice=-3.0), "you nice, stupid idiot – 😀 idiot"
    first, second = asyncio.run(spans(model, text, ["rude"]))
    assert [text[s.begin : s.end] for s in (first, second)] == ["stupid idiot", "idiot"], "neighbours are one span"
    assert second.utf16(text) == (28, 33)
    # left out: 4 less; alone: 4 - 2
    assert second.scores["rude"] == pytest.approx(1 / (1 + math.exp(-6)))
    assert first.scores["rude"] == pytest.approx(1 / (1 + math.exp(-8))), "the stronger of the two"
    assert list(first.scores) == ["rude"]


def test_a_word_counts_by_threshold_and_by_its_distance_to_the_strongest() -> None:
    assert found(Words(oaf=1.1, twit=0.9), "oaf twit") == ["oaf"]  # weights 0.2 and -0.2: 0.5 is between them
    assert found(Words(oaf=1.1, twit=0.9), "oaf twit", threshold=0.4) == ["oaf twit"]
    assert found(Words(oaf=1.1, twit=0.9), "oaf twit", threshold=0.6) == []
    assert found(Words(oaf=5.0, twit=2.0), "oaf or twit") == ["oaf"]  # weights 8 and 2
    assert found(Words(oaf=5.0, twit=2.0), "oaf or twit", margin=7.0) == ["oaf", "twit"]


def test_two_words_that_each_keep_the_score_up_are_both_found() -> None:
    assert found(Words(idiot=9.0, moron=9.0), "you idiot, you moron") == ["idiot", "moron"]


@pytest.mark.parametrize("words", [1, 63, 126, 500, 20_000])
def test_the_cost_of_a_comment_is_bounded(words: int) -> None:
    model = Words(idiot=9.0)
    text = " ".join(["word"] * (words - 1) + ["idiot"])
    shown = found(model, text)
    assert len(model.asked) <= MAX_VARIANTS
    # what the model does not read is not looked at; a longer comment is taken apart more coarsely
    assert shown == {1: ["idiot"], 63: ["idiot"], 126: ["word idiot"]}.get(words, [])


def test_nothing_is_asked_about_an_empty_text() -> None:
    model = Words()
    assert found(model, " \n") == [] and asyncio.run(sentences(model, " \n")) == []
    assert model.asked == []


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"no label obscene: it has rude, calm"):
        found(Words(), "a", labels=["obscene"])
    with pytest.raises(ValueError, match=r"threshold 1 must lie between 0 and 1"):
        found(Words(), "a", threshold=1)
    with pytest.raises(ValueError, match=r"margin 0"):
        found(Words(), "a", margin=0)


def test_sentences_have_scores_of_their_own() -> None:
    model, text = Words(idiot=6.0), "Hello there! You idiot. 😀\nBye"
    parts = asyncio.run(sentences(model, text, ["rude"]))
    assert [text[s.begin : s.end] for s in parts] == ["Hello there!", "You idiot.", "😀", "Bye"]
    assert [round(s.scores["rude"], 2) for s in parts] == [0.12, 0.98, 0.12, 0.12]
    asked = len(model.asked)
    known = Scores({"rude": 0.25, "calm": 0.5})
    assert asyncio.run(sentences(model, " one ", whole=known)) == [Span(0, 5, {"rude": 0.25, "calm": 0.5})]
    assert len(model.asked) == asked, "a single sentence is not asked about again"
    assert len(asyncio.run(sentences(model, "No. " * 100))) == MAX_SENTENCES


def test_the_measure_of_the_marked_characters(tmp_path: Path) -> None:
    assert character_f1([1, 2, 3], [2, 3, 4]) == pytest.approx(2 / 3)
    assert character_f1([], []) == 1.0 and character_f1([1], []) == 0.0 and character_f1([], [1]) == 0.0
    path = tmp_path / "marked.csv"
    path.write_text('spans,text\n"[0, 9]",short\n')
    with pytest.raises(ValueError, match="row 1: span beyond the text's 5 characters"):
        read(path)
    path.write_text("spans,text\nnone,short\n")
    with pytest.raises(ValueError, match="row 1: spans 'none' is no list"):
        read(path)


@pytest.mark.triton
def test_spans_of_the_served_model_agree_with_marked_ones(server: Any, tmp_path: Path) -> None:
    from client import ToxicityClient

    data, out = tmp_path / "marked.csv", tmp_path / "out" / "spans.json"
    comments = [
        "You are such an idiot, go away",
        "What a stupid article",
        "🖕 you moron",
        "Nice day",
        "He is a liar, a fool",
    ]
    marked = ["idiot", "stupid", "moron", "", "fool"]
    with data.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["spans", "text"])
        for text, word in zip(comments, marked, strict=True):
            begin = text.find(word)
            writer.writerow([list(range(begin, begin + len(word))), text])
    assert evaluate(["--data", str(data), "--url", server.grpc_url, "--tuning", "0.4", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    (model,) = report["models"]
    assert (report["comments_tuned_on"], report["comments_measured"]) == (2, 3)
    assert model["model"] == "toxicity" and model["precision"] == "int8"
    assert model["as served"]["f1"] > 0.6 > report["trivial"]["everything"]
    assert 3 < model["texts_per_comment"] < 20
    with ToxicityClient(server.grpc_url) as client:
        (span,) = asyncio.run(spans(Blocking(client), comments[0]))
        assert comments[0][span.begin : span.end] == "idiot" and list(span.scores) == list(LABELS)
        long = "🖕 " * 3000 + "idiot"
        assert asyncio.run(spans(Blocking(client), long)) is not None
