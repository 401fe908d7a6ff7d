"""Masked-language pre-training on the training comments themselves: what an encoder from scratch reads before labels.

Labels of rare kinds teach few words; every comment teaches what stands in for what. A share of the tokens is hidden
and named again twice: by the state in each one's place, as in BERT, and by the state of [CLS] alone, which so learns
to hold the whole comment before a classifier reads it.

Sources: Devlin et al., "BERT", 2019; Gao and Callan, "Condenser", 2021 (for [CLS]); Krishna et al., "Downstream
datasets make surprisingly good pretraining corpora", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.model import ToxicityClassifier

MASKED = 0.2
"""The share of tokens that are hidden: more than BERT's 0.15, because training is short."""
PIECE = 128
"""Longest run of tokens read at once, [CLS] and [SEP] included; longer comments are cut into several."""


class Pieces(torch.utils.data.Dataset):
    """Comments cut into runs of at most :data:`PIECE` tokens, each between [CLS] and [SEP].

    :param rows: token ids of comments, with these two around them.
    :ivar lengths: tokens of each piece.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        inner = PIECE - 2
        self.rows = [
            [row[0], *row[start : min(start + inner, len(row) - 1)], row[-1]]
            for row in rows
            for start in range(1, len(row) - 1, inner)
        ]
        self.lengths = np.array([len(row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.rows[i]}


class MaskedLanguage(nn.Module):
    """The classifier's encoder with two heads that name hidden tokens; their output weights are its embeddings.

    :param special: ids of tokens that are never hidden.
    """

    def __init__(self, model: ToxicityClassifier, mask_id: int, special: Sequence[int]) -> None:
        super().__init__()
        self.model, self.mask_id = model, mask_id
        vocabulary, width = model.encoder.get_input_embeddings().weight.shape

        def transform() -> nn.Module:
            return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))

        self.place, self.whole, self.bias = transform(), transform(), nn.Parameter(torch.zeros(vocabulary))
        self.special: Tensor
        self.register_buffer("special", torch.tensor(special), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """:param input_ids: *Shape:* ``(batch, tokens)``; :returns: ``loss``, both means over the hidden tokens."""
        hidden = torch.rand(input_ids.shape, device=input_ids.device) < MASKED
        hidden &= attention_mask.bool() & ~torch.isin(input_ids, self.special)
        masked = input_ids.masked_fill(hidden, self.mask_id)
        states = self.model.encoder(input_ids=masked, attention_mask=attention_mask).last_hidden_state
        names, comments = input_ids[hidden], hidden.nonzero()[:, 0]
        place = nn.functional.cross_entropy(self.logits(self.place(states[hidden])), names, reduction="sum")
        whole = torch.log_softmax(self.logits(self.whole(states[:, 0])), dim=1)[comments, names].sum()
        return {"loss": (place - whole) / max(len(names), 1)}

    def logits(self, states: Tensor) -> Tensor:
        """*Shape:* ``(n, hidden)`` to ``(n, vocabulary)``."""
        return nn.functional.linear(states, self.model.encoder.get_input_embeddings().weight, self.bias)
