"""The ``onnxruntime`` backend for a Triton that comes without the compiled one.

Triton runs this file for every model whose config says ``backend: "onnxruntime"`` when the backend directory holds
``onnxruntime/model.py`` (a "Python-based backend"). It honours the same keys as the compiled backend, so that one model
repository serves on both:

- ``default_model_filename`` (else ``model.onnx``);
- ``parameters``: ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode`` (0 sequential, 1 parallel),
  ``enable_mem_arena`` and ``enable_mem_pattern`` (0 switches off), ``memory.enable_memory_arena_shrinkage``,
  ``session.*`` (passed on to ONNX Runtime as they are);
- ``optimization.graph.level`` (-1 basic, 1 extended, 2 disabled, else all);
- ``optimization.execution_accelerators.gpu_execution_accelerator`` (``cuda``, ``tensorrt``), on a GPU instance only.

- ``allow_ragged_batch`` on an input, which then reaches the graph as one list of the values of all rows, and
  ``batch_input`` of the kind ``BATCH_ITEM_SHAPE``, which tells the graph the shape of each row.

Requests of one call are run as one batch; without ragged inputs they have equal shapes (Triton's batcher joins no
others).

Beyond the compiled backend: files that have not the hashes of their export (``export.json`` of the ensemble) are not
loaded, unless the environment's ``TRITOX_UNVERIFIED`` is 1. Where ``golden.json`` stands beside the graph (token ids,
and the scores that they gave when the model was exported), the graph is run on it when the model loads, and the model
does not become ready when it gives other scores. Integer kernels differ between processors, and files get damaged.

Also beyond it, for a model with one ragged input and these ``parameters``:

- ``ragged_padding``: values equal to it at the end of a row are left out: rows of one request have one width;
- ``max_batch_tokens``: rows of equal length are run together, at most so many values at a time (a row that is longer by
  itself runs alone). On a CPU, rows of unlike lengths in one run cost more than a run for each: the graph lays them out
  for attention, and masks what is padding. Without it, all rows are one run.

and the counters of Triton's metrics ``tritox_encoder_*``: tokens, their padding, rows and runs; and where the parameter
``score_labels`` names the columns of the output (a JSON list), a histogram of the scores of each.
"""

