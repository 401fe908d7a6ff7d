from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
import pytest

from train import hashing
from train.hashing import HashedModel, HashSettings, distinct, features

SMALL = HashSettings(bits=12, characters=(2, 4), words=2, max_bytes=200)


def random_model(settings: HashSettings = SMALL, labels: int = 7, rows: int = 900) -> HashedModel:
    rng = np.random.default_rng(3)
    return HashedModel(
        settings,
        np.sort(rng.choice(2**settings.bits, rows, replace=False)).astype(np.int32),
        rng.integers(-127, 128, (rows, labels)).astype(np.int8),
        rng.integers(1, 256, rows).astype(np.uint8),
        rng.uniform(0.001, 0.01, labels),
        rng.normal(size=labels),
    )


def random_texts(count: int) -> list[str]:
    rng = random.Random(5)
    alphabet = string.ascii_letters + string.digits + " !?*,.\0\n'éß🙂東"
    return ["", " ", "\0", *("".join(rng.choices(alphabet, k=rng.randint(1, 300))) for _ in range(count))]


def test_scores_are_the_sum_of_the_rows_of_distinct_buckets() -> None:
    model = random_model()
    row_of = {int(bucket): row for row, bucket in enumerate(model.buckets)}
    for text in random_texts(20):
        rows = [row_of[b] for b in {int(b) for buckets, _ in features([text], SMALL) for b in buckets} if b in row_of]
        length = np.sqrt(max(int(model.squares[rows].astype(int).sum()), 1))
        expected = model.codes[rows].astype(int).sum(axis=0) / length * model.scales + model.intercepts
        np.testing.assert_allclose(model.logits([text])[0], expected, rtol=1e-12, atol=1e-12)


def test_a_text_scores_the_same_alone_and_beside_others() -> None:
    model, texts = random_model(), random_texts(3 * hashing.CHUNK)
    together = model.logits(texts)
    for i in range(0, len(texts), 7):
        assert (model.logits([texts[i]])[0] == together[i]).all()
    assert model.logits([]).shape == (0, 7)


def test_the_largest_sum_fits_into_its_lane() -> None:
    settings = HashSettings(bits=20, characters=(3, 4, 5), words=2, max_bytes=800)
    rows = 2**20
    model = HashedModel(
        settings,
        np.arange(rows, dtype=np.int32),
        np.tile(np.array([-127, 127, -127, 127], np.int8), (rows, 1)),
        np.full(rows, 255, np.uint8),
        np.ones(4),
        np.zeros(4),
    )
    text = "".join(random.Random(1).choices(string.ascii_lowercase + " ", k=5000))
    found, _ = distinct(features([text], settings), np.arange(1, rows + 1, dtype=np.int32), 1)
    assert found[0] == 0
    found = found[1:]
    assert len(found) > 2000
    expected = 127 * len(found) / np.sqrt(255 * len(found))
    np.testing.assert_allclose(model.logits([text]), [[-expected, expected, -expected, expected]])
    with pytest.raises(ValueError, match=r"max_bytes is 821, must lie in \[1, 820\]"):
        HashSettings(max_bytes=821)


def test_features_see_words_and_letters_and_no_case_or_commas() -> None:
    def buckets(text: str) -> list[set[int]]:
        return [set(found.tolist()) for found, _ in features([text], SMALL)]

    assert buckets("You, idiot.") == buckets("you  IDIOT")
    assert buckets("you idiot!") != buckets("you idiot")
    runs, longer, words, pairs = buckets("you idiot you idiot")
    assert (len(words), len(pairs)) == (2, 2)
    assert buckets("idiot you")[2] == words and buckets("idiot you")[3] < pairs
    # words hash to themselves wherever they stand, also in another text
    (_, _, (found, rows), _) = features(["a b c", "c b a"], SMALL)
    assert rows.tolist() == [0, 0, 0, 1, 1, 1] and found[:3].tolist() == found[:2:-1].tolist()
    (_, _, _, (_, rows)) = features(["a b", "c", "d e"], SMALL)
    assert rows.tolist() == [0, 2]  # no pair of words out of two texts


def test_a_model_is_read_as_it_was_written(tmp_path: Path) -> None:
    model, texts = random_model().calibrated(2.0, np.arange(7.0)), random_texts(9)
    np.testing.assert_allclose(model.logits(texts), 2 * random_model().logits(texts) + np.arange(7.0))
    model.save(tmp_path / "model.npz")
    assert (hashing.load(tmp_path / "model.npz").logits(texts) == model.logits(texts)).all()


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04broken"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.npz holds no hashed n-grams"):
        hashing.load(tmp_path / "model.npz")
