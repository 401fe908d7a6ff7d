"""``python -m serve.rollout``: try a version beside the one that is served, let it take over, or take it back, live.

What a version on disk is, ``python -m export.repository`` knows, and is called for it; the running servers are told to
read what it wrote by Triton's model control. A change of version takes three steps, and after each every server answers
each request with one whole version::

    the parts load old and new ──▶ the ensemble names the new one ──▶ once nobody is asked by the old one, it goes

Should anything fail before the end, disk and servers go back to where they were.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from client.errors import ToxicityError
from serve.server import GRPC_CONTROL_HEADER

EXAMPLES = """\
examples:
  python -m serve.rollout shadow 2 --comments comments.csv      # score a file with both versions, and compare
  python -m serve.rollout shadow 2 --gateway http://127.0.0.1:8080 --share 0.2 --for 600   # live comments instead
  python -m serve.rollout canary 2 --gateway http://127.0.0.1:8080 --share 0.01,0.1,0.5 --for 600
  python -m serve.rollout promote 2 --watch 300                 # and back again by itself, should it do badly
  python -m serve.rollout rollback

The servers must allow model control (`python -m serve --model-control`, or --gateway), and read the repository that is
named here. Where they ask for a control key, it is in TRITOX_CONTROL_KEY (`python -m serve --gateway` makes one that
nobody knows, unless it is set there, too); for TLS, TRITOX_CA, TRITOX_CERTIFICATE and TRITOX_CERTIFICATE_KEY name the
files, as for the client. An admin's key of the gateways is in TRITOX_GATEWAY_KEY.

exit codes: 0 done, 1 the candidate was let go, or the version taken back, 2 could not be done, 130 interrupted
"""
LOAD_S = 300.0
"""How long a server may take to load a version."""
GONE_S = 60.0
"""How long the old version may take to answer what it was asked before."""
POLL_S = 1.0


class RolloutFailed(RuntimeError):
    """A step could not be done; the message says which, where, and why."""


class Undesired(Exception):
    """A version did badly, and was taken back; the message says what it did.

    :param found: for the report.
    """

    def __init__(self, message: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


class Interrupted(Exception):
    """SIGINT or SIGTERM came."""


# --- the versions on disk


@dataclass(frozen=True)
class Versions:
    """``python -m export.repository``, on one model of a repository."""

    repository: Path
    name: str

    def run(self, command: str, *arguments: str) -> str:
        """:raises RolloutFailed: with what it says."""
        where = ["--repository", str(self.repository), "--name", self.name]
        call = [sys.executable, "-m", "export.repository", command, *arguments, *where]
        # in a session of its own: what Ctrl-C means is decided here
        done = subprocess.run(call, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise RolloutFailed(said[-1].removeprefix("error: ") if said else f"{' '.join(call)} failed")
        return done.stdout

    def found(self) -> dict[str, Any]:
        """Numbers of versions: served, previous, staged, versions; and the names of the ensemble's parts."""
        found: dict[str, Any] = json.loads(self.run("list", "--json"))
        return found

    @cached_property
    def parts(self) -> list[str]:
        """The models that the ensemble is made of."""
        return list(self.found()["parts"])

    @property
    def candidate(self) -> str:
        return f"{self.name}_candidate"

    def golden(self, number: int) -> list[tuple[str, list[float], float]]:
        """The comments that a version checks itself on, with their scores at export and how far they may be off."""
        file = self.repository / f"{self.name}_encoder" / str(number) / "golden.json"
        golden = json.loads(file.read_text(encoding="utf-8"))
        of_tokenizer = self.repository / f"{self.name}_tokenizer" / str(number) / "golden.json"
        texts = golden.get("texts") or json.loads(of_tokenizer.read_text(encoding="utf-8"))["texts"]
        return [(t, s, 2 * golden["tolerance"]) for t, s in zip(texts, golden["scores"], strict=True)]


# --- the servers


