"""The probe, and the file of a server that is ready, on a real Triton whose model's process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, end_at_once

from serve.probe import STUB, dead_stubs, main, processes
from serve.server import TritonServer

pytestmark = pytest.mark.triton

MODEL = """
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        while os.path.exists(args["model_repository"] + "/hold"):
            time.sleep(0.02)
        if FAILS:
            raise pb_utils.TritonModelException("self-test failed: on purpose")

    def execute(self, requests):
        return []
"""
CONFIG = """
name: "m"
backend: "python"
input [{ name: "IN" data_type: TYPE_INT32 dims: [1] }]
output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


def repository(folder: Path, fails: bool) -> Path:
    (folder / "r/m/1").mkdir(parents=True)
    (folder / "r/m/config.pbtxt").write_text(CONFIG)
    (folder / "r/m/1/model.py").write_text(MODEL.replace("FAILS", str(fails)))
    return folder / "r"


def test_a_model_whose_process_died_is_neither_alive_nor_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TritonServer(repository(tmp_path, False), grpc_port=0, http_port=0, metrics_port=0) as server:
        port = server.ports["http"]
        options = ["--http-port", str(port)]
        assert (main(["ready", *options]), main(["live", *options])) == (0, 0)
        assert capsys.readouterr().err == ""
        triton = server._process
        assert triton is not None
        (stub,) = [each.pid for each in processes() if each.name == STUB and each.parent == triton.pid]
        os.kill(stub, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not dead_stubs(port) and time.monotonic() < deadline:
            time.sleep(0.02)
        with urllib.request.urlopen(f"{server.http_url}/v2/health/ready") as reply:
            assert reply.status == 200, "Triton still says so: if it no longer does, the probe can go"
        assert (main(["ready", *options]), main(["live", *options])) == (1, 1)
        assert "not ready: 1 of the models' processes died" in capsys.readouterr().err
        end_at_once(triton.pid)
    assert main(["live", *options]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_a_triton_that_is_ended_while_the_probe_looks_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the watchdog does: a probe that asks Triton, and only then looks for dead processes, finds nothing wrong."""
    with TritonServer(repository(tmp_path, False), grpc_port=0, http_port=0, metrics_port=0) as server:
        port, triton = server.ports["http"], server._process
        assert triton is not None
        (stub,) = [each.pid for each in processes() if each.name == STUB and each.parent == triton.pid]
        os.kill(stub, signal.SIGSTOP)

        def end(seconds: float) -> None:
            end_at_once(triton.pid)
            triton.wait()

        monkeypatch.setattr("serve.probe.time.sleep", end)
        assert main(["ready", "--http-port", str(port)]) == 1
        assert "Connection refused" in capsys.readouterr().err


def test_a_self_test_has_its_exit_code_and_leaves_no_ready_file(tmp_path: Path) -> None:
    """With models that pass: tests/test_serve_server.py."""
    file = tmp_path / "ready"
    file.touch()  # left behind
    free = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "serve", "--repository", str(repository(tmp_path, True)), *free]
    result = subprocess.run(
        [*command, "--ready-file", str(file), "--", "true"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 3 and "self-test failed: on purpose" in result.stderr
    assert not file.exists()
