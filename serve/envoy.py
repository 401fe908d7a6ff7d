"""``python -m serve.envoy``: Envoy with the configuration that ships (docker/envoy.yaml), in front of servers here.

Nothing but addresses and paths is changed in it, so that what is tried on one machine is what runs in the containers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from serve.server import ServeError, die_with_parent, reachable, reserve_ports

INSTALL = "pip install -e '.[fleet]' -c constraints.txt"
CONFIG = Path(__file__).parent.parent / "docker/envoy.yaml"
SECRETS = ("door", "inside", "authority")
DOORS = {"door": 8443, "services": 8444, "stats": 9901, "admin": 9903}
"""Listeners by name, with the ports that they have in the file."""
READY_S = 15.0
KEY_FILTER = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
SHORTEST_KEY = 8
"""As of the gateway's keys."""

Address = tuple[str, int]


@dataclass(frozen=True)
class Places:
    """What stands in the configuration for the containers' names and folders.

    :param ports: that listeners have, by name; all listen on ``host``.
    :param triton: the replicas. :param gateway: its addresses.
    :param certificates: the folder that ``python -m serve.certificates`` wrote for Envoy.
    :param keys: the folder with ``keys.yaml``.
    :param resolver: a DNS server that is asked instead of the system's.
    """

    ports: Mapping[str, int]
    triton: Sequence[Address]
    certificates: Path
    keys: Path
    gateway: Sequence[Address] = (("127.0.0.1", 1),)
    host: str = "127.0.0.1"
    resolver: Address | None = None


def read_config(path: Path = CONFIG) -> dict[str, Any]:
    """:raises ServeError: when the file is missing, or no YAML."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise ServeError(f"Envoy's configuration needs the package yaml: {INSTALL}") from None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ServeError(f"{path} cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict) or "static_resources" not in config:
        raise ServeError(f"{path} is no configuration of Envoy: it has no static_resources")
    return config


def render(config: dict[str, Any], places: Places, folder: Path) -> Path:
    """Write the configuration for ``places``, and what it reads, into ``folder``; returns its file."""
    config = json.loads(json.dumps(config))  # aliases become copies
    resources = config["static_resources"]
    config["admin"]["address"] = _address(("127.0.0.1", places.ports["admin"]))
    for listener in resources["listeners"]:
        listener["address"] = _address((places.host, places.ports[listener["name"]]))
    behind = {"triton": places.triton, "gateway": places.gateway, "admin": [("127.0.0.1", places.ports["admin"])]}
    for cluster in resources["clusters"]:
        endpoints = [{"endpoint": {"address": _address(each)}} for each in behind[cluster["name"]]]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
        if places.resolver and cluster["type"] == "STRICT_DNS":
            cluster["typed_dns_resolver_config"] = _resolver(places.resolver)
    moved = {"/certs": places.certificates, "/keys": places.keys, "/etc/envoy/secrets": folder / "secrets"}
    (folder / "secrets").mkdir(exist_ok=True)
    for name in SECRETS:
        secret = read_secret(name)
        (folder / "secrets" / f"{name}.yaml").write_text(json.dumps(_move(secret, moved)), encoding="utf-8")
    file = folder / "envoy.json"
    file.write_text(json.dumps(_move(config, moved), indent=1), encoding="utf-8")
    return file


def read_secret(name: str) -> Any:
    import yaml

    return yaml.safe_load((CONFIG.parent / "envoy" / f"{name}.yaml").read_text(encoding="utf-8"))


def _address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _resolver(address: Address) -> dict[str, Any]:
    return {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [_address(address)],
            "dns_resolver_options": {"no_default_search_domain": True},
        },
    }


def _move(value: Any, moved: Mapping[str, Path]) -> Any:
    """``value`` with other folders in its paths."""
    if isinstance(value, dict):
        return {name: _move(each, moved) for name, each in value.items()}
    if isinstance(value, list):
        return [_move(each, moved) for each in value]
    if isinstance(value, str):
        for old, new in moved.items():
            if value == old or value.startswith(f"{old}/"):
                return f"{new}{value[len(old) :]}"
    return value


def read_keys(text: str) -> dict[str, str]:
    """Names of callers by their keys: a line is a key, then optionally ``name=...``, as of the gateway's keys.

    :raises ServeError: naming the line, and not the key.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words[0]) < SHORTEST_KEY or words[0] in found:
            raise ServeError(
                f"line {number} has a key of less than {SHORTEST_KEY} characters, or one that was there before: use "
                "`openssl rand -hex 16`"
            )
        names = [word.removeprefix("name=") for word in words[1:] if word.startswith("name=")]
        name = names[0] if names else f"key{number}"
        if not name.isidentifier() or name in found.values():
            raise ServeError(f"line {number} has name={name!r}, must be letters and digits, and nobody else's")
        found[words[0]] = name
    if not found:
        raise ServeError("there is no key, so that nobody could call: write one a line")
    return found


