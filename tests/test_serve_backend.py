"""The settings that our ``onnxruntime`` backend takes from a model's configuration."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
from conftest import ROOT


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its ``model.py``; what Triton gives it to import is not needed here."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    spec = importlib.util.spec_from_file_location("backend", ROOT / "serve/backends/onnxruntime/model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(**parameters: str) -> dict[str, Any]:
    return {"parameters": {key.replace("__", "."): {"string_value": value} for key, value in parameters.items()}}


def test_memory_options_have_the_names_and_the_defaults_of_the_compiled_backend(backend: Any) -> None:
    options = backend.session_options(config())
    assert options.enable_cpu_mem_arena and options.enable_mem_pattern
    options = backend.session_options(config(enable_mem_pattern="0"))
    assert options.enable_cpu_mem_arena and not options.enable_mem_pattern
    options = backend.session_options(config(enable_mem_arena="0", enable_mem_pattern="1"))
    assert not options.enable_cpu_mem_arena and options.enable_mem_pattern


def test_threads_and_session_entries_are_passed_on(backend: Any) -> None:
    options = backend.session_options(config(intra_op_thread_count="3", session__set_denormal_as_zero="1"))
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
