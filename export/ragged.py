"""A graph that takes rows of unequal lengths, as Triton's ragged batching hands them over.

Triton's batcher joins requests of equal shape only, and sends what it has at the first that differs: a long comment
between short ones ends the batch. With ``allow_ragged_batch`` it joins them all, and the graph gets one list of token
ids, with the width of each row beside it (``batch_input`` of the kind ``BATCH_ITEM_SHAPE``)::

    input_ids (all tokens,), widths (rows, 1) ─▶ input_ids, attention_mask (rows, longest) ─▶ the graph as it was

Negative ids are padding: rows of one request have one width. The mask follows from them, so it does not travel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

PADDING = -1
"""What fills a row of token ids behind its end."""

WIDTHS = "widths"


def accept_ragged(model: ModelProto, pad_id: int) -> ModelProto:
    """The same graph behind a ragged input.

    :param model: with the inputs ``input_ids`` and ``attention_mask``. *Shape:* ``(batch, tokens)``
    :param pad_id: the id that stands for padding inside the graph.
    :returns: with the inputs ``input_ids`` (INT32, ``(tokens of all rows,)``) and ``widths`` (INT32, ``(rows, 1)``).
    """
    nodes = []
    constants: dict[str, TensorProto] = {}

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants[name] = numpy_helper.from_array(value, name)
        return name

    zero = constant("ragged/zero", np.array(0, np.int64))
    widths = add("Cast", [WIDTHS], "ragged/widths", to=TensorProto.INT64)
    ends = add("CumSum", [widths, zero], "ragged/ends")
    starts = add("Sub", [ends, widths], "ragged/starts")
    longest = add("ReduceMax", [widths], "ragged/longest", keepdims=0)
    columns = add("Range", [zero, longest, constant("ragged/one", np.array(1, np.int64))], "ragged/columns")
    inside = add("Less", [columns, widths], "ragged/inside")
    places = add("Add", [starts, columns], "ragged/places")
    places = add("Where", [inside, places, zero], "ragged/valid_places")
    values = add("Gather", ["input_ids", places], "ragged/values")
    given = add("GreaterOrEqual", [values, constant("ragged/first", np.array(0, np.int32))], "ragged/given")
    real = add("And", [inside, given], "ragged/real")
    mask = add("Cast", [real], "ragged/attention_mask", to=TensorProto.INT32)
    ids = add("Where", [real, values, constant("ragged/pad", np.array(pad_id, np.int32))], "ragged/input_ids")

    ragged = ModelProto()
    ragged.CopyFrom(model)
    graph = ragged.graph
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = {"input_ids": ids, "attention_mask": mask}.get(name, name)
    old = list(graph.node)
    del graph.input[:], graph.node[:]
    graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["all_tokens"]))
    graph.input.append(helper.make_tensor_value_info(WIDTHS, TensorProto.INT32, ["batch", 1]))
    graph.node.extend([*nodes, *old])
    graph.initializer.extend(constants.values())
    return ragged


def feed(input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
    """A padded batch as such a graph takes it, without its padding. *Shape:* ``(batch, tokens)`` each."""
    real = attention_mask.astype(bool)
    return {"input_ids": input_ids[real].astype(np.int32), WIDTHS: real.sum(1, keepdims=True).astype(np.int32)}
