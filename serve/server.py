"""A ``tritonserver`` process: found, configured, started, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib.util
import ipaddress
import json
import math
import os
import re
import secrets
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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from serve.probe import dead_stubs
from serve.shield import LAST_S, LISTENING

INSTALL = "pip install -e '.[serve]' -c constraints.txt"
GOLDEN_TRIES = 5
LOG_LEVELS = ("error", "warning", "info", "verbose")
BACKENDS = Path(__file__).parent / "backends"
NO_GPU = ("CudaDriverHelper has not been", "CUDA driver version is insufficient", "DCGM", "pinned system memory")
"""What Triton warns of on a machine without a GPU. It is no error there, so it is shown from ``info`` on only."""
CONTROL_HEADER = "tritox-control"
"""Names the control key in HTTP."""
GRPC_CONTROL_HEADER = f"triton-grpc-protocol-{CONTROL_HEADER}"
"""As Triton wants it in a gRPC request."""
NEVER_FOR_CLIENTS = ("shared-memory", "trace", "logging")
"""Of Triton's protocols: these let a caller read memory of the server's processes, or name a file that it writes to."""
SHORTEST_KEY = 16
LOOPBACK = "127.0.0.1"
NO_ROOM = "Triton's backends cannot be put together ({why}): free some MB there, or name another folder in TMPDIR"
LEAVING = "tritox_leaving"
"""No model: see :meth:`TritonServer.drain`."""
NOT_LOADED = ("export.json", "export.txt", "reference.json")
"""Beside a version's files, for people and ``python -m serve.drift``; the last may be made long after the export."""


class ServeError(RuntimeError):
    """The server cannot be started, or did not stay up; the message says why and what to do."""


class SelfTestFailed(ServeError):
    """A model does not give its golden comments the token ids or scores that they had at export."""


@dataclass(frozen=True)
class Tls:
    """PEM files of gRPC's port: it takes callers with a certificate of the authority ``ca`` alone (mutual TLS).

    Triton reads them when it starts: after a change, start it anew.
    """

    certificate: Path
    key: Path
    ca: Path

    def check(self) -> None:
        """:raises ServeError: naming the file that cannot be read."""
        for option, file in (("--certificate", self.certificate), ("--key", self.key), ("--ca", self.ca)):
            try:
                if b"-----BEGIN" not in file.read_bytes():
                    raise ServeError(f"{option} {file} is no PEM file: make one with `python -m serve.certificates`")
            except OSError as error:
                raise ServeError(f"{option} {file} cannot be read ({error.strerror}): name a PEM file") from None


def check_control_key(key: str) -> None:
    """:raises ServeError: when it is too short, or Triton could not read it from its command line."""
    if len(key) < SHORTEST_KEY or not re.fullmatch(r"[\w-]+", key, re.ASCII):
        raise ServeError(
            f"the control key has {len(key)} characters, must be at least {SHORTEST_KEY} letters and digits: use "
            "`openssl rand -hex 16`"
        )


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


def check_files(repository: Path) -> None:
    """Compare the files of every version that would be loaded with their hashes at export, before anything reads them.

    A damaged file may load all the same, and score otherwise; and what lies in a version's folder is Python that runs.
    What was not exported (no ``export.json``) has no hashes, and is not looked at.

    :raises ServeError: naming the first file that is changed, missing, or was not there.
    """
    for report in sorted(repository.glob("*/*/export.json")):
        whole, number = report.parent.parent.name, report.parent.name
        expected = {
            # a cascade names its files alone
            name if "/" in name else f"{whole}/{number}/{name}": digest
            for name, digest in json.loads(report.read_text(encoding="utf-8")).get("files", {}).items()
        }
        models = {whole, *(name.split("/")[0] for name in expected)}
        if not any(int(number) in loaded_versions(repository / model / "config.pbtxt") for model in models):
            continue
        wrong = None
        for name, digest in expected.items():
            file = repository / name
            if not file.is_file():
                wrong = f"{name} is missing"
            elif sha256(file) != digest:
                wrong = f"{name} is not as it was exported"
        for model in models:
            for file in sorted((repository / model / number).rglob("*")):
                name = file.relative_to(repository).as_posix()
                # bytecode was removed before, and another server that starts here may write it again
                known = name in expected or file.name in NOT_LOADED or "__pycache__" in file.parts
                if file.is_file() and not known:
                    wrong = wrong or f"{name} was not there at export"
        if wrong:
            raise ServeError(
                f"version {number} of {whole} is damaged, it is not loaded: {wrong}. Restore it, serve another version "
                "with `python -m export.repository rollback`, or export again; --unverified serves it as it is"
            )


