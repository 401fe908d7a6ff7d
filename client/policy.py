"""Policies: from a text's scores to ``allow``, ``review`` or ``block``; ``python -m client.policy`` measures them.

A policy is a YAML file. Its first rule whose thresholds are all reached decides; where none is, the text is allowed::

    description: Blocks threats, shows people rude insults.
    rules:
      - block: {threat: 0.5}
      - review: {obscene: 0.4, insult: 0.6}   # both

>>> from client.policy import Policy
>>> policy = Policy.read("standard")
>>> scores = dict.fromkeys(policy.labels, 0.01) | {"toxic": 0.93}
>>> policy.decide(scores)
Decision(action='block', rule='toxic >= 0.9', policy='standard')
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from client.errors import InvalidInput

Action = Literal["allow", "review", "block"]
ACTIONS: tuple[Action, ...] = get_args(Action)
FOLDER = Path(__file__).parent / "policies"
EXPECTED = FOLDER / "expected.json"
PRESETS = ("strict", "standard", "lenient")
NO_RULE = "no rule"
"""What a decision names when no rule fired, so that the text is allowed."""


class InvalidPolicy(InvalidInput):
    """A policy cannot be read, or does not fit the model's labels."""


class Scored(Protocol):
    """What can be decided on: a :class:`client.Result`, or anything with scores."""

    @property
    def scores(self) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy does with one text.

    :param rule: that fired, such as ``threat >= 0.5``; else ``no rule``.
    :param policy: the name of the policy.
    """

    action: Action
    rule: str
    policy: str

    def to_dict(self) -> dict[str, str]:
        return {"action": self.action, "rule": self.rule, "policy": self.policy}


@dataclass(frozen=True, slots=True)
class Rule:
    """An action, and the lowest scores of labels that lead to it, all of them together."""

    action: Action
    thresholds: Mapping[str, float]

    def __str__(self) -> str:
        return " and ".join(f"{label} >= {threshold:g}" for label, threshold in self.thresholds.items())


@dataclass(frozen=True)
class Policy:
    """Rules in order; the first that fires decides.

    :param name: of the preset, or of the file without its suffix.
    :param sha256: of the file.
    """

    name: str
    description: str
    rules: tuple[Rule, ...]
    sha256: str

    @classmethod
    def read(cls, name_or_path: str | os.PathLike[str]) -> Policy:
        """A preset by its name (``strict``, ``standard``, ``lenient``), or a YAML file by its path.

        :raises InvalidPolicy: when there is no such policy, or something in it is wrong; the message says where.
        :raises ModuleNotFoundError: when pyyaml is not installed.
        """
        named = str(name_or_path) in PRESETS
        path = FOLDER / f"{name_or_path}.yaml" if named else Path(name_or_path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidPolicy(
                f"there is no policy {str(name_or_path)!r} ({error.strerror}): give one of {', '.join(PRESETS)}, or "
                "the path of a YAML file"
            ) from None
        description, rules = _parse(content, str(name_or_path))
        return cls(path.stem, description, rules, hashlib.sha256(content).hexdigest())

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the rules name, in the order of their first mention."""
        return tuple(dict.fromkeys(label for rule in self.rules for label in rule.thresholds))

    @property
    def expected(self) -> Mapping[str, Any] | None:
        """What :func:`measure` found on the starter model's validation comments: actions with their share, precision
        and recall. None for policies other than the presets.
        """
        if self.name not in PRESETS:
            return None
        report = json.loads(EXPECTED.read_text(encoding="utf-8"))["policies"].get(self.name)
        return report if report and report["sha256"] == self.sha256 else None

    def check(self, labels: Iterable[str]) -> None:
        """Refuse labels that a model does not have: ``policy.check(client.info().labels)``.

        :raises InvalidPolicy: naming the rule and the label.
        """
        known = tuple(labels)
        for number, rule in enumerate(self.rules, 1):
            for label in rule.thresholds:
                if label not in known:
                    raise InvalidPolicy(
                        f"policy {self.name!r}, rule {number} names the label {label!r}, the model has "
                        f"{', '.join(known)}: correct the label, or ask another model"
                    )

    def decide(self, result: Scored | Mapping[str, float]) -> Decision:
        """What to do with a text.

        :param result: of :meth:`ToxicityClient.classify`, or its scores by label.
        :raises InvalidPolicy: when a rule names a label that has no score.
        """
        scores = result if isinstance(result, Mapping) else result.scores
        try:
            for rule in self.rules:
                if all(scores[label] >= threshold for label, threshold in rule.thresholds.items()):
                    return Decision(rule.action, str(rule), self.name)
        except KeyError:
            self.check(scores)
            raise
        return Decision("allow", NO_RULE, self.name)


