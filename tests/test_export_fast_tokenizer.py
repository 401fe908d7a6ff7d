"""The tokenizer of the starter model, by the reference and, where it is installed, by the fast library."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from tokenizers import Tokenizer

from export import golden
from export.templates import fast_tokenizer
from export.templates.fast_tokenizer import PADDING, FastTokenizer, pad, sample

PATH = REPOSITORY / "toxicity_tokenizer/1/tokenizer.json"
INSTALLED = importlib.util.find_spec(fast_tokenizer.PACKAGE) is not None


def expected(texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(PATH))
    tokenizer.no_truncation()
    return [tokenizer.encode(text).ids for text in texts]


def rows(found: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, lengths = found
    assert ids.dtype == np.int32 and lengths.sum() == len(ids)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []


@pytest.mark.parametrize("fast", [False, True])
def test_token_ids_are_those_of_the_reference(fast: bool) -> None:
    texts = [*golden.TEXTS, *sample(2000, seed=7)]
    tokenizer = FastTokenizer(PATH, golden.TEXTS, fast=fast)
    assert tokenizer.tail == 1
    assert tokenizer.library == ("nanotoken" if fast and INSTALLED else "tokenizers")
    assert rows(tokenizer.encode_batch(texts)) == expected(texts)
    assert [rows(tokenizer.encode_batch([text]))[0] for text in texts[:50]] == expected(texts[:50])
    ids, lengths = tokenizer.encode_batch([])
    assert len(ids) == len(lengths) == 0


def test_the_sample_is_the_same_each_time_and_valid_text() -> None:
    texts = sample()
    assert texts == sample() and len(texts) == 500
    assert len({text.encode() for text in texts}) > 490  # encode() refuses surrogates


class Other:
    """A library that reads ``bad`` otherwise than the reference; as :func:`fast_tokenizer.load` gives one."""

    def __init__(self, bad: str, error: BaseException | None = None) -> None:
        self.bad, self.error = bad, error
        self.inner = FastTokenizer(PATH, fast=False)

    def __call__(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self.inner.reference(texts)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if self.bad in texts:
            if self.error:
                raise self.error
            ids[offsets[texts.index(self.bad)] + 1] += 1
        return ids.astype(np.uint32), offsets


class Panic(BaseException):
    """As PyO3's: no ``Exception``."""


def test_a_library_that_differs_on_golden_comments_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast_tokenizer, "load", lambda definition: Other(golden.TEXTS[3]))
    with caplog.at_level(logging.WARNING):
        tokenizer = FastTokenizer(PATH, golden.TEXTS)
    assert tokenizer.library == "tokenizers"
    assert tokenizer.reason is not None and ascii(golden.TEXTS[3]) in tokenizer.reason
    assert "nanotoken is not used" in caplog.text
    assert rows(tokenizer.encode_batch(["you idiot"])) == expected(["you idiot"])
    monkeypatch.setattr(fast_tokenizer, "load", lambda definition: Other("it never sees this one"))
    assert FastTokenizer(PATH, golden.TEXTS).library == "nanotoken"


def test_a_difference_while_serving_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_tokenizer, "load", lambda definition: Other("rare"))
    tokenizer = FastTokenizer(PATH, audit_every=10)
    for _ in range(9):
        tokenizer.encode_batch(["rare"])
    assert tokenizer.library == "nanotoken"  # not yet looked at
    assert rows(tokenizer.encode_batch(["rare"])) == expected(["rare"])
    assert tokenizer.library == "tokenizers"


def test_a_crash_while_serving_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_tokenizer, "load", lambda definition: Other("rare", Panic("index out of bounds")))
    tokenizer = FastTokenizer(PATH)
    assert tokenizer.library == "nanotoken"
    assert rows(tokenizer.encode_batch(["rare", "x"])) == expected(["rare", "x"])
    assert tokenizer.reason == "Panic: index out of bounds"
    monkeypatch.setattr(fast_tokenizer, "load", lambda definition: Other("rare", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        FastTokenizer(PATH).encode_batch(["rare"])


def test_a_text_that_both_refuse_is_no_reason_to_give_up() -> None:
    tokenizer = FastTokenizer(PATH)
    before = tokenizer.library
    with pytest.raises(TypeError):
        tokenizer.encode_batch(["fine", "\ud800"])
    assert tokenizer.library == before and rows(tokenizer.encode_batch(["fine"])) == expected(["fine"])


def test_without_the_library_or_with_another_kind_of_tokenizer_the_reference_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "added_tokens": []}
    words["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(words))
    tokenizer = FastTokenizer(path)
    assert tokenizer.library == "tokenizers" and tokenizer.reason is not None and tokenizer.tail == 0
    assert rows(tokenizer.encode_batch(["b a x"])) == [[1, 0, 2]]
    monkeypatch.setattr(fast_tokenizer, "PACKAGE", "no_such_package")
    assert FastTokenizer(PATH).reason == "it is not installed"


def test_rows_are_cut_and_filled_up() -> None:
    ids, lengths = np.array([1, 2, 9, 1, 9, 1, 3, 4, 5, 9], np.int32), np.array([3, 2, 5])
    table, truncated = pad(ids, lengths, 4, tail=1)
    assert table.tolist() == [[1, 2, 9, PADDING], [1, 9, PADDING, PADDING], [1, 3, 4, 9]]
    assert table.dtype == np.int32 and truncated.tolist() == [False, False, True]
    table, truncated = pad(ids, lengths, 2, tail=0)
    assert table.tolist() == [[1, 2], [1, 9], [1, 3]] and truncated.tolist() == [True, False, True]
    table, truncated = pad(ids[:0], lengths[:0], 4, tail=1)
    assert table.shape == (0, 0) and len(truncated) == 0
