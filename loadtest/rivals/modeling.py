"""The artifact's network for ``AutoModelForSequenceClassification``: an encoder, pooling and a linear head.

Copied into the folder that ``python -m loadtest.rivals convert`` writes, and loaded with ``trust_remote_code``: none of
the classes of transformers pools a BERT by the mean of its tokens. The names of the weights are the artifact's.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class TritoxConfig(PretrainedConfig):
    """:param encoder: the encoder's own configuration as a dict. :param pooling: ``mean`` or ``cls``."""

    model_type = "tritox"

    def __init__(self, encoder: dict[str, Any] | None = None, pooling: str = "mean", **more: Any) -> None:
        self.encoder = encoder or {"model_type": "bert"}
        self.pooling = pooling
        super().__init__(**more)


class TritoxForSequenceClassification(PreTrainedModel):
    """*Shape:* token ids ``(batch, tokens)`` to logits ``(batch, labels)``."""

    config_class = TritoxConfig
    _supports_sdpa = True
    _tied_weights_keys: list[str] = []

    def __init__(self, config: TritoxConfig) -> None:
        super().__init__(config)
        values = dict(config.encoder)
        encoder = AutoConfig.for_model(values.pop("model_type"), **values)
        self.encoder = AutoModel.from_config(encoder)
        self.head = torch.nn.Linear(encoder.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """All weights are loaded."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self.encoder(input_ids=input_ids, attention_mask=mask).last_hidden_state
        if self.config.pooling == "cls":
            pooled = states[:, 0]
        else:
            weight = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1.0)
        return SequenceClassifierOutput(logits=self.head(pooled))