@dataclass(frozen=True)
class Used:
    """What a version of a model answered on all servers since it was loaded."""

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0

    def __sub__(self, other: Used) -> Used:
        return Used(self.answered - other.answered, self.failed - other.failed, self.seconds - other.seconds)

    @property
    def error_rate(self) -> float:
        return self.failed / max(1, self.answered + self.failed)

    @property
    def mean_ms(self) -> float:
        return 1000 * self.seconds / max(1, self.answered)


class Servers:
    """The Tritons, each asked by itself: a load balancer in front of them would pick one.

    :param urls: ``host:port`` of their gRPC ports. The environment's credentials are used, as by the client.
    :raises InvalidInput: when a file of those cannot be read.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        from client.options import Credentials

        self.pb, self.error = service_pb2, grpc.RpcError
        key = os.environ.get("TRITOX_CONTROL_KEY")
        given = Credentials.from_environment()
        self.metadata = [*([(GRPC_CONTROL_HEADER, key)] if key else []), *((given and given.headers()) or [])]
        secure = given and given.channel()
        options = [("grpc.ssl_target_name_override", given.server_name)] if given and given.server_name else []
        self.channels = {
            url: grpc.secure_channel(url, secure, options) if secure else grpc.insecure_channel(url) for url in urls
        }
        self.stubs = {url: service_pb2_grpc.GRPCInferenceServiceStub(channel) for url, channel in self.channels.items()}

    def close(self) -> None:
        for channel in self.channels.values():
            channel.close()

    def ask(self, method: str, request: Any, timeout: float = 10.0) -> dict[str, Any]:
        """The answer of each.

        :raises RolloutFailed: naming the first that fails.
        """
        return {url: self._ask(url, method, request, timeout) for url in self.stubs}

    def _ask(self, url: str, method: str, request: Any, timeout: float) -> Any:
        try:
            return getattr(self.stubs[url], method)(request, timeout=timeout, metadata=self.metadata)
        except self.error as error:
            said = " ".join((error.details() or error.code().name).split())[:500]
            if "not allowed" in said:
                said += ": start it with `python -m serve --model-control`"
            elif "restricted" in said:
                said += ": give its control key in TRITOX_CONTROL_KEY"
            raise RolloutFailed(f"{url} refused {method}: {said}") from None

    def load(self, *names: str) -> None:
        """Let every server read the files of models anew."""
        for name in names:
            self.ask("RepositoryModelLoad", self.pb.RepositoryModelLoadRequest(model_name=name), LOAD_S)

    def unload(self, name: str) -> None:
        """Let every server forget a model, where it has it."""
        for url, states in self.states().items():
            if any(model == name and state != "UNAVAILABLE" for (model, _), state in states.items()):
                self._ask(url, "RepositoryModelUnload", self.pb.RepositoryModelUnloadRequest(model_name=name), LOAD_S)

    def states(self) -> dict[str, dict[tuple[str, str], str]]:
        """For each server, the state of each version of each model."""
        replies = self.ask("RepositoryIndex", self.pb.RepositoryIndexRequest())
        return {url: {(m.name, m.version): m.state for m in reply.models} for url, reply in replies.items()}

    def wait(self, name: str, number: int, states: Sequence[str], timeout_s: float) -> None:
        """Until a version is in one of the states on every server.

        :raises RolloutFailed: when it takes longer.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = {url: index.get((name, str(number)), "UNAVAILABLE") for url, index in self.states().items()}
            wrong = [f"{url}: {state}" for url, state in found.items() if state not in states]
            if not wrong:
                return
            if time.monotonic() > deadline:
                raise RolloutFailed(
                    f"version {number} of {name} is not {' or '.join(states)} after {timeout_s:g} s ({wrong[0]})"
                )
            time.sleep(0.1)

    def used(self, name: str, number: int) -> Used:
        request = self.pb.ModelStatisticsRequest(name=name, version=str(number))
        total = Used()
        for reply in self.ask("ModelStatistics", request).values():
            for found in reply.model_stats:
                good, bad = found.inference_stats.success, found.inference_stats.fail
                total = Used(total.answered + good.count, total.failed + bad.count, total.seconds + good.ns / 1e9)
        return total


