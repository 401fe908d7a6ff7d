"""README's examples of the SDK run, and every public name is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_client_sync import Stub, stub  # noqa: F401  (a fixture)

import client

README = (ROOT / "README.md").read_text()
SDK = README[README.index("## The SDK") : README.index("## What to read")]
PAGES = README + (ROOT / "serve/OPERATIONS.md").read_text()
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL) if "from client import" in code]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code: str, stub: Stub, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "comments.txt").write_text("0.7\n0.2\n")
    code = code.replace("127.0.0.1:8001", stub.grpc_url)
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("print(" in code) == bool(done.stdout) or "except" in code


def test_every_public_name_is_explained() -> None:
    for name in client.__all__:
        assert f"`{name}`" in SDK, name


def test_every_option_and_method_is_named() -> None:
    for name in ("classify", "score", "stream", "info", "wait_ready", "close"):
        assert re.search(rf"\b{name}\(", SDK), name
    for name in ("model", "timeout", "in_flight", "connections", "compression", "keepalive_s", "stall_s"):
        assert name in SDK, name
