"""What README says is what the files say."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from loadtest.report import table
from loadtest.slo import Measured, Verdict
from serve.gateway import spans_eval
from train.evaluate import markdown

README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL)
    assert match, name
    return match[1].strip()


def test_the_quality_table_is_the_measured_one_and_reaches_its_goal() -> None:
    result = json.loads((ROOT / "train/results/starter.json").read_text())
    assert block("quality") == markdown(result)
    assert result["model"]["scored_by"] == "a running server"
    assert result["validation"]["comments"] == 9784
    assert result["validation"]["mean_roc_auc"] >= 0.980


def test_the_load_test_is_the_measured_one() -> None:
    result = json.loads((ROOT / "loadtest/results/starter.json").read_text())
    lines = table(Measured(**result["measured"]), [Verdict(**v) for v in result["slo"]])
    assert block("load") == f"```\n{lines}\n```"


def test_the_agreement_of_spans_is_the_measured_one() -> None:
    result = json.loads((ROOT / "serve/gateway/results/spans.json").read_text())
    assert block("spans") == spans_eval.markdown(result)
    assert f"in {result['comments_measured']} toxic comments" in README.replace("\n", " ")
    assert f"searched on {result['comments_tuned_on']} others" in README.replace("\n", " ")
    starter, linear = result["models"]
    assert starter["as served"]["f1"] > linear["as served"]["f1"], "it must beat the linear model"


def test_numbers_of_the_export_are_the_published_versions() -> None:
    report = json.loads((ROOT / "model_repository/toxicity/1/export.json").read_text())
    parity, training = report["parity"]["int8"], report["training"]
    assert f"took {training['seconds'] // 60:.0f} minutes" in README
    assert f"{training['data']['train']} comments to train on" in README
    assert block("export") == f"```\n{(ROOT / 'model_repository/toxicity/1/export.txt').read_text().strip()}\n```"
    assert f"INT8 changed {parity['flip_rate']:.2%} of the decisions" in README


def test_every_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall("^##+ (.+)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target[1:] in headings if target[0] == "#" else (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "module",
    ["train", *(f"train {c}" for c in ("fit", "eval", "tune", "calibrate", "predict", "compare", "results", "bench"))]
    + ["export.onnx", "export.results", "export.scoremap", "export.cascade"]
    + [f"export.repository {c}" for c in ("list", "promote", "rollback", "prune", "verify")]
    + ["serve", "serve.gateway", "serve.gateway.feedback", "serve.gateway.spans_eval", "client", "client.policy"]
    + ["loadtest run", "loadtest dry-run"]
    + [f"loadtest.{name}" for name in ("poisson", "capacity", "stall", "responder")],
)
def test_every_command_shown_has_help(module: str) -> None:
    assert f"python -m {module.split()[0]}" in README
    command = [sys.executable, "-m", *module.split(), "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m" in result.stdout
