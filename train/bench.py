"""What training costs on this machine: comments/s and peak memory of each recipe, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train import data, linear, loop, model, ngrams
from train.artifact import git_commit, machine, write_json
from train.config import DataConfig, InvalidConfig, Recipe, read_recipe, shipped_recipes
from train.fit import build, positive_rows

ROWS = 20_000
"""Comments that vocabularies and linear models are learnt from; a transformer trains on the first batches of them."""


def bench(path: Path, recipes: Sequence[str] | None, steps: int, out: Path | None) -> dict[str, Any]:
    """Measure ``recipes`` (all shipped ones by default) one after the other.

    A transformer trains ``steps`` optimizer steps on batches of real lengths, at its full size and with random weights
    where the recipe knows its architecture: neither speed nor memory depends on the weights. A linear model is fitted
    whole on :data:`ROWS` comments. All train on Jigsaw's comments, hate-speech recipes too.

    :param out: a JSON file to write the result to.
    :raises InvalidConfig: for an unknown recipe; or, when all the others are measured and written, for those that fail.
    """
    names = list(recipes or shipped_recipes())
    unknown = sorted(set(names) - set(shipped_recipes()))
    if unknown:
        raise InvalidConfig(f"no recipe {', '.join(unknown)}: choose from {', '.join(shipped_recipes())}")
    rows, failed = {}, []
    for name in names:
        sys.stderr.write(f"{name} ...\n")
        code = "import sys; from train.bench import measure; measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        command = [sys.executable, "-c", code, name, str(path), str(steps)]
        # a process of its own: peak memory is the process's
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if process.returncode != 0:
            failed.append(name)
            continue
        rows[name] = json.loads(process.stdout.splitlines()[-1])
    result = {"recipes": rows, "machine": machine(), "threads": torch.get_num_threads(), "git_commit": git_commit()}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)
    if failed:
        raise InvalidConfig(f"{', '.join(failed)} could not be measured, the others were; the errors are above")
    return result


def measure(name: str, path: str, steps: int) -> None:
    """Measure one recipe, in this process, and write the result as a line of JSON to standard output."""
    recipe = read_recipe(name)
    config = DataConfig(validation={"fraction": 0.02}, tuning={"fraction": 0.02})
    splits = data.read_splits(Path(path), config, recipe.train.seed)
    rows = np.random.default_rng(17).permutation(len(splits.train))[:ROWS]
    texts, labels = [splits.train.texts[i] for i in rows], splits.train.labels[rows]
    if recipe.encoder is not None:
        result = measure_transformer(recipe, texts, labels, steps)
    elif recipe.ngrams is not None:
        started = time.monotonic()
        hashed = ngrams.fit_ngrams(recipe.ngrams, texts, labels)
        cost = loop.throughput(time.monotonic() - started, len(texts))
        result = {"parameters": int(hashed.codes.size), "trained": int(hashed.codes.size), **cost}
    else:
        result = measure_linear(recipe, texts, labels, splits)
    sys.stdout.write(json.dumps(result) + "\n")


def measure_linear(recipe: Recipe, texts: list[str], labels: np.ndarray, splits: data.Splits) -> dict[str, Any]:
    """:returns: see :func:`train.loop.throughput`, and the number of parameters."""
    assert recipe.linear is not None
    started = time.monotonic()
    fitted = linear.fit_linear(recipe.linear, texts, labels, splits.labels, splits.problem_type, recipe.train.seed)
    cost = loop.throughput(time.monotonic() - started, len(texts))
    return {"parameters": int(fitted.weights.size), "trained": int(fitted.weights.size), **cost}


def measure_transformer(recipe: Recipe, texts: list[str], labels: np.ndarray, steps: int) -> dict[str, Any]:
    """:returns: see :func:`train.loop.throughput`, the number of parameters and of those that are trained."""
    assert recipe.encoder is not None
    network, tokenizer = build(
        recipe.encoder, texts, normalize=recipe.data.normalize, random_weights=recipe.encoder.config is not None
    )
    trained = model.freeze(network, recipe.encoder.freeze_embeddings, recipe.encoder.freeze_layers)
    config = recipe.train
    positive = positive_rows(labels, network.config.problem_type)
    texts = texts[: steps * config.batch_size * config.accumulation]
    examples = loop.Examples(
        texts, labels[: len(texts)], lambda t: model.tokenize(network, tokenizer, t), config.pretokenize
    )
    sampler = loop.LikeLengths(examples.lengths, positive[: len(texts)], config.batch_size, config.seed)
    with tempfile.TemporaryDirectory() as scratch:
        cost = loop.run(
            loop.Objective(network, config, mask_id=tokenizer.mask_token_id),
            examples,
            sampler,
            config,
            Path(scratch),
            tokenizer.pad_token_id,
            lambda: {},
            max_steps=steps,
        )
    return {"parameters": sum(p.numel() for p in network.parameters()), "trained": trained, **cost}


def markdown(result: dict[str, Any]) -> str:
    """The results as the table that stands in README."""
    lines = ["| recipe | parameters, M | comments/s | peak memory, GB |", "|---|---:|---:|---:|"]
    for name, row in result["recipes"].items():
        size, peak = row["parameters"] / 1e6, row["peak_memory_bytes"] / 1e9
        lines.append(f"| {name} | {size:.1f} | {row['comments_per_s']:.1f} | {peak:.1f} |")
    return "\n".join(lines)
