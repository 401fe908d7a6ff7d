"""INT8 and FP16 forms of a graph, and which of them there are to choose from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

Feed = dict[str, np.ndarray]
"""``input_ids`` and ``attention_mask``, INT32. *Shape:* ``(batch, tokens)`` each."""


@dataclass(frozen=True)
class Int8:
    """One way to make a graph INT8. The heads stay in FP32: a few rows, and every score hangs on them.

    :param method: ``dynamic`` takes the range of activations from each batch, ``static`` from calibration comments.
    :param per_channel: a scale for each output of a weight matrix, instead of one for all.
    :param reduce_range: weights keep to 7 bits. Without VNNI, a sum of two u8 x s8 products can overflow 16 bits.
    :param weights: ``s8`` or ``u8``. u8 x u8 products do not overflow.
    :param fp32_nodes: linear layers that stay in FP32.
    """

    method: str = "dynamic"
    per_channel: bool = True
    reduce_range: bool = True
    weights: str = "s8"
    fp32_nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        scale = "per channel" if self.per_channel else "per tensor"
        kept = f", {len(self.fp32_nodes)} layers fp32" if self.fp32_nodes else ""
        return f"{self.method}, {scale}, {7 if self.reduce_range else 8}-bit {self.weights}{kept}"


DYNAMIC = Int8()
STATIC = Int8(method="static")
CANDIDATES = (
    DYNAMIC,
    Int8(per_channel=False),
    Int8(reduce_range=False),
    Int8(per_channel=False, reduce_range=False, weights="u8"),
    STATIC,
)
"""What ``--method auto`` tries; it adds the first with its most sensitive layers in FP32."""


def quantize(source: Path, target: Path, how: Int8, calibration: Sequence[Feed] = ()) -> None:
    """Write the INT8 form of a fused graph.

    :param calibration: batches of comments that static ranges are taken from.
    """
    graph = onnx.load(source).graph
    shared = {
        "per_channel": how.per_channel,
        "reduce_range": how.reduce_range,
        "weight_type": QuantType.QUInt8 if how.weights == "u8" else QuantType.QInt8,
        "nodes_to_exclude": [*not_quantized(graph), *how.fp32_nodes],
    }
    # what a fused graph lacks is its tensors' types; all that are asked for are FP32
    extra = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    operators = ["EmbedLayerNormalization", "Gather", "Attention"]
    with _quiet():
        if how.method == "dynamic":
            quantize_dynamic(source, target, op_types_to_quantize=[*operators, "MatMul"], extra_options=extra, **shared)
            return
        # static ranges are for MatMul alone: embeddings are looked up, and the fused attention has no static form
        looked_up = target.with_name(f"{target.stem}.embeddings.onnx")
        quantize_dynamic(source, looked_up, op_types_to_quantize=operators, extra_options=extra, **shared)
        declare_types(looked_up)
        quantize_static(
            looked_up,
            target,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            activation_type=QuantType.QUInt8,
            extra_options=extra | {"MatMulConstBOnly": True},
            **shared,
        )
        looked_up.unlink()


def quantize_for_tensorrt(source: Path, target: Path, calibration: Sequence[Feed]) -> None:
    """Static INT8 as TensorRT wants it: pairs of QuantizeLinear and DequantizeLinear, symmetric, s8 x s8.

    :param source: the graph before fusion: TensorRT knows none of ONNX Runtime's fused operators.
    """
    graph = onnx.load(source).graph
    with _quiet():
        quantize_static(
            source,
            target,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=not_quantized(graph),
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "MatMulConstBOnly": True},
        )


def declare_types(path: Path) -> None:
    """Say of the tensors that MatMul reads that they are FP32: static ranges are taken of declared tensors alone, and
    shape inference does not get past fused operators.
    """
    model = onnx.load(path)
    known = {value.name for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    weights = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        for name in (*node.input, *node.output) if node.op_type == "MatMul" else ():
            if name not in known and name not in weights:
                model.graph.value_info.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
                known.add(name)
    onnx.save(model, path)


def halve(source: Path, target: Path) -> None:
    """FP16 weights and arithmetic; inputs and scores keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def linear_layers(path: Path) -> list[str]:
    """The nodes of a graph whose products are quantized."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    return [n.name for n in graph.node if n.op_type in ("MatMul", "Attention") and n.input[1] in weights]


def not_quantized(graph: onnx.GraphProto) -> list[str]:
    """The heads, and each Gather that moves states instead of looking weights up."""
    weights = {t.name for t in graph.initializer}

    def excluded(node: NodeProto) -> Iterator[str]:
        if node.op_type == "Gemm":
            yield from (node.name, f"{node.name}_MatMul")  # the quantizer splits a Gemm under that name
        elif node.op_type == "Gather" and node.input[0] not in weights:
            yield node.name

    return [name for node in graph.node for name in excluded(node)]


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


class _quiet:
    """The quantizer recommends, as warnings, a shape inference that fused operators do not have."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *exception: object) -> None:
        logging.getLogger().setLevel(self.level)
