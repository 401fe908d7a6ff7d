"""``python -m export.onnx``: turn an artifact into the next version of a model repository, or refuse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  python -m export.onnx --quantize int8                                  the starter model, for CPUs
  python -m export.onnx --quantize int8 --method auto                    try every way, keep the fastest that passes
  python -m export.onnx --quantize fp16 --artifact artifacts/mdeberta    for GPUs
  python -m export.onnx --quantize none --artifact artifacts/linear --name toxicity_linear
  python -m export.onnx --quantize int8 --no-promote                     publish it, serve it later:
  python -m export.repository promote 2

exit status: 0 published, 1 refused by the gate or for a lost fusion, 2 wrong call; nothing is published unless it is 0
"""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, defaults behind each option."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.onnx",
        description="Turn an artifact into the next version of a model in a Triton model repository. Its forms are\n"
        "compared with the original on real comments; one is published only if it decides like it.",
        epilog=EXAMPLES,
        formatter_class=Formatter,
    )
    p.add_argument(
        "--quantize",
        choices=("none", "fp16", "int8"),
        required=True,
        help="int8 for CPUs, fp16 for GPUs, none for FP32",
    )
    p.add_argument(
        "--artifact", type=Path, default=Path("artifacts/starter"), help="folder that `python -m train fit` wrote"
    )
    p.add_argument(
        "--repository", type=Path, default=Path("model_repository"), help="Triton model repository to write to"
    )
    p.add_argument("--name", default="toxicity", help="model name that clients ask for")
    p.add_argument("--no-promote", action="store_true", help="go on serving the version that is served now")
    form = p.add_argument_group("form")
    form.add_argument(
        "--method",
        choices=("dynamic", "static", "auto"),
        help="of INT8. dynamic: ranges of activations from each batch; static: from calibration comments; auto: try "
        "both in several ways, keep the fastest on this machine that passes the gate (default: dynamic)",
    )
    form.add_argument(
        "--target",
        choices=("cpu", "cuda", "tensorrt"),
        help="what it will run on (default: cuda for fp16, else cpu)",
    )
    form.add_argument(
        "--padding-free",
        choices=("auto", "on", "off"),
        default="auto",
        help="linear layers on real tokens only; auto measures both forms on this machine",
    )
    form.add_argument("--allow-unfused", action="store_true", help="publish an encoder that lost its fused operators")
    gate = p.add_argument_group("gate: what may change, compared with the artifact")
    gate.add_argument(
        "--comments", type=int, default=2000, help="validation comments, of the artifact's, to compare on"
    )
    gate.add_argument("--max-auc-drop", type=float, default=0.001, help="largest drop of the mean ROC-AUC")
    gate.add_argument(
        "--max-flip-rate", type=float, default=0.005, help="largest share of decisions that may change, of each label"
    )
    gate.add_argument(
        "--max-bias-shift",
        type=float,
        default=0.01,
        help="largest change of the mean Subgroup, BPSN and BNSP area over identities",
    )
    gate.add_argument(
        "--identity-data",
        type=Path,
        help="sentences for it: a CSV file with phrase and toxicity (toxic, nontoxic), such as the madlibs (default: "
        "written ones)",
    )
    gate.add_argument("--retune", action="store_true", help="new thresholds from the tuning comments, for this form")
    serving = p.add_argument_group("serving")
    serving.add_argument("--max-batch-size", type=int, default=64, help="most comments in a request, and in a batch")
    serving.add_argument("--instances", type=int, default=2, help="encoder sessions that run side by side")
    serving.add_argument("--intra-op-threads", type=int, default=1, help="threads of each session")
    serving.add_argument(
        "--max-queue-ms",
        type=int,
        default=300,
        help="refuse a request at once (UNAVAILABLE) where those before it need longer than this; 0 refuses none",
    )
    p.add_argument("--report", type=Path, help="write the export's report to this JSON file too")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from export.graph import FusionFailed
        from export.parity import GateFailed
        from export.pipeline import Refused, export
        from export.repository import InvalidRepository
        from export.triton import InvalidSettings
        from train.artifact import InvalidArtifact
        from train.data import InvalidData
    except ModuleNotFoundError as error:
        sys.stderr.write(f"exporting needs the package {error.name}: pip install -e '.[export]' -c constraints.txt\n")
        return 2
    try:
        export(arguments)
    except (InvalidArtifact, InvalidData, InvalidRepository, InvalidSettings, Refused) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (FusionFailed, GateFailed) as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was published\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