import hashlib
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name, and the labels that it has beyond those of all."""


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """The config is complete as it is: the exporter wrote it."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        file = (
            Path(args["model_repository"])
            / args["model_version"]
            / (config.get("default_model_filename") or "model.onnx")
        )
        if not file.is_file():
            raise pb_utils.TritonModelException(f"{file} is missing: export the model again")
        check_hashes(file.parent)
        self.options = session_options(config)
        self.session = onnxruntime.InferenceSession(
            str(file),
            self.options,
            providers=providers(config, args["model_instance_kind"], args["model_instance_device_id"]),
        )
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.shapes = item_shapes(config)
        check_names("input", [*self.inputs, *self.shapes], {i.name for i in self.session.get_inputs()})
        check_names("output", self.outputs, {o.name for o in self.session.get_outputs()})
        self.ragged = {tensor["name"] for tensor in config["input"] if tensor.get("allow_ragged_batch")}
        parameters = string_parameters(config)
        self.padding = int(parameters["ragged_padding"]) if "ragged_padding" in parameters else None
        self.max_tokens = int(parameters.get("max_batch_tokens", 0)) or None
        golden = file.parent / "golden.json"
        if golden.is_file():
            self.check_golden(json.loads(golden.read_text(encoding="utf-8")))
        self.run_options = onnxruntime.RunOptions()
        shrink = parameters.get("memory.enable_memory_arena_shrinkage")
        if shrink:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrink)
        self.rows_alone = self.padding is not None and self.ragged == set(self.inputs) and len(self.inputs) == 1
        labels = json.loads(parameters.get("score_labels", "[]"))
        self.counters = Counters(args["model_name"], args["model_version"], labels)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers. What one request breaks it breaks for itself: then each is run alone."""
        try:
            return self.answer(requests)
        except Exception as error:  # whatever ONNX Runtime or NumPy says of values that no tokenizer gives
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            wrong = isinstance(error, ValueError) or type(error).__name__ == "InvalidArgument"
            code = pb_utils.TritonError.INVALID_ARG if wrong else pb_utils.TritonError.INTERNAL
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}", code))]

    def answer(self, requests: list[Any]) -> list[Any]:
        if self.rows_alone:
            (name,) = self.inputs
            arrays = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            results = self.run_rows(arrays)
            sizes = [len(array) for array in arrays]
        else:
            batches = {
                name: [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
                for name in self.inputs
            }
            results = self.session.run(self.outputs, self.joined(batches), self.run_options)
            sizes = [len(array) for array in batches[self.inputs[0]]]

        self.counters.observe(results[0])
        responses, start = [], 0
        for size in sizes:
            stop = start + size
            tensors = [
                pb_utils.Tensor(name, result[start:stop]) for name, result in zip(self.outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses

    def finalize(self) -> None:
        self.counters.stop()

    def joined(self, batches: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
        """The requests' tensors as the graph's inputs, by name."""
        feed = {}
        for name, arrays in batches.items():
            if name in self.ragged:
                feed[name] = np.concatenate([array.reshape(-1) for array in arrays])
            else:
                feed[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        for target, source in self.shapes.items():
            shapes = [np.tile(np.array(a.shape[1:], np.int32), (len(a), 1)) for a in batches[source]]
            feed[target] = np.concatenate(shapes)
        return feed

    def run_rows(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs for all rows.

        :param arrays: one per request. *Shape:* ``(rows, width)``
        :raises ValueError: for a row without values.
        """
        if not all(map(np.size, arrays)):
            raise ValueError("a row has no values, must have at least one")
        # on all requests at once: with one comment each, they are many
        lengths = np.repeat([a.shape[1] for a in arrays], [a.shape[0] for a in arrays]).astype(np.int32)
        values = np.concatenate([array.reshape(-1) for array in arrays])
        real = values != self.padding
        if not real.all():
            lengths = np.add.reduceat(real, np.cumsum(lengths) - lengths, dtype=np.int32)
            if not lengths.all():
                raise ValueError("a row is nothing but padding, must have at least one value")
            values = values[real]
        parts = [np.arange(len(lengths))]
        if self.max_tokens is not None and len(lengths) > 1:
            parts = batches_of_equal_length(lengths, self.max_tokens)
        laid_out = sum(int(lengths[part].max()) * len(part) for part in parts)
        self.counters.add(runs=len(parts), rows=len(lengths), tokens=len(values), padding=laid_out - len(values))
        if len(parts) == 1:
            return list(self.session.run(self.outputs, self.row_feed(values, lengths), self.run_options))
        starts = np.cumsum(lengths) - lengths
        whole: list[np.ndarray] = []
        for part in parts:
            places = starts[part][:, None] + np.arange(lengths[part[0]])
            feed = self.row_feed(values[places.reshape(-1)], lengths[part])
            results = self.session.run(self.outputs, feed, self.run_options)
            if not whole:
                whole = [np.empty((len(lengths), *result.shape[1:]), result.dtype) for result in results]
            for target, result in zip(whole, results, strict=True):
                target[part] = result
        return whole

    def row_feed(self, values: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        return {self.inputs[0]: values, **dict.fromkeys(self.shapes, lengths.reshape(-1, 1))}

    def check_golden(self, golden: dict[str, Any]) -> None:
        """:raises TritonModelException: when a golden comment, scored alone, has other scores than at export."""
        worst, where = 0.0, 0
        for i, (row, expected) in enumerate(zip(golden["input_ids"], golden["scores"], strict=True)):
            (scores,) = self.session.run(["scores"], self.joined({"input_ids": [np.array([row], np.int32)]}))
            difference = float(np.abs(scores[0] - np.array(expected)).max())
            if not difference <= worst:  # "not <=", so that NaN counts too
                worst, where = difference, i
        if not worst <= golden["tolerance"]:
            raise pb_utils.TritonModelException(
                f"self-test failed: the scores of the golden comments differ by up to {worst:.4f} from those at "
                f"export, allowed is {golden['tolerance']} (comment {where}): the graph is damaged, or this processor "
                "computes it differently; verify the files with `python -m export.repository verify`, or export again "
                "on this machine"
            )


def check_hashes(folder: Path) -> None:
    """Compare a version's files with their hashes at export, where it was exported.

    :param folder: of the version, in that of the encoder.
    :raises TritonModelException: for the first that is another.
    """
    encoder, number = folder.parent.name, folder.name
    report = folder.parent.parent / encoder.removesuffix("_encoder") / number / "export.json"
    if os.environ.get("TRITOX_UNVERIFIED") == "1" or not report.is_file():
        return
    for name, expected in json.loads(report.read_text(encoding="utf-8")).get("files", {}).items():
        file = folder.parent.parent / name
        if name.startswith(f"{encoder}/{number}/") and hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise pb_utils.TritonModelException(
                f"{file.name} is damaged or was changed, its hash is not that of its export: restore it or export again"
            )


class Counters:
    """Counters of Triton's metrics; they belong to the model, all of its instances add to them.

    :param score_labels: of the scores, for their histograms, which are counters with the label ``le``, as Prometheus
        stores them; without labels there are none.
    """

    HELP = {
        "runs_total": "Runs of the graph",
        "rows_total": "Rows that the graph was run on",
        "tokens_total": "Tokens that the graph was run on, without padding",
        "padding_total": "Padding tokens that the graph laid out beside them",
    }
    SCORES = {
        "score_bucket": "Scores up to le",
        "score_count": "Scores",
        "score_sum": "Sum of the scores",
    }

    def __init__(self, model: str, version: str, score_labels: list[str]) -> None:
        self.own = {"model": model, "version": version}
        self.score_labels = score_labels
        texts = {**self.HELP, **(self.SCORES if score_labels else {})}
        self.families = {  # a metric lives as long as its family
            name: pb_utils.MetricFamily(
                name=f"tritox_encoder_{name}", description=text, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, text in texts.items()
        }
        self.metrics: dict[Series, Any] = {}
        self.waiting: dict[Series, float] = {(name, ()): 0.0 for name in self.HELP}
        # so that they are there from the start, as zeros: Prometheus sees a counter grow from its second value on
        for series in (*self.waiting, *self.histogram(np.zeros((0, len(score_labels)), np.float32))):
            self.metric(series)
        self.scores: list[np.ndarray] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.send, daemon=True)
        self.thread.start()

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                self.waiting[f"{name}_total", ()] += count

    def observe(self, scores: np.ndarray) -> None:
        """:param scores: not to be changed afterwards. *Shape:* ``(rows, labels)``"""
        if self.score_labels:
            with self.lock:
                self.scores.append(scores)

    def send(self) -> None:
        """Each counter costs a message to Triton, so they are sent a few times a second, and not with every run;
        histograms, which are many, every few seconds.
        """
        for tick in itertools.count(1):
            stopped = self.stopped.wait(SECONDS_BETWEEN_COUNTS)
            scores: list[np.ndarray] = []
            with self.lock:
                counts, self.waiting = self.waiting, dict.fromkeys(self.waiting, 0.0)
                if tick % TICKS_BETWEEN_HISTOGRAMS == 0:
                    scores, self.scores = self.scores, []
            if stopped:
                return
            if scores:
                counts.update(self.histogram(np.concatenate(scores)))
            for series, count in counts.items():
                if count:
                    self.metric(series).increment(count)

    def histogram(self, scores: np.ndarray) -> dict[Series, float]:
        found: dict[Series, float] = {}
        for label, column in zip(self.score_labels, scores.T, strict=True):
            up_to = np.searchsorted(np.sort(column), np.array(SCORE_BOUNDS, np.float32), side="right")
            for bound, count in zip((*SCORE_BOUNDS, "+Inf"), (*up_to, len(column)), strict=True):
                found["score_bucket", (("label", label), ("le", str(bound)))] = float(count)
            found["score_count", (("label", label),)] = float(len(column))
            found["score_sum", (("label", label),)] = float(np.nansum(column, dtype=np.float64))
        return found

    def metric(self, series: Series) -> Any:
        if series not in self.metrics:
            name, more = series
            self.metrics[series] = self.families[name].Metric(labels={**self.own, **dict(more)})
        return self.metrics[series]

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


SECONDS_BETWEEN_COUNTS = 0.25
TICKS_BETWEEN_HISTOGRAMS = 12
SCORE_BOUNDS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def batches_of_equal_length(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Row numbers in batches of at most ``max_tokens``, or of one row; longest first.

    :param lengths: of the rows. *Shape:* ``(rows,)``
    """
    order = np.argsort(-lengths, kind="stable")
    parts = []
    for rows in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        most = max(1, max_tokens // int(lengths[rows[0]]))
        parts += [rows[at : at + most] for at in range(0, len(rows), most)]
    return parts


def item_shapes(config: dict[str, Any]) -> dict[str, str]:
    """The graph's inputs that hold the shapes of rows, and the input whose rows they are of.

    :raises TritonModelException: for a ``batch_input`` of another kind.
    """
    shapes = {}
    for batch_input in config.get("batch_input", []):
        if batch_input["kind"] != "BATCH_ITEM_SHAPE" or batch_input["data_type"] != "TYPE_INT32":
            raise pb_utils.TritonModelException(
                f"the config has a batch_input of {batch_input['kind']}, {batch_input['data_type']}: this backend "
                "knows BATCH_ITEM_SHAPE, TYPE_INT32"
            )
        for target in batch_input["target_name"]:
            shapes[target] = batch_input["source_input"][0]
    return shapes


def string_parameters(config: dict[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    parameters = string_parameters(config)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    if int(parameters.get("execution_mode", 0)) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = int(parameters.get("enable_mem_arena", 1)) != 0
    options.enable_mem_pattern = int(parameters.get("enable_mem_pattern", 1)) != 0
    levels = {
        -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = levels.get(level, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    options.log_severity_level = 3
    return options


def providers(config: dict[str, Any], kind: str, device_id: str) -> list[Any]:
    """The execution providers for an instance: the CPU's always, a GPU's before it where the instance is on a GPU."""
    chosen: list[Any] = []
    if kind == "GPU":
        accelerators = config.get("optimization", {}).get("execution_accelerators", {})
        names = [a["name"] for a in accelerators.get("gpu_execution_accelerator", [])]
        available = onnxruntime.get_available_providers()
        for name, provider in (("tensorrt", "TensorrtExecutionProvider"), ("cuda", "CUDAExecutionProvider")):
            if name != "cuda" and name not in names:
                continue
            if provider not in available:
                raise pb_utils.TritonModelException(
                    f"the model is placed on a GPU, but this onnxruntime has only {', '.join(available)}: install "
                    "onnxruntime-gpu, or set instance_group kind to KIND_CPU"
                )
            chosen.append((provider, {"device_id": int(device_id)}))
    return [*chosen, "CPUExecutionProvider"]


def check_names(what: str, wanted: list[str], found: set[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise pb_utils.TritonModelException(
            f"the config names the {what} {', '.join(missing)}, but the ONNX graph has {', '.join(sorted(found))}"
        )