def _parse(content: bytes, name: str) -> tuple[str, tuple[Rule, ...]]:
    """:raises InvalidPolicy: naming the rule that is wrong, what it says and what it may say."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        message = "policies need the package pyyaml: pip install -e '.[files]' -c constraints.txt"
        raise ModuleNotFoundError(message, name=error.name) from error

    class Loader(yaml.SafeLoader):
        """As SafeLoader, but a key that stands twice is an error: its first threshold would be lost."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if twice := [key for key, count in Counter(keys).items() if count > 1]:
                raise InvalidPolicy(f"policy {name!r} says {twice[0]!r} twice{node.start_mark}: leave one of them")
            return dict(super().construct_mapping(node, deep))

    def wrong(where: str, found: object, limit: str) -> InvalidPolicy:
        return InvalidPolicy(f"policy {name!r}, {where} is {found!r}, must be {limit}")

    try:
        document = yaml.load(content, Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidPolicy(f"policy {name!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not isinstance(document.get("rules"), list) or not document["rules"]:
        raise InvalidPolicy(
            f"policy {name!r} has no rules: they are a list under `rules:`, each such as `- block: {{toxic: 0.9}}`"
        )
    if unknown := set(document) - {"description", "rules"}:
        raise InvalidPolicy(
            f"policy {name!r} has the unknown key {min(map(str, unknown))!r}, must be description, rules"
        )
    rules = []
    for number, rule in enumerate(document["rules"], 1):
        where = f"rule {number}"
        if not isinstance(rule, dict) or len(rule) != 1:
            raise wrong(where, rule, "one action and its thresholds, such as `block: {toxic: 0.9}`")
        ((action, thresholds),) = rule.items()
        if action not in ACTIONS:
            raise wrong(f"{where}: the action", action, f"one of {', '.join(ACTIONS)}")
        if not isinstance(thresholds, dict) or not thresholds:
            raise wrong(f"{where}: {action}", thresholds, "labels with their thresholds, such as {toxic: 0.9}")
        for label, threshold in thresholds.items():
            if not isinstance(label, str):
                raise wrong(f"{where}: a label", label, "a string")
            if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
                raise wrong(f"{where}: the threshold of {label}", threshold, "a number in [0, 1]")
        rules.append(Rule(action, {label: float(threshold) for label, threshold in thresholds.items()}))
    return str(document.get("description", "")), tuple(rules)


# --- what a policy does to labelled comments


def measure(policy: Policy, comments: Iterable[tuple[Mapping[str, float], Mapping[str, int]]]) -> dict[str, Any]:
    """Decide on labelled comments and count. A comment counts as bad when it bears any label.

    :param comments: scores and labels (0 or 1) of each.
    :returns: for ``block``, ``review`` and both together (``caught``): the comments, their share of all, precision
        (the share of them that is bad) and recall (their share of the bad ones); for ``allow`` the same of the good
        ones. For each rule: the comments that it decided, and the share of them that bears all labels it names.
        ``None`` where there is nothing to take a share of.
    """
    counts: Counter[tuple[str, bool]] = Counter()
    fired: Counter[str] = Counter()
    right: Counter[str] = Counter()
    by_text = {f"{rule.action}: {rule}": rule for rule in policy.rules}
    for scores, labels in comments:
        decision = policy.decide(scores)
        counts[decision.action, any(labels.values())] += 1
        if decision.rule != NO_RULE:
            text = f"{decision.action}: {decision.rule}"
            fired[text] += 1
            right[text] += all(labels[label] for label in by_text[text].thresholds)
    total = sum(counts.values())
    actions = {}
    for name, members, bad in (
        ("block", ("block",), True),
        ("review", ("review",), True),
        ("caught", ("block", "review"), True),
        ("allow", ("allow",), False),
    ):
        chosen = sum(counts[member, kind] for member in members for kind in (True, False))
        hits = sum(counts[member, bad] for member in members)
        actions[name] = {
            "comments": chosen,
            "share": _share(chosen, total),
            "precision": _share(hits, chosen),
            "recall": _share(hits, sum(counts[action, bad] for action in ACTIONS)),
        }
    rules = [{"rule": text, "comments": fired[text], "precision": _share(right[text], fired[text])} for text in by_text]
    return {"sha256": policy.sha256, "actions": actions, "rules": rules}


def report(policies: Iterable[Policy], validation: Path) -> dict[str, Any]:
    """:func:`measure` of several policies, with what they were measured on.

    :raises InvalidInput: when the file is not one of scored, labelled comments.
    """
    comments = list(read_scored(validation))
    if not comments:
        raise InvalidInput(f"{validation} is empty: give an artifact's validation.jsonl")
    version = validation.parent / "MODEL_VERSION.json"
    measured = {}
    for policy in policies:
        policy.check(comments[0][0])
        measured[policy.name] = measure(policy, comments)
    return {
        "validation": {
            "file": "/".join(validation.absolute().parts[-2:]),
            "sha256": hashlib.sha256(validation.read_bytes()).hexdigest(),
            "model_version": json.loads(version.read_text(encoding="utf-8"))["version"] if version.exists() else None,
            "comments": len(comments),
            "bad": sum(any(labels.values()) for _, labels in comments),
        },
        "policies": measured,
    }


def read_scored(path: Path) -> Iterator[tuple[dict[str, float], dict[str, int]]]:
    """Scores and labels of each line of an artifact's ``validation.jsonl`` or of ``python -m client --jsonl`` on it.

    :raises InvalidInput: when a line lacks them; the message says which.
    """
    names: list[str] | None = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    scores, labels = row["scores"], row["labels"]
                    if isinstance(scores, dict):
                        names = list(scores)
                    elif names is None:
                        names = json.loads((path.parent / "labels.json").read_text(encoding="utf-8"))["labels"]
                    values = scores.values() if isinstance(scores, dict) else scores
                    yield dict(zip(names, values, strict=True)), dict(zip(names, labels, strict=True))
                except (KeyError, TypeError, ValueError) as error:
                    raise InvalidInput(
                        f'{path}, line {number} is not a JSON object with "scores" and "labels" of equal length '
                        f"({type(error).__name__}: {error}): give an artifact's validation.jsonl"
                    ) from None
    except OSError as error:
        raise InvalidInput(
            f"{error.filename} cannot be read ({error.strerror}): give an artifact's validation.jsonl, with its "
            "labels.json beside it"
        ) from None


def table(measured: Mapping[str, Any]) -> str:
    """The actions of :func:`report` in Markdown."""
    lines = ["| policy | action | comments | precision | recall |", "|---|---|---:|---:|---:|"]
    for name, policy in measured["policies"].items():
        for action, row in policy["actions"].items():
            lines.append(
                f"| {name} | {action} | {_percent(row['share'])} | {_percent(row['precision'])} | "
                f"{_percent(row['recall'])} |"
            )
    return "\n".join(lines)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m client.policy",
        description="Show policies with their rules, or measure what they do to labelled, scored comments.",
    )
    parser.add_argument("policies", nargs="*", default=PRESETS, help="names or files (default: all presets)")
    parser.add_argument("--measure", type=Path, metavar="JSONL", help="an artifact's validation.jsonl")
    parser.add_argument(
        "--out", type=Path, help=f"with --measure: write the report here; the presets' is {EXPECTED.name}"
    )
    arguments = parser.parse_args(argv)
    if arguments.out and not arguments.measure:
        parser.error("--out is for what --measure finds")
    try:
        policies = [Policy.read(name) for name in arguments.policies]
        if arguments.measure:
            measured = report(policies, arguments.measure)
            sys.stdout.write(table(measured) + "\n")
            if arguments.out:
                _write(arguments.out, json.dumps(measured, indent=2) + "\n")
            return 0
        for policy in policies:
            sys.stdout.write(f"{policy.name}: {policy.description}\n")
            for rule in policy.rules:
                sys.stdout.write(f"  {rule.action:6}  {rule}\n")
            sys.stdout.write("  allow   the rest\n")
        return 0
    except (InvalidInput, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