def loaded_versions(config_pbtxt: Path) -> list[int]:
    """The versions that the exporter's configuration of a model lets Triton load."""
    try:
        text = config_pbtxt.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    policy = re.search(r"version_policy\s*\{\s*specific\s*\{([^}]*)\}", text)
    return [int(number) for number in re.findall(r"versions:\s*(\d+)", policy[1])] if policy else []


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class TritonServer:
    """One server as a context manager: started and ready inside the block, gone after it.

    :param repository: the model repository.
    :param grpc_port: 0 takes a free one, as for the other two ports.
    :param log_level: what of Triton's log is passed on to standard error.
    :param ready_timeout_s: how long loading the models may take.
    :param model_control: let callers load and unload models; all are loaded at the start in any case.
    :param http_host: where HTTP listens, which has no TLS; by default ``host``. ``metrics_host`` as well.
    :param tls: of gRPC's port; by default nothing is encrypted.
    :param control_key: that a caller must send to load, unload and list models. What :data:`NEVER_FOR_CLIENTS` holds is
        closed in any case: with this key, or by one that nobody knows.
    :param verify: compare the files with their hashes at export first.
    :param shield: keep cancelled calls from Triton, see :mod:`serve.shield`: it listens on gRPC's port then, and Triton
        on one of the loopback.
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
        http_host: str | None = None,
        metrics_host: str | None = None,
        tls: Tls | None = None,
        control_key: str | None = None,
        verify: bool = True,
        shield: bool = False,
    ) -> None:
        self.repository = repository
        self.host = host
        self.http_host, self.metrics_host = http_host or host, metrics_host or host
        self.tls, self.control_key = tls, control_key
        self.log_level = log_level
        self.ready_timeout_s = ready_timeout_s
        self.model_control = model_control
        self.verify = verify
        self.shield = shield
        self._wanted_ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self.ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._shield: subprocess.Popen[str] | None = None
        self._tail: deque[str] = deque(maxlen=400)
        self._is_leaving = False
        self.exit_code = 0
        """Of the process that ran last, negative for a signal."""
        self.loads: dict[str, float] = {}
        """When Triton said last that it had loaded a model, in seconds since the machine was started."""
        self.load_failed_at: float | None = None
        """When it said last that it could not load one."""
        self._clean_up = contextlib.ExitStack()

    @property
    def grpc_url(self) -> str:
        return f"{reachable(self.host)}:{self.ports['grpc']}"

    @property
    def http_url(self) -> str:
        return f"http://{reachable(self.http_host)}:{self.ports['http']}"

    @property
    def metrics_url(self) -> str:
        return f"http://{reachable(self.metrics_host)}:{self.ports['metrics']}/metrics"

    @property
    def pid(self) -> int:
        """Of Triton's process; 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def pids(self) -> list[int]:
        """Triton's process, which those of its models are children of, and the shield's."""
        return [each.pid for each in (self._process, self._shield) if each is not None]

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
        if self.tls is not None:
            self.tls.check()
        if self.control_key is not None:
            check_control_key(self.control_key)
        if self.verify:
            remove_bytecode(self.repository)  # left by a server that was killed; it would run unverified
            check_files(self.repository)
        installation = find_installation()
        self.ports = reserve_ports(
            self.host, self._wanted_ports, {"http": self.http_host, "metrics": self.metrics_host}
        )
        try:
            behind = reserve_ports(LOOPBACK, {"grpc": 0})["grpc"] if self.shield else self.ports["grpc"]
            self._launch(installation, behind)
            self._wait_until_ready()
            self._check_golden()
            if self.shield:
                self._raise_shield(behind)
        except BaseException:
            self.stop(grace_s=0)  # nobody was promised an answer
            raise

    def _launch(self, installation: Installation, grpc_port: int) -> None:
        self.loads, self.load_failed_at = {}, None
        scratch = self._put_together(installation)
        # A prefix of our own, so that shared memory which a killed process leaves behind can be told from others'.
        shared_memory = f"tritox_{os.getpid()}_{self.ports['grpc']}_"
        self._clean_up.callback(remove_shared_memory, shared_memory)
        self._clean_up.callback(remove_bytecode, self.repository)
        command = [
            str(installation.binary),
            f"--model-repository={self.repository.resolve()}",
            f"--http-address={self.http_host}",
            f"--http-port={self.ports['http']}",
            f"--grpc-address={LOOPBACK if self.shield else self.host}",
            f"--grpc-port={grpc_port}",
            f"--metrics-address={self.metrics_host}",
            f"--metrics-port={self.ports['metrics']}",
            "--exit-timeout-secs=10",
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
            "--log-info=true",  # read by us for the cause of a failure, passed on by --log-level
            f"--log-verbose={1 if self.log_level == 'verbose' else 0}",
        ]
        if self.model_control:
            command += ["--model-control-mode=explicit", "--load-model=*"]
        closed = ",".join([*NEVER_FOR_CLIENTS, *(["model-repository"] if self.control_key else [])])
        key = self.control_key or secrets.token_hex(16)
        command.append(f"--grpc-restricted-protocol={closed}:{CONTROL_HEADER}={key}")
        command.append(f"--http-restricted-api={closed}:{CONTROL_HEADER}={key}")
        if self.tls is not None and not self.shield:
            command += [
                "--grpc-use-ssl-mutual=true",
                f"--grpc-server-cert={self.tls.certificate}",
                f"--grpc-server-key={self.tls.key}",
                f"--grpc-root-cert={self.tls.ca}",
            ]
        if scratch is not None:
            command.append(f"--backend-directory={scratch}")
        environment = dict(os.environ)
        environment["GLIBC_TUNABLES"] = with_huge_pages(environment.get("GLIBC_TUNABLES"))
        environment["TRITOX_METRICS_URL"] = self.metrics_url  # for the models that refuse when too much waits
        if not self.verify:
            environment["TRITOX_UNVERIFIED"] = "1"
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
            preexec_fn=_prepare,
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read_log, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _raise_shield(self, triton_port: int) -> None:
        """:raises ServeError: when it cannot listen."""
        command = [sys.executable, "-m", "serve.shield", f"--triton-port={triton_port}"]
        command += [f"--host={self.host}", f"--port={self.ports['grpc']}"]
        if self.tls is not None:
            command += [f"--certificate={self.tls.certificate}", f"--key={self.tls.key}", f"--ca={self.tls.ca}"]
        self._shield = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        assert self._shield.stdout is not None
        if self._shield.stdout.readline().strip() != LISTENING:
            raise ServeError(f"the shield could not start on {self.grpc_url}: what it said stands above")

    def _put_together(self, installation: Installation) -> Path | None:
        """A backend directory, where the installation's own lacks one of ours.

        :raises ServeError: when it cannot be written.
        """
        if installation.has_onnxruntime:
            return None
        try:
            folder = Path(self._clean_up.enter_context(tempfile.TemporaryDirectory(prefix="tritox-serve-")))
            assemble_backends(installation, folder)
        except shutil.Error as error:  # of several files
            raise ServeError(NO_ROOM.format(why=error.args[0][0][-1])) from None
        except OSError as error:
            raise ServeError(NO_ROOM.format(why=error)) from None
        return folder

    def _read_log(self, log: IO[bytes]) -> None:
        shown = {"error": "E", "warning": "EW"}.get(self.log_level, "EWI")
        for raw in log:
            line = raw.decode("utf-8", "replace").rstrip()
            self._tail.append(line)
            if self._is_leaving and (LEAVING in line or "model_config_content_name_" in line):
                continue
            if loaded := re.search(r"successfully loaded '([^']+)'", line):
                self.loads[loaded[1]] = time.clock_gettime(time.CLOCK_BOOTTIME)
            elif "failed to load '" in line:
                self.load_failed_at = time.clock_gettime(time.CLOCK_BOOTTIME)
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
                cause = self._cause()
                kind = SelfTestFailed if "self-test failed" in cause else ServeError
                raise kind(f"Triton could not start on {self.repository}: {cause}")
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
                raise SelfTestFailed(
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
                dead = dead_stubs(self.ports["http"])
                if dead or (attempt == GOLDEN_TRIES - 1 and best == math.inf):
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

    def serves_what_the_disk_says(self) -> bool:
        """Whether what is loaded are the versions that the configurations in the repository name, and no others."""
        try:
            with self._control("index") as reply:
                index = json.load(reply)
        except (urllib.error.URLError, OSError):
            return False
        loaded: dict[str, set[int]] = {}
        for model in index:
            if model.get("state") == "READY":
                loaded.setdefault(model["name"], set()).add(int(model["version"]))
        for config in self.repository.glob("*/config.pbtxt"):
            found, named = loaded.get(config.parent.name, set()), set(loaded_versions(config))
            if not found or (named and named != found):
                return False
        return True

    def _control(self, call: str, **content: Any) -> Any:
        """An answer of Triton's control of models, as :func:`urllib.request.urlopen` gives and raises it."""
        request = urllib.request.Request(f"{self.http_url}/v2/repository/{call}", data=json.dumps(content).encode())
        if self.control_key is not None:
            request.add_header(CONTROL_HEADER, self.control_key)
        return urllib.request.urlopen(request, timeout=2)

    def shield_has_ended(self) -> bool:
        """By itself."""
        return self._shield is not None and self._shield.poll() is not None

    def is_running(self) -> bool:
        if self._process is None:
            return False
        self.exit_code = self._process.poll() or 0
        return self._process.returncode is None

    def restart(self) -> None:
        """End every process of the server at once, and start it anew on the same ports.

        :raises ServeError: as at the start; it does not run then.
        """
        self._wanted_ports = dict(self.ports)
        self.stop(grace_s=0)
        self.start()

    def drain(self, seconds: float) -> None:
        """Say to load balancers that it is not ready, and go on to answer for so long. There is no way back.

        Once Triton ends, it refuses each request at once, and looks idle to whoever was not told. It has no call to say
        so before. But it is not ready, by gRPC's health check and by HTTP, while a model is not that it was asked to
        load: so it is asked for one that nothing can load. It takes ``model_control``.
        """
        if not self.is_running():
            return
        self._is_leaving = True
        parameters = {"config": json.dumps({"name": LEAVING, "backend": "none"}), "file:1/none": "bm9uZQ=="}
        # it answers 400: it could not be loaded
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            self._control(f"models/{LEAVING}/load", parameters=parameters),
        ):
            pass
        time.sleep(seconds)

    def stop(self, grace_s: float = 15.0) -> None:
        """Let running requests end, then end every process of the server, and remove what it left behind.

        :param grace_s: that it gets for it; 0 lets nothing end.
        """
        if self._process is not None:
            if grace_s:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
                try:
                    self._process.wait(grace_s)
                except subprocess.TimeoutExpired:
                    sys.stderr.write(f"Triton did not stop within {grace_s:.0f} s and is killed\n")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with stubs that outlived it
            self._process.wait()
            self._reader.join()  # ends with the last process that could write to the log
            if self._process.stderr is not None:
                self._process.stderr.close()
            self._process = None
        if self._shield is not None:  # last, as it passes on what Triton still answered
            if grace_s:
                self._shield.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._shield.wait(2 * LAST_S)
            self._shield.kill()
            self._shield.wait()
            assert self._shield.stdout is not None
            self._shield.stdout.close()
            self._shield = None
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


