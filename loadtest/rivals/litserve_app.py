"""LitServe with batching: requests that wait are scored together."""

from typing import Any

import litserve
from scorer import SETTINGS, scorer


class Classifier(litserve.LitAPI):
    """Requests are lists of texts, so a batch is a list of lists."""

    def setup(self, device: str) -> None:
        self.score = scorer()

    def decode_request(self, request: dict[str, Any], **_: Any) -> list[str]:
        texts: list[str] = request["texts"]
        return texts

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, x: Any, **_: Any) -> Any:
        if x and isinstance(x[0], str):  # max_batch_size is 1
            return self.score(x)
        scores = iter(self.score([text for texts in x for text in texts]))
        return [[next(scores) for _ in texts] for texts in x]

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any, **_: Any) -> dict[str, Any]:
        return {"scores": output}


if __name__ == "__main__":
    api = Classifier(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["wait_ms"] / 1000, api_path="/classify")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=SETTINGS["workers"], fast_queue=SETTINGS.get("fast_queue", False)
    )
    server.run(
        host="127.0.0.1", port=SETTINGS["port"], num_api_servers=1, generate_client_file=False, log_level="warning"
    )
