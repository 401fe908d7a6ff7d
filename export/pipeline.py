"""From artifact to published version: trace, fuse, convert, compare, measure, publish."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

from export import cpu, golden, graph, packing, parity, precision, ragged, speed, triton
from export.linear_scorer import LinearScorer
from export.repository import ModelVersions, sha256, staging_folder
from train import metrics
from train.artifact import InvalidArtifact, Layout, git_commit, load_normalizer, machine, write_json
from train.bias import BiasSet, read_madlibs
from train.linear import load as load_linear
from train.model import ToxicityClassifier, load

SAMPLE = 256
"""Validation comments that torch scores again: that the recorded scores are of these weights, and the graph right."""

SPEED_COMMENTS = 128
CALIBRATION_COMMENTS = 128
SENSITIVE = 3
"""How many layers stay in FP32 in the candidate that spares the most sensitive ones."""


class Refused(ValueError):
    """What is asked for makes no sense, or cannot be made of this artifact."""


@dataclass
class Candidate:
    """One form that the model could be published in.

    :ivar rates: comments a second, by kind of traffic. :ivar report: the comparison with the artifact.
    :ivar thresholds: those it was compared with.
    """

    name: str
    file: Path
    padding_free: bool
    rates: dict[str, float] | None = None
    report: dict[str, Any] | None = None
    thresholds: dict[str, float] = field(default_factory=dict)

    def failures(self, gate: parity.Gate) -> list[str]:
        return parity.failures(self.report, gate) if self.report is not None else []


@dataclass
class Subject:
    """What is exported, and what its candidates are compared on.

    :ivar ids: token ids of the validation comments. :ivar reference: the artifact's scores of them.
    """

    layout: Layout
    model: ToxicityClassifier
    settings: triton.ServingSettings
    encode: Callable[[Sequence[str]], list[list[int]]]
    ids: list[list[int]]
    truth: np.ndarray
    reference: np.ndarray

    def score(self, scorer: parity.Scorer, ids: Sequence[Sequence[int]], progress: str) -> np.ndarray:
        s = self.settings
        return parity.score(scorer, ids, pad_id=s.pad_token_id, labels=len(s.labels), progress=progress)

    def torch(self, ids: Sequence[Sequence[int]], progress: str) -> np.ndarray:
        def scorer(input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return self.model.scores(torch.from_numpy(input_ids).long(), torch.from_numpy(mask).long()).numpy()

        return self.score(scorer, ids, progress)

    def compare(self, scores: np.ndarray, thresholds: dict[str, float] | None = None) -> dict[str, Any]:
        s = self.settings
        return parity.compare(
            self.reference, scores, self.truth, s.labels, s.thresholds, s.problem_type, candidate_thresholds=thresholds
        )


def export(arguments: Namespace) -> None:
    """Build the forms, compare them, and publish one; the repository stays as it was whenever this raises."""
    layout = Layout(arguments.artifact)
    layout.check()
    linear = layout.read_config().kind == "linear"
    target, method = check_request(arguments, linear)
    versions = ModelVersions(arguments.repository, arguments.name)
    settings = settings_of(arguments, layout, target)
    if versions.config.is_file():
        versions.check_like(settings)  # before minutes of work, not behind them
    gate = parity.Gate(arguments.max_auc_drop, arguments.max_flip_rate, arguments.max_bias_shift)
    with staging_folder(arguments.repository) as staging, tempfile.TemporaryDirectory() as scratch:
        if linear:
            settings, report = stage_linear(layout, settings, arguments.comments, staging)
        else:
            settings, report = stage_transformer(arguments, layout, settings, gate, method, Path(scratch), staging)
        info = layout.read_training_info()
        report = {
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model_version": model_version(layout),
            "settings": asdict(settings),
            "gate": asdict(gate),
            **report,
            "machine": machine(),
            "git_commit": git_commit(),
            "versions": {p: package_version(p) for p in ("torch", "transformers", "optimum-onnx", "onnxruntime")},
            "training": {k: info.get(k) for k in ("metrics", "data", "seed", "seconds", "git_commit", "versions")},
        }
        number = versions.publish(settings, staging, report, promote=not arguments.no_promote)
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.report, {"artifact": arguments.artifact.name, **report})
    served, _ = versions.served()
    print(
        f"\npublished version {number} of {settings.name} in {arguments.repository} ({report['bytes'] / 1e6:.1f} MB, "
        f"{settings.precision}); served from the next start on: version {served}"
    )


def check_request(arguments: Namespace, linear: bool) -> tuple[str, str]:
    """The target and the method of quantization that are meant.

    :raises Refused: for what makes no sense together, with the reason.
    """
    quantize, method = arguments.quantize, arguments.method
    target = arguments.target or ("cuda" if quantize == "fp16" else "cpu")
    if arguments.comments < 1:
        raise Refused(f"--comments is {arguments.comments}, must be at least 1")
    if linear and (quantize != "none" or target != "cpu"):
        raise Refused(
            f"the artifact is a linear model, asked for is {quantize} on {target}: its scores are one sum over a "
            "comment's words, computed on the CPU; use --quantize none"
        )
    if quantize == "int8" and target == "cuda":
        raise Refused(
            "INT8 on the CUDA provider is slower than FP32: ONNX Runtime has few integer kernels for it and copies "
            "states back and forth. Use --quantize fp16, or --target tensorrt for INT8 on a GPU"
        )
    if quantize == "fp16" and target == "cpu":
        raise Refused(
            "FP16 on a CPU is slower than FP32: the kernels convert to FP32 and back. Use --quantize int8 or none, or "
            "--target cuda"
        )
    if quantize != "int8" and method is not None:
        raise Refused(f"--method is for --quantize int8, not {quantize}: leave it out")
    if target == "tensorrt" and method in ("dynamic", "auto"):
        raise Refused(f"TensorRT knows static INT8 alone, --method is {method}: leave it out")
    static = target == "tensorrt" or method in ("static", "auto")
    if (static and quantize == "int8") or arguments.retune:
        file = Layout(arguments.artifact).tuning
        if not file.is_file():
            raise Refused(
                f"{file} is missing, and calibration and --retune need its comments: train again, or use --method "
                "dynamic without --retune"
            )
    return target, method or ("static" if target == "tensorrt" else "dynamic")


def settings_of(arguments: Namespace, layout: Layout, target: str) -> triton.ServingSettings:
    config, labels, info = layout.read_config(), layout.read_labels(), layout.read_training_info()
    return triton.ServingSettings(
        name=arguments.name,
        labels=labels.labels,
        thresholds=labels.thresholds,
        problem_type=config.problem_type,
        max_tokens=config.max_tokens,
        pad_token_id=0 if config.kind == "linear" else pad_token_id(layout),
        precision="fp32" if arguments.quantize == "none" else arguments.quantize,
        provenance={
            "trained_at_commit": str(info.get("git_commit")),
            "data_sha256": str(info.get("data", {}).get("sha256")),
            "model_version": str(model_version(layout)),
            **({"normalizer": sha256(layout.normalizer)[:12]} if config.normalize else {}),
        },
        kind=config.kind,
        target=target,
        max_batch_size=arguments.max_batch_size,
        instances=arguments.instances,
        max_queue_ms=arguments.max_queue_ms,
        intra_op_threads=arguments.intra_op_threads,
        normalize=config.normalize,
    )


def pad_token_id(layout: Layout) -> int:
    token = json.loads((layout.tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    number = Tokenizer.from_file(str(layout.tokenizer_json)).token_to_id(
        token["content"] if isinstance(token, dict) else token
    )
    if number is None:
        raise InvalidArtifact(f"{layout.tokenizer} names the padding token {token!r}, which its vocabulary lacks")
    return int(number)


def model_version(layout: Layout) -> str | None:
    if not layout.model_version.is_file():
        return None
    return str(json.loads(layout.model_version.read_text(encoding="utf-8"))["version"])


def stage_transformer(
    arguments: Namespace,
    layout: Layout,
    settings: triton.ServingSettings,
    gate: parity.Gate,
    method: str,
    scratch: Path,
    staging: Path,
) -> tuple[triton.ServingSettings, dict[str, Any]]:
    """Write the tokenizer's and the encoder's files; returns the settings that were decided on, and the report.

    :raises FusionFailed: when the encoder lost a fused operator.
    :raises GateFailed: when no form passes the gate.
    :raises Refused: for what cannot be made of this artifact.
    """
    print(f"exporting {arguments.artifact} to ONNX")
    subject = read_subject(layout, settings, arguments.comments)
    traced, fused = scratch / "traced.onnx", scratch / "fused.onnx"
    encoder = graph.trace(subject.model, traced)
    if settings.target == "tensorrt":  # which has fused operators of its own
        operators: dict[str, int] = {}
        forms = {"padded": traced}
    else:
        operators = graph.fuse(traced, fused, encoder, arguments.allow_unfused)
        print(f"fused operators: {', '.join(f'{n} {name}' for name, n in operators.items()) or 'none'}")
        if settings.target == "cpu":
            onnx.save(cpu.unfuse(onnx.load(fused)), fused)
        forms = padded_and_packed(fused, settings, arguments.padding_free)
    parities = check_forms(subject, forms)
    rows = speed.mixes(subject.ids[:SPEED_COMMENTS], settings.pad_token_id)
    fp32 = [Candidate(f"fp32, {form}", file, form == "packed") for form, file in forms.items()]
    candidates = convert(subject, fp32, method, rows, scratch)
    everything = [*fp32, *(c for c in candidates if c not in fp32)]
    if settings.target == "cpu":
        rates = speed.measure({c.name: graph.session(c.file, 1) for c in everything}, rows)
        for candidate in everything:
            candidate.rates = rates[candidate.name]
        candidates.sort(key=lambda c: -speed.overall(c.rates or {}))
    identities = (
        read_madlibs(arguments.identity_data)
        if arguments.identity_data is not None
        else parity.identity_sentences(settings.labels)
    )
    chosen = judge(candidates, subject, gate, identities, fp32[-1].file, arguments.retune, every=method == "auto")
    forms_table = candidates_table(everything, gate)
    shown = chosen or candidates[0]
    comparison = f"artifact -> {shown.name}\n{parity.table(shown.report or {})}"
    print(f"\n{forms_table}\n\n{comparison}")
    if chosen is None:
        parity.check(shown.report or {}, gate)
    assert chosen is not None
    neighbours = neighbour_effect(chosen.file, subject, rows)
    print(
        f"a score moves by up to {neighbours['max_difference']:.5f} (mean {neighbours['mean_difference']:.6f}) with "
        "the comments that are scored beside it"
    )
    settings = replace(settings, thresholds=chosen.thresholds)
    write_encoder(staging / f"{settings.name}_encoder", chosen.file, subject)
    write_tokenizer(staging / f"{settings.name}_tokenizer", settings, subject)
    (staging / settings.name).mkdir()
    (staging / settings.name / "export.txt").write_text(f"{forms_table}\n\n{comparison}\n", encoding="utf-8")
    report = {
        "form": chosen.name,
        "padding_free": chosen.padding_free,
        "bytes": chosen.file.stat().st_size,
        "fused_operators": operators,
        "parity": parities if settings.precision == "fp32" else {**parities, settings.precision: chosen.report},
        "comparison": chosen.report,
        "retuned": chosen.thresholds if arguments.retune else None,
        "neighbour_effect": neighbours,
        "filled": {mix: round(speed.filled(batches), 3) for mix, batches in rows.items()},
        "candidates": [candidate_row(c, gate) for c in everything],
    }
    return settings, report


def judge(
    candidates: Sequence[Candidate],
    subject: Subject,
    gate: parity.Gate,
    identities: BiasSet | None,
    fp32: Path,
    retune: bool,
    every: bool,
) -> Candidate | None:
    """The first candidate that passes the gate, or ``None``; they get their reports and thresholds.

    :param fp32: the form whose identity bias is the reference.
    :param every: compare those behind the first that passes, too.
    """
    ids = subject.encode(identities.texts) if identities is not None else []
    before = subject.score(session_scorer(fp32), ids, "identity bias, fp32") if identities is not None else None
    chosen: Candidate | None = None
    for candidate in candidates:
        if chosen is not None and not every:
            break
        scorer = session_scorer(candidate.file)
        scores = subject.score(scorer, subject.ids, candidate.name)
        candidate.thresholds = retuned(subject, scorer) if retune else subject.settings.thresholds
        candidate.report = subject.compare(scores, candidate.thresholds)
        if identities is not None and before is not None:
            after = subject.score(scorer, ids, "identity bias")
            candidate.report["bias"] = parity.compare_bias(before, after, identities, subject.settings.labels)
        if chosen is None and not candidate.failures(gate):
            chosen = candidate
    return chosen


def read_subject(layout: Layout, settings: triton.ServingSettings, comments: int) -> Subject:
    """The artifact with ``comments`` of its validation comments, in a random order that is always the same.

    The recorded scores are the reference, once torch gives the same for some; where it does not, it scores all.
    """
    model, _, _ = load(layout.folder)
    reader = Tokenizer.from_file(str(layout.tokenizer_json))
    reader.no_padding()
    reader.enable_truncation(settings.max_tokens)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        if model.normalizer is not None:
            texts = [model.normalizer(text) for text in texts]
        return [e.ids for e in reader.encode_batch([text[: settings.max_characters] for text in texts])]

    rows = layout.read_validation()
    random.Random(17).shuffle(rows)
    rows = rows[:comments]
    ids = encode([row["text"] for row in rows])
    truth = np.array([row["labels"] for row in rows], np.float64)
    recorded = np.array([row["scores"] for row in rows], np.float32)
    subject = Subject(layout, model, settings, encode, ids, truth, recorded)
    anew = subject.torch(ids[:SAMPLE], "torch")
    if not np.abs(anew - recorded[:SAMPLE]).max() <= parity.FP32_TOLERANCE:
        print("the scores in validation.jsonl are of other weights: torch scores the comments anew")
        anew = subject.torch(ids, "torch")
        subject.reference = anew
    else:
        subject.reference[: len(anew)] = anew
    return subject


def padded_and_packed(fused: Path, settings: triton.ServingSettings, padding_free: str) -> dict[str, Path]:
    """The fused graph, its padding-free form, or both, as asked for.

    :raises Refused: where the padding-free form is asked for, and there is none.
    """
    # on a GPU, the number of real tokens would have to come back to the host in every layer: not without measuring
    wanted = {"on": True, "off": False, "auto": settings.target == "cpu"}[padding_free]
    if not wanted:
        return {"padded": fused}
    packed = fused.with_name("packed.onnx")
    try:
        onnx.save(packing.remove_padding(onnx.load(fused)), packed)
    except packing.NotPackable as error:
        if padding_free == "on":
            raise Refused(f"--padding-free on: {error}") from None
        print(f"no padding-free form: {error}")
        return {"padded": fused}
    return {"padded": fused, "packed": packed} if padding_free == "auto" else {"packed": packed}


def check_forms(subject: Subject, forms: dict[str, Path]) -> dict[str, Any]:
    """:returns: the comparison of torch with each FP32 form, on the sample that torch has scored.

    :raises GateFailed: when one is another network.
    """
    sample = replace(
        subject, ids=subject.ids[:SAMPLE], truth=subject.truth[:SAMPLE], reference=subject.reference[:SAMPLE]
    )
    reports = {}
    for form, file in forms.items():
        report = sample.compare(sample.score(session_scorer(file), sample.ids, f"onnx fp32, {form}"))
        print(f"torch -> onnx fp32, {form}: largest difference {report['max_difference']:.2e}")
        parity.check_fp32(report)
        reports["fp32" if form == "padded" or len(forms) == 1 else "fp32 packed"] = report
    return reports


def convert(
    subject: Subject, fp32: Sequence[Candidate], method: str, rows: dict[str, speed.Batches], scratch: Path
) -> list[Candidate]:
    """The candidates of the precision that is asked for."""
    wanted, target = subject.settings.precision, subject.settings.target
    if wanted == "fp32":
        return list(fp32)
    if wanted == "fp16":
        halves = [replace(c, name=c.name.replace("fp32", "fp16"), file=scratch / f"{c.file.stem}16.onnx") for c in fp32]
        for whole, half in zip(fp32, halves, strict=True):
            precision.halve(whole.file, half.file)
        return halves
    if target == "tensorrt":
        candidate = Candidate("int8 for TensorRT, static, per channel", scratch / "trt.onnx", False)
        precision.quantize_for_tensorrt(fp32[0].file, candidate.file, calibration(subject))
        return [candidate]
    feeds = calibration(subject) if method in ("static", "auto") else []
    if method == "auto":
        # in one form: which is faster in FP32 is faster in INT8
        session = {c.name: graph.session(c.file, 1) for c in fp32}
        rates = speed.measure(session, rows, rounds=1)
        fp32 = [max(fp32, key=lambda c: speed.overall(rates[c.name]))]
        sensitive = replace(precision.DYNAMIC, fp32_nodes=sensitive_layers(fp32[0].file, feeds[::2], scratch))
        ways: tuple[precision.Int8, ...] = (*precision.CANDIDATES, sensitive)
    else:
        ways = (precision.STATIC if method == "static" else precision.DYNAMIC,)
    made: list[Candidate] = []
    for form in fp32:
        for how in ways:
            layout = "packed" if form.padding_free else "padded"
            file = scratch / f"int8-{layout}-{len(made)}.onnx"
            print(f"quantizing: {how}, {layout}")
            precision.quantize(form.file, file, how, feeds)
            made.append(Candidate(f"int8 {how}, {layout}", file, form.padding_free))
    return made


def calibration(subject: Subject) -> list[precision.Feed]:
    """Tuning comments that static ranges are taken from: not those that the gate looks at."""
    rows = subject.layout.read_tuning()
    random.Random(17).shuffle(rows)
    ids = sorted(subject.encode([row["text"] for row in rows[:CALIBRATION_COMMENTS]]), key=len)
    feeds = []
    for start in range(0, len(ids), 16):
        part = ids[start : start + 16]
        input_ids, mask = parity.pad(part, len(part[-1]), subject.settings.pad_token_id)
        feeds.append({"input_ids": input_ids, "attention_mask": mask})
    return feeds


def sensitive_layers(form: Path, feeds: Sequence[precision.Feed], scratch: Path) -> tuple[str, ...]:
    """The linear layers whose quantization alone moves the scores of ``feeds`` most."""
    layers = precision.linear_layers(form)

    def scores(file: Path) -> np.ndarray:
        session = graph.session(file)
        return np.concatenate([graph.run(session, f["input_ids"], f["attention_mask"]) for f in feeds])

    exact = scores(form)
    moved = {}
    for i, layer in enumerate(layers):
        print(f"\rsensitivity of layer {i + 1} of {len(layers)}", end="", flush=True)
        alone = replace(precision.DYNAMIC, fp32_nodes=tuple(name for name in layers if name != layer))
        precision.quantize(form, scratch / "alone.onnx", alone)
        moved[layer] = float(np.abs(scores(scratch / "alone.onnx") - exact).mean())
    print()
    return tuple(sorted(layers, key=lambda name: -moved[name])[:SENSITIVE])


def retuned(subject: Subject, scorer: parity.Scorer) -> dict[str, float]:
    """Thresholds of the highest F1 that the form itself has on the tuning comments."""
    rows = subject.layout.read_tuning()
    scores = subject.score(scorer, subject.encode([row["text"] for row in rows]), "retuning")
    return metrics.best_f1_thresholds(
        scores, np.array([r["labels"] for r in rows], np.float64), subject.settings.labels
    )


def session_scorer(file: Path) -> parity.Scorer:
    return partial(graph.run, graph.session(file))


def neighbour_effect(file: Path, subject: Subject, rows: dict[str, speed.Batches]) -> dict[str, float]:
    """How far scores move when comments of other lengths are scored beside them."""
    session = graph.session(file)
    batches = rows[f"{speed.PER_REQUEST} comments a request"]
    together = np.concatenate([graph.run(session, *batch) for batch in batches])
    alone = score_alone(session, subject.ids[: len(together)])
    difference = np.abs(together - alone)
    return {
        "comments": len(together),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }


def score_alone(session: InferenceSession, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Scores of comments that are scored one by one, without padding. *Shape:* ``(comments, labels)``."""
    return np.concatenate([graph.run(session, *parity.pad([row], len(row), 0)) for row in ids])


