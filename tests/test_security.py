"""What is installed is pinned, nothing on the serving path runs what it reads, and comments stay where they belong."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tomllib
from conftest import REPOSITORY, ROOT, end_at_once
from test_serve_gateway import Gateway

from client import Retry, ToxicityClient, ToxicityError
from client.records import Records
from export import near_empty
from serve.gateway.app import Settings
from serve.gateway.feedback import Store
from serve.server import TritonServer

LOCKS = {
    ROOT / "requirements-serve.txt": ("serve", "client"),
    ROOT / "requirements-gateway.txt": ("gateway", "postgres", "client"),
}

# --- what is installed


def requirements(lock: Path) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock file."""
    found = {}
    for block in re.split(r"\n(?=\S)", lock.read_text()):
        if match := re.match(r"([\w.-]+)==(\S+)", block):
            found[normal(match[1])] = match[2], block.count("--hash=sha256:")
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", LOCKS)
def test_serving_is_pinned_with_hashes(lock: Path) -> None:
    locked = requirements(lock)
    assert all(hashes for _, hashes in locked.values())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {name for extra in LOCKS[lock] for name in extras[extra]}
    names = {normal(re.split(r"[\[<>=]", name)[0]) for name in wanted} - {"tritox"}
    assert names <= set(locked), names - set(locked)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, version in pins.items():
        assert locked.get(normal(name), (version, 1))[0] == version, f"{name}: run `make lock`"


def test_lock_files_agree_and_name_no_registry() -> None:
    versions = [{name: version for name, (version, _) in requirements(lock).items()} for lock in LOCKS]
    assert {name: versions[1].get(name, version) for name, version in versions[0].items()} == versions[0]
    for lock in LOCKS:
        assert "://" not in lock.read_text() and "index-url" not in lock.read_text()


# --- nothing that is read can run

SERVING = (
    *sorted((ROOT / "serve").rglob("*.py")),
    *sorted((ROOT / "client").rglob("*.py")),
    *sorted(REPOSITORY.rglob("*.py")),
    *sorted((ROOT / "export/templates").glob("*.py")),
    # copied into version folders
    *(ROOT / name for name in ("export/linear_scorer.py", "train/hashing.py", "train/normalizer.py")),
)
UNPICKLERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch",
    "jsonpickle",
}


