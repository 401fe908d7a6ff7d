"""No Docker engine is needed: the image's start command is replayed on the files that the image copies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from serve.server import TritonServer

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
GATEWAY = (ROOT / "docker/Dockerfile.gateway").read_text()


def instruction(name: str, dockerfile: str = DOCKERFILE) -> list[str]:
    """The JSON form of an instruction such as ENTRYPOINT."""
    match = re.search(rf"^{name} (\[.*\])$", dockerfile, re.MULTILINE)
    assert match, name
    return list(json.loads(match[1]))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gateway"])
def test_hadolint_has_no_complaint(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, ROOT / "docker" / name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", [DOCKERFILE, GATEWAY])
def test_pins_are_those_of_the_constraints(dockerfile: str) -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pins = re.findall(r"[\w-]+(?:\[\w+\])?==[\w.]+", dockerfile)
    assert pins
    assert {re.sub(r"\[\w+\]", "", pin) for pin in pins} <= set(constraints)


@pytest.mark.triton
def test_the_release_is_that_of_the_tested_server(server: TritonServer) -> None:
    """NVIDIA's release notes: 24.10 is server 2.51.0."""
    with urllib.request.urlopen(f"{server.http_url}/v2") as reply:
        assert json.load(reply)["version"] == "2.51.0"
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in DOCKERFILE


@pytest.mark.triton
def test_the_start_command_serves_from_what_the_image_copies(tmp_path: Path) -> None:
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", DOCKERFILE, re.MULTILINE):
        shutil.copytree(ROOT / source, tmp_path / target)
        assert f"!{source.rstrip('/')}" in (ROOT / ".dockerignore").read_text().split()
    command = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    assert command == ["python3", "-m", "serve", "--host", "0.0.0.0"]
    free = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    result = subprocess.run(
        [sys.executable, *command[1:3], *free, "--", sys.executable, "-m", "client", "hello there"],
        cwd=tmp_path,  # whose serve/ comes before the project's
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == "hello there"


def test_compose_builds_the_same_image_and_publishes_on_loopback_only() -> None:
    service = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]["triton"]
    assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == (
        ROOT / "docker/Dockerfile"
    )
    exposed = re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)
    assert exposed
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in exposed[1].split()]


def test_the_gateways_start_command_runs_from_what_its_image_copies(tmp_path: Path) -> None:
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", GATEWAY, re.MULTILINE):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
        assert f"!{source.rstrip('/')}" in (ROOT / ".dockerignore").read_text().split()
    options = instruction("CMD", GATEWAY)
    assert options == ["--host", "0.0.0.0", "--feedback", "/data/feedback.sqlite"]
    options[-1] = str(tmp_path / "feedback.sqlite")  # the image's folder is not here
    process = subprocess.Popen(
        [sys.executable, *instruction("ENTRYPOINT", GATEWAY)[1:], *options, "--port", "0", "--triton", "127.0.0.1:1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "TRITOX_GATEWAY_KEYS": "0123456789abcdef"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = re.search(r":(\d+) ", process.stdout.readline())
        assert port
        address = f"http://127.0.0.1:{port[1]}"
        with urllib.request.urlopen(f"{address}/healthz", timeout=30) as reply:
            assert reply.read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/models", timeout=30)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_the_gateway_in_compose_waits_for_triton_and_is_published_on_loopback_only() -> None:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    gateway = services["gateway"]
    assert (ROOT / "docker" / gateway["build"]["context"] / gateway["build"]["dockerfile"]).resolve() == (
        ROOT / "docker/Dockerfile.gateway"
    )
    assert gateway["ports"] == ["127.0.0.1:8080:8080"] and "EXPOSE 8080" in GATEWAY
    assert gateway["environment"]["TRITOX_URL"] == "triton:8001"
    assert gateway["depends_on"]["triton"]["condition"] == "service_healthy"