def candidate_row(candidate: Candidate, gate: parity.Gate) -> dict[str, Any]:
    report = candidate.report or {}
    return {
        "name": candidate.name,
        "bytes": candidate.file.stat().st_size,
        "comments_per_s": candidate.rates,
        **{key: report.get(key) for key in ("mean_auc_drop", "max_flip_rate", "max_difference")},
        "failures": candidate.failures(gate),
    }


def candidates_table(candidates: Sequence[Candidate], gate: parity.Gate) -> str:
    """The forms for reading: the first ones are FP32."""
    mixes = list(candidates[0].rates or {})
    head = f"{'form':<52}{'MB':>7}" + "".join(f"{mix:>23}" for mix in mixes) + f"{'AUC drop':>10}{'flips':>8}  gate"
    lines = [head]
    for c in candidates:
        rates = "".join(f"{c.rates[mix]:>21.1f}/s" if c.rates else " " * 23 for mix in mixes)
        line = f"{c.name:<52}{c.file.stat().st_size / 1e6:>7.1f}{rates}"
        if c.report is not None:
            drop = c.report["mean_auc_drop"]
            verdict = "fails" if c.failures(gate) else "passes"
            line += f"{'-' if drop is None else f'{drop:+.5f}':>10}{c.report['max_flip_rate']:>8.2%}  {verdict}"
        lines.append(line)
    return "\n".join(lines)


