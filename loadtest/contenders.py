"""Who takes part in the benchmark: the limit, this server, and the rivals. Each can be started, driven and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from client import wire
from loadtest import processes
from loadtest.connections import json_body
from loadtest.limit import Bench, Encoder, Settings
from loadtest.rivals import environments
from serve.server import TritonServer, die_with_parent

APPS = Path(__file__).parent / "rivals"
READY_S = 120.0
CORES = len(os.sched_getaffinity(0))
METRIC = re.compile(r"^(\w+)\{([^}]*)\} (\S+)$|^(\w+) (\S+)$", re.MULTILINE)


class ContenderFailed(RuntimeError):
    """A contender cannot be started, or is not installed; the message says why."""


@dataclass
class Contender:
    """:param settings: what it runs with, as it is written into the results."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    note = ""
    """What the reader of the results must know of it."""

    def grid(self) -> list[dict[str, Any]]:
        """The settings that a search tries; none for a contender that has nothing to choose here."""
        return []

    def versions(self) -> dict[str, str]:
        return {}

    def start(self) -> None:
        """:raises ContenderFailed: when it cannot."""

    def stop(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Limit(Contender):
    """The bare encoder; see :mod:`loadtest.limit`. It is given token ids, so tokenizing costs it nothing."""

    note = "token ids given, batches sorted by length, no server"

    def __init__(self, encoder: Encoder, texts: Sequence[str]) -> None:
        super().__init__("limit", asdict(Settings(CORES, 1)))
        self.encoder = encoder
        self.rows = encoder.rows(texts)
        self.bench: Bench | None = None

    def grid(self) -> list[dict[str, Any]]:
        shapes = dict.fromkeys([(CORES, 1), (1, CORES)])
        return [asdict(Settings(*shape, batch)) for shape in shapes for batch in (1, 2, 4, 8, 16, 32)]

    def start(self) -> None:
        self.bench = Bench(self.encoder, self.rows, Settings(**self.settings))

    def stop(self) -> None:
        if self.bench is not None:
            self.bench.close()
            self.bench = None


class Served(Contender):
    """A server that the load generator can drive.

    :ivar root: the process whose tree is the server.
    """

    protocol: Literal["grpc", "http"] = "http"
    path = "/classify"
    tolerance = 0.02
    """Mean difference of scores from the expected ones beyond which a round does not count."""
    host = "127.0.0.1"
    port = 0
    root = 0

    def path_of(self, size: int) -> str:
        """Where requests of so many comments go."""
        return self.path

    def body(self, texts: Sequence[str]) -> bytes:
        return json_body({"texts": list(texts)})

    def scores(self, body: bytes) -> np.ndarray:
        """:returns: *Shape:* ``(comments, labels)``."""
        return np.array(json.loads(body)["scores"])

    def counters(self) -> dict[str, float]:
        """What the server counts itself, such as batches; see :func:`derived`."""
        return {}

    def derived(self, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
        return {}

    def pause(self) -> None:
        processes.pause(self.root)

    def resume(self) -> None:
        processes.resume(self.root)


def configure(repository: Path, name: str, settings: Mapping[str, int]) -> dict[str, int]:
    """Change the settings of the served version, and return all of them.

    :raises ContenderFailed: with what ``export.repository`` says.
    """
    changes = [f"{key}={value}" for key, value in settings.items()]
    command = ["configure", "--repository", str(repository), "--name", name, *changes]
    done = subprocess.run(
        [sys.executable, "-m", "export.repository", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ContenderFailed(done.stderr.strip().removeprefix("error: "))
    lines = [line.partition("=") for line in done.stdout.splitlines()]
    return {key: int(value) for key, _, value in lines}


class SharedServer:
    """One Triton for all models of a repository."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.server: TritonServer | None = None

    def start(self) -> TritonServer:
        if self.server is None:
            server = TritonServer(self.repository, grpc_port=0, http_port=0, metrics_port=0, log_level="error")
            server.start()
            self.server = server
        return self.server

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None


class Tritox(Served):
    """Our server: one model of a repository on Triton, over gRPC."""

    protocol = "grpc"
    path = "/inference.GRPCInferenceService/ModelInfer"

    def __init__(self, shared: SharedServer, model: str, encoder: str) -> None:
        """:param encoder: the model whose batches are told of."""
        super().__init__("tritox" if model == "toxicity" else f"tritox:{model}", {"model": model})
        self.shared, self.model, self.encoder = shared, model, encoder

    def start(self) -> None:
        server = self.shared.start()
        self.port = server.ports["grpc"]
        # the server is the child that listens; there is no other way to its number
        assert server._process is not None
        self.root = server._process.pid
        config = self.shared.repository / self.encoder / "config.pbtxt"
        self.settings = {"model": self.model, self.encoder: _summary(config)} if config.is_file() else self.settings

    def stop(self) -> None:
        if self.shared.server is not None:
            self.resume()  # a paused process does not hear that it shall stop
        self.shared.stop()

    def body(self, texts: Sequence[str]) -> bytes:
        rows = [text.encode("utf-8", "replace") for text in texts]
        request = wire.infer_request(rows, wire.Call("", self.model, 1.0, ""))
        data: bytes = request.SerializeToString()
        return data

    def scores(self, body: bytes) -> np.ndarray:
        response = pb.ModelInferResponse.FromString(body)
        at = [output.name for output in response.outputs].index("scores")
        return np.frombuffer(response.raw_output_contents[at], np.float32).reshape(list(response.outputs[at].shape))

    def counters(self) -> dict[str, float]:
        """Triton's counters of the encoder, and all of ours, by name; zero is what has not been counted yet."""
        server = self.shared.start()
        with urllib.request.urlopen(server.metrics_url, timeout=10) as reply:
            text = reply.read().decode()
        found: dict[str, float] = {}
        for name, labels, value, plain, plain_value in METRIC.findall(text):
            name = name or plain
            if name.startswith("tritox_") or (name.startswith("nv_inference") and f'model="{self.encoder}"' in labels):
                found[name] = found.get(name, 0.0) + float(value or plain_value)
        return found

    def derived(self, before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
        """The mean batch of the encoder, the share of padding in its tokens, its queue time, and hits of a cache.

        ``tritox_encoder_tokens_total`` are those of comments, ``tritox_encoder_padding_total`` those that pad them.
        """
        change = {name: value - before.get(name, 0.0) for name, value in after.items()}
        out: dict[str, float] = {}
        if change.get("nv_inference_exec_count"):
            out["mean_batch"] = change["nv_inference_count"] / change["nv_inference_exec_count"]
        if change.get("nv_inference_request_success"):
            queue = change.get("nv_inference_queue_duration_us", 0.0)
            out["queue_ms"] = queue / change["nv_inference_request_success"] / 1000
        if change.get("tritox_encoder_tokens_total"):
            padded = change.get("tritox_encoder_padding_total", 0.0)
            out["padding_waste"] = padded / (change["tritox_encoder_tokens_total"] + padded)
        hits = [value for name, value in change.items() if name.startswith("tritox_") and "hit" in name]
        if hits:
            out["cache_hits"] = sum(hits)
        return out


def _summary(config: Path) -> dict[str, Any]:
    """What of a model's configuration decides on its speed."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    message = text_format.Parse(config.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    whole = json_format.MessageToDict(message, preserving_proto_field_name=True)
    chosen = ("max_batch_size", "instance_group", "dynamic_batching")
    threads = whole.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value")
    return {**{key: whole[key] for key in chosen if key in whole}, "intra_op_thread_count": threads}


class Gateway(Served):
    """The HTTP gateway in front of our server: Perspective's call for one comment, the plain API for many."""

    path = "/predict"
    note = "CPU and memory are the gateway's alone, without Triton's"
    attributes = ("TOXICITY", "SEVERE_TOXICITY", "PROFANITY", "THREAT", "INSULT", "IDENTITY_ATTACK")
    """In the order of the model's labels."""

    def __init__(self, triton: Tritox) -> None:
        super().__init__("gateway", {"model": triton.model})
        self.triton = triton
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.triton.start()
        self.triton.resume()
        self.port = free_port()
        url = self.triton.shared.start().grpc_url
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serve.gateway", "--triton", url, "--model", self.triton.model, "--quiet"),
                *("--port", str(self.port), "--timeout", "30", "--feedback", "none"),
            ],
            env={k: v for k, v in os.environ.items() if k != "TRITOX_GATEWAY_KEYS"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self.root = self._process.pid
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://{self.host}:{self.port}/readyz", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        code = self._process.poll()
        self.stop()
        raise ContenderFailed(
            "the gateway is not ready" + ("" if code is None else f": it ended with exit code {code}")
        )

    def stop(self) -> None:
        if self._process is not None:
            processes.resume(self.root)
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self.triton.stop()

    def pause(self) -> None:
        super().pause()
        self.triton.pause()

    def resume(self) -> None:
        self.triton.resume()
        super().resume()

    def path_of(self, size: int) -> str:
        return "/v1alpha1/comments:analyze" if size == 1 else self.path

    def body(self, texts: Sequence[str]) -> bytes:
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        if len(texts) > 1:
            return json_body({"texts": texts})
        requested: dict[str, Any] = {name: {} for name in self.attributes}
        return json_body({"comment": {"text": texts[0]}, "languages": ["en"], "requestedAttributes": requested})

    def scores(self, body: bytes) -> np.ndarray:
        found = json.loads(body)
        if "results" in found:
            return np.array([list(result["scores"].values()) for result in found["results"]])
        return np.array([[found["attributeScores"][name]["summaryScore"]["value"] for name in self.attributes]])


class Rival(Served):
    """A server from an environment of its own, on the folder that ``loadtest.rivals.convert`` wrote.

    :param engine: ``torch`` in FP32, or ``onnx`` with the INT8 graph that this server has, too.
    """

    packages: tuple[str, ...] = ()
    cwd = APPS

    def __init__(self, name: str, folder: Path, engine: str = "torch") -> None:
        super().__init__(name, {"engine": engine, **self.defaults(engine)})
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def python(self) -> Path:
        return environments.python(environments.of(self.name))

    def defaults(self, engine: str) -> dict[str, Any]:
        return {"workers": 1, "threads": CORES}

    def shapes(self) -> list[dict[str, Any]]:
        """Processes and threads that fill the cores."""
        shapes = dict.fromkeys([(1, CORES), (CORES, 1)])
        return [{"workers": workers, "threads": threads} for workers, threads in shapes]

    def grid(self) -> list[dict[str, Any]]:
        return [{**self.settings, **shape} for shape in self.shapes()]

    def command(self) -> list[str]:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return environments.versions(environments.of(self.name), self.packages)

    def start(self) -> None:
        if not self.python.is_file():
            raise ContenderFailed(f"{self.name} is not installed: {environments.INSTALL}")
        self.port = free_port()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"tritox-{self.name}-", ignore_cleanup_errors=True)
        log = Path(self._scratch.name) / "log"
        threads = str(self.settings["threads"])
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            "TRITOX_RIVAL": json.dumps({**self.settings, "folder": str(self.folder.resolve()), "port": self.port}),
            "OMP_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": self._scratch.name,
            "TOKENIZERS_PARALLELISM": "false",
            "DO_NOT_TRACK": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.root = self._process.pid
        self._wait(log)

    def _wait(self, log: Path) -> None:
        assert self._process is not None
        deadline, reason = time.monotonic() + READY_S, "no answer"
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}{self.path}",
            self.body(["Thank you, that helps."]),
            {"Content-Type": "application/json"},
        )
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                reason = f"it ended with exit code {self._process.returncode}"
                break
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    self.scores(reply.read())
                    return
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read()[:200]!r}"
            except (OSError, ValueError, KeyError) as error:
                reason = str(error)
            time.sleep(0.3)
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-15:]
        self.stop()
        raise ContenderFailed(f"{self.name} is not ready ({reason}); its log ends:\n" + "\n".join(tail))

    def stop(self) -> None:
        if self._process is not None:
            processes.resume(self.root)
            family = processes.tree(self.root)
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            for pid in family:
                processes.kill(pid)
            self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


