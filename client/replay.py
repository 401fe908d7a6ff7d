"""``python -m client replay``: recorded decisions are made again, by another model or policy; what changed is listed.

A record without its text is matched by hash with the texts of a file (``--texts``), which takes the records' key.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.errors import ToxicityError
from client.policy import PRESETS, Policy
from client.records import KEY_VARIABLE, Record, Records, RecordsFailed, text_hash, write_parquet
from client.results import Result

if TYPE_CHECKING:
    from client import ToxicityClient

EXAMPLES = """\
examples:
  python -m client replay decisions.sqlite                            # by the version that is served now
  python -m client replay decisions.sqlite --model toxicity_candidate # by one that is staged (serve.rollout)
  python -m client replay decisions.sqlite --request-id 98d0f98a9904463f8d7697f85f3a739a   # an appeal
  python -m client replay decisions.sqlite --texts comments.csv --column comment_text      # where texts are not kept
  python -m client replay decisions.sqlite --since 2026-11 --policy strict --out changed.jsonl
  python -m client replay decisions.sqlite --parquet decisions.parquet                     # export, replay nothing

exit codes: 0 every decision is the same, 1 stopped by an error, 2 wrong usage, 3 some changed, 130 interrupted
"""
CHANGED = 3


def changes(record: Record, result: Result, policy: Policy | None) -> dict[str, Any] | None:
    """What is decided otherwise now; ``None`` when nothing is.

    :param policy: decides now; without, only the labels are compared.
    """
    labels = sorted(set(record.flagged) ^ set(result.flagged), key=[*record.scores, *result.scores].index)
    now: dict[str, Any] = {
        "scores": {label: round(score, 6) for label, score in result.scores.items()},
        "flagged": list(result.flagged),
        "model": result.model,
        "model_version": result.model_version,
    }
    action = None
    if policy is not None and record.action is not None:
        decision = policy.decide(result)
        now |= decision.to_dict()
        action = decision.action
    if not labels and (action is None or action == record.action):
        return None
    names = ("scores", "flagged", "model", "model_version", "action", "rule", "policy")
    then = {name: getattr(record, name) for name in names if getattr(record, name) is not None}
    return {
        "at": record.at,
        "request_id": record.request_id,
        "text_hash": record.text_hash,
        "changed": labels,
        "recorded": then,
        "now": now,
    }


def texts_by_hash(path: Path, column: str, key: str) -> dict[str, str]:
    """The texts of a file, by their hashes.

    :raises InvalidInput: when it cannot be read, or the key is too short.
    """
    from client.files import open_source

    with closing(open_source(path, column)) as source:
        rows = (row for chunk in source.rows(1000) if chunk is not None for row in chunk.rows)
        return {text_hash(row.text, key): row.text for row in rows if row.text is not None}


def replay(
    client: ToxicityClient,
    records: Iterable[Record],
    texts: Mapping[str, str],
    policy_of: Callable[[Record], Policy | None],
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    """What changed.

    :param texts: by hash, of records that have none. :param policy_of: decides about a record now.
    :param counts: is counted up: records, replayed, changed, those without a text, and each label.
    """
    remaining = iter(records)
    size = client.info().max_batch_size
    while batch := list(islice(remaining, size)):
        found = [(r, r.text if r.text is not None else texts.get(r.text_hash)) for r in batch]
        known = [(record, text) for record, text in found if text is not None]
        counts["records"] += len(batch)
        counts["no text"] += len(batch) - len(known)
        counts["replayed"] += len(known)
        for (record, _), result in zip(known, client.classify([text for _, text in known]), strict=True):
            changed = changes(record, result, policy_of(record))
            if changed is not None:
                counts["changed"] += 1
                for label in changed["changed"]:
                    counts[f"label {label}"] += 1
                yield changed


def parser() -> argparse.ArgumentParser:
    from client.__main__ import connection_options

    p = argparse.ArgumentParser(
        prog="python -m client replay",
        description="Score recorded texts again, and list the decisions that change.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("records", metavar="FILE|URL", help="an SQLite file, or a postgresql:// address")
    p.add_argument("--texts", type=Path, metavar="FILE", help=f"texts of records without; needs ${KEY_VARIABLE}")
    p.add_argument("--column", default="text", help="of that file (default: %(default)s)")
    p.add_argument("--request-id", help="this request alone")
    p.add_argument(
        "--since", metavar="TIME", help="from then on: the beginning of a time in UTC, such as 2026-11-21T10"
    )
    p.add_argument("--until", metavar="TIME", help="before then")
    p.add_argument("--policy", metavar="NAME|FILE", help="decide by this one (default: by the recorded presets)")
    p.add_argument("--out", type=Path, metavar="FILE", help="write JSON lines there (default: stdout)")
    p.add_argument("--parquet", type=Path, metavar="FILE", help="write all records to this file, and replay nothing")
    connection_options(p)
    return p


def main(argv: list[str]) -> int:
    p = parser()
    arguments = p.parse_args(argv)
    try:
        with Records(arguments.records, read_only=True) as records:
            if arguments.parquet:
                count = write_parquet(records, arguments.parquet)
                sys.stderr.write(f"wrote {arguments.parquet}: {count} records\n")
                return 0
            return _replay(p, arguments, records)
    except (ToxicityError, RecordsFailed, ModuleNotFoundError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _replay(p: argparse.ArgumentParser, arguments: argparse.Namespace, records: Records) -> int:
    from client.__main__ import connect

    texts = {}
    if arguments.texts:
        texts = texts_by_hash(arguments.texts, arguments.column, os.environ.get(KEY_VARIABLE, ""))
    policies = Policies(Policy.read(arguments.policy) if arguments.policy else None)
    counts: Counter[str] = Counter()
    rows = records.rows(request_id=arguments.request_id, since=arguments.since, until=arguments.until)
    out = sys.stdout if arguments.out is None else arguments.out.open("w", encoding="utf-8")
    try:
        with connect(p, arguments) as client:
            for changed in replay(client, rows, texts, policies.of, counts):
                out.write(json.dumps(changed, ensure_ascii=False) + "\n")
    finally:
        if arguments.out is not None:
            out.close()
    said = f"{counts['replayed']} of {counts['records']} records replayed, {counts['changed']} decided otherwise"
    labels = {name.removeprefix("label "): n for name, n in counts.items() if name.startswith("label ")}
    if labels:
        said += f" ({', '.join(f'{label} {count}' for label, count in labels.items())})"
    if counts["no text"]:
        said += f"; {counts['no text']} have no text: give --texts a file that holds them"
    sys.stderr.write(said + "\n")
    for name, other in policies.changed.items():
        sys.stderr.write(f"note: the policy {name!r} is {other}: actions were not compared, see --policy\n")
    return CHANGED if counts["changed"] else 0


class Policies:
    """The policies that decide now.

    :param always: decides about every record; without, the preset that decided then, where it is still the same.
    :ivar changed: the names of those that are not, and why.
    """

    def __init__(self, always: Policy | None) -> None:
        self.always = always
        self.changed: dict[str, str] = {}
        self._read: dict[str, Policy] = {}

    def of(self, record: Record) -> Policy | None:
        if self.always is not None or record.policy is None:
            return self.always
        name = record.policy
        if name not in self._read and name not in self.changed:
            if name in PRESETS:
                self._read[name] = Policy.read(name)
            else:
                self.changed[name] = "no preset"
        policy = self._read.get(name)
        if policy is not None and policy.sha256 != record.policy_sha256:
            self.changed[name] = "another one since"
            return None
        return policy
