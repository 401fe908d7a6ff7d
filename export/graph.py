"""Torch to ONNX: trace, fuse, then quantize or halve. The sigmoid is inside the graph: logits in no one's hands."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from optimum.exporters.onnx import export
from optimum.exporters.onnx.config import TextEncoderOnnxConfig
from optimum.utils import NormalizedTextConfig
from torch import Tensor, nn

from train.model import ToxicityClassifier

OPSET = 17


class FusionFailed(RuntimeError):
    """The optimizer did not find the encoder's attention layers: the graph would be right, and slow in silence."""


class ScoringGraph(nn.Module):
    """The classifier with what turns its logits into calibrated probabilities."""

    def __init__(self, model: ToxicityClassifier) -> None:
        super().__init__()
        self.model = model
        self.config = model.encoder.config

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


def trace(model: ToxicityClassifier, path: Path) -> None:
    """Write the FP32 graph, unfused, with INT32 inputs (half the bytes of INT64 between Triton's models)."""
    logging.getLogger("optimum").setLevel(logging.ERROR)
    graph = ScoringGraph(model).eval()
    with warnings.catch_warnings():
        # they warn of shapes that become constants: the comparison with torch at several shapes is the proof
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        export(graph, ScoringOnnxConfig(graph.config, int_dtype="int32"), path, opset=OPSET)


def fuse(source: Path, target: Path, encoder: Any, allow_unfused: bool = False) -> dict[str, int]:
    """Replace subgraphs by ONNX Runtime's fused operators.

    :param encoder: its transformers configuration.
    :returns: how many of each fused operator the graph has.
    :raises FusionFailed: when not every layer has its attention fused, unless ``allow_unfused``.
    """
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
    attention = counts.get("Attention", 0) + counts.get("MultiHeadAttention", 0)
    layers = encoder.num_hidden_layers
    if attention != layers and not allow_unfused:
        raise FusionFailed(
            f"{attention} of {layers} attention layers were fused (fused operators: {counts}): the model would be "
            "served at a fraction of its speed; pass --allow-unfused to publish it all the same"
        )
    optimized.save_model_to_file(str(target))
    return counts


def quantize_int8(source: Path, target: Path) -> None:
    """Dynamic INT8: weights per channel, activations per tensor, at run time.

    Weights keep to 7 bits (``reduce_range``): without VNNI, a sum of two u8 x s8 products can overflow 16 bits.
    The heads stay in FP32: six rows, and every score hangs on them.
    """
    heads = [node.name for node in onnx.load(source).graph.node if node.op_type == "Gemm"]
    quantize_dynamic(
        source,
        target,
        nodes_to_exclude=[*heads, *(f"{name}_MatMul" for name in heads)],  # the quantizer splits a Gemm under that name
        op_types_to_quantize=["MatMul", "Attention", "EmbedLayerNormalization", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def halve(source: Path, target: Path) -> None:
    """FP16 weights and arithmetic; inputs and scores keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def session(path: Path) -> InferenceSession:
    """A CPU session with a thread for each core."""
    options = SessionOptions()
    options.log_severity_level = 3
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(model: InferenceSession, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """:returns: scores. *Shape:* ``(batch, labels)``."""
    inputs = {"input_ids": input_ids.astype(np.int32), "attention_mask": attention_mask.astype(np.int32)}
    return np.asarray(model.run(["scores"], inputs)[0])