class FastApi(Rival):
    packages = ("fastapi", "uvicorn", "transformers", "torch")
    note = "FP32 on torch, a request is a forward pass"

    def command(self) -> list[str]:
        workers = str(self.settings["workers"])
        return [
            *(str(self.python), "-m", "uvicorn", "fastapi_app:app", "--host", self.host, "--port", str(self.port)),
            *("--workers", workers, "--no-access-log", "--log-level", "warning"),
        ]


class Batching(Rival):
    """A rival with a batcher: so many requests in a batch, waited for so long."""

    def defaults(self, engine: str) -> dict[str, Any]:
        return {"workers": CORES, "threads": 1, "batch": 16, "wait_ms": 5}

    def grid(self) -> list[dict[str, Any]]:
        batches = [{"batch": batch, "wait_ms": wait} for batch, wait in ((1, 0), (8, 2), (16, 5), (32, 10))]
        return [{**self.settings, **shape, **batch} for shape in self.shapes() for batch in batches]


class LitServe(Batching):
    packages = ("litserve", "transformers", "torch", "onnxruntime")

    def grid(self) -> list[dict[str, Any]]:
        return [{**settings, "fast_queue": fast} for settings in super().grid() for fast in (False, True)]

    def command(self) -> list[str]:
        return [str(self.python), "litserve_app.py"]


