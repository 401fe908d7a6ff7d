"""A model that does next to nothing, in place of an encoder: what is left of a server's time is its own.

The tokenizer is the real one. The scores are a function of the sum of a comment's token ids, so that a mixed-up answer
is found.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from export import ragged
from export.repository import ModelVersions, sha256, staging_folder
from export.triton import model_names, served_version

PERIOD = 1009.0
"""Sums that differ by a multiple of it give the same scores; all below it are whole numbers in FP32."""


def write(source: Path, target: Path, name: str = "toxicity") -> None:
    """Copy the model ``name`` from one repository to a new one, with a near-empty encoder.

    :raises FileNotFoundError: when the source has no such model with a tokenizer.
    """
    version, _ = served_version(source / name / "config.pbtxt")
    for part in model_names(name):
        if not (source / part / str(version)).is_dir():
            raise FileNotFoundError(
                f"{source / part} has no version {version}: only transformers have a tokenizer model"
            )
        shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
    encoder = model_names(name)[-1]
    folder = target / encoder / str(version)
    graph(folder / "model.onnx")
    renew_golden(folder)
    report = target / name / str(version) / "export.json"
    content = json.loads(report.read_text(encoding="utf-8"))
    for file in ("model.onnx", "golden.json"):
        content["files"][f"{encoder}/{version}/{file}"] = sha256(folder / file)
    report.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def add_version(repository: Path, name: str = "toxicity", shift: float = 0.5, threshold: float = 0.25) -> int:
    """Publish, but do not serve, one more version of what :func:`write` wrote. Its scores differ from those of every
    other version by ``shift`` before the sigmoid, and every label has the same threshold, so that an answer that was
    made of two versions is found.

    :returns: its number.
    """
    versions = ModelVersions(repository, name)
    served, _ = versions.served()
    settings = versions.settings(served)
    settings = replace(settings, thresholds=dict.fromkeys(settings.labels, threshold))
    with staging_folder(repository) as staging:
        for part in model_names(name):
            ignored = shutil.ignore_patterns("__pycache__", "export.*", "reference.json")
            shutil.copytree(repository / part / str(served), staging / part, ignore=ignored)
        folder = staging / model_names(name)[-1]
        graph(folder / "model.onnx", shift)
        renew_golden(folder)
        report = {**(versions.read_report(served) or {}), "settings": asdict(settings)}
        return versions.publish(settings, staging, {k: v for k, v in report.items() if k != "version"}, promote=False)


def renew_golden(folder: Path) -> None:
    """Make ``golden.json`` the scores of the graph beside it."""
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    session = InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    scores = []
    for row in golden["input_ids"]:
        ids = np.array([row], np.int32)
        inputs = ragged.feed(ids, np.ones_like(ids))
        scores.append([float(s) for s in session.run(["scores"], inputs)[0][0]])
    golden.update(scores=scores, tolerance=1e-4)
    (folder / "golden.json").write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")


def graph(file: Path, shift: float = 0.0) -> None:
    """Replace the encoder's graph in ``file``.

    :param shift: is added to the logits.
    """
    old = onnx.load(str(file)).graph
    labels = old.output[0].type.tensor_type.shape.dim[1].dim_value
    constants = {
        "axes": np.array([1], np.int64),
        "period": np.array(PERIOD, np.float32),
        "shift": np.array(shift, np.float32),
        "weights": np.linspace(-8, 8, labels, dtype=np.float32).reshape(1, labels) / np.float32(PERIOD),
    }
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mod", ["sum", "period"], ["rest"], fmod=1),
        helper.make_node("MatMul", ["rest", "weights"], ["product"]),
        helper.make_node("Add", ["product", "shift"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], [old.output[0].name]),
    ]
    new = helper.make_graph(
        nodes,
        "near_empty",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "tokens"])],
        list(old.output),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(new, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(ragged.accept_ragged(model, 0), str(file))  # padding adds 0 to the sum
