"""No Docker engine is needed: the image's start command is replayed on the files that the image copies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from serve.server import TritonServer

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def instruction(name: str) -> list[str]:
    """The JSON form of an instruction such as ENTRYPOINT."""
    match = re.search(rf"^{name} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert match, name
    return list(json.loads(match[1]))


def test_hadolint_has_no_complaint() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, ROOT / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_pins_are_those_of_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pins = re.findall(r"[\w-]+==[\w.]+", DOCKERFILE)
    assert pins
    assert set(pins) <= set(constraints)


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
