"""The comparison of tokenizer libraries, with the starter's tokenizer and libraries made to differ."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY, write_comments
from tokenizers import Tokenizer

from export import tokenizers_check
from export.tokenizer_fuzz import Fuzzer
from export.tokenizers_check import Encode, Library

PATH = REPOSITORY / "toxicity_tokenizer/1/tokenizer.json"


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(PATH))
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def fuzzer(reference: Tokenizer) -> Fuzzer:
    return Fuzzer(["You are an idiot.", "What a lovely day"], sorted(reference.get_vocab()), seed=3)


def library(encode: Encode) -> Library:
    return Library("some", encode, encode)


def encoder(reference: Tokenizer) -> Encode:
    return lambda texts: [encoding.ids for encoding in reference.encode_batch(texts)]


def test_fuzzed_texts_are_seeded_valid_and_of_all_classes(reference: Tokenizer, fuzzer: Fuzzer) -> None:
    vocabulary = sorted(reference.get_vocab())
    again, other = (Fuzzer(fuzzer.comments, vocabulary, seed) for seed in (3, 4))
    stream = list(Fuzzer(fuzzer.comments, vocabulary, 3).stream(1000))
    assert stream == list(again.stream(1000)) != list(other.stream(1000))
    assert len(stream) == 1000
    counts = Counter(name for name, _ in stream)
    assert set(counts) == {"empty", *fuzzer.classes}
    assert min(counts[name] for name in fuzzer.classes) >= 58
    texts = [text for _, text in stream]
    for text in texts:
        text.encode()  # raises for a lone surrogate
    joined = "".join(texts)
    assert all(token in joined for token in ("[CLS]", "[SEP]", "\u200d", "##", "\u0301"))
    assert {ord(c) >> 16 for c in joined} >= set(range(17))
    assert max(len(word) for text in texts for word in text.split()) > 100


def test_texts_with_other_ids_are_counted_by_class(reference: Tokenizer, fuzzer: Fuzzer) -> None:
    encode = encoder(reference)

    def differs(texts: list[str]) -> list[list[int]]:
        return [[*ids[:-1], 7] if "lovely" in text else ids for text, ids in zip(texts, encode(texts), strict=True)]

    right, wrong = library(encode), library(differs)
    comments = {"real: a": ["You are an idiot.", "What a lovely day"], "real: b": ["a lovely \u00e9"]}
    counts = tokenizers_check.compare(reference, [right, wrong], comments, fuzzer, strings=3)
    assert counts == {"real: a": 2, "real: b": 1}
    assert right.total == 0 and right.compared == 3 and not right.examples
    assert wrong.differences == {"real: a": 1, "real: b": 1}
    example = wrong.examples["real: b"][0]
    assert example["text"] == "'lovely'"  # no more of the comment than it takes
    assert example["found"] == [7] and example["expected"] == [102] and example["position"] == 2


def test_examples_are_shortened() -> None:
    assert tokenizers_check.shorten("some words x and y, that is all", lambda t: "x" in t and "y" in t) == "xy"
    assert tokenizers_check.shorten("abc", lambda t: True) == ""
    assert tokenizers_check.shorten("", lambda t: True) == ""


def test_a_text_that_a_library_fails_on_is_a_difference_of_its_own(reference: Tokenizer, fuzzer: Fuzzer) -> None:
    encode = encoder(reference)

    class Panic(BaseException):
        """As PyO3's: no ``Exception``."""

    def fails(texts: list[str]) -> list[list[int]]:
        if "bad" in texts:
            raise Panic("index out of bounds")
        return [list(row) for row in encode(texts)]

    one = library(fails)
    tokenizers_check.compare(reference, [one], {"real: a": ["good", "bad", "fine"]}, fuzzer, strings=3)
    assert one.differences == {"real: a": 1}
    assert one.examples["real: a"] == [{"text": "'bad'", "error": "Panic: index out of bounds"}]


def test_a_library_that_differs_too_often_is_given_up(
    reference: Tokenizer, fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers_check, "GIVE_UP", 5)
    monkeypatch.setattr(tokenizers_check, "BATCH", 10)
    wrong = library(lambda texts: [[1]] * len(texts))
    tokenizers_check.compare(reference, [wrong], {"real: a": ["x"] * 40}, fuzzer, strings=100)
    assert wrong.compared == 10 and wrong.total == 10


def test_the_command_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizers_check, "PART", 20)
    # so that what the program sets for its process is undone
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    comments = write_comments(tmp_path / "comments.csv", 400)
    report = tmp_path / "report.json"
    arguments = ["--tokenizer", str(PATH), "--corpus", str(comments), "--strings", "900", "--report", str(report)]
    assert tokenizers_check.main(arguments) == 0
    found = json.loads(report.read_text())
    assert found["strings"] == 900 and found["classes"][f"real: {tmp_path.name}/comments.csv"] == 400
    assert set(found["libraries"]) | set(found["absent"]) == set(tokenizers_check.BUILDERS)
    assert all(time > 0 for times in found["cpu_us_per_comment"].values() for time in times.values())
    assert "900 texts, 30,522 tokens" in capsys.readouterr().out
    monkeypatch.setattr(tokenizers_check, "PART", 1000)
    assert tokenizers_check.main(arguments) == 2
    assert "speed is measured on 18000 different comments, the corpus has 400" in capsys.readouterr().err
