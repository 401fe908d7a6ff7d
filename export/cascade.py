"""``python -m export.cascade``: put early stages in front of a published model, or refuse.

What it writes is ``<name>_cascade``: a model that answers what its stages are sure of and asks ``<name>``, in the
version that is served now, for the rest. Exits come from comments that no stage was trained on (see export/exits.py),
and the whole is judged on the encoder artifact's validation comments, against the scores of the graph that is served.

A stage is made of n-grams, or is a small encoder (see export/student.py) that runs in the cascade's own process. It
averages its logits with those of the stages before it, and its scores are put on the encoder's scale.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.optimize import nnls
from tokenizers import Tokenizer

from export import exits, parity, triton
from export.parity import GateFailed
from export.repository import InvalidRepository, ModelVersions, locked, sha256, staging_folder
from train.artifact import InvalidArtifact, Layout, git_commit, machine, normalizer_from, write_json
from train.data import text_key
from train.metrics import MULTI_LABEL

REPORT = "cascade.json"
FEWEST = 500
"""Comments that exits are judged on, at least: with fewer no useful bound can be kept."""

TIMED, ROUNDS = 256, 3
"""Comments that stages and the encoder are timed on, and how often."""

BATCH = 32
EXAMPLES = """examples:
  python -m train fit --config ngrams --teacher artifacts/starter --data train.csv.gz --out artifacts/ngrams
  python -m export.cascade --encoder artifacts/starter --stage artifacts/ngrams
  python -m train fit --config convolution --teacher artifacts/starter --data train.csv.gz --out artifacts/convolution
  python -m export.cascade --encoder artifacts/starter --stage artifacts/ngrams --stage artifacts/convolution
  python -m export.cascade --encoder artifacts/starter --stage artifacts/ngrams --count comments --changed 0.01

