"""``python -m serve.drift``: compare live comments and scores with what they were when the model was measured."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from client import ToxicityClient
    from serve.drift.measure import Finding
    from serve.drift.reference import Reference

INSTALL = "pip install -e '.[client]' -c constraints.txt"
METRICS = "http://127.0.0.1:8002/metrics"
EXAMPLES = """\
examples:
  python -m serve -- python -m serve.drift reference --data validation.jsonl --out ref.json
  python -m serve.drift live --reference ref.json --seconds 600
  python -m serve.drift live --reference ref.json --prometheus http://127.0.0.1:9090 --span 1d
  python -m serve.drift records --reference ref.json scored.parquet
  python -m serve.drift records --reference ref.json decisions.sqlite --since 2026-11
  python -m serve.drift rescore --reference ref.json --curated spanish=validation_es.csv
  python -m serve.drift watch --reference ref.json --prometheus http://127.0.0.1:9090 --port 9105

moved: PSI of at least 0.1, a rate 1.5 times as high or low; drifted: 0.25, twice; each only where chance gives less
than that in 999 of 1000 cases. Of curated sets: how far a rate may move is said in serve/drift/curated.py.

exit codes: 0 nothing drifted, 1 something did (with --strict: or moved), 2 it could not be measured
"""
SENT_S, WAIT_S = 3.5, 20.0
"""Triton's histograms are sent every three seconds; so long at most on a busy machine."""


