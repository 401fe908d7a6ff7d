"""The ``onnxruntime`` backend for a Triton that comes without the compiled one.

Triton runs this file for every model whose config says ``backend: "onnxruntime"`` when the backend directory holds
``onnxruntime/model.py`` (a "Python-based backend"). It honours the same keys as the compiled backend, so that one model
repository serves on both:

- ``default_model_filename`` (else ``model.onnx``);
- ``parameters``: ``intra_op_thread_count``, ``inter_op_thread_count``, ``execution_mode`` (0 sequential, 1 parallel),
  ``memory.enable_memory_arena_shrinkage``, ``session.*`` (passed on to ONNX Runtime as they are);
- ``optimization.graph.level`` (-1 basic, 1 extended, 2 disabled, else all);
- ``optimization.execution_accelerators.gpu_execution_accelerator`` (``cuda``, ``tensorrt``), on a GPU instance only.

All requests of one call have equal shapes (Triton's dynamic batcher joins no others): they are run as one batch.

Beyond the compiled backend: where ``golden.json`` stands beside the graph (token ids, and the scores that they gave
when the model was exported), the graph is run on it when the model loads, and the model does not become ready when it
gives other scores. Integer kernels differ between processors, and files get damaged.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


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
        self.options = session_options(config)
        self.session = onnxruntime.InferenceSession(
            str(file),
            self.options,
            providers=providers(config, args["model_instance_kind"], args["model_instance_device_id"]),
        )
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        check_names("input", self.inputs, {i.name for i in self.session.get_inputs()})
        check_names("output", self.outputs, {o.name for o in self.session.get_outputs()})
        golden = file.parent / "golden.json"
        if golden.is_file():
            check_golden(self.session, json.loads(golden.read_text(encoding="utf-8")))
        self.run_options = onnxruntime.RunOptions()
        shrink = string_parameters(config).get("memory.enable_memory_arena_shrinkage")
        if shrink:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrink)

    def execute(self, requests: list[Any]) -> list[Any]:
        batches = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        if len(batches) == 1:
            feed = dict(zip(self.inputs, batches[0], strict=True))
        else:
            feed = {
                name: np.concatenate(arrays)
                for name, arrays in zip(self.inputs, zip(*batches, strict=True), strict=True)
            }
        results = self.session.run(self.outputs, feed, self.run_options)

        responses, start = [], 0
        for batch in batches:
            stop = start + len(batch[0])
            tensors = [
                pb_utils.Tensor(name, result[start:stop]) for name, result in zip(self.outputs, results, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses


def string_parameters(config: dict[str, Any]) -> dict[str, str]:
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def session_options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    parameters = string_parameters(config)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    if int(parameters.get("execution_mode", 0)) == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
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


def check_golden(session: onnxruntime.InferenceSession, golden: dict[str, Any]) -> None:
    """:raises TritonModelException: when a golden comment, scored alone, has other scores than at export."""
    worst, where = 0.0, 0
    for i, (row, expected) in enumerate(zip(golden["input_ids"], golden["scores"], strict=True)):
        input_ids = np.array([row], np.int32)
        (scores,) = session.run(["scores"], {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)})
        difference = float(np.abs(scores[0] - np.array(expected)).max())
        if not difference <= worst:  # "not <=", so that NaN counts too
            worst, where = difference, i
    if not worst <= golden["tolerance"]:
        raise pb_utils.TritonModelException(
            f"self-test failed: the scores of the golden comments differ by up to {worst:.4f} from those at export, "
            f"allowed is {golden['tolerance']} (comment {where}): the graph is damaged, or this processor computes it "
            "differently; verify the files with `python -m export.repository verify`, or export again on this machine"
        )


def check_names(what: str, wanted: list[str], found: set[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise pb_utils.TritonModelException(
            f"the config names the {what} {', '.join(missing)}, but the ONNX graph has {', '.join(sorted(found))}"
        )
