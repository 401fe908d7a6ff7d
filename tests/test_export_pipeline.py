from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import LABELS, ROOT, end_at_once

from client import ToxicityClient
from export import graph
from export.onnx import main
from export.triton import read_settings, render
from serve.server import TritonServer
from train.artifact import Layout
from train.config import EncoderConfig
from train.fit import build
from train.model import load, predict_logits, save, sigmoid

SMALL = {"num_attention_heads": 2, "intermediate_size": 64}


def export(artifact: Path, repository: Path, *more: str) -> int:
    return main(["--artifact", str(artifact), "--repository", str(repository), "--comments", "150", *more])


LOOSE = ("--max-flip-rate", "0.03", "--max-auc-drop", "0.01", "--max-bias-shift", "0.05")
"""For a network of two thin layers, whose every weight counts, and for 150 comments."""


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def operator_types(model: onnx.ModelProto) -> set[str]:
    """Of all nodes, those in the branches of an If among them."""
    branches = [a.g for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {node.op_type for graph in (model.graph, *branches) for node in graph.node}


@pytest.mark.parametrize("precision", ["none", "fp16", "int8"])
def test_every_precision_is_published_and_scores_like_the_artifact(
    artifact: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", precision, *LOOSE) == 0
    out = capsys.readouterr().out
    assert "2 Attention" in out and "torch -> onnx fp32" in out and "published version 1" in out
    assert sorted(files(tmp_path / "r")) == [
        "toxicity/1/export.json",
        "toxicity/1/export.txt",
        "toxicity/config.pbtxt",
        "toxicity_encoder/1/golden.json",
        "toxicity_encoder/1/model.onnx",
        "toxicity_encoder/config.pbtxt",
        "toxicity_tokenizer/1/admission.py",
        "toxicity_tokenizer/1/counters.py",
        "toxicity_tokenizer/1/fast_tokenizer.py",
        "toxicity_tokenizer/1/golden.json",
        "toxicity_tokenizer/1/model.py",
        "toxicity_tokenizer/1/settings.json",
        "toxicity_tokenizer/1/texts.py",
        "toxicity_tokenizer/1/tokenizer.json",
        "toxicity_tokenizer/config.pbtxt",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["r"]  # no staging folder left

    model, tokenizer, _ = load(artifact)
    texts = ["you stupid idiot", "thanks for the map"]
    rows = tokenizer(texts, padding=True, return_tensors="np")
    session = graph.session(tmp_path / "r/toxicity_encoder/1/model.onnx")
    served = graph.run(session, rows["input_ids"], rows["attention_mask"])
    tolerance = {"none": 1e-5, "fp16": 5e-3, "int8": 0.1}[precision]
    np.testing.assert_allclose(served, sigmoid(predict_logits(model, tokenizer, texts)), atol=tolerance)
    operators = operator_types(onnx.load(tmp_path / "r/toxicity_encoder/1/model.onnx"))
    assert bool(operators & {"DynamicQuantizeLinear", "QAttention"}) == (precision == "int8")
    assert "Sigmoid" in operators and operators & {"Attention", "QAttention", "MultiHeadAttention"}


def test_each_export_is_the_next_version_and_leaves_the_others_alone(artifact: Path, tmp_path: Path) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", "none") == 0
    first = files(tmp_path / "r")
    assert export(artifact, tmp_path / "r", "--quantize", "none", "--instances", "3") == 0
    second = files(tmp_path / "r")
    assert {name: second[name] for name in first if "/1/" in name} == {n: c for n, c in first.items() if "/1/" in n}
    assert {name.replace("/1/", "/2/") for name in first} <= set(second)
    settings = read_settings(tmp_path / "r/toxicity/2/export.json")
    assert settings.instances == 3
    for name, text in render(settings, 2, previous=1).items():
        assert (tmp_path / "r" / name / "config.pbtxt").read_text() == text


def test_a_model_that_decides_otherwise_is_refused_and_nothing_changes(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", "none") == 0
    before = files(tmp_path / "r")
    assert export(artifact, tmp_path / "r", "--quantize", "fp16", "--max-auc-drop", "-1") == 1
    error = capsys.readouterr().err
    assert "refused: mean ROC-AUC falls by" in error and "allowed is -1.0 (--max-auc-drop)" in error
    assert files(tmp_path / "r") == before
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_graph_that_is_not_the_trained_network_is_refused(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = graph.fuse

    def damage(source: Path, target: Path, *rest: object) -> dict[str, int]:
        counts = fuse(source, target, *rest)  # type: ignore[arg-type]
        model = onnx.load(target)
        bias = next(w for w in model.graph.initializer if w.name.endswith("head.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
        onnx.save(model, target)
        return counts

    monkeypatch.setattr(graph, "fuse", damage)
    assert export(artifact, tmp_path / "r", "--quantize", "none") == 1
    assert "the artifact and the ONNX FP32 graph differ by" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def artifact_of(architecture: dict[str, object], like: Path, folder: Path) -> Path:
    """An artifact of another architecture with random weights, and everything else as in ``like``."""
    texts = [row["text"] for row in Layout(like).read_validation()]
    model, tokenizer = build(EncoderConfig(config=architecture, max_tokens=32), texts)
    shutil.copytree(like, folder)
    save(model.eval(), tokenizer, folder)
    return folder


PRE_LAYERNORM = {"model_type": "roberta-prelayernorm", "hidden_size": 32, "num_hidden_layers": 2, **SMALL}
DISTILBERT = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
DEBERTA = {
    "model_type": "deberta-v2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    **SMALL,
}


def test_the_compact_encoder_is_fused_too(artifact: Path, tmp_path: Path) -> None:
    assert export(artifact_of(PRE_LAYERNORM, artifact, tmp_path / "a"), tmp_path / "r", "--quantize", "none") == 0
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    assert report["fused_operators"]["Attention"] == 2
    assert report["parity"]["fp32"]["max_difference"] < 1e-4


@pytest.mark.parametrize("architecture", [DISTILBERT, DEBERTA], ids=lambda a: a["model_type"])
def test_distilbert_is_fused_as_the_bert_that_it_is_and_deberta_as_far_as_it_can_be(
    architecture: dict[str, object], artifact: Path, tmp_path: Path
) -> None:
    assert export(artifact_of(architecture, artifact, tmp_path / "a"), tmp_path / "r", "--quantize", "none") == 0
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    distilbert = architecture is DISTILBERT
    assert report["fused_operators"].get("Attention", 0) == (2 if distilbert else 0)
    assert report["fused_operators"]["SkipLayerNormalization"] == 4
    assert report["fused_operators"]["BiasGelu"] == 2
    assert ("fp32 packed" in report["parity"]) == distilbert
    assert all(form["max_difference"] < 1e-4 for form in report["parity"].values())


@pytest.mark.parametrize("lost", ["Attention", "SkipLayerNormalization", "BiasGelu"])
def test_an_encoder_that_lost_its_fusion_is_refused_unless_allowed(
    lost: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = graph.FusionOptions

    def without(model_type: str) -> object:
        chosen = options(model_type)
        if lost == "Attention":
            chosen.enable_attention = False
        elif lost == "BiasGelu":
            chosen.enable_gelu = chosen.enable_bias_gelu = False
        else:
            chosen.enable_skip_layer_norm = False
        return chosen

    monkeypatch.setattr(graph, "FusionOptions", without)
    assert export(artifact, tmp_path / "r", "--quantize", "none") == 1
    assert f"of this bert were fused ({lost}" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    if lost == "Attention":
        assert export(artifact, tmp_path / "r", "--quantize", "none", "--allow-unfused") == 0
        assert "no padding-free form" in capsys.readouterr().out


def test_auto_tries_every_way_and_keeps_the_fastest_that_passes(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", "int8", "--method", "auto", *LOOSE) == 0
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    rows = [row for row in report["candidates"] if row["name"].startswith("int8")]
    ways = {row["name"].split(",")[0] for row in rows}
    assert ways == {"int8 dynamic", "int8 static"} and len(rows) == 6
    assert sum("3 layers fp32" in row["name"] for row in rows) == 1
    rates = [np.prod(list(row["comments_per_s"].values())) for row in rows]
    passing = [(rate, row["name"]) for rate, row in zip(rates, rows, strict=True) if not row["failures"]]
    assert report["form"] == max(passing)[1]
    table = (tmp_path / "r/toxicity/1/export.txt").read_text()
    assert all(row["name"] in table for row in rows)
    assert table.split("\n")[0] in capsys.readouterr().out


def test_static_ranges_come_from_tuning_comments(artifact: Path, tmp_path: Path) -> None:
    more = ("--quantize", "int8", "--method", "static", "--padding-free", "on", *LOOSE)
    assert export(artifact, tmp_path / "r", *more) == 0
    model = onnx.load(tmp_path / "r/toxicity_encoder/1/model.onnx")
    operators = operator_types(model)
    assert {"QuantizeLinear", "DequantizeLinear", "MultiHeadAttention"} <= operators
    assert not {"DynamicQuantizeLinear", "MatMulInteger", "Attention"} & operators
    other = tmp_path / "a"
    shutil.copytree(artifact, other)
    (other / "tuning.jsonl").unlink()
    assert export(other, tmp_path / "r", "--quantize", "int8", "--method", "static") == 2
    assert export(other, tmp_path / "r", "--quantize", "none", "--retune") == 2


def test_tensorrt_gets_a_graph_of_standard_operators(artifact: Path, tmp_path: Path) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", "int8", "--target", "tensorrt", *LOOSE) == 0
    model = onnx.load(tmp_path / "r/toxicity_encoder/1/model.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    config = (tmp_path / "r/toxicity_encoder/config.pbtxt").read_text()
    assert 'name: "tensorrt"' in config and 'value: "INT8"' in config and "KIND_CPU" not in config


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (("int8", "--target", "cuda"), "INT8 on the CUDA provider is slower than FP32"),
        (("fp16", "--target", "cpu"), "FP16 on a CPU is slower than FP32"),
        (("none", "--method", "auto"), "--method is for --quantize int8, not none"),
        (("int8", "--target", "tensorrt", "--method", "dynamic"), "TensorRT knows static INT8 alone"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    call: tuple[str, ...], reason: str, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(artifact, tmp_path / "r", "--quantize", *call) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_retuned_thresholds_are_those_of_the_published_form(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "a"
    shutil.copytree(artifact, other)
    tuned = json.loads((artifact / "labels.json").read_text())
    (other / "labels.json").write_text(json.dumps({**tuned, "thresholds": dict.fromkeys(LABELS, 0.999)}))
    call = (other, tmp_path / "r", "--quantize", "none", "--retune")
    assert export(*call) == 1  # decisions change
    assert export(*call, "--max-flip-rate", "1") == 0
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    shipped = read_settings(tmp_path / "r/toxicity/1/export.json").thresholds
    assert shipped == report["retuned"] == pytest.approx(tuned["thresholds"], abs=1e-3)
    assert json.dumps(json.dumps(shipped))[1:-1] in (tmp_path / "r/toxicity/config.pbtxt").read_text()


def test_scores_of_other_weights_in_the_artifact_are_noticed(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(artifact_of(PRE_LAYERNORM, artifact, tmp_path / "a"), tmp_path / "r", "--quantize", "none") == 0
    assert "of other weights: torch scores the comments anew" in capsys.readouterr().out
    report = json.loads((tmp_path / "r/toxicity/1/export.json").read_text())
    assert report["comparison"]["max_difference"] < 1e-4


def test_wrong_calls_are_one_line(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "none", tmp_path / "r", "--quantize", "none") == 2
    assert "is not an artifact folder" in capsys.readouterr().err
    assert export(artifact, tmp_path / "r", "--quantize", "none", "--name", "a b") == 2
    assert "the model's name is 'a b'" in capsys.readouterr().err
    assert export(artifact, tmp_path / "r", "--quantize", "none", "--instances", "0") == 2
    assert "instances is 0, must be at least 1" in capsys.readouterr().err
    assert export(artifact, tmp_path / "r", "--quantize", "none", "--comments", "0") == 2
    assert "--comments is 0, must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert export(artifact, tmp_path / "file", "--quantize", "none") == 2
    assert "is a file" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    labels = json.loads((broken / "labels.json").read_text())
    labels["thresholds"]["toxic"] = 1.5
    (broken / "labels.json").write_text(json.dumps(labels))
    assert export(broken, tmp_path / "r", "--quantize", "none") == 2
    assert "the threshold of toxic is 1.5, must lie in [0, 1]" in capsys.readouterr().err


@pytest.mark.triton
def test_a_model_with_a_normalizer_answers_disguised_text_as_the_plain_one(artifact: Path, tmp_path: Path) -> None:
    other = tmp_path / "a"
    shutil.copytree(artifact, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "normalize": True}))
    repository = tmp_path / "r"
    assert export(artifact, repository, "--quantize", "none", "--name", "plain") == 0
    assert export(other, repository, "--quantize", "none", "--name", "reads") == 2  # the artifact lacks its normalizer
    shutil.copyfile(ROOT / "train/normalizer.py", other / "normalizer.py")
    assert export(other, repository, "--quantize", "none", "--name", "reads") == 0
    served = repository / "reads_tokenizer/1"
    assert (served / "normalizer.py").read_bytes() == (other / "normalizer.py").read_bytes()
    assert read_settings(repository / "reads/1/export.json").normalize
    assert not json.loads((repository / "plain_tokenizer/1/settings.json").read_text())["normalize"]
    assert not (repository / "plain_tokenizer/1/normalizer.py").exists()

    plain = ["you stupid idiot", "thanks for the map", "kill the idiot", "the town of the idiot"]
    disguised = ["you 5tup1d i d i o t", "th\u200banks for the ｍａｐ", "k1ll the іdіоt", "the t-o-w-n of the idioooot"]
    model, tokenizer, _ = load(artifact)
    expected = sigmoid(predict_logits(model, tokenizer, plain))
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        with ToxicityClient(server.grpc_url, model="reads", timeout=60) as client:
            np.testing.assert_allclose(scores(client, disguised), expected, atol=1e-5)
            np.testing.assert_allclose(scores(client, plain), expected, atol=1e-5)
            # the limit is 32 tokens, and 2048 characters of the normalized text; four times as much is looked at
            lengths = ["idiot " * 20, "idi\u200b\u200b\u200bot " * 20, "\u200b" * 8000 + "idiot", "\u200b" * 9000 + "x"]
            truncated = [result.truncated for result in client.classify([*lengths, "idiot " * 40, "x" * 3000])]
            assert truncated == [False, False, False, True, True, True]
        with ToxicityClient(server.grpc_url, model="plain", timeout=60) as client:
            assert np.abs(scores(client, disguised) - expected).max() > 0.1
        end_at_once(server.pid)


def scores(client: ToxicityClient, texts: list[str]) -> np.ndarray:
    return np.array([[result.scores[label] for label in LABELS] for result in client.classify(texts)])
