"""An encoder that sees a few neighbouring tokens at a time: embeddings, and one or more convolutions.

Made for the early stages of a cascade: no attention, so that a comment costs a thirtieth of what MiniLM takes, and with
embeddings of a teacher (``encoder.embeddings: teacher``) it knows what words are like. Registered with transformers as
``model_type: convolution``; recipes use it as any other architecture.

Source: Kim, "Convolutional neural networks for sentence classification", 2014.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

KIND = "convolution"


class ConvolutionConfig(PretrainedConfig):
    """:param width: tokens that a convolution sees, an odd number.
    :param num_hidden_layers: convolutions; from the second on, each adds to what it reads.
    """

    model_type = KIND

    def __init__(
        self,
        vocab_size: int = 30_000,
        embedding_size: int = 64,
        hidden_size: int = 128,
        num_hidden_layers: int = 1,
        width: int = 3,
        hidden_dropout_prob: float = 0.1,
        pad_token_id: int = 0,
        **more: Any,
    ) -> None:
        if width < 1 or width % 2 == 0:
            raise ValueError(f"width is {width}, must be an odd number: as many tokens on the left as on the right")
        self.vocab_size, self.embedding_size, self.hidden_size = vocab_size, embedding_size, hidden_size
        self.num_hidden_layers, self.width, self.hidden_dropout_prob = num_hidden_layers, width, hidden_dropout_prob
        super().__init__(pad_token_id=pad_token_id, **more)


class ConvolutionModel(PreTrainedModel):
    """*Shape:* token ids ``(batch, tokens)`` to states ``(batch, tokens, hidden)``; those of padding are 0."""

    config_class = ConvolutionConfig
    main_input_name = "input_ids"

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        sizes = [config.embedding_size] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList([nn.Linear(config.width * a, b) for a, b in zip(sizes, sizes[1:], strict=False)])
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings = value

    def _init_weights(self, module: nn.Module) -> None:
        """Those that torch gives."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        states = self.dropout(self.embeddings(input_ids))
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).unsqueeze(-1).to(states.dtype)
        states = states * mask
        side = self.config.width // 2
        for number, layer in enumerate(self.layers):
            wide = nn.functional.pad(states, (0, 0, side, side))
            # ends are counted from the back: the length must not become a constant of a traced graph
            parts = [wide[:, i : i - 2 * side or None] for i in range(2 * side + 1)]
            new = torch.relu(layer(torch.cat(parts, dim=-1))) * mask
            states = states + new if number else new
        return BaseModelOutput(last_hidden_state=states)


AutoConfig.register(KIND, ConvolutionConfig, exist_ok=True)
AutoModel.register(ConvolutionConfig, ConvolutionModel, exist_ok=True)
