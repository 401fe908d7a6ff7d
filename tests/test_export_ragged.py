from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from test_export_packing import ARCHITECTURES, fused

from export import graph, parity
from export.packing import remove_padding
from export.ragged import accept_ragged

DEBERTA = {
    "model_type": "deberta-v2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
}


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "deberta"])
def test_a_ragged_batch_scores_like_the_padded_one(name: str, padding_free: bool, tmp_path: Path) -> None:
    if name == "deberta" and padding_free:
        pytest.skip("its attention is not fused")
    _, file = fused({**ARCHITECTURES, "deberta": DEBERTA}[name], tmp_path)
    model = onnx.load(file)
    onnx.save(accept_ragged(remove_padding(model) if padding_free else model, 0), tmp_path / "ragged.onnx")
    padded, ragged = graph.session(file), graph.session(tmp_path / "ragged.onnx")
    rng = np.random.default_rng(5)
    for lengths in ([7], [1, 16, 2], [16, 16], [3, 3, 3, 5], [1]):
        rows = [rng.integers(1, 99, n).tolist() for n in lengths]
        wanted = graph.run(padded, *parity.pad(rows, 16, 0))
        np.testing.assert_allclose(graph.run(ragged, *parity.pad(rows, 16, 0)), wanted, atol=1e-6)
        # as the compiled backend hands them over: rows of a request padded to its longest, with their widths
        together = np.concatenate([parity.pad([row], len(row) + 2, -1)[0].reshape(-1) for row in rows])
        widths = np.array([[len(row) + 2] for row in rows], np.int32)
        (found,) = ragged.run(["scores"], {"input_ids": together, "widths": widths})
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_literal_padding_token_in_a_text_is_a_token_like_any_other(tmp_path: Path) -> None:
    _, file = fused(ARCHITECTURES["bert"], tmp_path)
    onnx.save(accept_ragged(onnx.load(file), 0), tmp_path / "ragged.onnx")
    row = np.array([[5, 0, 7]], np.int32)
    found = graph.run(graph.session(tmp_path / "ragged.onnx"), row, np.ones_like(row))
    np.testing.assert_allclose(found, graph.run(graph.session(file), row, np.ones_like(row)), atol=1e-6)
