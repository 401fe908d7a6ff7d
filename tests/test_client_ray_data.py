"""Bulk scoring on a real Ray cluster of two nodes. ``make ray`` installs Ray."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from test_client_sync import LABELS, Stub

from client import ray_data
from client.ray_data import main

ray = pytest.importorskip("ray", reason="needs the extra ray: make ray")
pytestmark = [
    pytest.mark.slow,
    # Ray's own, on which warnings are not ours to judge
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    stub = Stub()
    server = stub.start()
    yield stub
    server.stop(None).wait()


AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = Cluster()
    try:
        for _ in range(2):
            # a node whose agents find ports of their own dies where they take more than 15 s to start
            ports = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
            cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, **ports)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files, 3,000 rows; two of them cannot be scored."""
    folder = tmp_path_factory.mktemp("ray") / "in"
    folder.mkdir()
    for part in range(6):
        ids = range(part * 500, (part + 1) * 500)
        texts = [f"{i / 10_000:.4f}".encode() for i in ids]
        if part == 2:
            texts[7:9] = [None, b"caf\xe9"]
        table = pa.table({"id": pa.array(ids, pa.int32()), "comment": pa.array(texts, pa.binary())})
        pq.write_table(table, folder / f"{part}.parquet")
    return folder


def test_a_folder_is_scored_on_a_cluster(
    stub: Stub, cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    peers: set[str] = set()

    def fault(request: object, context: grpc.ServicerContext) -> None:
        peers.add(context.peer())
        until = time.monotonic() + 20  # or the first actor has done all before the others are up
        while len(peers) < 3 and time.monotonic() < until:
            time.sleep(0.05)

    stub.fault = fault
    monkeypatch.setattr(ray_data, "BATCH_ROWS", 100)
    out = folder.parent / "out"
    options = ["--url", stub.grpc_url, "--column", "comment", "--policy", "standard", "--actors", "3"]
    assert main([str(folder), str(out), *options]) == 0
    assert len(peers) == 3  # actors, of a CPU each: a node has but two
    table = pq.read_table(out).sort_by("id")
    assert table.column_names == ["id", "comment"] + [f"score_{label}" for label in LABELS] + [
        *("flagged", "truncated", "model_version", "action", "rule", "error")
    ]
    assert table.schema.field("id").type == pa.int32()
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == list(range(3000))
    bad = {row["id"]: row for row in rows if row["error"]}
    assert list(bad) == [1007, 1008]
    assert bad[1007]["error"] == "'comment' is null, must be a string"
    assert bad[1008]["error"].startswith("is not UTF-8: byte 0xe9 at position 3")
    for row in rows:
        if row["id"] not in bad:
            assert f"{row['score_toxic']:.4f}" == row["comment"].decode()
            assert row["action"] == ("allow" if row["id"] < 1000 else "review")  # threat >= 0.1
    assert main([str(folder), str(out), *options]) == 1  # what is there is not mixed with more


def test_wrong_columns_are_refused_before_anything_is_scored(
    stub: Stub, cluster: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.requests.clear()
    assert main([str(folder), str(tmp_path / "out"), "--url", stub.grpc_url]) == 1
    assert "no column 'text', it has 'id', 'comment'" in capsys.readouterr().err
    assert stub.requests == []