def write_keys(keys: Mapping[str, str], file: Path) -> None:
    """As Envoy reads it; one that runs takes the new keys at once.

    The file can be read by anybody who gets into its folder: see :func:`serve.certificates.make`.
    """
    policies = {
        name: {
            "permissions": [{"any": True}],
            "principals": [{"header": {"name": "authorization", "string_match": {"exact": f"Bearer {key}"}}}],
        }
        for key, name in keys.items()
    }
    # the shadow refuses nobody: it is what tells the log, and the limit of rates, whose key it was
    rules = {name: {"action": "ALLOW", "policies": policies} for name in ("rules", "shadow_rules")}
    resource = {
        "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
        "name": "keys",
        "typed_config": {"@type": KEY_FILTER, **rules},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as out:
        json.dump({"resources": [resource]}, out, indent=1)  # YAML as well
    os.replace(scratch, file)  # Envoy looks for files that are moved into place


def find_envoy() -> Path:
    """``envoy`` beside this Python or on PATH.

    :raises ServeError: when there is none.
    """
    beside = Path(sys.executable).parent / "envoy"
    found = str(beside) if beside.is_file() else shutil.which("envoy")
    if not found:
        raise ServeError(f"there is no envoy on PATH: {INSTALL}, which brings one")
    return Path(found)


@dataclass
class Envoy:
    """One Envoy as a context manager: ready inside the block, gone after it.

    :param triton: the replicas' gRPC ports. :param ports: of listeners, by name; free ones by default.
    :param threads: that work on requests.
    :param logs: the folder where its logs stay, ``envoy.log`` and ``envoy.access.log``; by default they go with it.
    """

    triton: Sequence[Address]
    certificates: Path
    keys: Path
    gateway: Sequence[Address] = (("127.0.0.1", 1),)
    host: str = "127.0.0.1"
    ports: dict[str, int] = field(default_factory=dict)
    resolver: Address | None = None
    threads: int = 2
    config: dict[str, Any] | None = None
    log_level: str = "warning"
    logs: Path | None = None

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """``host:port`` of the callers' door."""
        return f"{reachable(self.host)}:{self.ports['door']}"

    @property
    def services_url(self) -> str:
        return f"{reachable(self.host)}:{self.ports['services']}"

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def __enter__(self) -> Envoy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """:raises ServeError: when it cannot, with what Envoy said."""
        binary = find_envoy()
        config = self.config or read_config()
        wanted = {name: self.ports.get(name, 0) for name in DOORS}
        self.ports = reserve_ports(self.host, wanted, {"admin": "127.0.0.1"})
        self._scratch = tempfile.TemporaryDirectory(prefix="tritox-envoy-")
        folder = Path(self._scratch.name)
        try:
            places = Places(
                self.ports,
                self.triton,
                self.certificates.resolve(),
                self.keys.resolve(),
                self.gateway,
                self.host,
                self.resolver,
            )
            file = render(config, places, folder)
            logs = self.logs or folder
            self._log, self._access = logs / "envoy.log", logs / "envoy.access.log"
            with self._log.open("wb") as log, self._access.open("wb") as access:
                self._process = subprocess.Popen(
                    [
                        str(binary),
                        *("-c", str(file), "--concurrency", str(self.threads), "--disable-hot-restart"),
                        *("--log-level", self.log_level, "--drain-time-s", "5", "--parent-shutdown-time-s", "6"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=access,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServeError(f"Envoy could not start: {self.said()}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                if self.ask("/ready").startswith("LIVE"):
                    return
            if time.monotonic() > deadline:
                raise ServeError(f"Envoy was not ready after {READY_S:g} s: {self.said()}")
            time.sleep(0.05)

    def said(self) -> str:
        """The end of its log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if re.search(r"\]\[(error|critical)\]", line)] or text.splitlines()
        return " ".join(lines[-3:]) or "it said nothing"

    def access_log(self) -> str:
        """What it wrote of requests so far; it writes after a while, or when it ends."""
        return self._access.read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str) -> str:
        """A page of its administration, such as ``/clusters``.

        :raises OSError: when it does not answer.
        """
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['admin']}{path}", timeout=5) as reply:
            return str(reply.read().decode())

    def stats(self, pattern: str) -> dict[str, int]:
        """Counters and gauges whose name the pattern finds."""
        found = {}
        for line in self.ask(f"/stats?filter={pattern}").splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdigit():
                found[name] = int(value)
        return found

    def healthy(self) -> list[str]:
        """The replicas that take requests, as ``host:port``."""
        hosts = json.loads(self.ask("/clusters?format=json"))["cluster_statuses"]
        triton = next(c for c in hosts if c["name"] == "triton")
        found = []
        for host in triton.get("host_statuses", []):
            health = host["health_status"]
            bad = {name: value for name, value in health.items() if name != "eds_health_status" and value}
            if not bad:
                address = host["address"]["socket_address"]
                found.append(f"{address['address']}:{address['port_value']}")
        return sorted(found)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait()

    def stop(self, grace_s: float = 10.0) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def check(file: Path) -> str | None:
    """What Envoy finds wrong with a configuration; ``None`` when it is right. Certificates are made for it."""
    from serve import certificates

    with tempfile.TemporaryDirectory(prefix="tritox-envoy-") as scratch:
        folder = Path(scratch)
        certificates.make(folder / "secrets", ["localhost"])
        places = Places(
            DOORS, [("triton", 8001)], folder / "secrets/envoy", folder / "secrets/keys", [("gateway", 8443)]
        )
        rendered = render(read_config(file), places, folder)
        command = [str(find_envoy()), "--mode", "validate", "-c", str(rendered), "--log-level", "error"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else " ".join(done.stderr.split())


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.envoy",
        description="Envoy with the configuration of docker/envoy.yaml.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    details = argparse.ArgumentDefaultsHelpFormatter
    run = commands.add_parser("run", help="start Envoy in front of servers, until Ctrl-C", formatter_class=details)
    run.add_argument("--triton", action="append", required=True, metavar="HOST:PORT", help="a replica's gRPC port")
    run.add_argument("--gateway", metavar="HOST:PORT", default="127.0.0.1:8080", help="the gateway, with mutual TLS")
    run.add_argument("--certificates", type=Path, default=Path("docker/secrets/envoy"), help="folder of certificates")
    run.add_argument("--keys", type=Path, default=Path("docker/secrets/keys"), help="folder with keys.yaml")
    run.add_argument("--host", default="127.0.0.1", help="address to listen on")
    run.add_argument("--port", type=int, default=8443, help="of the callers' door; 0 takes a free one")
    run.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that work on requests")
    keys = commands.add_parser("keys", help="write callers' keys as Envoy reads them", formatter_class=details)
    keys.add_argument("keys", type=Path, metavar="FILE", help="a key a line, then optionally name=...; - reads stdin")
    keys.add_argument("--out", type=Path, default=Path("docker/secrets/keys/keys.yaml"), help="file to write to")
    verify = commands.add_parser("check", help="let Envoy read the configuration", formatter_class=details)
    verify.add_argument("--config", type=Path, default=CONFIG, help="file to check")
    return p


def split_address(text: str) -> Address:
    """:raises ServeError: when it is no ``host:port``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ServeError(f"the address is {text!r}, must be host:port")
    return host.strip("[]"), int(port)


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "keys":
            text = sys.stdin.read() if str(arguments.keys) == "-" else arguments.keys.read_text(encoding="utf-8")
            keys = read_keys(text)
            write_keys(keys, arguments.out)
            sys.stdout.write(f"{arguments.out}: keys of {', '.join(keys.values())}\n")
            return 0
        if arguments.command == "check":
            wrong = check(arguments.config)
            sys.stdout.write(f"{arguments.config}: {wrong or 'Envoy takes it'}\n")
            return 1 if wrong else 0
        envoy = Envoy(
            [split_address(each) for each in arguments.triton],
            arguments.certificates,
            arguments.keys,
            gateway=[split_address(arguments.gateway)],
            host=arguments.host,
            ports={"door": arguments.port},
            threads=arguments.threads,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))
        with envoy:
            metrics = f"http://{reachable(envoy.host)}:{envoy.ports['stats']}/stats/prometheus"
            sys.stdout.write(f"ready: gRPC and HTTPS {envoy.url}, metrics {metrics}\n")
            sys.stdout.flush()
            envoy.wait()
            sys.stderr.write(f"error: Envoy ended by itself: {envoy.said()}\n")
            return 1
    except (ServeError, OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: Envoy's configuration needs the package {error.name}: {INSTALL}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
