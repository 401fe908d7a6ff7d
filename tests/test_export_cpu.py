from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_export_packing import ARCHITECTURES, fused

from export import cpu, graph, packing, parity, precision
from export.results import operators


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_stay_and_no_slow_operator_is_left_once_loaded(name: str, tmp_path: Path) -> None:
    _, path = fused(ARCHITECTURES[name], tmp_path)
    forms = {"fused": onnx.load(path), "whole": cpu.unfuse(onnx.load(path))}
    forms["packed"] = packing.remove_padding(forms["whole"])
    found = {}
    rng = np.random.default_rng(3)
    batches = [parity.pad([rng.integers(1, 99, n).tolist() for n in lengths], 16, 0) for lengths in ([7], [1, 16, 3])]
    for form, model in forms.items():
        onnx.save(model, tmp_path / f"{form}.onnx")
        session = graph.session(tmp_path / f"{form}.onnx")
        found[form] = np.concatenate([graph.run(session, *batch) for batch in batches])
        np.testing.assert_allclose(found[form], found["fused"], atol=1e-6)
    for form in ("whole", "packed"):
        precision.quantize(tmp_path / f"{form}.onnx", tmp_path / "int8.onnx", precision.DYNAMIC)
        nodes = nodes_when_loaded(tmp_path / "int8.onnx", tmp_path / "loaded.onnx")
        names = [node.op_type for node in nodes]
        assert {"LayerNormalization", "Gelu"} <= set(names)
        assert not {"SkipLayerNormalization", "BiasGelu", "FastGelu"} & set(names)
        if form == "packed":  # biases are added where the products are
            assert names.count("DynamicQuantizeMatMul") == 4 * 3
            assert not [node for node in nodes if node.op_type == "Add" and node.output[0].endswith("/biased")]


def nodes_when_loaded(path: Path, scratch: Path) -> list[onnx.NodeProto]:
    """What ONNX Runtime makes of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(scratch), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(onnx.load(scratch).graph.node)


def test_the_measurement_writes_a_section_of_the_results(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep/cpu.json"
    assert cpu.main(["--artifact", str(artifact), "--comments", "20", "--rounds", "1", "--report", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["operators"]) == {
        f"{kind}, {form}" for kind in ("fp32", "int8") for form in ("fused", "not fused")
    }
    assert "int8, not fused" in capsys.readouterr().out and "| int8, not fused |" in operators(report)
    assert cpu.main(["--artifact", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
