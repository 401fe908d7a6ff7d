"""The whole line at once: comments, artifact, model repository, Triton, client, load test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LABELS, ROOT, end_at_once

from client import ToxicityClient
from export.onnx import main as export
from serve.server import TritonServer
from train.artifact import Layout

pytestmark = pytest.mark.triton


@pytest.mark.parametrize(("precision", "tolerance"), [("none", 1e-5), ("int8", 0.15)])
def test_a_trained_model_is_served_as_it_was_trained(
    artifact: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    repository = tmp_path / "model_repository"
    arguments = ["--artifact", str(artifact), "--repository", str(repository), "--quantize", precision]
    assert export([*arguments, "--name", "small", "--max-flip-rate", "0.05", "--max-batch-size", "16"]) == 0
    rows = Layout(artifact).read_validation()
    with (
        TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server,
        ToxicityClient(server.grpc_url, model="small", timeout=60) as client,
    ):
        info = client.info()
        assert (info.labels, info.max_tokens, info.max_batch_size) == (LABELS, 32, 16)
        assert info.thresholds == Layout(artifact).read_labels().thresholds
        results = client.classify([row["text"] for row in rows])
        served = np.array([[r.scores[label] for label in LABELS] for r in results])
        np.testing.assert_allclose(served, [row["scores"] for row in rows], atol=tolerance)
        end_at_once(server.pid)


def test_serve_runs_a_load_test_and_passes_its_verdict_on(tmp_path: Path) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text("p99_ms: 0.001\n")
    command = ["-m", "serve", "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--", sys.executable]
    load = ["-m", "loadtest", "run", "--duration", "3s", "--users", "2", "--slo", str(slo)]
    result = subprocess.run(
        [sys.executable, *command, *load, "--json", str(tmp_path / "r.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "MISSED" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["slo_met"] is False