def write_encoder(folder: Path, file: Path, subject: Subject) -> None:
    folder.mkdir()
    onnx.save(ragged.accept_ragged(onnx.load(file), subject.settings.pad_token_id), folder / "model.onnx")
    ids = subject.encode(golden.TEXTS)
    scores = score_alone(graph.session(folder / "model.onnx", 1), ids)
    alike = np.abs(scores - score_alone(graph.session(file, 1), ids)).max()
    assert alike <= parity.FP32_TOLERANCE, f"behind its ragged input the graph scores otherwise, by {alike}"
    write_json(
        folder / "golden.json",
        {
            "tolerance": golden.TOLERANCE[subject.settings.precision],
            "input_ids": ids,
            "scores": np.round(scores.astype(np.float64), 6).tolist(),
        },
    )


def write_tokenizer(folder: Path, settings: triton.ServingSettings, subject: Subject) -> None:
    folder.mkdir()
    shutil.copyfile(subject.layout.tokenizer_json, folder / "tokenizer.json")
    shutil.copyfile(triton.TEMPLATES / "tokenizer_model.py", folder / "model.py")
    for beside in ("admission.py", "counters.py", "fast_tokenizer.py"):
        shutil.copyfile(triton.TEMPLATES / beside, folder / beside)
    write_texts(folder, settings, subject.layout)
    write_json(folder / "golden.json", {"texts": golden.TEXTS, "input_ids": subject.encode(golden.TEXTS)})


