from __future__ import annotations

import gzip
import statistics
from pathlib import Path

import pytest

from loadtest import corpus


def test_a_seed_gives_the_same_comments_each_time() -> None:
    assert corpus.generate(200, seed=1) == corpus.generate(200, seed=1)
    assert corpus.generate(200, seed=1) != corpus.generate(200, seed=2)


def test_lengths_are_those_of_jigsaw() -> None:
    words = [len(comment.split()) for comment in corpus.generate(5000)]
    assert statistics.median(words) == pytest.approx(33, abs=3)
    assert statistics.mean(words) == pytest.approx(58, abs=6)
    assert min(words) >= 1 and 500 < max(words) <= 1000


def test_one_comment_in_ten_repeats_an_earlier_one() -> None:
    comments = corpus.generate(5000)
    assert 1 - len(set(comments)) / len(comments) == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("name", "content", "comments"),
    [
        ("a.txt", "one\n\ntwo \u2028 still two\r\nthree", ["one", "two \u2028 still two", "three"]),
        ("a.csv", 'id,comment_text,toxic\n1,"one\nline, two",0\n2,,1\n3,three,0\n', ["one\nline, two", "three"]),
        ("b.csv", "text\none\n", ["one"]),
        ("long.csv", "text\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
    ],
)
def test_read(tmp_path: Path, name: str, content: str, comments: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    assert corpus.read(path) == comments
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert corpus.read(packed) == comments


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n\n", "holds no comments"),
        ("a.csv", b"id,body\n1,x\n", r"has the columns \['id', 'body'\], must have one of comment_text, text"),
        ("a.csv", b"", "has the columns None"),
        ("a.csv.gz", b"comment_text\nplain\n", "cannot be read .Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"text\n" + bytes(range(65, 91)))[:-9], "cannot be read .Compressed file ended"),
        ("a.txt", b"caf\xe9\n", "cannot be read .*utf-8.* in UTF-8"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(corpus.InvalidCorpus, match=message):
        corpus.read(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(corpus.InvalidCorpus, match="cannot be read .No such file"):
        corpus.read(tmp_path / "none.txt")
