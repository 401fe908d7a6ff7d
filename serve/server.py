"""A ``tritonserver`` process: found, configured, started, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

INSTALL = "pip install -e '.[serve]' -c constraints.txt"
GOLDEN_TRIES = 5
LOG_LEVELS = ("error", "warning", "info", "verbose")
BACKENDS = Path(__file__).parent / "backends"
NO_GPU = ("CudaDriverHelper has not been", "CUDA driver version is insufficient", "DCGM", "pinned system memory")
"""What Triton warns of on a machine without a GPU. It is no error there, so it is shown from ``info`` on only."""


class ServeError(RuntimeError):
    """The server cannot be started, or did not stay up; the message says why and what to do."""


@dataclass(frozen=True)
class Installation:
    """A ``tritonserver`` binary, what its environment needs, and where its own backends lie."""

    binary: Path
    backends: Path
    stub: Path | None = None
    library_path: str | None = None

    @property
    def has_onnxruntime(self) -> bool:
        return any((self.backends / "onnxruntime").glob("libtriton_onnxruntime.so"))


def find_installation() -> Installation:
    """The ``tritonserver`` on PATH (as in NVIDIA's container), else the one that the wheel ``nvidia-pytriton`` carries.

    :raises ServeError: when there is neither.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        binary = Path(on_path).resolve()
        return Installation(binary, binary.parent.parent / "backends")
    # find_spec, not import: only the binary is wanted
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServeError(f"no tritonserver on PATH, and the wheel that brings one is not installed: {INSTALL}")
    package = Path(spec.origin).parent
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(p.name for p in stub.parent.parent.glob("*")))
        raise ServeError(f"nvidia-pytriton has no Python backend for Python {version}: use one of {known}")
    return Installation(
        binary=package / "tritonserver/bin/tritonserver",
        backends=package / "tritonserver/backends",
        stub=stub,
        library_path=str(package.parent / "nvidia_pytriton.libs"),
    )


