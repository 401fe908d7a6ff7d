"""DESIGN.md's table of imports, and the names that must not shadow others."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGES = {"train", "export", "serve", "client", "loadtest"}
ALLOWED = {
    "train": set(),
    # the artifact, what measures it, and the two that load weights: see below
    "export": {
        *("train.artifact", "train.data", "train.metrics", "train.bias", "train.hatecheck", "train.augment"),
        *("train.model", "train.linear", "train.hashing"),
    },
    "serve": {"client"},  # the gateway, the drift monitor, and what rolls out on servers that run
    "client": set(),
    # the benchmark starts the server, reads the version that is served, and writes the artifact's model for rivals
    "loadtest": {
        "client",
        "serve.server",
        "serve.envoy",
        "serve.certificates",
        "serve.probe",
        "export.triton",
        "export.near_empty",
        "train.artifact",
    },
    "model_repository": set(),
}
HEAVY = {"torch", "transformers", "optimum", "onnx", "sklearn", "pandas"}


def imports(file: Path) -> Iterator[str]:
    """Dotted names that a file imports, at any depth."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_follow_the_table(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files, f"no Python file in {folder}"
    for file in files:
        for name in imports(file):
            first = name.split(".")[0]
            if first in PACKAGES - {folder} and folder != "tests":
                allowed = ALLOWED[folder]
                assert any(name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in allowed), (
                    f"{file.relative_to(ROOT)} imports {name}"
                )


@pytest.mark.parametrize("folder", ["client", "serve", "loadtest", "model_repository"])
def test_what_serves_needs_nothing_that_trains(folder: str) -> None:
    # what runs in the rivals' own environments brings their dependencies
    theirs = {ROOT / "loadtest/rivals" / name for name in ("modeling.py", "scorer.py", "int8.py")}
    for file in set((ROOT / folder).rglob("*.py")) - theirs:
        assert not {name.split(".")[0] for name in imports(file)} & HEAVY, file


def test_starting_a_server_needs_no_client() -> None:
    users = {file for file in (ROOT / "serve").rglob("*.py") if any(n.startswith("client") for n in imports(file))}
    allowed = {ROOT / "serve/gateway", ROOT / "serve/drift"}
    outside = {file.name for file in users if not allowed & set(file.parents)}
    assert users and outside == {"rollout.py"}


def test_weights_are_loaded_only_where_the_graph_is_built() -> None:
    weights = ("train.model", "train.linear")
    users = {f.name for f in (ROOT / "export").rglob("*.py") if any(n.startswith(weights) for n in imports(f))}
    assert users == {"graph.py", "pipeline.py"}


def test_names_that_would_shadow_others_are_not_taken() -> None:
    for folder in ("docker", "model_repository", "tests"):
        assert not list((ROOT / folder).rglob("__init__.py"))
    assert not (ROOT / "loadtest/locust.py").exists()
    code = "import export.onnx, onnx; print(onnx.__file__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "site-packages" in out


def test_a_missing_extra_is_named() -> None:
    """Each stage is started in an interpreter that cannot find its main package."""
    for module, package, extra in [
        ("train", "torch", "train"),
        ("export.onnx", "onnx", "export"),
        ("client", "tritonclient", "client"),
        ("loadtest", "locust", "loadtest"),
        ("serve.gateway", "fastapi", "gateway"),
    ]:
        arguments = {
            "train": ["fit", "--data", "x.csv", "--out", "y"],
            "export.onnx": ["--quantize", "none"],
            "client": ["some text"],
            "loadtest": ["run"],
            "serve.gateway": [],
        }[module]
        code = (
            "import runpy, sys\n"
            "class Hide:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            f"        if name.split('.')[0] == {package!r}:\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Hide())\n"
            f"sys.argv = [{module!r}, *{arguments!r}]\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        )
        result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert f"pip install -e '.[{extra}]' -c constraints.txt" in result.stderr, (module, result.stderr)
        assert "Traceback" not in result.stderr, (module, result.stderr)
