"""Triton model: texts to scores by TF-IDF and one product, for models that have no encoder.

When it loads, the model scores the comments of ``golden.json`` and refuses to serve if their scores have changed.

Written by the exporter into every version folder: change ``export/templates/linear_model.py`` instead.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from admission import Admission
from linear_scorer import LinearScorer
from texts import TextReader


class TritonPythonModel:
    """What Triton's Python backend calls; one per instance, in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.reader = TextReader(settings["max_characters"], settings["normalize"])
        self.scorer = LinearScorer(folder)
        self.check(json.loads((folder / "golden.json").read_text(encoding="utf-8")))
        self.admission = Admission(json.loads(args["model_config"]))

    def check(self, golden: dict[str, Any]) -> None:
        """:raises TritonModelException: when a golden comment's scores are not those of the export."""
        found = self.scorer.scores(self.reader.prepare(golden["texts"])[0])
        difference = np.abs(found - np.array(golden["scores"], np.float32))
        if not difference.max() <= golden["tolerance"]:  # "not <=", so that NaN fails too
            row, label = np.unravel_index(np.nan_to_num(difference, nan=np.inf).argmax(), difference.shape)
            raise pb_utils.TritonModelException(
                f"self-test failed: the scores of the golden comments differ by up to {difference[row, label]:.4f} "
                f"from those at export, allowed is {golden['tolerance']} (comment {row}, label {label}): a file of "
                "this version was changed; restore it, or export again"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers, or refusals where too much waits already."""
        refusals = self.admission.refusals([request.timeout() for request in requests])
        passed = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        answers = iter(self.answer(passed) if passed else [])
        return [next(answers) if refusal is None else refused(refusal) for refusal in refusals]

    def answer(self, requests: list[Any]) -> list[Any]:
        batch = self.reader.read(requests)
        responses: list[Any] = batch.responses
        scores = self.scorer.scores(batch.texts)
        for i, start, stop in batch.spans:
            tensors = [
                pb_utils.Tensor("scores", scores[start:stop]),
                pb_utils.Tensor("truncated", np.array(batch.cut[start:stop], bool).reshape(-1, 1)),
            ]
            responses[i] = pb_utils.InferenceResponse(tensors)
        return responses


def refused(reason: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.UNAVAILABLE))
