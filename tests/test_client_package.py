"""The client's public face: names, weight, import cost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import client

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_public_names() -> None:
    assert client.__all__ == [
        "AccessDenied",
        "AsyncToxicityClient",
        "Batching",
        "ClientClosed",
        "Credentials",
        "Hedge",
        "InvalidInput",
        "InvalidReply",
        "ModelInfo",
        "ModelNotFound",
        "Result",
        "Retry",
        "ServerBusy",
        "ServerUnavailable",
        "Timeout",
        "Timing",
        "ToxicityClient",
        "ToxicityError",
    ]
    for name in client.__all__:
        assert getattr(client, name).__module__.split(".")[0] == "client"


def test_the_client_never_loads_torch_or_transformers() -> None:
    clients = "client.ToxicityClient, client.AsyncToxicityClient"
    loaded = run(f"import sys, client.__main__, client.demo; {clients}; print(*sys.modules)").split()
    assert "tritonclient.grpc" in loaded
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "tokenizers", "train", "export", "serve", "locust"}
    assert heavy.isdisjoint(loaded)


def test_errors_and_results_need_no_grpc() -> None:
    assert {"grpc", "numpy", "tritonclient"}.isdisjoint(run("import sys, client; print(*sys.modules)").split())


def test_the_clients_load_fast() -> None:
    """CPU time, which is what loading takes on a machine that is idle; the least of three, it is the steadiest."""
    code = "import time; import client; client.ToxicityClient, client.AsyncToxicityClient; print(time.process_time())"
    assert min(float(run(code)) for _ in range(3)) <= 0.5


def test_what_a_name_is_says_its_docstring() -> None:
    for name in client.__all__:
        doc = getattr(client, name).__doc__
        assert doc and not doc.startswith(f"{name}("), name  # a dataclass without one gets its signature
