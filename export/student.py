"""A small encoder as a stage of a cascade: its artifact as one INT8 graph, and what its stage's entry says of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx

from export import cpu, graph, pipeline, precision, ragged, triton
from train.artifact import Layout

BATCH_TOKENS = 256
"""Rows are run together up to so many tokens; half or twice as many are not faster."""


def write(folder: Path, name: str, artifact: Layout) -> dict[str, Any]:
    """Write the stage's files: ``<name>.onnx``, ``<name>.tokenizer.json`` and the code that tokenizes.

    Padded, not packed: at this size, gathering rows costs more than the padding of like lengths.

    :returns: what ``settings.json`` says of the stage, but for its exits.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fused, small = graph.fused_artifact(artifact.folder, Path(scratch)), Path(scratch) / "int8.onnx"
        onnx.save(cpu.unfuse(onnx.load(fused)), fused)
        precision.quantize(fused, small, precision.DYNAMIC)
        whole = ragged.accept_ragged(onnx.load(small), pipeline.pad_token_id(artifact))
        onnx.save(whole, folder / f"{name}.onnx")
    shutil.copyfile(artifact.tokenizer_json, folder / f"{name}.tokenizer.json")
    shutil.copyfile(triton.TEMPLATES / "fast_tokenizer.py", folder / "fast_tokenizer.py")
    return {
        "name": name,
        "kind": "onnx",
        "file": f"{name}.onnx",
        "tokenizer": f"{name}.tokenizer.json",
        "max_tokens": artifact.read_config().max_tokens,
        "batch_tokens": BATCH_TOKENS,
    }