exit status: 0 published, 1 refused by the gate, 2 wrong call; nothing is published unless it is 0
"""


class Refused(ValueError):
    """What is asked for makes no sense, or cannot be made of these artifacts."""


@dataclass(frozen=True)
class Served:
    """The model that is served now: its files, and how it reads comments."""

    versions: ModelVersions
    number: int
    settings: triton.ServingSettings

    def folder(self, part: str) -> Path:
        return self.versions.repository / f"{self.settings.name}_{part}" / str(self.number)

    def read(self, texts: Sequence[str]) -> list[str]:
        """Texts as every part of the cascade gets them: normalized where the model is served so, and cut."""
        limit = self.settings.max_characters
        if not self.settings.normalize:
            return [text[:limit] for text in texts]
        normalize = normalizer_from(self.folder("tokenizer") / "normalizer.py")
        return [normalize(text[: 4 * limit])[:limit] for text in texts]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        tokenizer = Tokenizer.from_file(str(self.folder("tokenizer") / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.settings.max_tokens)
        return [found.ids for found in tokenizer.encode_batch(list(texts))]

    def scores(self, texts: Sequence[str], progress: str, keep: Path | None = None) -> np.ndarray:
        """The encoder's scores of read texts, FP32. *Shape:* ``(texts, labels)``.

        :param keep: a folder that scores are kept in, for the next export of the same graph.
        """
        model = self.folder("encoder") / "model.onnx"

        def score() -> np.ndarray:
            from export import graph  # seconds, with transformers: --help need not wait for it

            session = graph.session(model, 1)
            return parity.score(
                lambda input_ids, mask: graph.run(session, input_ids, mask),
                self.encode(texts),
                pad_id=self.settings.pad_token_id,
                labels=len(self.settings.labels),
                progress=progress,
            )

        return kept(keep, "encoder", [sha256(model), *texts], score)


def kept(folder: Path | None, name: str, parts: Sequence[str], make: Callable[[], np.ndarray]) -> np.ndarray:
    """What was made of the same ``parts`` before and lies in ``folder``; else it is made, and put there."""
    if folder is None:
        return make()
    key = hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:16]
    file = folder / f"{name}-{key}.npy"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{os.getpid()}-{file.name}")
        np.save(unfinished, make())
        unfinished.replace(file)
    return np.asarray(np.load(file, allow_pickle=False))


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Choose exits, judge them, and publish; the repository stays as it was whenever this raises.

    :returns: the report.
    :raises Refused: for artifacts that do not fit together.
    :raises GateFailed: when no exits keep the bound, or the validation comments tell another story.
    """
    for name in ("changed", "max_auc_drop"):
        if not 0 < getattr(arguments, name) < 1:
            raise Refused(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, must lie between 0 and 1")
    if arguments.cores < 1:
        raise Refused(f"--cores is {arguments.cores}, must be at least 1")
    versions = ModelVersions(arguments.repository, arguments.name)
    number = versions.served()[0]
    served = Served(versions, number, versions.settings(number))
    encoder = Layout(arguments.encoder)
    encoder.check()
    check_fit(served, encoder, [Layout(stage) for stage in arguments.stage])
    thresholds = np.array([served.settings.thresholds[name] for name in served.settings.labels])
    with staging_folder(arguments.repository) as staging:
        folder = staging / "cascade"
        folder.mkdir()
        stages = [Layout(stage) for stage in arguments.stage]
        abouts = write_stages(folder, stages)
        loaded = load_stages(folder, abouts, len(thresholds))
        texts, truths, read_us = read_parts(served, encoder, stages)
        print(", ".join(f"{len(part)} comments for {name}" for name, part in texts.items()))
        by_encoder = {name: served.scores(part, f"encoder, {name}", arguments.keep) for name, part in texts.items()}
        logits = {name: stage_logits(folder, abouts, loaded, part, arguments.keep) for name, part in texts.items()}
        for about, own in zip(abouts, logits["path"], strict=True):
            about["knots"] = exits.fit_knots(own, by_encoder["path"])
        loaded = load_stages(folder, abouts, len(thresholds))
        judged = {
            name: exits.Judged(
                by_encoder[name],
                [stage.calibrated(own) for stage, own in zip(loaded, logits[name], strict=True)],
                truths[name],
                np.array([len(text) for text in texts[name]]),
            )
            for name in texts
        }
        cpu_us, path_us = measure(served, loaded, texts["validation"], texts["path"])
        steps = exits.curve(
            judged["path"],
            judged["tuning"],
            judged["validation"],
            served.settings.labels,
            thresholds,
            cpu_us,
            read_us,
            arguments.cores,
            arguments.count,
            arguments.changed,
            path_us,
        )
        print(table(steps, [about["name"] for about in abouts]))
        chosen = exits.choose(steps, arguments.count, arguments.changed, arguments.max_auc_drop)
        report = {
            "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "encoder": {"artifact": arguments.encoder.name, "model": served.settings.name, "version": number},
            "stages": [
                {
                    "name": about["name"],
                    "kind": about["kind"],
                    "bytes": (folder / about["file"]).stat().st_size,
                    "sha256": sha256(folder / about["file"]),
                }
                for about in abouts
            ],
            "bound": {"count": arguments.count, "changed": arguments.changed, "confidence": exits.CONFIDENCE},
            "max_auc_drop": arguments.max_auc_drop,
            "comments": {name: len(part) for name, part in texts.items()},
            "cpu_us": {
                "read": read_us,
                **{
                    name: float(each.mean())
                    for name, each in zip([*(a["name"] for a in abouts), "encoder"], cpu_us, strict=True)
                },
            },
            "cores": arguments.cores,
            "chosen": chosen,
            # exits of each class of lengths would be most of the file: those that are served are enough
            "curve": [step if i == chosen else {**step, "exits": None} for i, step in enumerate(steps)],
            "machine": machine(),
            "git_commit": git_commit(),
        }
        if arguments.report is not None:  # of a refused cascade too: it says why
            arguments.report.parent.mkdir(parents=True, exist_ok=True)
            write_json(arguments.report, report)
        step = check(steps, chosen, arguments.count, arguments.changed, arguments.max_auc_drop)
        for about, limits in zip(abouts, step["exits"], strict=True):
            about["exits"], about["lengths"] = limits, list(exits.LENGTHS)
        published = publish(served, staging, folder, abouts, report)
    print(f"published version {published} of {served.settings.name}_cascade in {arguments.repository}")
    return report


def check_fit(served: Served, encoder: Layout, stages: Sequence[Layout]) -> None:
    """:raises Refused: unless the stages have the labels of the served model and read texts as it does."""
    settings = served.settings
    if settings.kind != "transformer" or settings.problem_type != MULTI_LABEL:
        raise Refused(
            f"{settings.name} is a {settings.kind} model ({settings.problem_type}); a cascade needs a transformer "
            f"with a sigmoid per label ({MULTI_LABEL})"
        )
    if encoder.read_labels().labels != settings.labels:
        raise Refused(
            f"{encoder.folder} has the labels {', '.join(encoder.read_labels().labels)}, {settings.name} "
            f"{', '.join(settings.labels)}: give the artifact that was exported"
        )
    for stage in stages:
        stage.check()
        config = stage.read_config()
        if config.kind not in ("ngrams", "transformer") or stage.calibration.is_file():
            raise Refused(
                f"{stage.folder} is a {config.kind} model{' with isotonic calibration' * stage.calibration.is_file()}; "
                "a stage is made of n-grams (`python -m train fit --config ngrams`), or is a small network"
            )
        if stage.read_labels().labels != settings.labels or config.problem_type != settings.problem_type:
            raise Refused(
                f"{stage.folder} has the labels {', '.join(stage.read_labels().labels)}, {settings.name} "
                f"{', '.join(settings.labels)}: train it on the same ones"
            )
        # a transformer that was trained on texts as they are reads normalized ones as well: most are the same
        if config.kind == "ngrams" and config.normalize != settings.normalize:
            raise Refused(
                f"{stage.folder} has data.normalize={str(config.normalize).lower()}, {settings.name} is served with "
                f"{str(settings.normalize).lower()}: train it with the same, texts are read once for both"
            )


Rows = list[dict[str, Any]]
"""Comments as artifacts keep them: ``text``, ``labels``, ``scores``."""


def read_parts(
    served: Served, encoder: Layout, stages: Sequence[Layout]
) -> tuple[dict[str, list[str]], dict[str, np.ndarray], float]:
    """The texts that risks are fitted on, limits come from, and the whole is judged on, as the cascade reads them;
    their labels; and the CPU time of reading one, in microseconds.
    """
    path, tuning = tuning_rows(encoder, stages)
    parts = {"path": path, "tuning": tuning, "validation": encoder.read_validation()}
    texts = {}
    for name, rows in parts.items():
        started = time.process_time()
        texts[name] = served.read([row["text"] for row in rows])
        read_us = 1e6 * (time.process_time() - started) / len(rows)
    return texts, {name: np.array([row["labels"] for row in rows], np.float64) for name, rows in parts.items()}, read_us


def tuning_rows(encoder: Layout, stages: Sequence[Layout]) -> tuple[Rows, Rows]:
    """Comments that the risks are fitted on, and comments that the limits come from.

    The latter are tuning comments of the encoder that no stage was trained on; the former are tuning comments of every
    stage that are none of these. The encoder may have been trained on those: they only shape the ladder.

    :raises Refused: when too few are left.
    """
    own = {text_key(row["text"]): row for row in encoder.read_tuning()}
    held: dict[str, dict[str, Any]] | None = None
    for stage in stages:
        rows = {text_key(row["text"]): row for row in stage.read_tuning()}
        if stage.read_training_info().get("teacher") != encoder.folder.name:  # else they were left out in training
            own = {key: row for key, row in own.items() if key in rows}
        held = rows if held is None else {key: row for key, row in held.items() if key in rows}
    path = {key: row for key, row in (held or {}).items() if key not in own}
    tuning = list(own.values())
    if not path:  # one split for all: a third shapes the ladder
        path = {key: own[key] for key in list(own)[::3]}
        tuning = [row for key, row in own.items() if key not in path]
    if min(len(path), len(tuning)) < FEWEST:
        raise Refused(
            f"{len(path)} and {len(tuning)} tuning comments of {encoder.folder} and "
            f"{', '.join(str(stage.folder) for stage in stages)} that no stage was trained on, at least {FEWEST} of "
            f"each are needed: train the stages with --teacher {encoder.folder}"
        )
    return list(path.values()), tuning


def write_stages(folder: Path, stages: Sequence[Layout]) -> list[dict[str, Any]]:
    """Write the stages' files and the code that scores with them; returns what ``settings.json`` says of each.

    :raises Refused: for two stages of one name.
    """
    names = [stage.folder.resolve().name for stage in stages]
    if len(set(names)) < len(names):
        raise Refused(f"the stages are named {', '.join(names)}: give them different folder names")
    hashing = Path(sys.modules["train"].__file__ or "").with_name("hashing.py")
    shutil.copyfile(hashing, folder / "hashing.py")
    shutil.copyfile(triton.TEMPLATES / "stages.py", folder / "stages.py")
    abouts = []
    for number, (name, stage) in enumerate(zip(names, stages, strict=True)):
        if stage.read_config().kind == "ngrams":
            shutil.copyfile(stage.ngrams, folder / f"{name}.npz")
            about: dict[str, Any] = {"name": name, "kind": "ngrams", "file": f"{name}.npz"}
        else:
            from export import student

            about = student.write(folder, name, stage)
        abouts.append({**about, "with": names[:number]})
    return abouts


def stage_logits(
    folder: Path, abouts: Sequence[dict[str, Any]], stages: Sequence[Any], texts: Sequence[str], keep: Path | None
) -> list[np.ndarray]:
    """Of each stage, as it averages them. *Shape of each:* ``(texts, labels)``"""
    parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    own: list[np.ndarray] = []
    for about, stage in zip(abouts, stages, strict=True):
        said = [sha256(folder / about["file"]), str(about.get("max_tokens")), *texts]
        own.append(kept(keep, "stage", said, partial(_joined, stage.models[0], parts)))
    # a stage averages with all before it: its own logits first
    return [np.asarray(np.mean([own[n], *own[:n]], axis=0)) for n in range(len(own))]


def _joined(model: Callable[[Sequence[str]], np.ndarray], parts: Sequence[Sequence[str]]) -> np.ndarray:
    return np.concatenate([model(part) for part in parts])


STAGE_CODE = ("hashing", "stages", "fast_tokenizer")


def load_stages(folder: Path, abouts: Sequence[dict[str, Any]], labels: int) -> list[Any]:
    """The stages as the server will load them, by the very files that it will have."""
    code: dict[str, ModuleType | None] = {name: sys.modules.pop(name, None) for name in STAGE_CODE}
    sys.path.insert(0, str(folder))
    try:
        import stages

        nothing = [list(exits.NEVER)] * labels
        loaded: list[Any] = stages.load(folder, {"stages": [{**about, "exits": nothing} for about in abouts]})
        return loaded
    except ValueError as error:
        raise InvalidArtifact(str(error)) from None
    finally:
        sys.path.remove(str(folder))
        for name, module in code.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def measure(
    served: Served, stages: Sequence[Any], texts: Sequence[str], more: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """CPU time of each comment in each stage, and in the encoder with its tokenizer, in microseconds.

    CPU time, because other work on the machine does not count in it; in turns, and the median of three. A comment's
    time is a part for itself and a part for each of the encoder's tokens, fitted on batches of 32 of like length:
    comments that early stages leave are not as long as others.

    :param texts: of which the first are timed.
    :returns: for each stage and the encoder, of ``texts`` and of ``more``. *Shape of each:* ``(texts,)``
    """
    from export import graph

    session = graph.session(served.folder("encoder") / "model.onnx", 1)
    tokenizer = Tokenizer.from_file(str(served.folder("tokenizer") / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(served.settings.max_tokens)
    most = served.settings.max_batch_tokens or sys.maxsize

    def encoder(rows: Sequence[str]) -> None:
        ids = sorted((tokenizer.encode(row).ids for row in rows), key=len, reverse=True)  # one by one: on this thread
        while ids:  # as serve/backends/onnxruntime runs them
            part, ids = ids[: max(1, most // len(ids[0]))], ids[max(1, most // len(ids[0])) :]
            graph.run(session, *parity.pad(part, len(part[0]), served.settings.pad_token_id))

    tokens = np.array([len(row) for row in served.encode(texts)])
    sample = np.argsort(tokens[:TIMED], kind="stable")
    batches = [sample[i : i + BATCH] for i in range(0, len(sample), BATCH)]
    work = [*(stage.scores for stage in stages), encoder]
    taken = np.zeros((ROUNDS, len(work), len(batches)))
    for turn in range(ROUNDS):
        for number, batch in enumerate(batches):
            rows = [texts[i] for i in batch]
            for who, score in enumerate(work):
                started = time.process_time()
                score(rows)
                taken[turn, who, number] = 1e6 * (time.process_time() - started)
    sizes = np.array([[len(batch), tokens[batch].sum()] for batch in batches], np.float64)
    parts = [nnls(sizes, each)[0] for each in np.median(taken, axis=0)]
    others = np.array([len(row) for row in served.encode(more)])
    first, second = ([base + each * count for base, each in parts] for count in (tokens, others))
    return first, second


def check(
    steps: Sequence[dict[str, Any]], chosen: int | None, count: str, changed: float, max_auc_drop: float
) -> dict[str, Any]:
    """The chosen step.

    :raises GateFailed: naming each limit that is exceeded, with the value and the remedy.
    """
    if chosen is None:
        first = steps[0]["tuning"]
        if first["upper_limit"][count] > changed:
            raise GateFailed(
                f"even the most careful exits change {first['changed_comments']} of {first['comments']} tuning "
                f"comments, at most {first['upper_limit'][count]:.2%} of all {count} at {exits.CONFIDENCE:.0%} "
                f"confidence, allowed is {changed:.2%} (--changed). Nothing was published: train the stage longer, "
                "tune on more comments, or raise the limit"
            )
        raise GateFailed(
            f"with the most careful exits the tuning comments' mean ROC-AUC falls by "
            f"{exits.dropped(first['mean_roc_auc']):.4f}, allowed is {max_auc_drop} (--max-auc-drop). Nothing was "
            "published: train the stage longer, or raise the limit"
        )
    found, wrong = steps[chosen]["validation"], []
    share = found["changed_share" if count == "comments" else "changed_decisions"]
    if share > changed:
        wrong.append(f"{share:.2%} of the {count} on the validation comments change, allowed is {changed:.2%}")
    before, after = found["mean_roc_auc"]
    if not exits.dropped((before, after)) <= max_auc_drop:
        wrong.append(f"mean ROC-AUC goes from {before:.4f} to {after:.4f}, allowed is {max_auc_drop} (--max-auc-drop)")
    if wrong:
        raise GateFailed(f"{'; '.join(wrong)}. Nothing was published: lower --changed, or train the stage longer")
    return steps[chosen]


def publish(
    served: Served, staging: Path, folder: Path, abouts: Sequence[dict[str, Any]], report: dict[str, Any]
) -> int:
    """Give the staged files the next version number, and serve it from now on; returns the number."""
    settings, name = served.settings, f"{served.settings.name}_cascade"
    for target, template in triton.CASCADE_FILES.items():
        shutil.copyfile(triton.TEMPLATES / template, folder / target)
    if settings.normalize:
        shutil.copyfile(served.folder("tokenizer") / "normalizer.py", folder / "normalizer.py")
    write_json(folder / "settings.json", triton.cascade_settings(settings, served.number, abouts))
    with locked(served.versions.repository):
        if served.versions.served()[0] != served.number:
            raise InvalidRepository(f"{settings.name} serves another version now than {served.number}: export again")
        home = served.versions.repository / name
        number = max((int(f.name) for f in home.glob("*") if f.is_dir() and f.name.isdigit()), default=0) + 1
        files = {f.name: sha256(f) for f in sorted(folder.iterdir())}
        write_json(folder / REPORT, {"version": number, **report, "files": files})
        config = triton.cascade(settings, number)
        if home.is_dir():
            folder.rename(home / str(number))
            temporary = home / ".config.pbtxt.new"
            temporary.write_text(config, encoding="utf-8")
            temporary.replace(home / "config.pbtxt")
        else:  # a model folder without a config would stop a server: it appears whole
            whole = staging / f"{name}.whole"
            whole.mkdir()
            folder.rename(whole / str(number))
            (whole / "config.pbtxt").write_text(config, encoding="utf-8")
            whole.rename(home)
    return number


def table(steps: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The curve for reading."""
    lines = [
        f"{'risk':>8}{'limits: comments':>18}{'decisions':>11}" + "".join(f"{name:>12}" for name in names) + "  encoder"
        f"{'changed':>9}{'decisions':>11}{'ROC-AUC':>9}{'PR-AUC':>8}{'F1':>8}{'comments/s':>12}{'speed-up':>10}"
    ]
    for row in steps:
        v, limit = row["validation"], row["tuning"]["upper_limit"]
        shares = "".join(f"{share:>12.1%}" for share in v["answered_by"][:-1])
        areas = [f"{'-' if v[key][1] is None else format(v[key][1], '.4f')}" for key in QUALITY]
        lines.append(
            f"{row['risk']:>8.2g}{limit['comments']:>18.2%}{limit['decisions']:>11.3%}{shares}"
            f"{v['answered_by'][-1]:>9.1%}{v['changed_share']:>9.2%}{v['changed_decisions']:>11.3%}{areas[0]:>9}"
            f"{areas[1]:>8}{areas[2]:>8}{row['comments_per_s']:>12.0f}{row['speedup']:>9.1f}x"
        )
    return "\n".join(lines)


QUALITY = ("mean_roc_auc", "mean_pr_auc", "macro_f1")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.cascade",
        description="Put early stages in front of a published model: they answer what they are sure of, and the model\n"
        "is asked for the rest. Published only if that decides like the model alone.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--encoder",
        type=Path,
        default=Path("artifacts/starter"),
        help="the artifact of the model (default: %(default)s)",
    )
    p.add_argument(
        "--stage",
        type=Path,
        action="append",
        required=True,
        help="an artifact of n-grams, or of a small network; may be repeated, in order",
    )
    p.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        help="Triton model repository (default: %(default)s)",
    )
    p.add_argument("--name", default="toxicity", help="the model in it that the rest is sent to (default: %(default)s)")
    p.add_argument(
        "--changed",
        type=float,
        default=0.003,
        help="largest share that may change of what --count says: of the tuning comments with 95%% confidence, and of "
        "the validation comments as counted (default: %(default)s)",
    )
    p.add_argument(
        "--count",
        choices=exits.COUNTS,
        default="decisions",
        help="what --changed is of: single decisions, one for each comment and label, or comments with any decision "
        "other than the model's (default: %(default)s)",
    )
    p.add_argument(
        "--max-auc-drop", type=float, default=0.003, help="how far the mean ROC-AUC may fall (default: %(default)s)"
    )
    p.add_argument(
        "--cores", type=int, default=2, help="that comments a second are predicted for (default: %(default)s)"
    )
    p.add_argument(
        "--keep",
        type=Path,
        help="folder to keep scores of the model and its stages in, for the next export of a cascade",
    )
    p.add_argument("--report", type=Path, help="write the report with the whole curve to this JSON file")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        export(arguments)
    except (InvalidArtifact, InvalidRepository, triton.InvalidSettings, Refused) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except GateFailed as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was published\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