def check_golden(servers: Servers, versions: Versions, number: int) -> None:
    """Score the golden comments on every server, by the candidate's whole way.

    :raises RolloutFailed: when a score is not what it was at export.
    """
    from client import ToxicityClient

    for url in servers.stubs:
        try:
            with ToxicityClient(url, model=versions.candidate, timeout=30) as client:
                for text, expected, allowed in versions.golden(number):
                    # others' comments beside it move INT8 scores, so what is off is tried again
                    tries = (client.classify([text])[0].scores.values() for _ in range(5))
                    off = (max(abs(f - e) for f, e in zip(found, expected, strict=True)) for found in tries)
                    if not any(each <= allowed for each in off):
                        raise RolloutFailed(
                            f"version {number} of {versions.name} failed its self-test on {url}: a golden comment has "
                            f"other scores than at export, by more than {allowed:g}: verify its files with `python -m "
                            "export.repository verify`, or export again"
                        )
        except ToxicityError as error:
            raise RolloutFailed(f"version {number} of {versions.name} does not answer on {url}: {error}") from None


# --- what is done


def stage(servers: Servers, versions: Versions, number: int) -> None:
    """Let a version answer as the candidate on every server, and check it. Back to before when that fails."""
    try:
        versions.run("stage", str(number))
        servers.load(*versions.parts, versions.candidate)
        servers.wait(versions.candidate, number, ["READY"], LOAD_S)
        check_golden(servers, versions, number)
    except BaseException:
        with contextlib.suppress(RolloutFailed):
            unstage(servers, versions)
        raise


def unstage(servers: Servers, versions: Versions) -> None:
    """Let the served version be the only one that is loaded."""
    try:
        servers.unload(versions.candidate)
    finally:
        versions.run("unstage")  # so that a server that is away comes back without it
    servers.load(*versions.parts)


def promote(servers: Servers, versions: Versions, old: int, number: int, watch: Callable[[Used], str | None]) -> None:
    """Let a version take over on every server.

    :param old: the one that is served.
    :param watch: is given what the former version answered, looks at the new one while both are loaded, and says what
        is wrong with it, if anything.
    :raises Undesired: when something is; the former version answers again.
    :raises RolloutFailed: when a step fails; as well.
    """
    if old == number:  # perhaps not by every server
        servers.load(*versions.parts, versions.name)
        return
    say(f"loading version {number} beside version {old} ...")
    stage(servers, versions, number)
    try:
        before = servers.used(versions.name, old)
        switch(servers, versions, old, number)
        say(f"version {number} answers")
        wrong = watch(before)
    except BaseException:
        back(servers, versions, old, number)
        raise
    if wrong:
        back(servers, versions, old, number)
        raise Undesired(f"version {number} was taken back, version {old} answers: {wrong}")
    unstage(servers, versions)  # now of the old version, so it goes


def switch(servers: Servers, versions: Versions, old: int, new: int) -> None:
    """Let the ensemble name another version, which the parts have loaded, and wait until the old one is idle."""
    versions.run("promote", str(new), "--step", "parts")
    servers.load(*versions.parts)
    versions.run("promote", str(new), "--step", "whole")
    servers.load(versions.name)
    servers.wait(versions.name, new, ["READY"], LOAD_S)
    # a request that the old ensemble took is held by it until its last step has ended
    servers.wait(versions.name, old, ["UNAVAILABLE"], GONE_S)


def back(servers: Servers, versions: Versions, old: int, new: int) -> None:
    """To the version before, which the parts still have."""
    say(f"going back to version {old} ...")
    if int(versions.found()["served"]) != old:
        switch(servers, versions, new, old)
    unstage(servers, versions)