def opens_pickles(source: str) -> list[str]:
    """What in a file's code would read a pickle, or run text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if name.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "pd.read_pickle", "yaml.unsafe_load", "yaml.full_load"):
                found.append(called)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called.endswith(("np.load", "numpy.load")) and given.get("allow_pickle") not in (None, "False"):
                found.append(f"{called} with allow_pickle")
    return found


def test_no_pickle_is_opened_where_models_are_served() -> None:
    assert len(SERVING) > 50
    for file in SERVING:
        assert opens_pickles(file.read_text()) == [], file
    assert {file.suffix for file in REPOSITORY.rglob("*") if file.is_file()} - {".pyc"} == {
        *(".json", ".onnx", ".pbtxt", ".py", ".txt")
    }


def test_the_search_for_pickles_finds_them() -> None:
    for code in ("import joblib", "from pickle import loads", "np.load(f, allow_pickle=True)", "eval('1')"):
        assert opens_pickles(code), code
    assert np.load.__kwdefaults__ is None or not np.load.__kwdefaults__.get("allow_pickle", False)


def test_a_weights_file_with_objects_in_it_is_refused(tmp_path: Path) -> None:
    from train.hashing import load

    np.savez(tmp_path / "stage.npz", settings=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load(tmp_path / "stage.npz")


# --- comments stay where they belong

CANARY = "zyxwcanary this comment must stay nowhere qqvvcanary"
PARTS = (b"zyxwcanary", b"qqvvcanary")


@pytest.mark.triton
def test_comments_are_in_no_log_metric_or_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run: over gRPC, over Triton's HTTP and through the gateway; answers, and every error there is."""
    caplog.set_level("DEBUG")
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "models"
    near_empty.write(REPOSITORY, repository)
    metrics = b""
    with (
        TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, log_level="info") as server,
        Records(str(tmp_path / "decisions.sqlite"), "k" * 16) as records,
        Store(str(tmp_path / "feedback.sqlite")) as store,
        Gateway(Settings(server.grpc_url, timeout=5, records=records, feedback=store)) as gateway,
    ):
        over_grpc(server)
        over_http(server)
        codes = [
            gateway.ask("/predict", {"text": CANARY}).code,
            gateway.ask("/predict", {"texts": [CANARY] * 3, "spans": True}).code,
            gateway.ask("/predict", {"text": CANARY, "policy": CANARY}).code,
            gateway.ask("/predict", {"text": CANARY, "model": CANARY}).code,
            gateway.ask("/predict", {"text": CANARY, CANARY: 1}).code,
            gateway.ask("/predict", json.dumps({"text": CANARY}).encode()[:-1]).code,
            gateway.ask("/predict", {"text": CANARY + "\ud800"}).code,
            gateway.ask("/v1alpha1/comments:analyze", {"comment": {"text": CANARY}}).code,
            gateway.analyze(CANARY).code,
            gateway.ask(f"/{CANARY.replace(' ', '%20')}?key={CANARY.replace(' ', '+')}").code,
            gateway.ask("/predict", {"text": CANARY}, {"X-Request-Id": CANARY}).code,
            gateway.ask("/rollout", {"candidate": CANARY}).code,
        ]
        assert {200, 400, 404} <= set(codes), codes
        metrics += gateway.ask("/metrics").body
        time.sleep(0.6)  # models send their counts a few times a second
        with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
            metrics += reply.read()
        end_at_once(server.pid)
    with Records(str(tmp_path / "decisions.sqlite"), read_only=True) as written:
        assert len(list(written.rows())) >= 5
    logged = (caplog.text + "".join(capfd.readouterr())).encode()
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert b"POST /predict 200" in logged and b"I1" in logged  # there was something to look at
    assert b"tritox_tokenizer_comments_total" in metrics and b"tritox_gateway_requests_total" in metrics
    for part in PARTS:
        assert part not in logged and part not in metrics
        assert not [file.name for file, content in files.items() if part in content]


def over_grpc(server: TritonServer) -> None:
    from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

    with ToxicityClient(server.grpc_url, timeout=5, retry=Retry(attempts=1)) as client:
        assert client.classify([CANARY, CANARY * 100])[1].truncated
        for timeout in (1e-4, 1e-3):
            with pytest.raises(ToxicityError):
                client.classify([CANARY * 1000] * 64, timeout=timeout)
    with ToxicityClient(server.grpc_url, model=CANARY, timeout=5) as client, pytest.raises(ToxicityError):
        client.classify([CANARY])
    with InferenceServerClient(server.grpc_url) as raw:
        for rows, shape in (([CANARY.encode() + b"\xff"], [1, 1]), ([CANARY.encode()] * 65, [65, 1])):
            tensor = InferInput("TEXT", shape, "BYTES")
            tensor.set_data_from_numpy(np.array(rows, object).reshape(shape))
            with pytest.raises(InferenceServerException):
                raw.infer("toxicity", [tensor], request_id="id")


def over_http(server: TritonServer) -> None:
    url = f"{server.http_url}/v2/models/toxicity/infer"
    good = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [CANARY]}]}
    wrong = {"inputs": [{"name": CANARY, "datatype": "BYTES", "shape": [1, 1], "data": [CANARY]}]}
    for body, fails in ((good, False), (wrong, True), (json.dumps(good)[:-3], True)):
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            with urllib.request.urlopen(url, data, timeout=10) as reply:
                assert reply.status == 200 and not fails
        except urllib.error.HTTPError as error:
            with error:
                assert fails and error.code >= 400


def test_bad_commands_do_not_echo_comments(tmp_path: Path) -> None:
    """The command line of the client names rows, not texts, when there is no server."""
    command = [sys.executable, "-m", "client", "--url", "127.0.0.1:1", "--timeout", "1", CANARY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert not any(part in done.stdout + done.stderr for part in PARTS)
