"""``python -m export.onnx``: turn an artifact into the next version of a model repository, or refuse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m export.onnx",
        description="Turn an artifact into the next version of a Triton model repository. The exported model is "
        "compared with the original on real comments, and is published only if it decides like it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    p.add_argument("--comments", type=int, default=2000, help="validation comments, of the artifact's, to compare on")
    p.add_argument("--max-auc-drop", type=float, default=0.002, help="largest drop of the mean ROC-AUC")
    p.add_argument("--max-flip-rate", type=float, default=0.005, help="largest share of decisions that may change")
    p.add_argument("--max-batch-size", type=int, default=64, help="most comments in a request, and in a batch")
    p.add_argument("--instances", type=int, default=2, help="encoder sessions that run side by side")
    p.add_argument("--intra-op-threads", type=int, default=1, help="threads of each session")
    p.add_argument("--allow-unfused", action="store_true", help="publish an encoder whose attention could not be fused")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from export.graph import FusionFailed
        from export.parity import GateFailed
        from export.pipeline import export
        from export.repository import InvalidRepository
        from export.triton import InvalidSettings
        from train.artifact import InvalidArtifact
    except ModuleNotFoundError as error:
        sys.stderr.write(f"exporting needs the package {error.name}: pip install -e '.[export]' -c constraints.txt\n")
        return 2
    try:
        export(arguments)
    except (InvalidArtifact, InvalidRepository, InvalidSettings) as error:
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