def reachable(host: str) -> str:
    """The address by which this machine reaches what listens on ``host``, as it stands in a URL."""
    if host == "0.0.0.0":
        return LOOPBACK
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reserve_ports(host: str, wanted: dict[str, int], hosts: Mapping[str, str] | None = None) -> dict[str, int]:
    """The ports to use: each wanted one if it is free, a free one for 0.

    :param hosts: of those that do not listen on ``host``.
    :raises ServeError: naming the port that is in use, or the host that is not this machine's.
    """
    ports = {}
    with contextlib.ExitStack() as held:
        for name, port in wanted.items():
            address = (hosts or {}).get(name, host)
            probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OverflowError:
                raise ServeError(f"--{name}-port is {port}, must lie between 0 and 65535") from None
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    why = "in use" if error.errno == errno.EADDRINUSE else "not allowed for this user"
                    raise ServeError(
                        f"port {port} is {why} on {address}: choose another with --{name}-port, or 0 for a free one"
                    ) from None
                option = "--host" if address == host else f"--{name}-host"
                raise ServeError(f"cannot listen on {option} {address}: {error.strerror or error}") from None
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


def die_with_parent() -> None:
    """In the new process: end when the process that started it ends, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Weights of tens of MB are read in every run of the encoder: in pages of 2 MB, where the kernel gives them to those
that ask (``transparent_hugepage`` is ``madvise``), the processor looks up fewer addresses."""


def with_huge_pages(tunables: str | None) -> str:
    """The value for ``GLIBC_TUNABLES``: what it is, and huge pages unless it says something of them."""
    if tunables and "glibc.malloc.hugetlb" in tunables:
        return tunables
    return ":".join(filter(None, (tunables, HUGE_PAGES)))


def _prepare() -> None:
    """In the new process, which becomes Triton."""
    die_with_parent()
    take_turns()


def take_turns() -> None:
    """In the new process: threads that wake wait for their turn (``SCHED_BATCH``) instead of throwing others off their
    cores. Where all cores are busy, an encoder loses more by that than anyone gains.
    """
    with contextlib.suppress(OSError, AttributeError):  # a sandbox may forbid it; macOS, for a load generator, has none
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
