"""Versions are tried, take over and are taken back on a real server under load; commands as an operator gives them."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, end_at_once
from test_serve_gateway import Gateway

from client import Result, ToxicityClient
from export import near_empty
from export.repository import InvalidRepository, ModelVersions
from export.repository import main as versions_main
from loadtest.switches import Users, reference
from loadtest.switches import main as switches_main
from serve.gateway.app import Settings
from serve.gateway.flips import Flips, added, table
from serve.gateway.rollout import Limits, Rollout, _draw
from serve.rollout import Versions, main, only_one
from serve.server import TritonServer


@dataclass
class Site:
    """A server with a version that is served and one that is not."""

    repository: Path
    server: TritonServer
    gateway: Gateway

    @property
    def versions(self) -> ModelVersions:
        return ModelVersions(self.repository, "toxicity")

    def command(self, *arguments: str) -> int:
        return main([*arguments, "--repository", str(self.repository), "--triton", self.server.grpc_url])

    def answered_by(self) -> str:
        with ToxicityClient(self.server.grpc_url, timeout=30) as client:
            return client.classify(["hello"])[0].model_version

    def rest(self) -> None:
        """One version is served, alone, on disk and by the server."""
        served, _ = self.versions.served()
        assert self.answered_by() == str(served)
        assert self.versions.check_configs() == [] and self.versions.staged() is None
        with ToxicityClient(self.server.grpc_url, model="toxicity_candidate", timeout=5) as client:
            assert not client_ready(client)


def client_ready(client: ToxicityClient) -> bool:
    from client import ModelNotFound

    try:
        client.classify(["hello"])
    except ModelNotFound:
        return False
    return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    repository = tmp_path_factory.mktemp("rollout") / "models"
    near_empty.write(REPOSITORY, repository)
    assert near_empty.add_version(repository) == 2
    server = TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, model_control=True)
    with server, Gateway(Settings(server.grpc_url, timeout=10)) as gateway:
        yield Site(repository, server, gateway)
        end_at_once(server.pid)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comments") / "comments.csv"
    path.write_text("text\n" + "".join(f"the gay man number {n} says hello\n" for n in range(40)))
    return path


# --- live


@pytest.mark.triton
def test_a_version_takes_over_under_load_and_no_answer_is_lost_or_wrong(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    url = site.server.grpc_url
    found = {"1": reference(url, "toxicity")}
    with ToxicityClient(url, timeout=30) as client:
        thresholds = client.info().thresholds
    # what version 2 must answer, by what it was made of
    found["2"] = [shifted(scores, 0.5, 0.25, list(thresholds)) for scores, _ in found["1"]]
    users = Users(url, "toxicity", found, pause_s=0.04)
    users.start(stay=2, newcomers=1)
    try:
        assert site.command("promote", "2", "--watch", "1", "--least", "1", "--max-slower", "1000") == 0
    finally:
        time.sleep(0.3)
        users.stop()
    assert "version 2 of toxicity is served, before it was 1" in capsys.readouterr().out
    assert set(users.versions) == {"1", "2"} and not users.failures, users.failures
    assert (users.wrong, users.mixed) == (0, 0)
    assert site.versions.served() == (2, 1)
    site.rest()


def shifted(scores: tuple[float, ...], shift: float, threshold: float, labels: list[str]) -> object:
    import math

    new = [1 / (1 + math.exp(-(math.log(s / (1 - s)) + shift))) for s in scores]
    return Close(new), tuple(label for label, score in zip(labels, new, strict=True) if score >= threshold)


class Close(tuple):  # type: ignore[type-arg]
    """Scores that equal others to four digits: the originals are rounded to five."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, tuple)
        return all(abs(a - b) < 2e-4 for a, b in zip(self, other, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other


@pytest.mark.slow
@pytest.mark.triton
def test_a_canary_answers_its_share_and_is_let_go_for_its_flips(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (served, _), other = site.versions.served(), ["1", "2"]
    other.remove(str(served))
    seen: list[dict[str, object]] = []
    stop = threading.Event()

    def ask() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            answer = site.gateway.ask("/predict", {"texts": [f"comment {number}", "and another one"]})
            assert answer.code == 200
            versions = {each["model_version"] for each in answer.json["results"]}
            assert len(versions) == 1 and answer.json["results"][0]["model"] == "toxicity"
            seen.append({"version": versions.pop(), "candidate": site.gateway.ask("/rollout").json["candidate"]})

    thread = threading.Thread(target=ask)
    thread.start()
    report = tmp_path / "report.json"
    limits = ["--max-flip-rate", "0.3", "--least", "30", "--max-slower", "1000"]
    gate = ["--gateway", site.gateway.url, "--share", "0.3,0.5", "--shadow", "0.5", "--for", "20"]
    try:
        code = site.command("canary", other[0], *gate, *limits, "--json", str(report))
        time.sleep(0.2)
        after = len(seen)
        time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
    printed = capsys.readouterr()
    assert code == 1 and "got another decision, allowed is 30.00%" in printed.err
    assert "any label" in printed.out and "candidate:" in printed.out
    written = json.loads(report.read_text())
    assert "got another decision" in written["undesired"] and written["gateways"][0]["flips"]["flipped"] >= 9
    during = [each["version"] for each in seen if each["candidate"]]
    assert 0.1 < during.count(other[0]) / len(during) < 0.6
    assert {each["version"] for each in seen[after:]} == {str(served)}
    metrics = site.gateway.ask("/metrics").body.decode()
    assert "tritox_gateway_rollout_candidate 0" in metrics
    assert 'tritox_gateway_rollout_requests_total{side="candidate"}' in metrics
    site.rest()


@pytest.mark.slow
@pytest.mark.triton
def test_a_candidate_that_fails_costs_no_caller_an_answer(site: Site) -> None:
    """It is taken out of the server's memory while it answers all requests."""
    from tritonclient.grpc import InferenceServerClient

    (served, _) = site.versions.served()
    site.versions.stage(3 - served)
    with InferenceServerClient(site.server.grpc_url) as control:
        for name in ("toxicity_tokenizer", "toxicity_encoder", "toxicity_candidate"):
            control.load_model(name)
        gateway = site.gateway
        assert gateway.ask("/rollout", {"candidate": "toxicity_candidate", "share": 1.0}).json["reason"] == ""
        answers = [gateway.ask("/predict", {"text": "one"}).json["results"][0]["model_version"]]
        control.unload_model("toxicity_candidate")
        deadline = time.monotonic() + 20
        while gateway.ask("/rollout").json["candidate"] and time.monotonic() < deadline:
            answer = gateway.ask("/predict", {"text": "one"})
            assert answer.code == 200
            answers.append(answer.json["results"][0]["model_version"])
        assert gateway.ask("/rollout").json["reason"] == "it is not loaded"
        assert answers[0] == str(3 - served) and answers[-1] == str(served)
        site.versions.unstage()
        for name in ("toxicity_tokenizer", "toxicity_encoder"):
            control.load_model(name)
    assert gateway.ask("/rollout", {"candidate": "nothing"}).code == 404
    assert gateway.ask("/rollout", {"candidate": "toxicity", "share": 0.1}).code == 409
    assert gateway.ask("/rollout", {"candidate": "toxicity", "share": 1.1}).code == 400
    site.rest()


@pytest.mark.slow
@pytest.mark.triton
def test_a_shadow_of_a_file_says_what_would_change(
    site: Site, comments: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = str(3 - site.versions.served()[0])
    report = tmp_path / "report.json"
    call = ["shadow", other, "--comments", str(comments), "--json", str(report)]
    assert site.command(*call, "--max-flip-rate", "1") == 0
    found = json.loads(report.read_text())["flips"]
    assert found["comments"] == 40 and found["identities"]["gay"]["comments"] == 40
    assert found["languages"]["en"]["comments"] == 40
    assert found["flagged"] + found["unflagged"] > 0
    assert "identities (any label):" in capsys.readouterr().out
    site.rest()


@pytest.mark.triton
def test_a_damaged_version_is_not_even_loaded(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    served, _ = site.versions.served()
    file = site.repository / f"toxicity_tokenizer/{3 - served}/texts.py"
    content = file.read_bytes()
    file.write_bytes(content + b"\n")
    try:
        assert site.command("promote", str(3 - served)) == 2
    finally:
        file.write_bytes(content)
    assert "is damaged, it is not promoted" in capsys.readouterr().err
    with pytest.raises(InvalidRepository, match="has no version 9; it has 1, 2"):
        site.versions.stage(9)


@pytest.mark.triton
def test_wrong_calls_name_what_is_wrong(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--repository", str(site.repository)]
    assert main(["promote", str(3 - site.versions.served()[0]), *where, "--triton", "127.0.0.1:1"]) == 2
    assert "127.0.0.1:1 refused" in capsys.readouterr().err
    assert site.versions.staged() is None
    with only_one(Versions(site.repository, "toxicity")):
        assert site.command("rollback") == 2
    assert "another rollout of toxicity is under way" in capsys.readouterr().err
    assert main(["rollback", *where, "--name", "nothing"]) == 2
    assert "has no model 'nothing'; it has toxicity: see --name" in capsys.readouterr().err
    for call, message in (
        (["shadow", "2"], "one of the arguments --gateway --comments is required"),
        (["canary", "2", "--gateway", "http://x", "--share", "2"], "must be more than 0 and at most 1"),
    ):
        with pytest.raises(SystemExit):
            main(call)
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.triton
def test_many_changes(tmp_path: Path) -> None:
    assert switches_main(["--switches", "10", "--users", "2", "--json", str(tmp_path / "switches.json")]) == 0


# --- on disk


def test_steps_of_a_change_are_taken_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "models"
    near_empty.write(REPOSITORY, repository)
    near_empty.add_version(repository)
    versions, where = ModelVersions(repository, "toxicity"), ["--repository", str(repository)]
    with pytest.raises(InvalidRepository, match="take the step parts before the step whole"):
        versions.promote(2, ["whole"])
    with pytest.raises(InvalidRepository, match="take the step whole before the step alone"):
        versions.promote(2, ["alone"])
    versions.stage(2)
    assert (versions.staged(), versions.served()[0], versions.check_configs()) == (2, 1, [])
    assert versions.prune(keep=0) == []
    with pytest.raises(InvalidRepository, match="is the served one"):
        versions.stage(1)
    for step in ("parts", "whole", "alone"):
        assert versions_main(["promote", "2", "--step", step, *where]) == 0
    assert versions_main(["unstage", *where]) == 0
    assert versions.served() == (2, 1) and versions.check_configs() == []
    capsys.readouterr()
    assert versions_main(["list", "--json", *where]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["parts"] == ["toxicity_tokenizer", "toxicity_encoder"]
    assert (listed["served"], listed["previous"], listed["staged"], listed["versions"]) == (2, 1, None, [1, 2])


# --- what is counted


def result(version: str, flagged: tuple[str, ...], score: float) -> Result:
    return Result({"toxic": score, "insult": 0.1}, flagged, False, "toxicity", version, "id")


def test_flips_are_counted_by_label_identity_and_language() -> None:
    flips = Flips()
    flips.add("an African American man", result("1", (), 0.4), result("2", ("toxic",), 0.6))
    flips.add("привет, как дела", result("1", ("insult",), 0.4), result("2", ("insult",), 0.4))
    report = flips.to_dict()
    assert (report["comments"], report["flipped"], report["flagged"]) == (2, 1, 1) and flips.rate == 0.5
    assert report["labels"]["toxic"]["mean_shift"] == pytest.approx(0.1)
    assert list(report["identities"]) == ["african american", "man"]
    assert report["languages"]["ru"]["flipped"] == 0 and report["languages"]["en"]["flipped"] == 1
    both = added([report, report])
    assert both["comments"] == 4 and both["labels"]["toxic"]["mean_shift"] == pytest.approx(0.1)
    assert both["identities"]["man"]["comments"] == 2
    assert "1 (50.00%)" in table(report)


def test_the_share_is_of_texts_and_the_two_draws_are_independent() -> None:
    draws = [(_draw("canary", text), _draw("shadow", text)) for text in map(str, range(4000))]
    assert draws[7] == (_draw("canary", "7"), _draw("shadow", "7"))
    canary = [one for one, _ in draws if one < 0.1]
    assert 0.08 < len(canary) / len(draws) < 0.12
    assert 0.4 < sum(two < 0.5 for one, two in draws if one < 0.1) / len(canary) < 0.6


def test_a_candidate_is_let_go_for_errors_and_for_its_time() -> None:
    rollout = Rollout(models=None)  # type: ignore[arg-type]
    for failed, seconds, message in ((3, 0.01, "3 of 100 requests failed"), (0, 0.5, "95% took up to 500 ms")):
        rollout._reset(0.5, 0.0, Limits(max_error_rate=0.02, max_slower=3.0, least=100))
        rollout.candidate = "c"
        for side, took in ((rollout.served, 0.01), (rollout.other, seconds)):
            side.requests = 100
            side.times.extend([took] * 100)
        rollout.other.errors = failed
        rollout._judge()
        assert rollout.candidate is None and message in rollout.reason
