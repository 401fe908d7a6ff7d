from __future__ import annotations

import pytest
import torch

from train.artifact import ClassifierConfig
from train.config import InvalidConfig, TrainConfig
from train.loop import optimizer
from train.model import ToxicityClassifier, pad
from train.pretrain import PIECE, MaskedLanguage, Pieces

CLS, SEP, MASK = 1, 2, 3
SPECIAL = (0, CLS, SEP, MASK)
ENCODER = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}


def language() -> MaskedLanguage:
    torch.manual_seed(1)
    config = ClassifierConfig(encoder={**ENCODER, "intermediate_size": 16}, dropout=0.0)
    return MaskedLanguage(ToxicityClassifier(config), MASK, SPECIAL)


def test_long_comments_are_cut_into_pieces_that_lose_nothing() -> None:
    long = [CLS, *range(4, 4 + 2 * PIECE), SEP]
    pieces = Pieces([long, [CLS, 9, SEP], [CLS, SEP]])  # the last holds nothing to learn
    assert [len(row) for row in pieces.rows] == pieces.lengths.tolist() == [PIECE, PIECE, 6, 3]
    assert all(row[0] == CLS and row[-1] == SEP for row in pieces.rows)
    assert [token for row in pieces.rows[:3] for token in row[1:-1]] == long[1:-1]


def test_it_learns_which_tokens_go_together() -> None:
    """Comments of two kinds, each of one token repeated: what is hidden follows from what is left."""
    model = language()
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.0)
    update = optimizer(model, config)
    ids, mask = pad([[CLS, *[kind] * 8, SEP] for kind in (10, 20)] * 8, 0)
    losses = []
    for _ in range(120):
        update.zero_grad()
        loss = model(ids, mask)["loss"]
        loss.backward()
        update.step()
        losses.append(loss.item())
    assert losses[0] > 5 and losses[-1] < 1  # two cross-entropies, at first those of a guess among 30: 2 x 3.4
    words = model.logits(model.whole(model.model.encoder(ids[:2], mask[:2]).last_hidden_state[:, 0])).argmax(1)
    assert words.tolist() == [10, 20]  # [CLS] alone knows


def test_nothing_but_words_is_hidden_and_a_batch_without_any_is_no_error() -> None:
    model = language()
    ids, mask = pad([[CLS, SEP], [CLS, MASK, SEP]], 0)
    assert model(ids, mask)["loss"].item() == 0


def test_a_negative_number_of_epochs_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"train\.pretrain_epochs is -1"):
        TrainConfig(pretrain_epochs=-1)
