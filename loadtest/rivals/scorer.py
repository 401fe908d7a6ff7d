"""What the apps share: the model of a folder that ``convert`` wrote, on torch or on ONNX Runtime.

Runs in the rivals' environment. Settings come as JSON in ``TRITOX_RIVAL``.
"""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

SETTINGS: dict[str, Any] = json.loads(os.environ.get("TRITOX_RIVAL", "{}"))


class Scorer:
    """:param engine: ``torch`` for FP32, ``onnx`` for the INT8 graph."""

    def __init__(self, folder: str, engine: str = "torch", threads: int = 1) -> None:
        from transformers import AutoTokenizer

        path = Path(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.normalize = load_normalizer(path / "normalizer.py")
        self.engine = engine
        if engine == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self.session = onnxruntime.InferenceSession(
                str(path / "model_quantized.onnx"), options, providers=["CPUExecutionProvider"]
            )
        else:
            import torch
            from transformers import AutoModelForSequenceClassification

            torch.set_num_threads(threads)
            self.model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """A probability for each label of each text."""
        if self.normalize is not None:
            texts = [self.normalize(text) for text in texts]
        tensors = "np" if self.engine == "onnx" else "pt"
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors=tensors)
        if self.engine == "onnx":
            import numpy as np

            feed = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
            scores: list[list[float]] = (1 / (1 + np.exp(-self.session.run(["logits"], feed)[0]))).tolist()
            return scores
        import torch

        with torch.inference_mode():
            found = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            scores = torch.sigmoid(found.logits).tolist()
        return scores


def load_normalizer(path: Path) -> Any:
    """The ``normalize_text`` of the artifact's own file; ``None`` where it has none."""
    if not path.is_file():
        return None
    import sys

    spec = importlib.util.spec_from_file_location("normalizer", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.normalize_text


def scorer() -> Scorer:
    """The scorer that ``TRITOX_RIVAL`` describes."""
    return Scorer(SETTINGS["folder"], SETTINGS.get("engine", "torch"), SETTINGS.get("threads", 1))
