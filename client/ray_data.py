"""``python -m client.ray_data IN OUT``: score Parquet files on a Ray cluster, with this client in each worker.

Ray reads, hands out and writes blocks, with back-pressure between them; each of a few actors keeps one client with its
connections open for as long as the job runs. Wherever the workers are, they ask the servers at ``url``.

>>> import ray                                                                              # doctest: +SKIP
>>> from client.ray_data import score
>>> dataset = ray.data.read_parquet("s3://bucket/comments/")                                # doctest: +SKIP
>>> score(dataset, "triton:8001", policy="standard").write_parquet("s3://bucket/scored/")   # doctest: +SKIP
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from client.errors import ToxicityError
from client.files import InvalidFile, arrow, arrow_chunk, arrow_fields, result_columns, with_results
from client.policy import Policy

BATCH_ROWS = 2048
"""Rows that an actor is given at a time; they are sent in requests of the server's size."""


class Scores:
    """What runs in each actor: Arrow tables in, the same with the columns of :func:`client.files.result_columns` out.

    :param policy: read where the job starts, so that its file need not be on the workers.
    """

    def __init__(
        self,
        url: str | None,
        model: str,
        column: str,
        policy: Policy | None,
        in_flight: int,
        timeout: float,
        patience_s: float,
    ) -> None:
        from client import ToxicityClient
        from client.bulk import Scorer

        self.client = ToxicityClient(url, model=model, timeout=timeout)
        self.info = self.client.info(timeout=patience_s)
        self.scorer = Scorer(self.client, policy, in_flight, patience_s)
        self.column = column

    def __call__(self, table: Any) -> Any:
        pa, _ = arrow()
        fields = arrow_fields(self.info.labels, self.scorer.policy is not None)
        schema = pa.schema([*table.schema, *fields], table.schema.metadata)
        batches = table.to_batches(max_chunksize=self.info.max_batch_size)
        chunks = (arrow_chunk(batch, self.column, 1, keep=True) for batch in batches)
        done = []
        for scored in self.scorer.score(chunks):
            for row in scored.rows:  # which row of the data set it is, an actor does not know
                if row.row.error is not None:
                    row.row.error = row.row.error.partition(": ")[2]
            done.append(with_results(scored.batch, scored.rows, schema))
        return pa.Table.from_batches(done, schema)


def score(
    dataset: Any,
    url: str | None = None,
    *,
    model: str = "toxicity",
    column: str = "text",
    policy: str | Policy | None = None,
    actors: int = 2,
    in_flight: int = 4,
    timeout: float = 10.0,
    patience_s: float = 60.0,
) -> Any:
    """A ``ray.data.Dataset`` with the columns of the results added. Nothing is scored before it is consumed.

    Rows that cannot be scored bear an ``error``. The order of the rows is Ray's.

    :param url: of the servers, as the workers reach them; by default the workers' own ``TRITOX_URL``.
    :param policy: a preset's name, a path, or a policy that was read.
    :param actors: that score, each with a CPU of the cluster.
    :param in_flight: requests at a time, of each actor.
    :param timeout: seconds for each request.
    :param patience_s: how long an actor waits for a server that is busy or away.
    :raises InvalidFile: when the data set has no such column, or one that the results have.
    """
    names = dataset.schema().names
    if column not in names:
        raise InvalidFile(f"the data set has no column {column!r}, it has {', '.join(map(repr, names))}: name another")
    policy = policy if isinstance(policy, Policy) or policy is None else Policy.read(policy)
    added = set(result_columns((), policy is not None))
    if both := [name for name in names if name in added or name.startswith("score_")]:
        raise InvalidFile(f"the data set has a column {both[0]!r}, as results have: rename it")
    # Ray makes blocks by their bytes; rows take long here, so that small files would keep one actor busy alone
    return dataset.repartition(target_num_rows_per_block=BATCH_ROWS).map_batches(
        Scores,
        fn_constructor_args=(url, model, column, policy, in_flight, timeout, patience_s),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        concurrency=actors,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m client.ray_data",
        description="Score Parquet files on a Ray cluster. Every column is kept; the order of rows is not.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="a Parquet file or a folder of them; any address that Ray reads")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--url", required=True, help="host:port of the server's gRPC port, as the workers reach it")
    parser.add_argument("--model", default="toxicity", help="the model's name on the server")
    parser.add_argument("--column", default="text", help="that holds the texts")
    parser.add_argument("--policy", help="add an action: strict, standard, lenient, or a YAML file")
    parser.add_argument("--actors", type=int, default=2, help="workers that score")
    parser.add_argument("--in-flight", type=int, default=4, help="requests at a time of each")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for each request")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a server that is away")
    parser.add_argument(
        "--address", help="of a Ray cluster; without it Ray's own default, or a new one on this machine"
    )
    arguments = parser.parse_args(argv)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: this needs the package {error.name}: pip install -e '.[ray]' -c constraints.txt\n")
        return 1
    try:
        policy = Policy.read(arguments.policy) if arguments.policy else None
        if not ray.is_initialized():
            ray.init(arguments.address, runtime_env={"py_modules": [str(Path(__file__).parent)]}, log_to_driver=False)
        rows = score(
            ray.data.read_parquet(arguments.source),
            arguments.url,
            model=arguments.model,
            column=arguments.column,
            policy=policy,
            actors=arguments.actors,
            in_flight=arguments.in_flight,
            timeout=arguments.timeout,
            patience_s=arguments.patience,
        )
        rows.write_parquet(arguments.out, mode=ray.data.SaveMode.ERROR)
    except (ToxicityError, ModuleNotFoundError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
