from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, ROOT

from serve import server as serving
from serve.__main__ import main, parser, read_control_key, read_tls
from serve.server import ServeError, Tls, TritonServer

FREE = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "serve", *FREE, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def descendants(pid: int) -> set[int]:
    """Every process under ``pid``, by /proc."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= {int(child)} | descendants(int(child))
    return found


def running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def shared_memory(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"tritox_{pid}_*"))


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_process_and_leaves_nothing_behind(number: signal.Signals) -> None:
    process = start()
    assert process.stdout is not None
    assert "starting Triton" in process.stdout.readline()
    ready = process.stdout.readline()
    match = re.fullmatch(r"ready: gRPC (127\.0\.0\.1:\d+), HTTP (http://\S+), metrics (http://\S+/metrics)\n", ready)
    assert match, ready
    with urllib.request.urlopen(match[3]) as reply:
        assert b"nv_inference_count" in reply.read()
    children = descendants(process.pid)
    assert len(children) >= 4  # tritonserver, a tokenizer, two encoders
    assert shared_memory(process.pid)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"stopped by {number.name}" in out and err == ""
    assert not [pid for pid in children if running(pid)]
    assert not shared_memory(process.pid)
    assert not list(REPOSITORY.rglob("__pycache__"))


@pytest.mark.triton
def test_nothing_outlives_a_serve_that_was_killed() -> None:
    process = start()
    assert process.stdout is not None and process.stdout.readline() and process.stdout.readline()
    children = descendants(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(running(pid) for pid in children):
        assert time.monotonic() < deadline, "processes outlived their parent"
        time.sleep(0.1)
    for left in shared_memory(process.pid):
        left.unlink()


@pytest.mark.triton
def test_a_command_gets_the_address_and_its_exit_code_is_passed_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.touch()  # left behind
    code = f"import os, sys; print(os.environ['TRITOX_URL']); sys.exit(3 if os.path.exists({str(ready)!r}) else 4)"
    process = start("--ready-file", str(ready), "--", sys.executable, "-c", code)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and not ready.exists()
    assert re.fullmatch(r"127\.0\.0\.1:\d+\n", out)  # nothing of ours between a command's lines
    process = start("--", "no-such-command")
    assert "cannot run no-such-command" in process.communicate(timeout=60)[1]
    assert process.returncode == 127


@pytest.mark.triton
def test_ctrl_c_lets_a_command_end_in_its_own_way() -> None:
    code = "import sys, time\nprint('on', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(5)"
    process = subprocess.Popen(
        [sys.executable, "-m", "serve", *FREE, "--", sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    children = descendants(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to serve and to the command
    process.communicate(timeout=30)
    assert process.returncode == 5
    assert not [pid for pid in children if running(pid)]


@pytest.mark.triton
def test_two_servers_side_by_side(server: TritonServer) -> None:
    with TritonServer(REPOSITORY, grpc_port=0, http_port=0, metrics_port=0) as other:
        assert not set(other.ports.values()) & set(server.ports.values())
        assert server.is_ready() and other.is_ready()
    assert server.is_ready()


@pytest.mark.triton
def test_every_process_of_triton_takes_turns_and_asks_for_huge_pages(server: TritonServer) -> None:
    processes = {server.pid} | descendants(server.pid)
    assert len(processes) > 3  # tokenizer and encoders
    for pid in processes:
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH
        assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_the_operator_says_of_huge_pages_holds() -> None:
    assert serving.with_huge_pages(None) == "glibc.malloc.hugetlb=1"
    assert serving.with_huge_pages("glibc.malloc.arena_max=2") == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert serving.with_huge_pages("glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0"


def test_a_port_in_use_is_named_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--repository", str(REPOSITORY), "--grpc-port", "0", "--http-port", str(port)]
        assert main([*arguments, "--metrics-port", "0"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: port {port} is in use on 127.0.0.1: choose another with --http-port, or 0 for a free one\n"


def test_impossible_ports_and_hosts_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--repository", str(REPOSITORY), *FREE, "--grpc-port", "70000"]) == 2
    assert "--grpc-port is 70000, must lie between 0 and 65535" in capsys.readouterr().err
    assert main(["--repository", str(REPOSITORY), *FREE, "--host", "192.0.2.1"]) == 2
    assert "cannot listen on --host 192.0.2.1" in capsys.readouterr().err


def test_broken_repositories_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(repository: Path) -> str:
        assert main(["--repository", str(repository), *FREE]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "no model repository at" in error_of(tmp_path / "none")
    assert "holds no models" in error_of(tmp_path)
    (tmp_path / "tools").mkdir()
    assert "tools has no config.pbtxt" in error_of(tmp_path)
    (tmp_path / "tools/config.pbtxt").touch()
    assert "has no version folder" in error_of(tmp_path)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("file", "content", "cause"),
    [
        ("toxicity_encoder/1/model.onnx", b"not a graph", "failed to load 'toxicity_encoder' version 1"),
        ("toxicity_tokenizer/1/tokenizer.json", b"{", "failed to load 'toxicity_tokenizer' version 1"),
        ("toxicity_encoder/config.pbtxt", b"max_batch: 1", "toxicity_encoder"),
    ],
)
def test_a_damaged_model_is_named(tmp_path: Path, file: str, content: bytes, cause: str) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(REPOSITORY, repository)
    versions = [f.name for f in (repository / "toxicity_encoder").iterdir() if f.is_dir()]
    (repository / file.replace("/1/", f"/{versions[0]}/")).write_bytes(content)
    with pytest.raises(ServeError, match="could not start") as error:
        TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, log_level="error", verify=False).start()
    assert cause.replace("version 1", f"version {versions[0]}") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_wheel_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    assert main(["--repository", str(REPOSITORY), *FREE]) == 2
    assert "pip install -e '.[serve]' -c constraints.txt" in capsys.readouterr().err


def test_a_tritonserver_on_path_comes_first_and_a_compiled_backend_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The layout of NVIDIA's container: bin/ and backends/ side by side."""
    (tmp_path / "bin").mkdir()
    binary = tmp_path / "bin" / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    installation = serving.find_installation()
    assert (installation.binary, installation.backends) == (binary, tmp_path / "backends")
    assert installation.stub is None and not installation.has_onnxruntime
    (tmp_path / "backends/onnxruntime").mkdir(parents=True)
    (tmp_path / "backends/onnxruntime/libtriton_onnxruntime.so").touch()
    assert installation.has_onnxruntime


