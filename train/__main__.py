"""``python -m train fit|eval``: the command line of training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train", description="Train multi-label toxicity classifiers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="fine-tune an encoder and write an artifact folder",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    fit.add_argument(
        "--config", type=Path, default=Path(__file__).parent / "recipes/minilm.yaml", help="recipe, a YAML file"
    )
    fit.add_argument("--data", type=Path, required=True, help="comments and labels: a CSV (also .gz) or Parquet file")
    fit.add_argument("--out", type=Path, required=True, help="artifact folder to write, e.g. artifacts/minilm")
    fit.add_argument("--epochs", type=float, help="instead of the recipe's")
    fit.add_argument("--seed", type=int, help="instead of the recipe's")
    evaluation = commands.add_parser(
        "eval",
        help="metrics on an artifact's validation comments, of its own scores or of a running server's",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    evaluation.add_argument("--artifact", type=Path, required=True, help="folder that `fit` wrote")
    evaluation.add_argument(
        "--scores", type=Path, help="what `python -m client --jsonl - < ARTIFACT/validation.jsonl` printed"
    )
    evaluation.add_argument("--out", type=Path, help="JSON file to write the metrics to")
    evaluation.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args(argv)

    try:
        from train.artifact import InvalidArtifact
        from train.config import InvalidConfig, read_recipe
        from train.data import InvalidData
        from train.evaluate import InvalidScores, evaluate_artifact, markdown
        from train.fit import fit as run
        from train.fit import overridden
        from train.model import EncoderNotFound
    except ModuleNotFoundError as error:
        sys.stderr.write(f"training needs the package {error.name}: pip install -e '.[train]' -c constraints.txt\n")
        return 2
    try:
        if arguments.command == "eval":
            result = evaluate_artifact(arguments.artifact, arguments.scores, arguments.out)
            print(markdown(result) if arguments.markdown else report(result["validation"]))
            return 0
        recipe = overridden(read_recipe(arguments.config), arguments.epochs, arguments.seed)
        info = run(recipe, arguments.data, arguments.out)
    except (InvalidArtifact, InvalidConfig, InvalidData, InvalidScores, EncoderNotFound) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; {arguments.out} was not touched\n")
        return 130
    print(report(info["metrics"]["validation"]))
    print(f"wrote {arguments.out}")
    return 0


def report(metrics: dict[str, Any]) -> str:
    """Metrics as a table."""
    lines = [f"{'label':<14}{'positives':>10}{'ROC-AUC':>9}{'PR-AUC':>9}{'F1':>8}{'threshold':>11}"]
    for name, m in metrics["labels"].items():
        lines.append(
            f"{name:<14}{m['positives']:>10}{_cell(m['roc_auc']):>9}{_cell(m['pr_auc']):>9}{_cell(m['f1']):>8}{m['threshold']:>11.4f}"
        )
    lines.append(
        f"{'mean':<14}{'':>10}{_cell(metrics['mean_roc_auc']):>9}{_cell(metrics['mean_pr_auc']):>9}{_cell(metrics['mean_f1']):>8}"
    )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
