"""What README says is what the files say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from loadtest import balance, client_cost, fuzz, switches
from loadtest.report import table
from loadtest.slo import Measured, Verdict
from serve.gateway import spans_eval
from train.evaluate import markdown

README = (ROOT / "README.md").read_text()
PAGES = (
    *("README.md", "serve/OPERATIONS.md", "docker/README.md", "docker/RUNBOOK.md", "docker/CHAOS.md"),
    "docker/kubernetes/README.md",
)
SHOWN = README + "".join((ROOT / page).read_text() for page in ("serve/OPERATIONS.md", "docker/CHAOS.md"))


def block(name: str, page: str = README) -> str:
    match = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", page, re.DOTALL)
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


def test_the_cost_of_the_client_is_the_measured_one_and_reaches_its_goals() -> None:
    result = json.loads((ROOT / "loadtest/results/client_cost.json").read_text())
    assert block("client cost") == f"```\n{client_cost.table(result)}\n```"
    assert client_cost.met(result)
    assert (result["callers"], result["batch"]) == (256, 32)


@pytest.mark.parametrize(
    ("page", "measured"),
    [("docker/README.md", balance), ("docker/README.md", fuzz), ("serve/OPERATIONS.md", switches)],
)
def test_what_the_fleet_stands_is_the_measured_and_reaches_its_goals(page: str, measured: ModuleType) -> None:
    name = measured.__name__.rpartition(".")[2]
    result = json.loads((ROOT / f"loadtest/results/{name}.json").read_text())
    assert block(name, (ROOT / page).read_text()) == measured.markdown(result)
    if measured is switches:
        assert (result["switches"], result["failed"], result["wrong_answers"], result["mixed_requests"]) == (
            100,
            0,
            0,
            0,
        )
    else:
        assert all(verdict["met"] for verdict in result["verdicts"])


def test_the_throughput_of_the_gateway_is_the_measured_one_and_reaches_its_goal() -> None:
    result = json.loads((ROOT / "serve/gateway/results/throughput.json").read_text())
    rate = {found["contender"]: found["comments_per_s"]["median"] for found in result["summary"]}
    stated = f"answered {rate['gateway']:.0f} comments/s, where gRPC answered {rate['tritox']:.0f}"
    assert f"At {result['clients']} single comments at a time" in README
    assert stated in README and f"with transformers {rate['fastapi']:.0f} (" in README
    assert rate["gateway"] >= 0.6 * rate["tritox"]


def test_the_cascade_of_two_layers_is_the_measured_one_and_reaches_its_goal() -> None:
    result = json.loads((ROOT / "loadtest/results/cascade_l2.json").read_text())
    text = README.replace("\n", " ")
    rate = {found["per_request"]: found["cascade"]["comments_per_s"] for found in result["rates"]}
    after = result["answers"]["mean_roc_auc"][1]
    assert (
        f"served {rate[16]:,.0f} comments/s in batches of 16 and {rate[64]:,.0f} in batches of 64, at {after:.4f};"
        in text
    )
    assert f"{result['answers']['changed_decisions']:.3%} of the decisions" in text
    assert rate[64] >= 10_000
    student, whole = (json.loads((ROOT / f"train/results/{name}.json").read_text()) for name in ("minilm-l2", "minilm"))
    area = [found["validation"]["mean_roc_auc"] for found in (student, whole)]
    assert f"its mean ROC-AUC was {area[0]:.4f}, MiniLM's {area[1]:.4f}" in text
    bias = [found["bias"]["bias_score"] for found in (student, whole)]
    assert f"({bias[0]:.3f} instead of {bias[1]:.3f} in the areas' combination" in text


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


def headings(page: Path) -> set[str]:
    lines = re.findall("^##+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        led = page.parent / file if file else page
        assert led.exists() and (not heading or heading in headings(led)), target


@pytest.mark.parametrize(
    "module",
    ["train", *(f"train {c}" for c in ("fit", "eval", "tune", "calibrate", "predict", "compare", "results", "bench"))]
    + ["export.onnx", "export.results", "export.scoremap", "export.cascade"]
    + [f"export.repository {c}" for c in ("list", "promote", "rollback", "prune", "verify")]
    + ["serve", "serve.certificates", "serve.envoy run", "serve.probe", "serve.drift"]
    + ["serve.gateway", "serve.gateway.feedback", "serve.gateway.spans_eval"]
    + [f"serve.rollout {c}" for c in ("shadow", "canary", "promote", "rollback")]
    + ["client", "client.policy", "client replay", "loadtest.switches"]
    + ["loadtest run", "loadtest dry-run"]
    + [f"loadtest.{name}" for name in ("poisson", "capacity", "stall", "responder", "balance", "chaos", "fuzz")],
)
def test_every_command_shown_has_help(module: str) -> None:
    assert f"python -m {module.split()[0]}" in SHOWN
    command = [sys.executable, "-m", *module.split(), "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "usage: python -m" in result.stdout
