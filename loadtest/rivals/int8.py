"""The served INT8 graph for rivals: with the inputs that a tokenizer of transformers gives, and logits out.

Runs in the rivals' environment: ``python int8.py model.onnx out.onnx``.
"""

import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def rewire(source: Path, target: Path) -> None:
    """Inputs ``input_ids`` and ``attention_mask``, INT64 ``(batch, tokens)``; output ``logits`` ``(batch, labels)``.

    :raises ValueError: for a graph with other inputs, or that does not end in a sigmoid.
    """
    model = onnx.load(str(source))
    graph = model.graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type != "Sigmoid":
        raise ValueError(
            f"{source} ends in {last.op_type}, must end in Sigmoid: only independent labels can be compared"
        )
    labels = graph.output[0].type.tensor_type.shape.dim[1].dim_value or "labels"
    logits = last.input[0]
    graph.node.remove(last)
    graph.node.append(helper.make_node("Identity", [logits], ["logits"]))
    kinds = {tensor.name: tensor.type.tensor_type.elem_type for tensor in graph.input}
    before = []
    for name in kinds:
        for node in graph.node:
            for i, used in enumerate(node.input):
                if used == name:
                    node.input[i] = f"served_{name}"
    given = {name: name for name in kinds}
    if set(kinds) == {"input_ids", "widths"}:  # ragged: the ids of all rows in a line
        before = [
            helper.make_node("Constant", [], ["line"], value_ints=[-1]),
            helper.make_node("Constant", [], ["row"], value_ints=[1]),
            helper.make_node("Reshape", ["input_ids", "line"], ["all_ids"]),
            helper.make_node("Reshape", ["attention_mask", "line"], ["all_marks"]),
            helper.make_node("Cast", ["all_marks"], ["is_token"], to=TensorProto.BOOL),
            helper.make_node("Compress", ["all_ids", "is_token"], ["line_ids"]),
            helper.make_node("ReduceSum", ["attention_mask", "row"], ["row_widths"], keepdims=1),
        ]
        given = {"input_ids": "line_ids", "widths": "row_widths"}
    elif set(kinds) != {"input_ids", "attention_mask"}:
        raise ValueError(f"{source} has the inputs {sorted(kinds)}, known are input_ids with widths or attention_mask")
    before += [helper.make_node("Cast", [given[name]], [f"served_{name}"], to=kind) for name, kind in kinds.items()]
    after = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *after])
    del graph.input[:], graph.output[:]
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "attention_mask")
    )
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels]))
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(target))


if __name__ == "__main__":
    rewire(Path(sys.argv[1]), Path(sys.argv[2]))
