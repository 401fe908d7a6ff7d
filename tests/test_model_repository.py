"""What is committed in model_repository/ is what the exporter writes."""

from __future__ import annotations

import json

from conftest import LABELS, REPOSITORY

from export.repository import ModelVersions
from export.triton import TEMPLATES, model_names

VERSIONS = sorted(int(f.name) for f in (REPOSITORY / "toxicity").iterdir() if f.is_dir())
LATEST = str(VERSIONS[-1])


def test_configs_and_files_are_as_the_exporter_wrote_them() -> None:
    versions = ModelVersions(REPOSITORY, "toxicity")
    assert versions.check_configs() == []
    assert versions.check_files(int(LATEST)) == []


def test_the_tokenizer_model_is_the_exporters() -> None:
    folder = REPOSITORY / "toxicity_tokenizer" / LATEST
    assert (folder / "model.py").read_text() == (TEMPLATES / "tokenizer_model.py").read_text()
    assert (folder / "texts.py").read_text() == (TEMPLATES / "texts.py").read_text()
    assert (folder / "counters.py").read_text() == (TEMPLATES / "counters.py").read_text()


def test_there_is_nothing_but_what_triton_reads() -> None:
    assert {f.name for f in REPOSITORY.iterdir()} == set(model_names("toxicity"))
    files = {
        str(f.relative_to(REPOSITORY)) for f in REPOSITORY.rglob("*") if f.is_file() and "__pycache__" not in f.parts
    }
    assert files == {
        "toxicity/config.pbtxt",
        f"toxicity/{LATEST}/export.json",
        f"toxicity/{LATEST}/export.txt",
        f"toxicity/{LATEST}/reference.json",
        "toxicity_encoder/config.pbtxt",
        f"toxicity_encoder/{LATEST}/golden.json",
        f"toxicity_encoder/{LATEST}/model.onnx",
        "toxicity_tokenizer/config.pbtxt",
        f"toxicity_tokenizer/{LATEST}/admission.py",
        f"toxicity_tokenizer/{LATEST}/counters.py",
        f"toxicity_tokenizer/{LATEST}/fast_tokenizer.py",
        f"toxicity_tokenizer/{LATEST}/golden.json",
        f"toxicity_tokenizer/{LATEST}/model.py",
        f"toxicity_tokenizer/{LATEST}/normalizer.py",
        f"toxicity_tokenizer/{LATEST}/settings.json",
        f"toxicity_tokenizer/{LATEST}/texts.py",
        f"toxicity_tokenizer/{LATEST}/tokenizer.json",
    }


def test_the_starter_model_is_small_int8_and_passed_its_gate() -> None:
    assert sum(f.stat().st_size for f in REPOSITORY.rglob("*") if f.is_file()) <= 25_000_000
    report = json.loads((REPOSITORY / "toxicity" / LATEST / "export.json").read_text())
    assert report["settings"]["precision"] == "int8"
    assert tuple(report["settings"]["labels"]) == LABELS
    assert report["fused_operators"]["Attention"] == 6
    parity = report["parity"]
    assert parity["fp32"]["max_difference"] <= 1e-4
    assert parity["int8"]["mean_auc_drop"] <= report["gate"]["max_auc_drop"]
    assert parity["int8"]["max_flip_rate"] <= report["gate"]["max_flip_rate"]
    assert parity["int8"]["bias"]["max_shift"] <= report["gate"]["max_bias_shift"]
