"""Policies: the rules that fire, what is wrong in a file, and the measured figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import LABELS, ROOT

import client.policy
from client.errors import ToxicityError
from client.policy import EXPECTED, PRESETS, Decision, InvalidPolicy, Policy, Rule, main, measure, report, table
from client.results import Result

TWO_RULES = """
description: Blocks threats, shows people rude insults.
rules:
  - block: {threat: 0.5}
  - review: {obscene: 0.4, insult: 0.6}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return write(tmp_path, TWO_RULES)


def write(folder: Path, text: str | bytes) -> Policy:
    path = folder / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Policy.read(path)


def scores(**some: float) -> dict[str, float]:
    return dict.fromkeys(LABELS, 0.0) | some


def test_a_policy_is_what_its_file_says(policy: Policy) -> None:
    assert policy.name == "mine"
    assert policy.description == "Blocks threats, shows people rude insults."
    assert policy.rules == (Rule("block", {"threat": 0.5}), Rule("review", {"obscene": 0.4, "insult": 0.6}))
    assert policy.labels == ("threat", "obscene", "insult")
    assert policy.expected is None
    policy.check(LABELS)


@pytest.mark.parametrize(
    ("some", "decision"),
    [
        ({}, Decision("allow", "no rule", "mine")),
        ({"threat": 0.4999, "obscene": 1.0}, Decision("allow", "no rule", "mine")),
        ({"obscene": 0.4, "insult": 0.6}, Decision("review", "obscene >= 0.4 and insult >= 0.6", "mine")),
        ({"threat": 0.5, "obscene": 0.4, "insult": 0.6}, Decision("block", "threat >= 0.5", "mine")),
    ],
)
def test_the_first_rule_that_is_reached_decides(policy: Policy, some: dict[str, float], decision: Decision) -> None:
    assert policy.decide(scores(**some)) == decision
    assert policy.decide(Result(scores(**some), (), False, "toxicity", "1", "r")) == decision
    assert decision.to_dict() == {"action": decision.action, "rule": decision.rule, "policy": "mine"}


def test_an_exception_stands_first(tmp_path: Path) -> None:
    policy = write(tmp_path, "rules:\n- allow: {obscene: 0.9}\n- block: {toxic: 0}\n")
    assert policy.decide(scores(obscene=0.9)).action == "allow"
    assert policy.decide(scores()) == Decision("block", "toxic >= 0", "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy '.*mine.yaml' has no rules: they are a list under `rules:`"),
        ("rules: []", "has no rules"),
        ("rules: {block: {toxic: 1}}", "has no rules"),
        ("rules: [{]", "is not YAML: "),
        (b"rules: \xff\xfe", "is not YAML: "),
        ("rule: []\nrules: [{block: {toxic: 1}}]", "unknown key 'rule', must be description, rules"),
        ("rules: [{block: {toxic: 1}}, block]", "rule 2 is 'block', must be one action and its thresholds"),
        ("rules: [{block: {toxic: 1}, review: {toxic: 0.5}}]", "rule 1 is .*, must be one action"),
        ("rules: [{ban: {toxic: 1}}]", "rule 1: the action is 'ban', must be one of allow, review, block"),
        ("rules: [{block: {}}]", "rule 1: block is {}, must be labels with their thresholds"),
        ("rules: [{block: 0.5}]", "rule 1: block is 0.5, must be labels"),
        ("rules: [{block: {toxic: 1.01}}]", r"rule 1: the threshold of toxic is 1.01, must be a number in \[0, 1\]"),
        ("rules: [{block: {toxic: -0.1}}]", r"threshold of toxic is -0.1, must be a number in \[0, 1\]"),
        ("rules: [{block: {toxic: .nan}}]", r"threshold of toxic is nan, must be a number in \[0, 1\]"),
        ("rules: [{block: {toxic: true}}]", "threshold of toxic is True, must be a number"),
        ("rules: [{block: {toxic: high}}]", "threshold of toxic is 'high', must be a number"),
        ("rules: [{block: {yes: 0.5}}]", "a label is True, must be a string"),
        ("rules: [{block: {toxic: 0.5, toxic: 0.9}}]", "says 'toxic' twice .*line 1, column 17"),
    ],
)
def test_what_is_wrong_in_a_policy_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidPolicy, match=message) as caught:
        write(tmp_path, text)
    assert isinstance(caught.value, (ToxicityError, ValueError))


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidPolicy, match=r"no policy 'standrad' \(No such file.*strict, standard, lenient, or the"):
        Policy.read("standrad")
    with pytest.raises(InvalidPolicy, match="Is a directory"):
        Policy.read(tmp_path)


def test_a_label_that_the_model_lacks(policy: Policy) -> None:
    message = "policy 'mine', rule 1 names the label 'threat', the model has toxic, insult: correct the label"
    with pytest.raises(InvalidPolicy, match=message):
        policy.check(["toxic", "insult"])
    with pytest.raises(InvalidPolicy, match=message):
        policy.decide({"toxic": 0.1, "insult": 0.2})


# --- figures


