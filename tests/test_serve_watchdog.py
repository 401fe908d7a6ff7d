"""A real ``python -m serve`` whose Triton, or whose models' processes, are killed and stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, ROOT, end_at_once
from test_serve_probe import CONFIG, MODEL, repository
from tritonclient.grpc import InferenceServerClient

from client import Retry, ToxicityClient, ToxicityError
from serve.__main__ import main
from serve.probe import STUB, command_line, processes
from serve.probe import main as probe
from serve.server import TritonServer
from serve.watchdog import LOADING_S, Watchdog

pytestmark = pytest.mark.triton

FREE = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
SERVING_S = 5.0
"""From a process's death to the next answer, on a machine that has nothing else to do."""


class Serve:
    """``python -m serve``, and what it says."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve", "--repository", str(folder), *FREE, "--log-level", "error", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        ready = re.search(r"gRPC (\S+), HTTP (http://\S+:(\d+)),", self.process.stdout.readline())
        assert ready
        self.grpc_url, self.http_url, self.http_port = ready[1], ready[2], ready[3]

    @property
    def triton(self) -> int:
        return next((p.pid for p in processes() if p.name == "tritonserver" and p.parent == self.process.pid), 0)

    def stubs(self) -> dict[str, int]:
        """The models' processes, by the names of their instances."""
        triton = self.triton
        return {command_line(p.pid)[8]: p.pid for p in processes() if p.name == STUB and p.parent == triton}

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/{path}", timeout=5):
                return True
        except urllib.error.URLError:
            return False

    def said(self, what: str) -> str:
        """The next line of the launcher that has it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if what in line:
                return line
        raise AssertionError(f"it ended, and did not say {what!r}")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Serve]:
    serve = Serve(folder, *options)
    triton = serve.triton
    try:
        yield serve
    finally:
        for pid in {triton, serve.triton} - {0}:
            end_at_once(pid)
        serve.process.kill()
        serve.process.communicate()


def test_a_shield_that_died_is_started_anew_with_triton(tmp_path: Path) -> None:
    def shield() -> int:
        children = (p.pid for p in processes() if p.parent == serve.process.pid)
        return next((pid for pid in children if "serve.shield" in command_line(pid)), 0)

    with serving(repository(tmp_path, False), "--shield") as serve:
        old = shield()
        assert old
        with InferenceServerClient(serve.grpc_url) as client:
            assert client.is_model_ready("m")
        os.kill(old, signal.SIGKILL)
        assert "the shield before Triton's gRPC port ended by itself; Triton is started anew" in serve.said("shield")
        serve.said("ready again")
        assert shield() not in (0, old)
        with InferenceServerClient(serve.grpc_url) as client:
            assert client.is_model_ready("m")


def test_what_died_is_started_anew_and_who_leaves_says_so_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ready"
    options = ["--restarts", "1", "--ready-file", str(file), "--model-control", "--drain", "1"]
    folder = repository(tmp_path, False)
    with serving(folder, *options) as serve:
        triton, stub = serve.triton, serve.stubs()["m_0_0"]
        assert file.exists()
        (folder / "m/hold").touch()  # the next Triton is not ready before this is gone
        os.kill(stub, signal.SIGKILL)
        line = serve.said("died")
        assert f"process {stub} of m_0_0 died (SIGKILL); Triton is started anew (1 of 1 within 600 s)" in line
        assert not file.exists()
        assert probe(["ready", "--http-port", serve.http_port]) == 1, capsys.readouterr().err
        (folder / "m/hold").unlink()
        serve.said("ready again")
        assert file.exists() and serve.triton != triton and serve.stubs()["m_0_0"] != stub
        assert [probe([what, "--http-port", serve.http_port]) for what in ("live", "ready")] == [0, 0]
        assert serve.answers("models/m/ready")

        serve.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while serve.answers("health/ready"):
            assert time.monotonic() < deadline
        assert serve.answers("models/m/ready") and serve.answers("health/live") and not file.exists()
        out, err = serve.process.communicate(timeout=20)
        assert serve.process.returncode == 0 and out.endswith("stopped by SIGTERM\n") and err == ""


def test_a_version_that_could_not_be_loaded_and_is_no_longer_wanted_costs_no_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve.watchdog.UNREADY_S", 0.5)
    folder = repository(tmp_path, False)
    config = folder / "m/config.pbtxt"

    def name(version: int) -> None:
        config.write_text(f"{CONFIG}version_policy {{ specific {{ versions: {version} }} }}\n")

    def look(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and server.pid == triton:
            watchdog.look()
            time.sleep(0.05)

    name(1)
    key = "control-0123456789abcdef"
    options = {"grpc_port": 0, "http_port": 0, "metrics_port": 0, "log_level": "error", "control_key": key}
    with TritonServer(folder, model_control=True, **options) as server:
        watchdog, triton = Watchdog(server, restarts=1), server.pid
        (folder / "m/2").mkdir()
        (folder / "m/2/model.py").write_text(MODEL.replace("FAILS", "True"))
        name(2)
        with pytest.raises(urllib.error.HTTPError):
            server._control("models/m/load")
        look(1.6)
        assert server.pid == triton and not server.is_ready()  # with version 2 on disk, it would not even start
        name(1)
        with server._control("models/m/load") as reply:
            assert reply.status == 200
        assert not server.is_ready(), "Triton forgets it now: this can go"
        look(20)
        assert server.pid != triton and server.is_ready()
        assert (
            "could not load, and that nobody wants any more; Triton is started anew (1 of 1" in capsys.readouterr().err
        )
        end_at_once(server.pid)


def test_to_drain_takes_model_control(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--drain", "1"]) == 2
    assert capsys.readouterr().err == "error: --drain 1 takes --model-control, by which Triton is told: give both\n"


def test_a_command_ends_with_a_server_that_cannot_be_kept_up(tmp_path: Path) -> None:
    code = (  # kills the server, and waits
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('told', flush=True)))\n"
        "from serve.probe import processes\n"
        "[os.kill(p.pid, signal.SIGKILL) for p in processes() if p.parent == os.getppid() and 'triton' in p.name]\n"
        "time.sleep(60)"
    )
    options = ["--repository", str(repository(tmp_path, False)), *FREE, "--restarts", "0"]
    command = [sys.executable, "-m", "serve", *options, "--", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and done.stdout == "told\n"
    said = "Triton ended by itself (SIGKILL); Triton was started anew 0 times within 600 s, the limit is --restarts 0"
    assert f"error: {said}" in done.stderr


def right(client: ToxicityClient) -> bool:
    try:
        return abs(client.classify(["You are such an idiot"])[0].scores["toxic"] - 0.94) < 0.05
    except ToxicityError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP])
def test_each_process_of_the_starter_model_is_replaced_in_time(what: signal.Signals) -> None:
    with serving(REPOSITORY, "--restarts", "9") as serve:
        once = Retry(attempts=1)
        names = sorted(serve.stubs())
        assert names == ["toxicity_encoder_0_0", "toxicity_encoder_0_1", "toxicity_tokenizer_0_0"]
        with ToxicityClient(serve.grpc_url, retry=once, timeout=2) as client:
            assert right(client)
            for name in (*names, "Triton"):
                triton = serve.triton
                pid = triton if name == "Triton" else serve.stubs()[name]
                os.kill(pid, what)
                start = time.monotonic()
                while serve.triton in (0, triton) or not right(client):
                    assert time.monotonic() - start < 60
                    time.sleep(0.02)
                took = time.monotonic() - start
                serve.said("ready again")
                assert took < SERVING_S + (2 if what == signal.SIGSTOP else 0), f"{name}: {took:.1f} s"
                assert all(right(client) for _ in range(10))


@pytest.mark.slow
def test_models_that_come_and_go_or_do_not_load_restart_nothing(tmp_path: Path) -> None:
    folder = repository(tmp_path, False)
    with TritonServer(
        folder, grpc_port=0, http_port=0, metrics_port=0, model_control=True, log_level="error"
    ) as server:
        watchdog = Watchdog(server, restarts=0)  # gives up at the first one
        triton, stop = server.pid, threading.Event()

        def load(name: str, body: str = "") -> bool:
            if body:
                if name != "m":
                    shutil.copytree(folder / "m", folder / name)
                config = folder / name / "config.pbtxt"
                config.write_text(config.read_text().replace('"m"', f'"{name}"'))
                (folder / name / "1/model.py").write_text(body)
            return post(server, name, "load")

        def changes() -> None:
            try:
                good = MODEL.replace("FAILS", "False")
                assert load("other", good) and post(server, "other", "unload")
                assert not load("fails", MODEL.replace("FAILS", "True"))
                assert not load("dies", MODEL.replace("if FAILS:", "import os; os._exit(3)\n        if False:"))
                assert load("m", good + "\n# changed")  # the old one goes when the new one is there
                assert load("other") and post(server, "other", "unload") and post(server, "m", "unload")
                time.sleep(LOADING_S)
            finally:
                stop.set()

        worker = threading.Thread(target=changes)
        worker.start()
        looks = 0
        while not stop.wait(0.02):
            watchdog.look()
            looks += 1
        worker.join()
        assert looks > 50 and server.pid == triton
        # and one that was loaded since is watched
        assert load("m")
        deadline = time.monotonic() + 10
        while not (found := [pid for pid, stub in watchdog._stubs.items() if stub.loaded and stub.name == "m_0_0"]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
            watchdog.look()
        (stub,) = found
        os.kill(stub, signal.SIGKILL)
        while (why := watchdog.wrong()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert f"process {stub} of m_0_0 died (SIGKILL)" in why
        end_at_once(triton)


def post(server: TritonServer, model: str, what: str) -> bool:
    url = f"{server.http_url}/v2/repository/models/{model}/{what}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=json.dumps({}).encode()), timeout=30) as reply:
            return bool(reply.status == 200)
    except urllib.error.HTTPError:
        return False