@dataclass
class Report:
    """What was compared. :param notes: what could not be, and why."""

    reference: Reference
    findings: list[Finding] = field(default_factory=list)
    curated: list[Finding] = field(default_factory=list)
    comments: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def worst(self) -> int:
        return max((finding.verdict for finding in (*self.findings, *self.curated)), default=0)

    def to_dict(self) -> dict[str, Any]:
        from serve.drift.measure import VERDICTS

        return {
            "model": self.reference.model,
            "version": self.reference.version,
            "reference": {"made": self.reference.made, **self.reference.source},
            "comments": self.comments,
            "verdict": VERDICTS[self.worst],
            "findings": [finding.to_dict() for finding in (*self.findings, *self.curated)],
            "notes": self.notes,
        }

    def table(self) -> str:
        from serve.drift.measure import VERDICTS

        lines = [
            f"{self.reference.model} {self.reference.version}, {self.comments} comments now, "
            f"{self.reference.source['comments']} in the reference"
        ]
        found = [*self.findings, *self.curated]
        if found:
            lines.append(f"{'what':<20} {'group':<28} {'value':>8} {'chance':>8} {'then':>8} {'now':>8}  verdict")
        for f in sorted(found, key=lambda f: -f.verdict):
            cells = ["" if v is None else f"{v:.4f}" for v in (f.value, f.chance, f.reference, f.found)]
            lines.append(
                f"{f.what:<20} {f.group:<28} " + " ".join(f"{c:>8}" for c in cells) + f"  {VERDICTS[f.verdict]}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def metrics(self, now: float) -> str:
        """In the text format of Prometheus."""
        own = {"model": self.reference.model, "version": self.reference.version}
        series: dict[tuple[str, str], list[tuple[Mapping[str, str], float]]] = {}

        def add(name: str, text: str, value: float, **more: str) -> None:
            series.setdefault((name, text), []).append(({**own, **more}, value))

        for f in self.findings:
            labels = {"what": f.what, "group": f.group}
            if f.found is None or f.reference is None:
                add("psi", "Population stability index against the reference.", f.value, **labels)
            else:
                add("flag_rate", "Share of comments that bear a label.", f.found, **labels)
                add("flag_rate_reference", "The same in the reference.", f.reference, **labels)
            add("verdict", "0 steady, 1 moved, 2 drifted.", f.verdict, **labels)
        for f in self.curated:
            labels = {"what": f.what, "group": f.group}
            add("curated", "Errors on curated comments.", f.found or 0.0, **labels)
            add("curated_reference", "The same in the reference.", f.reference or 0.0, **labels)
            add("curated_verdict", "0 steady, 1 moved, 2 drifted.", f.verdict, **labels)
        add("comments", "Comments that were compared.", self.comments)
        add("last_success_timestamp_seconds", "When drift was measured last, or this was started.", round(now, 3))
        lines = []
        for (name, text), values in series.items():
            lines += [f"# HELP tritox_drift_{name} {text}", f"# TYPE tritox_drift_{name} gauge"]
            for all_labels, value in values:
                shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in all_labels.items())
                lines.append(f"tritox_drift_{name}{{{shown}}} {value!r}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.drift",
        description="Compare live comments and scores with what they were when the model was measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True)
    kind = argparse.ArgumentDefaultsHelpFormatter

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, formatter_class=kind)

    make = command("reference", "score comments on a running server, and write what they are like")
    make.add_argument("--data", type=Path, required=True, help="comments as they come, which nothing was trained on")
    make.add_argument("--out", type=Path, required=True, metavar="FILE", help="the reference")
    make.add_argument("--terms", type=Path, metavar="FILE", help="terms that name identities, one a line")
    make.add_argument(
        "--metrics", default=METRICS, help="of the server, for the lengths in tokens; none for no lengths"
    )
    make.add_argument("--made", help="what the reference says of its date (default: now)")

    live = command("live", "compare histograms of live traffic with the reference")
    records = command("records", "compare scored comments, or decision records, with the reference")
    records.add_argument(
        "file",
        metavar="FILE|URL",
        help="with scores, as `python -m client --in FILE --out FILE` writes it; or decision records, an SQLite file "
        "or a postgresql:// address",
    )
    records.add_argument("--since", metavar="TIME", help="of decision records: in UTC, such as 2026-11-21T10")
    records.add_argument("--no-texts", action="store_true", help="--column holds no texts, but a hash, say")
    rescore = command("rescore", "score curated comments again, and compare errors and calibration with the reference")
    watch = command("watch", "do it again and again, and show the results to Prometheus")
    watch.add_argument("--every", type=float, default=3600.0, metavar="SECONDS", help="from one time to the next")
    watch.add_argument("--host", default="127.0.0.1", help="address to listen on")
    watch.add_argument("--port", type=int, default=9105, help="of /metrics; 0 takes a free one")
    watch.add_argument(
        "--records", metavar="FILE|URL", help="compare it, too: a file as it is then, decision records of --span"
    )
    for each in (make, records, rescore, watch):
        each.add_argument("--column", default="text", help="column that holds the texts")
    for each in (make, rescore, watch):
        each.add_argument("--triton", default=os.environ.get("TRITOX_URL") or "127.0.0.1:8001", help="gRPC host:port")
        each.add_argument(
            "--curated",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help="labelled comments that are scored again on a schedule; may be given several times",
        )
    make.add_argument("--model", default="toxicity", help="the model that scores")
    for each in (live, watch):
        each.add_argument("--metrics", action="append", metavar="URL", help=f"of each replica (default: {METRICS})")
        each.add_argument("--prometheus", metavar="URL", help="ask this Prometheus, instead of the replicas")
        each.add_argument("--span", default="1d", help="with --prometheus: the time that is looked at, such as 12h")
        each.add_argument("--before", metavar="FILE", help="metrics that were saved, in place of a first look")
        each.add_argument(
            "--scores", choices=("auto", "cascade", "encoder", "gateway"), default="auto", help="counted by"
        )
    live.add_argument("--seconds", type=float, default=300.0, help="from the first look at the metrics to the second")
    for each in (live, records, rescore, watch):
        each.add_argument("--reference", type=Path, required=True, metavar="FILE", help="that `reference` wrote")
        each.add_argument("--json", metavar="FILE", help="write the comparison there; - for standard output")
        each.add_argument("--prom", type=Path, metavar="FILE", help="write it for node_exporter's textfile collector")
        each.add_argument("--strict", action="store_true", help="exit with 1 where something moved, too")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from client.errors import InvalidInput, ToxicityError
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        if arguments.command == "reference":
            return make_reference(arguments)
        if arguments.command == "watch":
            return watch(arguments)
        return publish(compare(arguments), arguments)
    except ModuleNotFoundError as error:
        return _missing(error)
    except (InvalidInput, ToxicityError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _missing(error: ModuleNotFoundError) -> int:
    if "pip install" in str(error):
        sys.stderr.write(f"error: {error}\n")
    else:
        sys.stderr.write(f"error: drift needs the package {error.name}: {INSTALL}\n")
    return 2


def make_reference(arguments: argparse.Namespace) -> int:
    from client import InvalidInput, ToxicityClient
    from serve.drift import curated, live
    from serve.drift.reference import SCORE_BOUNDS, of_census
    from serve.drift.texts import Census, read_terms, rows_of
    from serve.identities import TERMS, Identities
    from serve.server import sha256

    skipped: Counter[str] = Counter()
    texts = [row.text for row in rows_of(arguments.data, arguments.column, skipped) if row.text is not None]
    if not texts:
        raise InvalidInput(f"{arguments.data} holds no texts in {arguments.column!r}")
    sets = _curated(arguments.curated)
    with closing(ToxicityClient(arguments.triton, model=arguments.model)) as client:
        info = client.info()
        identities = Identities(read_terms(arguments.terms) if arguments.terms else TERMS)
        census = Census(info.labels, info.thresholds, SCORE_BOUNDS, identities)
        before = None
        if arguments.metrics != "none":
            _lengths(arguments.metrics, info.name, info.version)  # an address that is wrong is said at once
            time.sleep(SENT_S)
            before = _lengths(arguments.metrics, info.name, info.version)
        for start in range(0, len(texts), curated.REQUEST):
            part = texts[start : start + curated.REQUEST]
            for text, result in zip(part, client.classify(part), strict=True):
                census.add(result.scores, text)
            _progress("comments", start + len(part), len(texts))
        made = arguments.made or time.strftime("%Y-%m-%d", time.gmtime())
        source = {"file": arguments.data.name, "sha256": sha256(arguments.data), "comments": census.comments}
        reference = of_census(census, info.name, info.version, made, source)
        if before is not None:
            reference.lengths = _grown_by(arguments.metrics, info.name, info.version, before, len(texts))
        for name, file in sets.items():
            labelled, truth = curated.read_labelled(file, arguments.column, info.labels)
            scores = curated.score(client, labelled, info.labels)
            reference.curated[name] = {
                "sha256": sha256(file),
                "comments": len(labelled),
                "rates": curated.rates(scores, truth, info.thresholds),
            }
    reference.write(arguments.out)
    for why, number in skipped.items():
        sys.stderr.write(f"{number} rows left out: {why}\n")
    if reference.lengths is None and before is not None:
        live_metric = live.LENGTHS
        sys.stderr.write(f"no lengths: {live_metric} did not count these {len(texts)} comments, and no others\n")
    print(f"wrote {arguments.out}: {census.comments} comments, {len(reference.curated)} curated sets")
    return 0


def _lengths(url: str, model: str, version: str) -> dict[str, float]:
    from serve.drift import live

    text = live.read_metrics([url])
    return live.buckets(text, live.LENGTHS, f"{model}_tokenizer", version).get("", {})


def _grown_by(url: str, model: str, version: str, before: Mapping[str, float], comments: int) -> dict[str, Any] | None:
    """The histogram of the lengths of exactly so many comments; ``None`` where it does not come to that."""
    from serve.drift import live

    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        after = _lengths(url, model, version)
        series = live.grown({"": dict(before)}, {"": after})[""]
        if not series or series.get("+Inf", 0.0) > comments:
            return None
        if series.get("+Inf") == comments:
            bounds = sorted(float(le) for le in series if le != "+Inf")
            return {"bounds": bounds, "counts": live.counts(series, bounds).tolist()}
        time.sleep(0.5)
    return None


def compare(arguments: argparse.Namespace) -> Report:
    """One look.

    :raises InvalidInput: when nothing can be compared.
    """
    from client import InvalidInput
    from serve.drift.reference import read_reference

    report = Report(read_reference(arguments.reference))
    if arguments.command in ("live", "watch"):
        look(report, arguments)
    if arguments.command == "records":
        read_records(report, arguments.file, arguments.column, arguments.since, texts=not arguments.no_texts)
    if arguments.command == "watch" and arguments.records:
        read_records(report, arguments.records, arguments.column, ago(arguments.span))
    if arguments.command in ("rescore", "watch"):
        sets = _curated(arguments.curated)
        if arguments.command == "rescore" and not sets:
            raise InvalidInput(
                f"name --curated NAME=FILE; the reference has {', '.join(report.reference.curated) or 'none'}"
            )
        if sets:
            rescore(report, sets, arguments)
    return report


def look(report: Report, arguments: argparse.Namespace) -> None:
    """Scores and lengths of live traffic."""
    from serve.drift import live
    from serve.drift.reference import LEAST_COMMENTS, compare_lengths, compare_scores

    reference = report.reference
    families = [*live.FAMILIES] if arguments.scores == "auto" else [arguments.scores]
    if arguments.prometheus:

        def ask(metric: str, model: str) -> live.Buckets:
            return live.ask_prometheus(arguments.prometheus, metric, model, reference.version, arguments.span)
    else:
        before, after = _two_looks(arguments)

        def ask(metric: str, model: str) -> live.Buckets:
            found = live.buckets(after, metric, model, reference.version)
            return live.grown(live.buckets(before, metric, model, reference.version), found)

    scores: live.Buckets = {}
    for family in (live.FAMILIES[name] for name in families):
        scores = ask(family.metric, reference.model + family.suffix)
        if any(series.get("+Inf") for series in scores.values()):
            break
    if not any(series.get("+Inf") for series in scores.values()):
        report.notes.append(
            f"no scores of {reference.model} {reference.version} were counted: is there traffic, and is this version "
            "served? The encoder's are counted by Tritox's own backend alone, not in NVIDIA's container"
        )
    counted: dict[str, np.ndarray] = {
        label: live.counts(series, reference.score_bounds)
        for label, series in scores.items()
        if label in reference.scores
    }
    report.comments = int(max((each.sum() for each in counted.values()), default=0))
    report.findings += compare_scores(reference, counted)
    lengths = ask(live.LENGTHS, f"{reference.model}_tokenizer").get("")
    if reference.lengths is not None and lengths:
        found = live.counts(lengths, reference.lengths["bounds"])
        report.comments = max(report.comments, int(found.sum()))
        report.findings += compare_lengths(reference, found)
    else:
        report.notes.append(
            f"lengths are not compared: the {'live metrics' if reference.lengths else 'reference'} lack them"
        )
    if report.comments < LEAST_COMMENTS:
        report.notes.append(f"{report.comments} comments are too few to compare, it takes {LEAST_COMMENTS}")


_seen: dict[str, str] = {}
"""What the last look of ``watch`` saw."""


def _two_looks(arguments: argparse.Namespace) -> tuple[str, str]:
    from serve.drift import live

    urls: Sequence[str] = arguments.metrics or [METRICS]
    if arguments.before:
        return live.read_metrics([arguments.before]), live.read_metrics(urls)
    if arguments.command == "watch":
        before, _seen["metrics"] = _seen.get("metrics", ""), live.read_metrics(urls)
        return before, _seen["metrics"]
    before = live.read_metrics(urls)
    _progress("looking at the metrics again in seconds", 0, int(arguments.seconds))
    time.sleep(arguments.seconds)
    return before, live.read_metrics(urls)


def ago(span: str) -> str:
    """The time of so long ago, as decision records have it.

    :raises InvalidInput: for what is no span.
    """
    from client import InvalidInput

    match = re.fullmatch(r"(\d+)([smhdw])", span)
    if match is None:
        raise InvalidInput(f"--span is {span!r}, must be a number and one of s, m, h, d, w: such as 12h")
    seconds = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - seconds))