class Mosec(Batching):
    packages = ("mosec", "transformers", "torch", "onnxruntime")

    def command(self) -> list[str]:
        return [
            *(str(self.python), "mosec_app.py", "--address", self.host, "--port", str(self.port)),
            *("--timeout", "60000", "--log-level", "warning"),
        ]


class Infinity(Rival):
    """infinity has no normalizer, and its ONNX engine does not cut texts: both are done for it, before the run."""

    packages = ("infinity-emb", "optimum", "transformers", "torch", "onnxruntime")
    note = "gets texts that are normalized and cut already"

    def __init__(self, name: str, folder: Path, encoder: Encoder, texts: Sequence[str], engine: str = "torch") -> None:
        super().__init__(name, folder, engine)
        encodings = encoder.encode(texts)
        prepared = encoder.prepare(texts)
        self._texts = {
            text: ready[: encoding.offsets[-2][1]] if encoding.overflowing else ready
            for text, ready, encoding in zip(texts, prepared, encodings, strict=True)
        }
        self.cwd = folder
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]

    def defaults(self, engine: str) -> dict[str, Any]:
        return {"workers": 1, "threads": CORES, "batch": 32, "dtype": "float32"}

    def grid(self) -> list[dict[str, Any]]:
        return [
            {**self.settings, "batch": batch, "threads": threads}
            for batch in (8, 32, 64)
            for threads in sorted({1, CORES})
        ]

    def command(self) -> list[str]:
        engine = "optimum" if self.settings["engine"] == "onnx" else "torch"
        options = {
            "model-id": ".",  # with an absolute path, its ONNX engine does not find the graph
            "served-model-name": "model",
            "engine": engine,
            "device": "cpu",
            "batch-size": self.settings["batch"],
            "dtype": self.settings["dtype"],
            "host": self.host,
            "port": self.port,
            "log-level": "warning",
        }
        flags = ["--no-bettertransformer", "--no-model-warmup", "--onnx-disable-optimize"]
        binary = str(self.python.absolute().parent / "infinity_emb")
        return [binary, "v2", *(f"--{name}={value}" for name, value in options.items()), *flags]

    def body(self, texts: Sequence[str]) -> bytes:
        return json_body({"model": "model", "input": [self._texts.get(text, text) for text in texts]})

    def scores(self, body: bytes) -> np.ndarray:
        rows = [{item["label"]: item["score"] for item in row} for row in json.loads(body)["data"]]
        return np.array([[row[label] for label in self.labels] for row in rows])


RIVALS = ("fastapi", "litserve", "litserve-int8", "mosec", "mosec-int8", "infinity", "infinity-int8")


def rivals(folder: Path, encoder: Encoder, texts: Sequence[str]) -> list[Contender]:
    """All of them, whether they are installed or not."""
    return [
        FastApi("fastapi", folder),
        LitServe("litserve", folder),
        LitServe("litserve-int8", folder, "onnx"),
        Mosec("mosec", folder),
        Mosec("mosec-int8", folder, "onnx"),
        Infinity("infinity", folder, encoder, texts),
        Infinity("infinity-int8", folder, encoder, texts, "onnx"),
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
