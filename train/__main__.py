"""``python -m train fit|eval|tune|calibrate|predict|compare|results|bench``: the command line of training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Parser = argparse.ArgumentParser


def parser() -> Parser:
    p = argparse.ArgumentParser(
        prog="python -m train", description="Train, measure and adjust toxicity and hate-speech classifiers."
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> Parser:
        return commands.add_parser(
            name, help=what, description=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    fit_options(command("fit", "train by a recipe and write an artifact folder"))
    eval_options(command("eval", "metrics of an artifact, or of a running server's scores; bias, HateCheck, report"))
    tune = command("tune", "new decision thresholds from the tuning comments")
    tune.add_argument("--artifact", type=Path, required=True, help="folder that `fit` wrote; changed in place")
    tune.add_argument(
        "--objective", type=objective, default="f1", help="f1, or precision=P for the lowest threshold of precision P"
    )
    calibrate = command("calibrate", "make scores probabilities again, from the tuning comments")
    calibrate.add_argument("--artifact", type=Path, required=True, help="folder that `fit` wrote; changed in place")
    calibrate.add_argument(
        "--method", choices=("auto", "platt", "temperature", "isotonic"), default="auto", help="how to calibrate"
    )
    predict = command("predict", "score texts with an artifact, as JSON lines")
    predict.add_argument("--artifact", type=Path, required=True, help="folder that `fit` wrote")
    predict.add_argument("--input", type=Path, help="CSV or Parquet file with a column of texts, instead of TEXT")
    predict.add_argument("--out", type=Path, help="file to write to instead of standard output")
    predict.add_argument("text", nargs="*", metavar="TEXT", help="texts; lines of standard input where none is given")
    compare = command("compare", "artifacts side by side")
    compare.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="folders that `fit` wrote")
    compare.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    compare.add_argument("--out", type=Path, help="JSON file to write the table to")
    results = command("results", "write train/RESULTS.md from the files in train/results")
    results.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    bench = command("bench", "training speed and memory of each recipe on this machine")
    bench.add_argument("--data", type=Path, required=True, help="comments in the Jigsaw format")
    bench.add_argument("--recipes", nargs="*", help="names of shipped recipes; all where none is given")
    bench.add_argument("--steps", type=int, default=10, help="optimizer steps of each transformer")
    bench.add_argument("--out", type=Path, help="JSON file to write the results to")
    return p


def fit_options(p: Parser) -> None:
    p.add_argument("--config", default="minilm", help="name of a shipped recipe, or a YAML file")
    p.add_argument("--data", type=Path, required=True, help="comments and labels: a CSV (also .gz) or Parquet file")
    p.add_argument("--out", type=Path, required=True, help="artifact folder to write, e.g. artifacts/minilm")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a value of the recipe, e.g. train.epochs=2; may be repeated",
    )
    p.add_argument(
        "--extra",
        action="append",
        type=named_file,
        default=[],
        metavar="FORMAT=FILE",
        help="more training comments in another format, e.g. hatemoji=FILE; may be repeated",
    )
    p.add_argument("--teacher", type=Path, help="artifact whose scores the model learns (see `distillation`)")
    p.add_argument(
        "--unlabelled",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="comments that only the teacher scores; may be repeated",
    )
    p.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the teacher's scores there, for its next student")
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint of an unfinished run")
    p.add_argument("--restart", action="store_true", help="discard the checkpoints of an unfinished run")
    p.add_argument(
        "--random-weights",
        action="store_true",
        help="build the encoder from the recipe's encoder.config with random weights, where its weights cannot be had",
    )
    p.add_argument(
        "--pretokenize",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="tokenize all comments before the first step, or on the fly (default: the recipe's)",
    )
    p.add_argument("--mlflow", metavar="EXPERIMENT", help="log to this MLflow experiment (MLFLOW_TRACKING_URI)")
    p.add_argument("--model-version", help="MAJOR.MINOR.PATCH, instead of the one that follows from what changed")


def eval_options(p: Parser) -> None:
    p.add_argument("--artifact", type=Path, required=True, help="folder that `fit` wrote")
    p.add_argument("--scores", type=Path, help="what `python -m client --jsonl - < ARTIFACT/validation.jsonl` printed")
    p.add_argument("--hatecheck", type=Path, action="append", default=[], help="HateCheck test cases; may be repeated")
    p.add_argument("--madlibs", type=Path, help="intersectional madlibs, for identity bias")
    p.add_argument("--obfuscation", action="store_true", help="score the validation comments obfuscated, too")
    p.add_argument(
        "--obfuscation-comments", type=int, metavar="N", help="so many of them, drawn at random (default: all)"
    )
    p.add_argument("--out", type=Path, help="JSON file to write the result to (default: beside --html)")
    p.add_argument("--html", type=Path, help="HTML file to write a report with plots to")
    p.add_argument("--examples", action="store_true", help="show the worst errors, with their texts, in the report")
    p.add_argument("--markdown", action="store_true", help="print the table as Markdown")


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from train.artifact import InvalidArtifact
        from train.config import InvalidConfig
        from train.data import InvalidData
        from train.evaluate import InvalidScores
        from train.model import EncoderNotFound
        from train.version import InvalidVersion
    except ModuleNotFoundError as error:
        sys.stderr.write(f"training needs the package {error.name}: pip install -e '.[train]' -c constraints.txt\n")
        return 2
    try:
        return int(globals()[f"run_{arguments.command}"](arguments))
    except (InvalidArtifact, InvalidConfig, InvalidData, InvalidScores, InvalidVersion, EncoderNotFound) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; {interrupted(arguments)}\n")
        return 130


def interrupted(arguments: argparse.Namespace) -> str:
    if arguments.command != "fit":
        return "nothing was changed"
    return f"{arguments.out} was not touched; --resume goes on from the last checkpoint, where there is one"


def run_fit(arguments: argparse.Namespace) -> int:
    from train.config import read_recipe
    from train.fit import Options, Sources, fit

    overrides = list(arguments.set)
    if arguments.pretokenize is not None:
        overrides.append(f"train.pretokenize={str(arguments.pretokenize).lower()}")
    info = fit(
        read_recipe(arguments.config, overrides),
        Sources(arguments.data, tuple(arguments.extra), arguments.teacher, tuple(arguments.unlabelled)),
        arguments.out,
        Options(
            resume=arguments.resume,
            restart=arguments.restart,
            random_weights=arguments.random_weights,
            mlflow=arguments.mlflow,
            keep=arguments.keep,
            model_version=arguments.model_version,
        ),
    )
    if info is not None:  # the first of several processes
        cost = info["throughput"]
        print(table(info["metrics"]["validation"]))
        print(f"{cost['comments_per_s']} comments/s in training, {cost['peak_memory_bytes'] / 1e9:.1f} GB at most")
        print(f"wrote {arguments.out}")
    return 0


def run_eval(arguments: argparse.Namespace) -> int:
    from train.artifact import write_json
    from train.config import InvalidConfig
    from train.evaluate import evaluate_scorer, markdown
    from train.report import write_html
    from train.scorer import load

    predict = raw = None
    if arguments.hatecheck or arguments.madlibs or arguments.obfuscation:
        if arguments.scores is not None:
            raise InvalidConfig("--scores holds the validation comments alone: leave out what needs other texts scored")
        predict = load(arguments.artifact)[0]
        if arguments.obfuscation and predict.config.normalize:
            raw = load(arguments.artifact)[0].without_normalizer()
    result = evaluate_scorer(
        predict,
        arguments.artifact,
        scores=arguments.scores,
        hatecheck=arguments.hatecheck,
        madlibs=arguments.madlibs,
        obfuscation=arguments.obfuscation,
        obfuscation_rows=arguments.obfuscation_comments,
        predict_raw=raw,
        examples=arguments.examples,
    )
    if arguments.html is not None:
        write_html(result, arguments.html)
    out = arguments.out or (arguments.html and arguments.html.with_suffix(".json"))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        # texts are not to be published, and the plots' points follow from validation.jsonl
        write_json(out, {k: v for k, v in result.items() if k not in ("examples", "curves")})
    print(markdown(result) if arguments.markdown else table(result["validation"]))
    for name, found in result.get("hatecheck", {}).items():
        print(f"{name}: {found['accuracy']:.1%} of {found['cases']} cases right")
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    from train.artifact import write_json
    from train.evaluate import compare

    result = compare(arguments.artifacts)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, result)
    print(result.markdown() if arguments.markdown else result.text())
    return 0


def run_tune(arguments: argparse.Namespace) -> int:
    from train.adjust import tune

    return report_adjusted(tune(arguments.artifact, arguments.objective), arguments.artifact)


def run_calibrate(arguments: argparse.Namespace) -> int:
    from train.adjust import recalibrate
    from train.config import InvalidConfig

    try:
        return report_adjusted(recalibrate(arguments.artifact, arguments.method), arguments.artifact)
    except ValueError as error:
        raise InvalidConfig(str(error)) from None


def report_adjusted(adjusted: Any, folder: Path) -> int:
    print("before, on the validation comments:")
    print(table(adjusted.before))
    print("after:")
    print(table(adjusted.after))
    for label, warning in adjusted.warnings.items():
        sys.stderr.write(f"{label}: {warning}\n")
    print(f"wrote version {adjusted.version} to {folder}")
    return 0


def run_predict(arguments: argparse.Namespace) -> int:
    from train.data import read_texts
    from train.scorer import load

    scorer, labels, thresholds = load(arguments.artifact)
    if arguments.input is not None:
        texts = read_texts(arguments.input)
    else:
        texts = arguments.text or [line.rstrip("\n") for line in sys.stdin]
    scores = scorer.scores(texts, "scoring" if len(texts) > 1000 else None)
    lines = []
    for text, row in zip(texts, scores, strict=True):
        values = {label: round(float(score), 6) for label, score in zip(labels, row, strict=True)}
        flagged = [label for label in labels if values[label] >= thresholds[label]]
        if scorer.config.problem_type == "single_label_classification":
            flagged = [labels[int(row.argmax())]]
        lines.append(json.dumps({"text": text, "scores": values, "flagged": flagged}, ensure_ascii=False) + "\n")
    if arguments.out is None:
        sys.stdout.writelines(lines)
    else:
        temporary = arguments.out.with_name(f".{arguments.out.name}")
        temporary.write_text("".join(lines), encoding="utf-8")
        temporary.replace(arguments.out)
    return 0


def run_results(arguments: argparse.Namespace) -> int:
    from train import results

    if arguments.check:
        same = results.PAGE.is_file() and results.PAGE.read_text(encoding="utf-8") == results.render()
        print(f"{results.PAGE} is {'up to date' if same else 'not what the files say: run `python -m train results`'}")
        return 0 if same else 1
    results.write()
    print(f"wrote {results.PAGE}")
    return 0


def run_bench(arguments: argparse.Namespace) -> int:
    from train.bench import bench, markdown

    result = bench(arguments.data, arguments.recipes, arguments.steps, arguments.out)
    print(markdown(result))
    return 0


def objective(text: str) -> str | tuple[str, float]:
    """``f1`` or ``precision=0.9``, for argparse."""
    name, _, value = text.partition("=")
    if text == "f1":
        return text
    try:
        target = float(value)
    except ValueError:
        target = -1.0
    if name != "precision" or not 0 < target <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be f1 or precision=P with P above 0 and at most 1")
    return name, target


def named_file(text: str) -> tuple[str, Path]:
    """``FORMAT=FILE``, for argparse."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} must be FORMAT=FILE, e.g. hatemoji=build_train.csv")
    return name, Path(path)


def table(metrics: dict[str, Any]) -> str:
    """Metrics as a table."""
    head = ("label", "positives", "ROC-AUC", "PR-AUC", "F1", "threshold")
    lines = [row(head)]
    for name, m in metrics["labels"].items():
        lines.append(row((name, m["positives"], m["roc_auc"], m["pr_auc"], m["f1"], m["threshold"])))
    lines.append(row(("mean", "", metrics["mean_roc_auc"], metrics["mean_pr_auc"], metrics["mean_f1"], "")))
    return "\n".join(lines)


def row(cells: Sequence[Any]) -> str:
    texts = ["-" if c is None else f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells]
    widths = (10, 9, 9, 8, 11)
    return f"{texts[0]:<14}" + "".join(f"{text:>{width}}" for text, width in zip(texts[1:], widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