def assemble_backends(installation: Installation, folder: Path) -> None:
    """Copies of the installation's backends in ``folder``, with ours where the compiled ``onnxruntime`` is missing.

    Copies (a few MB), because Triton refuses a link that leads out of its backend directory.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(installation.backends, folder, ignore=ignore, dirs_exist_ok=True)
    if installation.stub is not None:
        shutil.copy(installation.stub, folder / "python")
    shutil.copytree(BACKENDS, folder, ignore=ignore, dirs_exist_ok=True)


def check_repository(repository: Path) -> None:
    """:raises ServeError: for what Triton would report less plainly, or after a while only."""
    if not repository.is_dir():
        raise ServeError(
            f"no model repository at {repository}: give --repository a folder that `python -m export.onnx` wrote"
        )
    models = [f for f in sorted(repository.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    if not models:
        raise ServeError(f"{repository} holds no models: write one with `python -m export.onnx --quantize int8`")
    for model in models:
        if not (model / "config.pbtxt").is_file():
            raise ServeError(
                f"{model} has no config.pbtxt, and Triton takes every folder for a model: move it away, or export again"
            )
        if not any(f.is_dir() and f.name.isdigit() for f in model.iterdir()):
            raise ServeError(f"{model} has no version folder such as 1/: export it again")


class TritonServer:
    """One server as a context manager: started and ready inside the block, gone after it.

    :param repository: the model repository.
    :param grpc_port: 0 takes a free one, as for the other two ports.
    :param log_level: what of Triton's log is passed on to standard error.
    :param ready_timeout_s: how long loading the models may take.
    :param model_control: let callers load and unload models; all are loaded at the start in any case.
    :raises ServeError: when it cannot start; the message holds what Triton said of the cause.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        log_level: str = "warning",
        ready_timeout_s: float = 120.0,
        model_control: bool = False,
    ) -> None:
        self.repository = repository
        self.host = host
        self.log_level = log_level
        self.ready_timeout_s = ready_timeout_s
        self.model_control = model_control
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._tail: deque[str] = deque(maxlen=400)
        self._clean_up = contextlib.ExitStack()

    @property
    def grpc_url(self) -> str:
        return f"{self._connect_host}:{self.ports['grpc']}"

    @property
    def http_url(self) -> str:
        return f"http://{self._connect_host}:{self.ports['http']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._connect_host}:{self.ports['metrics']}/metrics"

    @property
    def _connect_host(self) -> str:
        if self.host == "0.0.0.0":
            return "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return once every model is ready."""
        check_repository(self.repository)
        installation = find_installation()
        self.ports = reserve_ports(self.host, self._wanted_ports)
        try:
            self._launch(installation)
            self._wait_until_ready()
            self._check_golden()
        except BaseException:
            self.stop()
            raise

    def _launch(self, installation: Installation) -> None:
        scratch = Path(self._clean_up.enter_context(tempfile.TemporaryDirectory(prefix="tritox-serve-")))
        # A prefix of our own, so that shared memory which a killed process leaves behind can be told from others'.
        shared_memory = f"tritox_{os.getpid()}_{self.ports['grpc']}_"
        self._clean_up.callback(remove_shared_memory, shared_memory)
        self._clean_up.callback(remove_bytecode, self.repository)
        command = [
            str(installation.binary),
            f"--model-repository={self.repository.resolve()}",
            f"--http-address={self.host}",
            f"--http-port={self.ports['http']}",
            f"--grpc-address={self.host}",
            f"--grpc-port={self.ports['grpc']}",
            f"--metrics-address={self.host}",
            f"--metrics-port={self.ports['metrics']}",
            "--exit-timeout-secs=10",
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
            "--log-info=true",  # read by us for the cause of a failure, passed on by --log-level
            f"--log-verbose={1 if self.log_level == 'verbose' else 0}",
        ]
        if self.model_control:
            command += ["--model-control-mode=explicit", "--load-model=*"]
        if not installation.has_onnxruntime:
            assemble_backends(installation, scratch)
            command.append(f"--backend-directory={scratch}")
        environment = dict(os.environ)
        environment["TRITOX_METRICS_URL"] = self.metrics_url  # for the models that refuse when too much waits
        if installation.stub is not None:
            # the stub is a Python interpreter of its own, and must see this environment's packages
            paths = [p for p in sys.path if p.endswith("-packages")]
            environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
            environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if installation.library_path is not None:
            libraries = [installation.library_path, os.environ.get("LD_LIBRARY_PATH")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the group
            preexec_fn=_die_with_parent,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _read_log(self, log: IO[bytes]) -> None:
        shown = {"error": "E", "warning": "EW"}.get(self.log_level, "EWI")
        for raw in log:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail.append(line)
            if self.log_level == "verbose":
                sys.stderr.write(line + "\n")
            elif re.match(r"[EWI]\d{4} ", line) and line[0] in shown:
                if self.log_level == "info" or not any(harmless in line for harmless in NO_GPU):
                    sys.stderr.write(line + "\n")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        while not self.is_ready():
            if not self.is_running():
                self._reader.join(timeout=2)  # the last lines of the log
                raise ServeError(f"Triton could not start on {self.repository}: {self._cause()}")
            if time.monotonic() > deadline:
                raise ServeError(f"Triton was not ready after {self.ready_timeout_s:.0f} s: {self._cause()}")
            time.sleep(0.05)

    def _check_golden(self) -> None:
        """Score the golden comments of every version that is served, through all of its parts.

        Parts check themselves when they load, where they are Python. The compiled backend does not, and GPUs have
        kernels of their own: here the whole answers for itself.

        :raises ServeError: when a score is not what it was at export.
        """
        for file in sorted(self.repository.glob("*_encoder/*/golden.json")):
            name, number = file.parent.parent.name.removesuffix("_encoder"), file.parent.name
            model = f"{self.http_url}/v2/models/{name}/versions/{number}"
            try:
                with urllib.request.urlopen(f"{model}/ready", timeout=10):
                    pass
            except urllib.error.HTTPError:
                continue  # another version is served
            golden = json.loads(file.read_text(encoding="utf-8"))
            of_tokenizer = self.repository / f"{name}_tokenizer" / number / "golden.json"
            texts = golden.get("texts") or json.loads(of_tokenizer.read_text(encoding="utf-8"))["texts"]
            worst, where = 0.0, ""
            for text, expected in zip(texts, golden["scores"], strict=True):
                off = self._difference(model, text, expected, 2 * golden["tolerance"])
                if not off <= worst:
                    worst, where = off, text
            # the text is padded here, and was not at export; that moves INT8 ranges a little
            if not worst <= 2 * golden["tolerance"]:
                raise ServeError(
                    f"version {number} of {name} failed its self-test: a score of the golden comment {where[:40]!r} "
                    f"differs by {worst:.4f} from that at export, allowed is {2 * golden['tolerance']}: verify the "
                    "files with `python -m export.repository verify`, or export again on this machine"
                )

    def _difference(self, model: str, text: str, expected: list[float], allowed: float) -> float:
        """The largest difference of a score from that at export.

        Callers of a server that comes back are there already: their comments beside this one move INT8 scores, or keep
        the server busy. So what is off is tried again; a wrong kernel is wrong every time.
        """
        best = math.inf
        for attempt in range(GOLDEN_TRIES):
            try:
                found = self._score(model, text)
            except ServeError:
                if attempt == GOLDEN_TRIES - 1 and best == math.inf:
                    raise
                time.sleep(0.1 * 2**attempt)
                continue
            off = max(abs(f - e) for f, e in zip(found, expected, strict=True))
            best = min(best, math.inf if math.isnan(sum(found)) else off)
            if best <= allowed:
                break
        return best

    @staticmethod
    def _score(model: str, text: str) -> list[float]:
        tensor = {"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "scores"}]}).encode()
        try:
            with urllib.request.urlopen(f"{model}/infer", data=body, timeout=60) as reply:
                return [float(score) for score in json.load(reply)["outputs"][0]["data"]]
        except urllib.error.HTTPError as error:
            raise ServeError(f"the self-test of {model} failed: {error.read().decode('utf-8', 'replace')}") from None

    def is_ready(self) -> bool:
        """Whether every model answers."""
        if not self.is_running():
            return False
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self) -> int:
        """Block until the server ends by itself; returns its exit code."""
        if self._process is None:
            raise ServeError("the server is not running: call start() first")
        return self._process.wait()

    def stop(self, grace_s: float = 15.0) -> None:
        """Let running requests end, then end every process of the server, and remove what it left behind."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"Triton did not stop within {grace_s:.0f} s and is killed\n")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # stubs that outlived it
            self._process.wait()
            self._reader.join()  # ends with the last process that could write to the log
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None
        self._clean_up.close()

    def _cause(self) -> str:
        """What Triton's log says of a failure, without time stamps, tables and repetitions."""
        errors = [
            line.split("] ", 1)[-1]
            for line in self._tail
            if re.match(r"E\d{4} ", line) and not any(harmless in line for harmless in NO_GPU)
        ]
        # "failed to load 'x' version 1: Internal: ValueError: ..." names the model; the lines behind it only repeat
        loads = [e for e in errors if "failed to load" in e] or errors or list(self._tail)[-3:]
        # a Python model's error goes on with where it was raised
        causes = (e.strip('"').split("\\n\\nAt:\\n")[0] for e in loads)
        return "; ".join(dict.fromkeys(causes)) or "it said nothing"


def reserve_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """The ports to use: each wanted one if it is free, a free one for 0.

    :raises ServeError: naming the port that is in use, or the host that is not this machine's.
    """
    ports = {}
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OverflowError:
                raise ServeError(f"--{name}-port is {port}, must lie between 0 and 65535") from None
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    why = "in use" if error.errno == errno.EADDRINUSE else "not allowed for this user"
                    raise ServeError(
                        f"port {port} is {why} on {host}: choose another with --{name}-port, or 0 for a free one"
                    ) from None
                raise ServeError(f"cannot listen on --host {host}: {error.strerror or error}") from None
            ports[name] = probe.getsockname()[1]
    return ports


def remove_shared_memory(prefix: str) -> None:
    for file in Path("/dev/shm").glob(f"{prefix}*"):
        file.unlink(missing_ok=True)


def remove_bytecode(repository: Path) -> None:
    """Triton's Python stub writes ``__pycache__`` beside ``model.py``, whatever PYTHONDONTWRITEBYTECODE says."""
    for folder in repository.glob("*/*/__pycache__"):
        shutil.rmtree(folder, ignore_errors=True)


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the new process: end when the process that started it ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
