from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import graph, parity
from export.packing import NotPackable, remove_padding
from export.speed import filled, measure, mixes, overall
from train.artifact import ClassifierConfig
from train.model import ToxicityClassifier

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
ARCHITECTURES = {
    "bert": {"model_type": "bert", **SMALL},
    "compact": {"model_type": "roberta-prelayernorm", "type_vocab_size": 1, "pad_token_id": 0, **SMALL},
    "roberta": {"model_type": "roberta", "pad_token_id": 0, **SMALL},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "n_layers": 3,
        "n_heads": 2,
        "hidden_dim": 64,
        "vocab_size": 99,
    },
}


def fused(architecture: dict[str, object], folder: Path, pooling: str = "mean") -> tuple[ToxicityClassifier, Path]:
    model = ToxicityClassifier(ClassifierConfig(encoder=architecture, pooling=pooling)).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases begin as zeros, which would be one weight for all layers
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.02)
    encoder = graph.trace(model, folder / "traced.onnx")
    graph.fuse(folder / "traced.onnx", folder / "fused.onnx", encoder)
    return model, folder / "fused.onnx"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_the_padded_graph_for_any_padding(name: str, pooling: str, tmp_path: Path) -> None:
    model, padded = fused(ARCHITECTURES[name], tmp_path, pooling)
    onnx.save(remove_padding(onnx.load(padded)), tmp_path / "packed.onnx")
    sessions = [graph.session(padded), graph.session(tmp_path / "packed.onnx")]
    rng = np.random.default_rng(3)
    for lengths in ([7], [1, 16, 2], [16, 16], [3, 3, 3, 5], [1]):
        rows = [rng.integers(1, 99, n).tolist() for n in lengths]
        ids, mask = parity.pad(rows, 16, 0)
        scores = [graph.run(session, ids, mask) for session in sessions]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
        alone = np.concatenate([graph.run(sessions[1], *parity.pad([row], len(row), 0)) for row in rows])
        np.testing.assert_allclose(scores[1], alone, atol=1e-6)


def test_linear_layers_see_real_tokens_alone(tmp_path: Path) -> None:
    _, padded = fused(ARCHITECTURES["bert"], tmp_path)
    packed = remove_padding(onnx.load(padded))
    products = [n.output[0] for n in packed.graph.node if n.op_type == "MatMul"]
    assert len(products) == 4 * 3  # query, key and value are one
    for name in products:
        packed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    onnx.save(packed, tmp_path / "packed.onnx")
    ids, mask = parity.pad([[5, 6, 7], [8], [9, 10]], 16, 0)
    found = graph.session(tmp_path / "packed.onnx").run(products, {"input_ids": ids, "attention_mask": mask})
    assert {len(product) for product in found} == {6}


def test_an_unfused_graph_has_no_such_form(tmp_path: Path) -> None:
    fused(ARCHITECTURES["bert"], tmp_path)
    with pytest.raises(NotPackable, match="no operator Attention"):
        remove_padding(onnx.load(tmp_path / "traced.onnx"))


def test_traffic_is_batched_in_the_order_in_which_it_came(tmp_path: Path) -> None:
    rows = [[1] * n for n in (3, 20, 5, 16, 31, 2, 9, 17, 4, 8, 3, 7, 6, 5, 4, 3, 2)]
    found = mixes(rows, 0)
    alike, mixed = found["1 comment a request"], found["16 comments a request"]
    assert [ids.shape for ids, _ in alike] == [(8, 31), (8, 8), (1, 2)]
    assert [ids.shape for ids, _ in mixed] == [(16, 31), (1, 2)]
    assert filled(mixed) == pytest.approx(sum(map(len, rows)) / (16 * 31 + 2))
    _, padded = fused(ARCHITECTURES["bert"], tmp_path)
    rates = measure({"one": graph.session(padded, 1)}, found, rounds=2)
    assert set(rates["one"]) == set(found) and min(rates["one"].values()) > 0
    assert overall({"a": 4.0, "b": 9.0}) == pytest.approx(6)