def test_backends_are_put_together_from_the_wheel_and_ours(tmp_path: Path) -> None:
    serving.assemble_backends(serving.find_installation(), tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} >= {
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "onnxruntime/model.py",
    }
    assert os.access(tmp_path / "python/triton_python_backend_stub", os.X_OK)


def test_models_are_not_opened_to_other_machines_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def key(*options: str) -> str | None:
        return read_control_key(parser().parse_args(options))

    monkeypatch.delenv("TRITOX_CONTROL_KEY", raising=False)
    assert key() is None and key("--model-control") is None
    for options in (["--host", "0.0.0.0"], ["--http-host", "0.0.0.0"]):
        with pytest.raises(ServeError, match="there is no key: give --control-key a file, or TRITOX_CONTROL_KEY"):
            key("--model-control", *options)
    assert len(key("--gateway") or "") == 32
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert key("--model-control", "--host", "0.0.0.0", "--control-key", str(tmp_path / "key")) == "0123456789abcdef"
    monkeypatch.setenv("TRITOX_CONTROL_KEY", "of-the-environment")
    assert key("--model-control", "--host", "0.0.0.0") == "of-the-environment"
    with pytest.raises(ServeError, match="cannot be read"):
        key("--control-key", str(tmp_path / "none"))
    with pytest.raises(ServeError, match="needs --certificate, --key and --ca: give all three"):
        read_tls(parser().parse_args(["--certificate", "a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control_key": "short"}, "control key has 5 characters, must be at least 16"),
        ({"control_key": "has spaces and commas, too"}, "must be at least 16 letters and digits"),
        ({"tls": Tls(Path("none.pem"), Path("none.pem"), Path("none.pem"))}, "--certificate none.pem cannot be read"),
        ({"tls": Tls(Path(__file__), Path(__file__), Path(__file__))}, "is no PEM file"),
    ],
)
def test_wrong_keys_and_certificates_are_told_before_anything_starts(options: Any, message: str) -> None:
    with pytest.raises(ServeError, match=message):
        TritonServer(REPOSITORY, **options).start()