def test_measure_counts_by_hand(policy: Policy) -> None:
    labels = dict.fromkeys(LABELS, 0)
    comments = [
        (scores(threat=0.9), labels | {"threat": 1}),
        (scores(threat=0.6), labels | {"insult": 1}),  # rightly blocked, but not for a threat
        (scores(threat=0.6), labels),
        (scores(obscene=0.5, insult=0.6), labels | {"obscene": 1, "insult": 1}),
        (scores(), labels | {"toxic": 1}),
        (scores(), labels),
        (scores(), labels),
    ]
    measured = measure(policy, comments)
    assert measured["actions"] == {
        "block": {"comments": 3, "share": 0.4286, "precision": 0.6667, "recall": 0.5},
        "review": {"comments": 1, "share": 0.1429, "precision": 1.0, "recall": 0.25},
        "caught": {"comments": 4, "share": 0.5714, "precision": 0.75, "recall": 0.75},
        "allow": {"comments": 3, "share": 0.4286, "precision": 0.6667, "recall": 0.6667},
    }
    assert measured["rules"] == [
        {"rule": "block: threat >= 0.5", "comments": 3, "precision": 0.3333},
        {"rule": "review: obscene >= 0.4 and insult >= 0.6", "comments": 1, "precision": 1.0},
    ]


def test_nothing_caught_has_no_precision(policy: Policy) -> None:
    actions = measure(policy, [(scores(), dict.fromkeys(LABELS, 0))])["actions"]
    assert actions["block"] == {"comments": 0, "share": 0.0, "precision": None, "recall": None}
    assert actions["allow"]["recall"] == 1.0


def test_the_command_measures_an_artifacts_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"scores": [0.95, 0, 0, 0, 0, 0], "labels": [1, 0, 0, 0, 0, 0]}, {"scores": [0] * 6, "labels": [0] * 6}]
    validation = tmp_path / "validation.jsonl"
    validation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--measure", str(validation)]) == 1  # the labels' names are not there
    assert "labels.json cannot be read" in capsys.readouterr().err
    (tmp_path / "labels.json").write_text(json.dumps({"labels": LABELS}))
    (tmp_path / "MODEL_VERSION.json").write_text('{"version": "2.1.0"}')
    assert main(["standard", "--measure", str(validation), "--out", str(tmp_path / "report.json")]) == 0
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["validation"]["model_version"] == "2.1.0"
    assert (written["validation"]["comments"], written["validation"]["bad"]) == (2, 1)
    assert written["policies"]["standard"]["actions"]["block"]["recall"] == 1.0
    assert "| standard | block | 50.0% | 100.0% | 100.0% |" in capsys.readouterr().out
    # and what `python -m client --jsonl` wrote of it, whose scores have names
    served = [row | {"scores": dict(zip(LABELS, row["scores"], strict=True))} for row in rows]
    validation.write_text("".join(json.dumps(row) + "\n" for row in served))
    assert report([Policy.read("standard")], validation)["policies"] == written["policies"]
    validation.write_text(json.dumps(rows[0]) + '\n{"scores": [0.1]}\n')
    assert main(["--measure", str(validation)]) == 1
    assert "line 2 is not a JSON object with" in capsys.readouterr().err


def test_the_command_shows_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert [line.split(":")[0] for line in shown.splitlines() if not line.startswith(" ")] == list(PRESETS)
    assert "  block   threat >= 0.5\n" in shown
    assert main(["nope"]) == 1
    assert "there is no policy 'nope'" in capsys.readouterr().err


# --- the presets


def test_the_presets_are_ordered_and_fit_the_starter_model() -> None:
    policies = [Policy.read(name) for name in PRESETS]
    for policy in policies:
        policy.check(LABELS)
    caught = [policy.expected["actions"]["caught"] for policy in policies if policy.expected]
    assert caught[0]["recall"] > caught[1]["recall"] > caught[2]["recall"]
    assert caught[0]["precision"] < caught[1]["precision"] < caught[2]["precision"]


def test_the_expected_figures_are_of_the_policies_as_they_are() -> None:
    """Who edits a preset runs ``python -m client.policy --measure`` again."""
    measured = json.loads(EXPECTED.read_text())
    assert list(measured["policies"]) == list(PRESETS)
    for name in PRESETS:
        policy = Policy.read(name)
        assert policy.expected == measured["policies"][name]
        assert (
            measured["policies"][name]["sha256"]
            == hashlib.sha256((client.policy.FOLDER / f"{name}.yaml").read_bytes()).hexdigest()
        )
        assert [row["rule"] for row in policy.expected["rules"]] == [f"{r.action}: {r}" for r in policy.rules]


def test_the_expected_figures_are_measured_again_where_the_artifact_is() -> None:
    validation = ROOT / "artifacts/starter/validation.jsonl"
    if not validation.exists():
        pytest.skip("artifacts/starter is not here: it is trained, not committed")
    assert report([Policy.read(name) for name in PRESETS], validation) == json.loads(EXPECTED.read_text())


def test_readme_shows_the_expected_figures() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("<!-- policies -->\n")[2].partition("\n<!-- /policies -->")[0].strip()
    assert shown == table(json.loads(EXPECTED.read_text()))