def read_records(report: Report, where: str, column: str, since: str | None, texts: bool = True) -> None:
    """:param since: of decision records."""
    from serve.drift.reference import LEAST_COMMENTS, compare_census
    from serve.drift.texts import Census, survey
    from serve.identities import Identities

    reference = report.reference
    identities = Identities(reference.identity_terms)
    census = Census(reference.labels, reference.thresholds, reference.score_bounds, identities)
    skipped = survey(where, column, census, texts, (reference.model, reference.version), since)
    report.comments = max(report.comments, census.comments)
    known = {(finding.what, finding.group) for finding in report.findings}  # live traffic tells more of scores
    report.findings += [f for f in compare_census(reference, census) if (f.what, f.group) not in known]
    report.notes += [f"{number} scored comments left out: {why}" for why, number in skipped.items()]
    if census.comments < LEAST_COMMENTS:
        report.notes.append(f"{census.comments} scored comments are too few to compare, it takes {LEAST_COMMENTS}")


def rescore(report: Report, sets: Mapping[str, Path], arguments: argparse.Namespace) -> None:
    """:raises InvalidInput: for a set that the reference does not know, or whose file is another."""
    from client import InvalidInput, ToxicityClient
    from serve.drift import curated
    from serve.server import sha256

    reference = report.reference
    with closing(ToxicityClient(arguments.triton, model=reference.model)) as client:
        _same_version(client, reference)
        for name, file in sets.items():
            then = reference.curated.get(name)
            if then is None:
                known = ", ".join(reference.curated) or "none"
                raise InvalidInput(f"the reference has no curated set {name!r}, it has {known}")
            if sha256(file) != then["sha256"]:
                raise InvalidInput(f"{file} is not the file that the reference calls {name!r}: its SHA-256 differs")
            texts, truth = curated.read_labelled(file, arguments.column, reference.labels)
            scores = curated.score(client, texts, reference.labels)
            report.curated += curated.compare(name, then["rates"], curated.rates(scores, truth, reference.thresholds))
            report.comments = max(report.comments, len(texts))


