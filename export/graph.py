"""Torch to ONNX: trace, then fuse. The sigmoid is inside the graph: logits in no one's hands."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from optimum.exporters.onnx import export
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.utils import NormalizedTextConfig
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from export import ragged
from train.model import ToxicityClassifier, load

OPSET = 17


CONVOLUTION = "convolution"


class FusionFailed(RuntimeError):
    """The optimizer did not find the encoder's attention layers: the graph would be right, and slow in silence."""


FUSED: dict[str, tuple[int, int, int]] = {
    "bert": (1, 2, 1),
    "electra": (1, 2, 1),
    "roberta": (1, 2, 1),
    "xlm-roberta": (1, 2, 1),
    "roberta-prelayernorm": (1, 2, 1),
    "deberta-v2": (0, 2, 1),
}
"""Fused operators that each layer must have, by architecture: attention, layer normalizations with their residual, and
activations with their bias. ONNX Runtime has no operator for DeBERTa's attention."""


class ScoringGraph(nn.Module):
    """The classifier with what turns its logits into calibrated probabilities.

    :ivar config: of the encoder in the graph.
    """

    def __init__(self, model: ToxicityClassifier) -> None:
        super().__init__()
        self.model = model
        if model.encoder.config.model_type == "distilbert":
            self.model = copy.copy(model)
            self.model._modules = {**model._modules, "encoder": as_bert(model.encoder)}
        self.config = self.model.encoder.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """:param input_ids: INT32. *Shape:* ``(batch, tokens)``; :returns: ``scores`` ``(batch, labels)``."""
        return {"scores": self.model.scores(input_ids, attention_mask)}


class ScoringOnnxConfig(TextEncoderOnnxConfig):
    """What optimum's exporter has to know of :class:`ScoringGraph`."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DEFAULT_ONNX_OPSET = OPSET

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"scores": {0: "batch"}}


def as_bert(distilbert: Any) -> BertModel:
    """The same network as a ``BertModel``: DistilBERT is BERT without token types, and ONNX Runtime fuses BERT's."""
    old = distilbert.config
    config = BertConfig(
        vocab_size=old.vocab_size,
        hidden_size=old.dim,
        num_hidden_layers=old.n_layers,
        num_attention_heads=old.n_heads,
        intermediate_size=old.hidden_dim,
        hidden_act=old.activation,
        max_position_embeddings=old.max_position_embeddings,
        type_vocab_size=1,
        pad_token_id=old.pad_token_id,
        attn_implementation="eager",
    )
    bert = BertModel(config, add_pooling_layer=False)
    names = (
        ("transformer.layer", "encoder.layer"),
        ("attention.q_lin", "attention.self.query"),
        ("attention.k_lin", "attention.self.key"),
        ("attention.v_lin", "attention.self.value"),
        ("attention.out_lin", "attention.output.dense"),
        ("sa_layer_norm", "attention.output.LayerNorm"),
        ("ffn.lin1", "intermediate.dense"),
        ("ffn.lin2", "output.dense"),
        ("output_layer_norm", "output.LayerNorm"),
    )
    state = {}
    for key, value in distilbert.state_dict().items():
        for old_name, new_name in names:
            key = key.replace(old_name, new_name)
        state[key] = value
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(1, old.dim)
    missing, unknown = bert.load_state_dict(state, strict=False)
    assert not unknown and all(name.endswith(("position_ids", "token_type_ids")) for name in missing), (
        missing,
        unknown,
    )
    return bert.eval()


def trace(model: ToxicityClassifier, path: Path) -> Any:
    """Write the FP32 graph, unfused, with INT32 inputs (half the bytes of INT64 between Triton's models).

    :returns: the transformers configuration of the encoder in the graph: BERT's for a DistilBERT.
    """
    logging.getLogger("optimum").setLevel(logging.ERROR)
    graph = ScoringGraph(model).eval()
    with warnings.catch_warnings():
        # they warn of shapes that become constants: the comparison with torch at several shapes is the proof
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", "Constant folding")  # of the padding of a convolution: it is done later
        export(graph, ScoringOnnxConfig(graph.config, int_dtype="int32"), path, opset=OPSET)
    return graph.config


def fuse(source: Path, target: Path, encoder: Any, allow_unfused: bool = False) -> dict[str, int]:
    """Replace subgraphs by ONNX Runtime's fused operators.

    :param encoder: its transformers configuration, as :func:`trace` returns it.
    :returns: how many of each fused operator the graph has.
    :raises FusionFailed: when a layer lacks one that its architecture must have (:data:`FUSED`; a fused attention where
        the architecture is not listed), unless ``allow_unfused``.
    """
    if encoder.model_type == CONVOLUTION:
        raise FusionFailed("a convolution is no model by itself: give it to python -m export.cascade --stage")
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    optimized = optimize_model(
        str(source),
        "bert",
        num_heads=encoder.num_attention_heads,
        hidden_size=encoder.hidden_size,
        optimization_options=FusionOptions("bert"),
        opt_level=0,
    )
    counts = {name: n for name, n in optimized.get_fused_operator_statistics().items() if n}
    optimized.save_model_to_file(str(target))
    if not allow_unfused:
        check_fusion(counts, encoder)
    return counts


def fused_artifact(folder: Path, scratch: Path) -> Path:
    """The fused FP32 graph of an artifact, in ``scratch``; a convolution has nothing to fuse.

    :raises FusionFailed: see :func:`fuse`.
    """
    traced, fused = scratch / "traced.onnx", scratch / "fused.onnx"
    encoder = trace(load(folder)[0], traced)
    if encoder.model_type == CONVOLUTION:
        return traced
    fuse(traced, fused, encoder)
    return fused


def check_fusion(counts: dict[str, int], encoder: Any) -> None:
    """:raises FusionFailed: see :func:`fuse`."""
    kinds = {
        "attention": ("Attention", "MultiHeadAttention"),
        "layer normalizations": ("SkipLayerNormalization",),
        "activations": ("BiasGelu", "FastGelu", "Gelu"),
    }
    layers = encoder.num_hidden_layers
    for (kind, operators), each in zip(kinds.items(), FUSED.get(encoder.model_type, (1, 0, 0)), strict=True):
        found = sum(counts.get(operator, 0) for operator in operators)
        if found < each * layers:
            raise FusionFailed(
                f"{found} of {each * layers} {kind} of this {encoder.model_type} were fused ({' or '.join(operators)}; "
                f"all fused operators: {counts}): the model would be served at a fraction of its speed. Publish it all "
                "the same with --allow-unfused; the versions that fuse are in constraints.txt"
            )


def session(path: Path, threads: int = 0) -> InferenceSession:
    """A CPU session; 0 gives it a thread for each core."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: InferenceSession, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Scores of a padded batch, by a graph with or without a ragged input. *Shape:* ``(batch, labels)``."""
    if any(tensor.name == ragged.WIDTHS for tensor in model.get_inputs()):
        inputs = ragged.feed(input_ids, attention_mask)
    else:
        inputs = {"input_ids": input_ids.astype(np.int32), "attention_mask": attention_mask.astype(np.int32)}
    return np.asarray(model.run(["scores"], inputs)[0])
