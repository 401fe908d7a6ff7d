"""mosec with batching: its Rust front collects requests, and a worker scores them together."""

from typing import Any

from mosec import Server, Worker
from scorer import SETTINGS, scorer


class Classifier(Worker):
    """Requests are lists of texts, so a batch is a list of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.score = scorer()

    def forward(self, data: Any) -> Any:
        requests = data if isinstance(data, list) else [data]  # no list where max_batch_size is 1
        scores = iter(self.score([text for request in requests for text in request["texts"]]))
        replies = [{"scores": [next(scores) for _ in request["texts"]]} for request in requests]
        return replies if isinstance(data, list) else replies[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Classifier,
        num=SETTINGS["workers"],
        max_batch_size=SETTINGS["batch"],
        max_wait_time=SETTINGS["wait_ms"],
        route="/classify",
    )
    server.run()