def _same_version(client: ToxicityClient, reference: Reference) -> None:
    from client import InvalidInput

    info = client.info()
    if info.version != reference.version:
        raise InvalidInput(
            f"the server answers with version {info.version} of {info.name}, the reference is of {reference.version}: "
            "make a reference of that version"
        )


def publish(report: Report, arguments: argparse.Namespace) -> int:
    from serve.drift.measure import DRIFTED, MOVED

    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
    else:
        print(report.table())
        if arguments.json:
            _write(Path(arguments.json), text)
    if arguments.prom:
        _write(arguments.prom, report.metrics(time.time()))
    if not report.findings and not report.curated:
        sys.stderr.write("error: nothing could be compared\n")
        return 2
    return int(report.worst >= (MOVED if arguments.strict else DRIFTED))


def watch(arguments: argparse.Namespace) -> int:
    """Until it is interrupted."""
    from client.errors import InvalidInput, ToxicityError
    from serve.drift.reference import read_reference

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    reference = read_reference(arguments.reference)  # what cannot ever work ends it at once
    shown = {"text": Report(reference).metrics(time.time())}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = shown["text"].encode() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer((arguments.host, arguments.port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"drift: http://{arguments.host}:{server.server_port}/metrics", flush=True)
        try:
            while True:
                try:
                    report = compare(arguments)
                    if report.findings or report.curated:
                        shown["text"] = report.metrics(time.time())
                    publish(report, arguments)
                except (InvalidInput, ToxicityError, OSError) as error:
                    sys.stderr.write(
                        f"error: {error}\n"
                    )  # the time of the last success stays, and an alert looks at it
                sys.stdout.flush()
                time.sleep(arguments.every)
        except KeyboardInterrupt:
            return 0
        finally:
            server.shutdown()


def _curated(given: Sequence[str]) -> dict[str, Path]:
    from client import InvalidInput

    found = {}
    for each in given:
        name, separator, file = each.partition("=")
        if not separator or not name or not file:
            raise InvalidInput(f"--curated is {each!r}, must be NAME=FILE")
        found[name] = Path(file)
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _progress(what: str, done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{what}: {done} of {of}" + ("\n" if done >= of else ""))
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
