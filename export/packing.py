"""A graph whose linear layers see real tokens only.

Requests of unequal lengths are padded to one length, and a padded graph multiplies the padding too. Here the hidden
states are one list of real tokens, ``(real tokens, hidden)``, and are laid out as ``(batch, tokens, hidden)`` only
inside attention::

    embeddings ─pack─▶ MatMul ─unpack─▶ MultiHeadAttention ─pack─▶ MatMul, SkipLayerNormalization, ...

Packing and unpacking are a Gather each. An unpacked padding position repeats some real token: attention masks it as a
key, and packing drops it as a query. Where all rows are equally long, as a single one is, there is nothing to pack or
to mask, and attention takes another branch (``If``). The idea is that of ByteDance's Effective Transformer; ONNX
Runtime has operators for it (RemovePadding, PackedAttention) on CUDA alone, so this is made of operators that every
provider has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

TOKENWISE = frozenset(
    ("MatMul", "Add", "Sum", "SkipLayerNormalization", "LayerNormalization", "BiasGelu", "FastGelu", "Gelu")
)
"""Operators that treat each token by itself, as long as their other inputs are weights."""


class NotPackable(ValueError):
    """The graph has no form without padding."""


def remove_padding(model: ModelProto) -> ModelProto:
    """The padding-free form of a fused FP32 graph: the same scores up to rounding.

    :param model: with fused ``Attention`` operators and the input ``attention_mask``.
    :raises NotPackable: when its attention is not fused, or in a form that is not known here.
    """
    if not any(node.op_type == "Attention" for node in model.graph.node):
        raise NotPackable(
            "the graph has no operator Attention: only an encoder whose attention was fused can be packed"
        )
    return _Packer(model).packed_model()


class _Packer:
    """Writes the nodes of a graph anew, keeping track of which tensors are packed.

    A packed tensor keeps its name; the padded layout of it, where something asks for it, is ``<name>/padded``.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.weights = {t.name: t for t in model.graph.initializer}
        self.constants: dict[str, TensorProto] = {}
        self.packed: set[str] = set()
        self.padded: set[str] = set()
        self.nodes: list[NodeProto] = []

    def packed_model(self) -> ModelProto:
        first = next(node for node in self.model.graph.node if node.op_type == "Attention")
        embeddings = self.embeddings(first.input[0])
        hidden = self.weights[first.input[1]].dims[0]
        self.number_tokens()
        for original in self.model.graph.node:
            node = NodeProto()
            node.CopyFrom(original)
            if embeddings in node.output:
                node.output[0] = f"{embeddings}/padded"
                self.nodes.append(node)
                self.padded.add(embeddings)
                self.pack(f"{embeddings}/padded", embeddings, hidden)
            elif node.op_type == "Attention" and node.input[0] in self.packed:
                self.attention(node)
            elif node.op_type in TOKENWISE and self.is_tokenwise(node):
                self.nodes.append(node)
                self.packed.update(filter(None, node.output))
            else:
                for i, name in enumerate(node.input):
                    if name in self.packed:
                        node.input[i] = self.unpack(name)
                self.nodes.append(node)
        model = ModelProto()
        model.CopyFrom(self.model)
        del model.graph.node[:], model.graph.value_info[:]  # the shapes of the states are others now
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self.constants.values())
        return model

    def embeddings(self, states: str) -> str:
        """The tensor that the first layer's ``states`` are a layer normalization of, if they are one."""
        producers = {name: node for node in self.model.graph.node for name in node.output}
        while states in producers and producers[states].op_type == "LayerNormalization":
            states = producers[states].input[0]
        return states

    def is_tokenwise(self, node: NodeProto) -> bool:
        given = [name for name in node.input if name]
        return node.input[0] in self.packed and all(n in self.packed or n in self.weights for n in given)

    def number_tokens(self) -> None:
        """``packing/rows``: where in the flat batch the real tokens are. ``packing/tokens``: for each position of the
        batch, the number of its token, or of the one before it where it is padding.
        """
        mask = self.add("Cast", ["attention_mask"], "packing/mask", to=TensorProto.INT64)
        flat = self.add("Reshape", [mask, self.constant([-1])], "packing/flat")
        where = self.add("NonZero", [flat], "packing/where")
        self.rows = self.add("Reshape", [where, self.constant([-1])], "packing/rows")
        count = self.add("CumSum", [flat, self.constant(0)], "packing/count")
        number = self.add("Sub", [count, self.constant([1])], "packing/number")
        number = self.add("Max", [number, self.constant([0])], "packing/not_negative")
        shape = self.add("Shape", [mask], "packing/shape")
        self.tokens = self.add("Reshape", [number, shape], "packing/tokens")
        self.layout = self.add("Concat", [shape, self.constant([-1])], "packing/layout", axis=0)
        # by a name of its own: branches are not told when an input gets another name
        self.mask = self.add("Identity", ["attention_mask"], "packing/attention_mask")
        least = self.add("ReduceMin", [flat], "packing/least", keepdims=0)
        self.whole = self.add("Cast", [least], "packing/whole", to=TensorProto.BOOL)

    def attention(self, node: NodeProto) -> None:
        """The fused operator taken apart: one product for query, key and value of real tokens, then the rest."""
        states, weight, bias, out = node.input[0], node.input[1], node.input[2], node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        unknown = [name for name in node.input[4:] if name]
        if unknown or set(attributes) - {"num_heads", "mask_filter_value", "scale"}:
            raise NotPackable(f"{node.name} has inputs or attributes of attention that this form does not know")
        product = self.add("MatMul", [states, weight], f"{out}/product", name=f"{node.name}_qkv_MatMul")
        qkv = self.add("Add", [product, bias], f"{out}/qkv")
        third = self.weights[weight].dims[1] // 3
        flat = self.constant([-1, third])

        def heads(branch: str, mask: list[str]) -> list[NodeProto]:
            """From ``<branch>/qkv`` to ``<branch>/flat``. A branch's tensors need names of their own."""
            parts = [f"{out}/{branch}/{part}" for part in ("query", "key", "value")]
            states = f"{out}/{branch}/states"
            return [
                helper.make_node("Split", [f"{out}/{branch}/qkv", self.constant([third] * 3)], parts, axis=2),
                helper.make_node("MultiHeadAttention", [*parts, *mask], [states], domain="com.microsoft", **attributes),
                helper.make_node("Reshape", [states, flat], [f"{out}/{branch}/flat"]),
            ]

        whole = [
            helper.make_node("Reshape", [qkv, self.layout], [f"{out}/whole/qkv"]),
            *heads("whole", []),
        ]
        padded = [
            helper.make_node("Gather", [qkv, self.tokens], [f"{out}/padded/qkv"]),
            *heads("padded", ["", self.mask]),
            helper.make_node("Gather", [f"{out}/padded/flat", self.rows], [f"{out}/padded/rows"]),
        ]
        branches = {}
        for branch, nodes in (("then", whole), ("else", padded)):
            result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
            branches[f"{branch}_branch"] = helper.make_graph(nodes, f"{out}/{branch}", [], [result])
        self.add("If", [self.whole], out, **branches)
        self.packed.add(out)

    def pack(self, padded: str, name: str, width: int) -> None:
        flat = self.add("Reshape", [padded, self.constant([-1, width])], f"{name}/flat")
        self.add("Gather", [flat, self.rows], name)
        self.packed.add(name)

    def unpack(self, name: str) -> str:
        padded = f"{name}/padded"
        if name not in self.padded:
            self.add("Gather", [name, self.tokens], padded)
            self.padded.add(name)
        return padded

    def add(self, operator: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name or output, **attributes))
        return output

    def constant(self, value: int | list[int]) -> str:
        name = f"packing/constant_{np.shape(value)}_{value}".replace(" ", "")
        self.constants[name] = numpy_helper.from_array(np.array(value, np.int64), name)
        return name
