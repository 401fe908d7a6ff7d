"""From artifact to published version: trace, fuse, convert, compare, publish."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from argparse import Namespace
from dataclasses import asdict
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from export import graph, parity, triton
from export.repository import new_version
from train.artifact import Layout, git_commit, machine, write_json
from train.model import ToxicityClassifier, load


def export(arguments: Namespace) -> None:
    """Build the graphs, compare them, and publish; the repository stays as it was whenever this raises."""
    if arguments.comments < 1:
        raise triton.InvalidSettings(f"--comments is {arguments.comments}, must be at least 1")
    layout = Layout(arguments.artifact)
    model, tokenizer, labels = load(arguments.artifact)
    info = layout.read_training_info()
    settings = triton.ServingSettings(
        name=arguments.name,
        labels=labels.labels,
        thresholds=labels.thresholds,
        problem_type=model.config.problem_type,
        max_tokens=model.config.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        precision="fp32" if arguments.quantize == "none" else arguments.quantize,
        provenance={
            "trained_at_commit": str(info.get("git_commit")),
            "data_sha256": str(info.get("data", {}).get("sha256")),
        },
        buckets=triton.ServingSettings.default_buckets(model.config.max_tokens),
        max_batch_size=arguments.max_batch_size,
        instances=arguments.instances,
        intra_op_threads=arguments.intra_op_threads,
        normalize=model.config.normalize,
    )
    with tempfile.TemporaryDirectory() as scratch:
        traced, fused, published = (Path(scratch) / f"{name}.onnx" for name in ("traced", "fused", "published"))
        print(f"exporting {arguments.artifact} to ONNX")
        graph.trace(model, traced)
        operators = graph.fuse(traced, fused, model.encoder.config, arguments.allow_unfused)
        print(f"fused operators: {', '.join(f'{n} {name}' for name, n in operators.items()) or 'none'}")
        if settings.precision == "int8":
            graph.quantize_int8(fused, published)
        elif settings.precision == "fp16":
            graph.halve(fused, published)
        else:
            shutil.copyfile(fused, published)

        rows = layout.read_validation()
        random.Random(17).shuffle(rows)
        gate = parity.Gate(arguments.max_auc_drop, arguments.max_flip_rate)
        differences = compare(model, fused, published, layout, settings, rows[: arguments.comments], gate)
        report = {
            "settings": asdict(settings),
            "gate": asdict(gate),
            "fused_operators": operators,
            "parity": differences,
            "machine": machine(),
            "git_commit": git_commit(),
            "versions": {p: package_version(p) for p in ("torch", "transformers", "optimum-onnx", "onnxruntime")},
            "training": {k: info.get(k) for k in ("metrics", "data", "seed", "seconds", "git_commit", "versions")},
        }
        number = publish(arguments.repository, settings, published, layout, report)
        size_mb = published.stat().st_size / 1e6
    print(
        f"\npublished version {number} of {settings.name} in {arguments.repository} "
        f"({size_mb:.1f} MB, {settings.precision})"
    )


def compare(
    model: ToxicityClassifier,
    fused: Path,
    published: Path,
    layout: Layout,
    settings: triton.ServingSettings,
    rows: list[dict[str, Any]],
    gate: parity.Gate,
) -> dict[str, Any]:
    """Score ``rows`` with torch, with the fused FP32 graph and with the one to be published.

    Where the model has a normalizer, the texts pass it first, as they do when served.

    :returns: the differences of each graph from torch, by precision.
    :raises GateFailed: when one is beyond what its gate allows.
    """
    reader = Tokenizer.from_file(str(layout.tokenizer_json))
    reader.no_padding()
    reader.enable_truncation(settings.max_tokens)
    texts = [row["text"] for row in rows]
    if model.normalizer is not None:
        texts = [model.normalizer(text) for text in texts]
    truth = np.array([row["labels"] for row in rows])

    def scores(scorer: parity.Scorer, what: str) -> Any:
        return parity.score(
            scorer,
            reader,
            texts,
            buckets=settings.buckets,
            pad_id=settings.pad_token_id,
            labels=len(settings.labels),
            progress=what,
        )

    def torch_scorer(input_ids: Any, mask: Any) -> Any:
        with torch.inference_mode():
            return model.scores(torch.from_numpy(input_ids), torch.from_numpy(mask)).numpy()

    reference = scores(torch_scorer, "torch")
    graphs = {"fp32": fused} if settings.precision == "fp32" else {"fp32": fused, settings.precision: published}
    differences = {}
    for precision, path in graphs.items():
        session = graph.session(path)
        candidate = scores(lambda ids, mask, s=session: graph.run(s, ids, mask), f"onnx {precision}")  # type: ignore[misc]
        differences[precision] = parity.compare(reference, candidate, truth, settings.labels, settings.thresholds)
        print(f"\ntorch -> onnx {precision}\n{parity.table(differences[precision])}")
        if precision == "fp32":
            parity.check_fp32(differences[precision])
        else:
            parity.check(differences[precision], gate)
    return differences


def publish(
    repository: Path, settings: triton.ServingSettings, model: Path, artifact: Layout, report: dict[str, Any]
) -> int:
    """Write the next version of the three models; returns its number.

    :param artifact: gives the tokenizer and, where the settings ask for it, the normalizer.
    """
    ensemble, tokenizer_name, encoder = triton.model_names(settings.name)
    # the ensemble last: until its version is there, nobody asks for the others
    with new_version(repository, (encoder, tokenizer_name, ensemble)) as (number, staging):
        for name, text in triton.render(settings).items():
            (staging / name / "config.pbtxt").write_text(text, encoding="utf-8")
        shutil.copyfile(model, staging / encoder / str(number) / "model.onnx")
        folder = staging / tokenizer_name / str(number)
        shutil.copyfile(artifact.tokenizer_json, folder / "tokenizer.json")
        shutil.copyfile(triton.TOKENIZER_TEMPLATE, folder / "model.py")
        if settings.normalize:
            shutil.copyfile(artifact.normalizer, folder / "normalizer.py")
        write_json(staging / ensemble / str(number) / "export.json", report)
    return number


def settings_of(export_json: Path) -> triton.ServingSettings:
    """The settings that a published version was rendered from, read back from its ``export.json``."""
    raw = json.loads(export_json.read_text(encoding="utf-8"))["settings"]
    return triton.ServingSettings(**{**raw, "labels": tuple(raw["labels"]), "buckets": tuple(raw["buckets"])})