def write_texts(folder: Path, settings: triton.ServingSettings, layout: Layout) -> None:
    """What every model that reads texts has in its version folder."""
    shutil.copyfile(triton.TEMPLATES / "texts.py", folder / "texts.py")
    if settings.normalize:
        shutil.copyfile(layout.normalizer, folder / "normalizer.py")
    names = ("max_tokens", "max_characters", "normalize")
    write_json(folder / "settings.json", {name: getattr(settings, name) for name in names})


def stage_linear(
    layout: Layout, settings: triton.ServingSettings, comments: int, staging: Path
) -> tuple[triton.ServingSettings, dict[str, Any]]:
    """Write a linear model's weights as arrays, and the Python that scores with them.

    :raises GateFailed: when that does not score like the artifact.
    """
    print(f"exporting {layout.folder}, a linear model")
    weights = load_linear(layout.folder)
    folder = staging / f"{settings.name}_encoder"
    folder.mkdir()
    features = [
        {
            "analyzer": v.analyzer,
            "ngrams": list(v.ngram_range),
            "sublinear_tf": bool(v.sublinear_tf),
            "token_pattern": v.token_pattern,
        }
        for v in weights.vectorizers
    ]
    knots = None
    if layout.calibration.is_file():
        by_label = json.loads(layout.calibration.read_text(encoding="utf-8"))["knots"]
        knots = [by_label[label] for label in settings.labels]
    write_json(folder / "linear.json", {"problem_type": settings.problem_type, "features": features, "knots": knots})
    write_json(folder / "vocabulary.json", [v.get_feature_names_out().tolist() for v in weights.vectorizers])
    np.savez(
        folder / "linear.npz",
        weights=(weights.slope * weights.weights).astype(np.float32),
        idf=np.concatenate([v.idf_ for v in weights.vectorizers]).astype(np.float32),
        intercepts=(weights.slope * weights.intercepts + weights.offsets).astype(np.float32),
    )
    shutil.copyfile(Path(__file__).with_name("linear_scorer.py"), folder / "linear_scorer.py")
    shutil.copyfile(triton.TEMPLATES / "linear_model.py", folder / "model.py")
    shutil.copyfile(triton.TEMPLATES / "admission.py", folder / "admission.py")
    write_texts(folder, settings, layout)

    scorer = LinearScorer(folder)
    normalize = load_normalizer(layout) or (lambda text: text)

    def scores(texts: Sequence[str]) -> np.ndarray:
        return scorer.scores([normalize(text)[: settings.max_characters] for text in texts])

    rows = layout.read_validation()
    random.Random(17).shuffle(rows)
    rows = [row for row in rows if len(row["text"]) <= settings.max_characters][:comments]
    reference = np.array([row["scores"] for row in rows], np.float32)
    truth = np.array([row["labels"] for row in rows], np.float64)
    found = scores([row["text"] for row in rows])
    report = parity.compare(reference, found, truth, settings.labels, settings.thresholds, settings.problem_type)
    table = parity.table(report)
    print(f"\nartifact -> linear\n{table}")
    parity.check_fp32(report, "the exported linear model")
    write_json(
        folder / "golden.json",
        {
            "tolerance": golden.TOLERANCE["fp32"],
            "texts": golden.TEXTS,
            "scores": np.round(scores(golden.TEXTS).astype(np.float64), 6).tolist(),
        },
    )
    (staging / settings.name).mkdir()
    (staging / settings.name / "export.txt").write_text(f"artifact -> linear\n{table}\n", encoding="utf-8")
    size = sum(f.stat().st_size for f in folder.iterdir())
    return settings, {"form": "linear", "bytes": size, "parity": {"fp32": report}, "comparison": report}
