"""A fused graph in the operators that ONNX Runtime's CPU provider is fast at.

Two of the operators that fusion brings are slow there, since each does an addition by itself that another one does at
no cost, and its loops are not vectorized. ``python -m export.cpu`` measures it::

    BiasGelu(x, bias)                      -> Gelu(x + bias)
    SkipLayerNormalization(x, skip, bias)  -> LayerNormalization(Sum(x + bias, skip))

The sum of a product and its bias is one operator with the product, INT8 or FP32. ``Sum`` stands for ``Add``, which ONNX
Runtime would fuse again when it loads the graph. Scores stay the same up to rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper
from tokenizers import Tokenizer

from export import graph, packing, precision, speed
from train.artifact import InvalidArtifact, Layout, git_commit, machine, write_json


def unfuse(model: ModelProto) -> ModelProto:
    """The same graph without the operators that are slow on a CPU."""
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    for node in model.graph.node:
        out = node.output[0]
        if node.op_type == "BiasGelu":
            add("Gelu", [add("Add", list(node.input), f"{out}/biased")], out, domain="com.microsoft")
        elif node.op_type == "SkipLayerNormalization" and not any(node.output[1:3]):  # mean and deviation: in training
            x, skip, *norm = node.input
            weights, bias = norm[:2], norm[2:]
            biased = add("Add", [x, *bias], f"{out}/biased") if any(bias) else x
            epsilon = {a.name: helper.get_attribute_value(a) for a in node.attribute}["epsilon"]
            total = add("Sum", [biased, skip], node.output[3] if len(node.output) > 3 else f"{out}/sum")
            add("LayerNormalization", [total, *weights], out, epsilon=epsilon)
        else:
            nodes.append(node)
    found = ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


def measure(layout: Layout, rows: Sequence[Sequence[int]], pad_id: int, rounds: int) -> dict[str, Any]:
    """Speeds of an artifact's graph in both kinds of operators.

    :param rows: token ids of comments.
    :returns: what ``export/RESULTS.md`` shows of it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fused = onnx.load(graph.fused_artifact(layout.folder, folder))
        sessions = {}
        for name, form in (("fused", fused), ("not fused", unfuse(fused))):
            whole, small = folder / "whole.onnx", folder / "int8.onnx"
            onnx.save(packing.remove_padding(form), whole)
            precision.quantize(whole, small, precision.DYNAMIC)
            sessions[f"fp32, {name}"], sessions[f"int8, {name}"] = graph.session(whole, 1), graph.session(small, 1)
        rates = speed.measure(sessions, speed.mixes(rows, pad_id), rounds)
    return {
        "operators": rates,
        "artifact": layout.folder.name,
        "comments": len(rows),
        "onnxruntime": onnxruntime.__version__,
        "machine": machine(),
        "git_commit": git_commit(),
    }


def main(argv: list[str] | None = None) -> int:
    from export import pipeline

    p = argparse.ArgumentParser(
        prog="python -m export.cpu",
        description="Measure, in comments a second of one thread's CPU time, what the operators that are slow on a CPU "
        "cost: fused, and in the form that is served.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--artifact", type=Path, default=Path("artifacts/starter"), help="a trained transformer")
    p.add_argument("--comments", type=int, default=256, help="of its validation comments")
    p.add_argument("--rounds", type=int, default=5, help="interleaved; the median counts")
    p.add_argument("--report", type=Path, help="write the result to this JSON file")
    arguments = p.parse_args(argv)
    layout = Layout(arguments.artifact)
    try:
        layout.check()
        tokenizer = Tokenizer.from_file(str(layout.tokenizer_json))
        tokenizer.no_padding()
        tokenizer.enable_truncation(layout.read_config().max_tokens)
        texts = [row["text"] for row in layout.read_validation()[: arguments.comments]]
        rows = [found.ids for found in tokenizer.encode_batch(texts)]
        report = measure(layout, rows, pipeline.pad_token_id(layout), arguments.rounds)
    except (InvalidArtifact, graph.FusionFailed, packing.NotPackable) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for name, rates in report["operators"].items():
        said = ", ".join(f"{rate:.1f} comments/s with {mix}" for mix, rate in rates.items())
        sys.stdout.write(f"{name:<16}{said}\n")
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.report, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