def watcher(servers: Servers, name: str, number: int, options: argparse.Namespace) -> Callable[[Used], str | None]:
    """Looks at a version for ``--watch`` seconds."""

    def watch(before: Used) -> str | None:
        deadline = time.monotonic() + options.watch
        start = servers.used(name, number)
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left))
            now = servers.used(name, number) - start
            if now.answered + now.failed < options.least:
                continue
            if now.error_rate > before.error_rate + options.max_error_rate:
                return (
                    f"{now.failed} of {now.answered + now.failed} requests failed ({now.error_rate:.2%}), allowed is "
                    f"{options.max_error_rate:.2%} more than before ({before.error_rate:.2%})"
                )
            if before.answered >= options.least and now.mean_ms > options.max_slower * before.mean_ms:
                return (
                    f"a request takes {now.mean_ms:.1f} ms on average, allowed is {options.max_slower:g} times "
                    f"{before.mean_ms:.1f} ms"
                )
        return None

    return watch


# --- gateways


class Gateways:
    """Every gateway is asked by itself: each counts its own requests.

    :param ca: PEM file of the authority of ``https://`` ones; by default the system's. Where the environment names a
        client's certificate, it is shown to them.
    :raises RolloutFailed: when a file cannot be read.
    """

    def __init__(self, urls: Sequence[str], ca: Path | None = None) -> None:
        from client.options import Credentials

        self.urls = [url.rstrip("/") for url in urls]
        self.key = os.environ.get("TRITOX_GATEWAY_KEY")
        given = Credentials.from_environment()
        try:
            self.tls = ssl.create_default_context(cafile=ca)
            if given and given.certificate and given.key:
                self.tls.load_cert_chain(given.certificate, given.key)
        except OSError as error:  # as those of ssl are
            raise RolloutFailed(f"--gateway-ca {ca}, or the client's certificate, cannot be read ({error})") from None

    def ask(self, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """:raises RolloutFailed: naming the one that refuses, or does not answer."""
        return [self._ask(url, body) for url in self.urls]

    def _ask(self, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(f"{url}/rollout", data, headers)
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as reply:
                found: dict[str, Any] = json.load(reply)
                return found
        except urllib.error.HTTPError as error:
            with error, contextlib.suppress(ValueError, KeyError):
                raise RolloutFailed(f"{url}: {json.load(error)['error']['message']}") from None
            raise RolloutFailed(f"{url}: HTTP {error.code}") from None
        except (OSError, ValueError) as error:
            raise RolloutFailed(f"{url} does not answer ({getattr(error, 'reason', error)}): name a gateway") from None


def live(gateways: Gateways, candidate: str, shares: Sequence[float], options: argparse.Namespace) -> dict[str, Any]:
    """Give the candidate its shares, one after the other, each for ``--for`` seconds.

    :returns: what all gateways counted together.
    :raises Undesired: when one of them let it go, which all others then do.
    """
    order = {"candidate": candidate, "shadow": options.shadow}
    order |= {name: getattr(options, name) for name in ("max_error_rate", "max_slower", "max_flip_rate", "least")}
    found: list[dict[str, Any]] = []
    wrong = ""
    try:
        for share in shares:
            gateways.ask({**order, "share": share})
            say(f"{candidate}: share {share:g}, shadow {options.shadow:g}, for {options.seconds:g} s")
            deadline = time.monotonic() + options.seconds
            while not wrong and (left := deadline - time.monotonic()) > 0:
                time.sleep(min(POLL_S, left))
                for url, status in zip(gateways.urls, gateways.ask(), strict=True):
                    if status["candidate"] is None:
                        wrong = f"the candidate was let go by {url}: {status['reason'] or 'it was restarted'}"
            if wrong:
                break
    finally:
        with contextlib.suppress(RolloutFailed):
            found = gateways.ask({"candidate": None})
        if found:
            show(found)
    if wrong:
        raise Undesired(wrong, {"gateways": found})
    return {"gateways": found}


def show(found: Sequence[dict[str, Any]]) -> None:
    from serve.gateway.flips import added, table

    sys.stdout.write(table(added([status["flips"] for status in found])) + "\n")
    for side in ("served", "candidate"):
        counts = [status["requests"][side] for status in found]
        requests, failed = (sum(c[what] for c in counts) for what in ("requests", "errors"))
        slowest = max((c["p95_ms"] for c in counts if c["p95_ms"] is not None), default=None)
        time_s = "" if slowest is None else f", 95% within {slowest:g} ms"
        sys.stdout.write(f"{side}: {requests} requests, {failed} failed{time_s}\n")


def compare(url: str, versions: Versions, options: argparse.Namespace) -> dict[str, Any]:
    """Score the comments of a file with both versions.

    :raises Undesired: when more of them flip than is allowed.
    """
    from client import InvalidInput, ToxicityClient
    from client.files import open_source
    from serve.gateway.flips import Flips, table

    flips, bad = Flips(options.language), 0
    with (
        contextlib.closing(open_source(options.comments, options.column)) as source,
        ToxicityClient(url, model=versions.name, timeout=60) as served,
        ToxicityClient(url, model=versions.candidate, timeout=60) as candidate,
    ):
        for chunk in source.rows(served.info().max_batch_size):
            texts = [row.text for row in chunk.rows if row.text is not None] if chunk else []
            bad += len(chunk.rows) - len(texts) if chunk else 0
            try:
                pairs = zip(texts, served.classify(texts), candidate.classify(texts), strict=True)
            except InvalidInput:
                bad += len(texts)
                continue
            for text, one, two in pairs:
                flips.add(text, one, two)
    report = flips.to_dict()
    sys.stdout.write(table(report) + "\n")
    if bad:
        say(f"{bad} rows could not be scored")
    if flips.every.comments == 0:
        raise RolloutFailed(f"{options.comments} holds no comments in the column {options.column!r}: see --column")
    if flips.rate > options.max_flip_rate:
        raise Undesired(
            f"{flips.every.flipped} of {flips.every.comments} comments ({flips.rate:.2%}) get another decision, "
            f"allowed is {options.max_flip_rate:.2%}",
            {"flips": report},
        )
    return {"flips": report}


# --- the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m serve.rollout",
        description="Try another version of a model on live traffic, let it take over, or take it back: without a "
        "restart, and without a failed request.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="shadow|canary|promote|rollback")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=what, description=what)
        c.add_argument("--repository", type=Path, default=Path("model_repository"), help="default: %(default)s")
        c.add_argument("--name", default="toxicity", help="the model that clients ask (default: %(default)s)")
        c.add_argument(
            "--triton",
            default=os.environ.get("TRITOX_CONTROL_URL") or os.environ.get("TRITOX_URL") or "127.0.0.1:8001",
            metavar="HOST:PORT,...",
            help="gRPC ports of all servers on this repository (default: $TRITOX_CONTROL_URL, $TRITOX_URL, or "
            "127.0.0.1:8001)",
        )
        c.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
        return c

    def limits(c: argparse.ArgumentParser, flips: bool) -> None:
        c.add_argument("--max-error-rate", type=float, default=0.01, help="of its requests (default: %(default)s)")
        c.add_argument("--max-slower", type=float, default=2.0, help="times the served version (default: %(default)s)")
        if flips:
            c.add_argument(
                "--max-flip-rate", type=float, default=0.05, help="comments decided otherwise (default: %(default)s)"
            )
        c.add_argument("--least", type=int, default=100, help="requests before it is judged (default: %(default)s)")

    shadow = command("shadow", "score comments with a version that answers nobody, and say what it decides otherwise")
    shadow.add_argument("version", type=int)
    source = shadow.add_mutually_exclusive_group(required=True)
    source.add_argument("--gateway", action="append", metavar="URL", help="live comments of this one; may be repeated")
    source.add_argument("--comments", type=Path, metavar="FILE", help="CSV, TSV, JSON lines, Parquet or text")
    shadow.add_argument("--column", default="text", help="of the file (default: %(default)s)")
    shadow.add_argument("--language", default="en", help="of comments in Latin script (default: %(default)s)")
    shadow.add_argument("--share", dest="shadow", type=_share, default=0.1, help="of requests (default: %(default)s)")
    canary = command("canary", "let a version answer a share of the gateways' requests; let it go when it does badly")
    canary.add_argument("version", type=int)
    canary.add_argument("--gateway", action="append", required=True, metavar="URL", help="may be repeated: name all")
    canary.add_argument(
        "--share", type=_shares, default=[0.05], metavar="SHARE,...", help="one after the other (default: 0.05)"
    )
    canary.add_argument(
        "--shadow", type=_share, default=0.1, help="share that both versions score, for flips (default: %(default)s)"
    )
    for c in (shadow, canary):
        c.add_argument("--gateway-ca", type=Path, metavar="FILE", help="PEM file of the authority of https:// gateways")
        c.add_argument(
            *("--for",), dest="seconds", type=float, default=600.0, help="seconds of each share (default: %(default)g)"
        )
        limits(c, flips=True)
    change = command("promote", "let a version take over on all servers; also served by those that start from now on")
    change.add_argument("version", type=int)
    for c in (change, command("rollback", "let the version take over that was served before this one")):
        c.add_argument("--watch", type=float, default=0.0, metavar="SECONDS", help="look at it, and take it back")
        limits(c, flips=False)
    return p


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"is {text}, must be more than 0 and at most 1")
    return value


def _shares(text: str) -> list[float]:
    return [_share(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        from client.options import endpoints

        servers = Servers(endpoints(arguments.triton))
    except (ModuleNotFoundError, RuntimeError) as error:
        missing = getattr(error, "name", None) or "tritonclient[grpc]"
        sys.stderr.write(
            f"error: a rollout needs the package {missing}: pip install -e '.[gateway]' -c constraints.txt\n"
        )
        return 2
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    code, found = 0, {}
    try:
        found = run(servers, Versions(arguments.repository, arguments.name), arguments)
    except Undesired as undesired:
        say(str(undesired))
        code, found = 1, {"undesired": str(undesired), **undesired.found}
    except Interrupted:
        say("interrupted: the version that was served is served")
        return 130
    except (RolloutFailed, ToxicityError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        servers.close()
    if arguments.json:
        arguments.json.write_text(json.dumps({"command": arguments.command, **found}, indent=2) + "\n")
    return code


def run(servers: Servers, versions: Versions, arguments: argparse.Namespace) -> dict[str, Any]:
    assert versions.parts, "it exists"
    with only_one(versions):
        return run_alone(servers, versions, arguments)


@contextlib.contextmanager
def only_one(versions: Versions) -> Iterator[None]:
    """One rollout of a model at a time. The lock is on the ensemble's folder, and ends with who holds it."""
    handle = os.open(versions.repository / versions.name, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RolloutFailed(
                f"another rollout of {versions.name} is under way on {versions.repository}: wait for its end"
            ) from None
        yield
    finally:
        os.close(handle)


def run_alone(servers: Servers, versions: Versions, arguments: argparse.Namespace) -> dict[str, Any]:
    listed = versions.found()
    if arguments.command in ("promote", "rollback"):
        number = arguments.version if arguments.command == "promote" else listed["previous"]
        if number is None:
            raise RolloutFailed(f"version {listed['served']} of {versions.name} is the first: nothing to go back to")
        start = time.monotonic()
        old = int(listed["served"])
        promote(servers, versions, old, number, watcher(servers, versions.name, number, arguments))
        took = time.monotonic() - start
        sys.stdout.write(f"version {number} of {versions.name} is served, before it was {old} ({took:.1f} s)\n")
        return {"served": number, "before": old, "seconds": round(took, 3)}
    gateways = Gateways(arguments.gateway or [], arguments.gateway_ca)  # what is wrong with it is said at once
    with staged(servers, versions, arguments.version):
        if arguments.command == "shadow" and arguments.comments:
            return compare(next(iter(servers.stubs)), versions, arguments)
        shares = [0.0] if arguments.command == "shadow" else arguments.share
        return live(gateways, versions.candidate, shares, arguments)


@contextlib.contextmanager
def staged(servers: Servers, versions: Versions, number: int) -> Iterator[None]:
    say(f"loading version {number} as {versions.candidate} ...")
    stage(servers, versions, number)
    try:
        yield
    finally:
        unstage(servers, versions)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not break off the way back
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main())
