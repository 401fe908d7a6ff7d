"""Rules, board and runbook: checked by Prometheus's own tools, and against what real servers show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LABELS, REPOSITORY, ROOT, end_at_once

from client import ToxicityClient
from export import near_empty
from export.triton import CASCADE_FILES, TEMPLATES, cascade, cascade_settings, read_settings
from serve.drift.__main__ import main as drift_main
from serve.server import TritonServer

PROMETHEUS = ROOT / "docker/prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())
BOARD = json.loads((ROOT / "docker/grafana/dashboards/tritox.json").read_text())
RUNBOOK = (ROOT / "docker/RUNBOOK.md").read_text()
NOT_HERE = {
    *("kube_pod_container_status_last_terminated_exitcode", "kube_pod_container_status_ready"),  # kube-state-metrics
    *("up", "ALERTS"),  # Prometheus itself
}
WORDS = {
    *("by", "on", "without", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"),
    *("sum", "max", "min", "count", "avg"),
}
SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{([^}]*)\})?")


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if not found:
        pytest.skip(f"{tool} is not installed: apt-get install prometheus")
    return found


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The metrics that an expression reads, each with its matchers: label, operator and value."""
    text = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right) *\([^)]*\)", " ", expression)
    text = re.sub(r"\[\d+[smhd]\]|offset \w+", " ", text)
    for match in SELECTOR.finditer(text):
        name, inside = match[1], match[2] or ""
        if name in WORDS or re.match(r" *\(", text[match.end() :]):
            continue
        found = re.findall(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"', inside)
        yield name, {label: (operator, value.replace("\\\\", "\\")) for label, operator, value in found}


def expressions() -> Iterator[tuple[str, str]]:
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for annotation in BOARD["annotations"]["list"]:
        yield "annotations", annotation["expr"]
    adapter = yaml.safe_load((ROOT / "docker/kubernetes/monitoring/adapter.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        yield rule["name"]["as"], adapter_query(rule)


def adapter_query(rule: Mapping[str, Any], matchers: str = 'pod=~".+"') -> str:
    """As prometheus-adapter fills it in."""
    query = rule["metricsQuery"].replace("<<.Series>>", rule["seriesQuery"].partition("{")[0])
    return query.replace("<<.LabelMatchers>>", matchers).replace("<<.GroupBy>>", "pod")


RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]

# --- what needs no server


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool = needs("promtool")
    for command in (
        ["config", PROMETHEUS / "prometheus.yml"],
        ["rules", PROMETHEUS / "rules.yml"],
    ):
        result = subprocess.run([promtool, "check", *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["rules_test.yml", "rules_days_test.yml"])
def test_the_rules_do_what_they_are_for(name: str) -> None:
    command = [needs("promtool"), "test", "rules", PROMETHEUS / name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested() -> None:
    files = [yaml.safe_load((PROMETHEUS / name).read_text()) for name in ("rules_test.yml", "rules_days_test.yml")]
    fired = {
        each["alertname"]
        for file in files
        for test in file["tests"]
        for each in test.get("alert_rule_test", [])
        if each.get("exp_alerts")
    }
    assert fired == {alert["alert"] for alert in ALERTS}


def test_every_alert_leads_to_its_place_in_the_runbook() -> None:
    parts = (part.partition("\n") for part in RUNBOOK.split("\n## ")[1:])
    sections = {heading.lower().replace(" ", "-"): text for heading, _, text in parts}
    linked = set()
    for alert in ALERTS:
        address = alert["annotations"]["runbook_url"]
        assert address.startswith("{{ $externalLabels.runbook }}#")
        anchor = address.partition("#")[2]
        linked.add(anchor)
        section = sections.get(anchor, "")
        assert f"`{alert['alert']}`" in section, f"{alert['alert']} is not named in its section"
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["labels"]["severity"] in section
    assert linked == set(sections), "a section without an alert, or an alert without a section"
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)) <= set(sections)
    for target in re.findall(r"\]\((\w[^)#]*)\)", RUNBOOK):
        assert (ROOT / "docker" / target).exists(), target


def test_prometheus_in_kubernetes_differs_in_where_it_looks_alone() -> None:
    """Debian's promtool is built without Kubernetes: its part is put in place of the others' here."""
    here = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    there = yaml.safe_load((ROOT / "docker/kubernetes/monitoring/prometheus.yml").read_text())
    own = {"dns_sd_configs", "kubernetes_sd_configs", "relabel_configs"}

    def rest(job: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in job.items() if key not in own}

    jobs = {job["job_name"]: rest(job) for job in here["scrape_configs"] if job["job_name"] != "prometheus"}
    assert {job["job_name"]: rest(job) for job in there["scrape_configs"]} == jobs
    assert {k: v for k, v in here.items() if k != "scrape_configs"} == {
        k: v for k, v in there.items() if k != "scrape_configs"
    }


def test_relabelling_in_kubernetes_is_what_prometheus_takes(tmp_path: Path) -> None:
    promtool = needs("promtool")
    there = yaml.safe_load((ROOT / "docker/kubernetes/monitoring/prometheus.yml").read_text())
    for job in there["scrape_configs"]:
        del job["kubernetes_sd_configs"]
        job["static_configs"] = [{"targets": ["a:1"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(there))
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    result = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_autoscalers_metric_is_the_wait_of_a_request(tmp_path: Path) -> None:
    promtool = needs("promtool")
    adapter = yaml.safe_load((ROOT / "docker/kubernetes/monitoring/adapter.yaml").read_text())
    queue, gpu = adapter["rules"]["custom"]
    series = {
        'nv_inference_queue_duration_us{namespace="tritox",pod="a",model="toxicity_tokenizer"}': "0+150000x20",
        'nv_inference_queue_duration_us{namespace="tritox",pod="a",model="toxicity_encoder"}': "0+450000x20",
        'nv_inference_queue_duration_us{namespace="tritox",pod="a",model="toxicity"}': "0+99999999x20",
        'nv_inference_request_success{namespace="tritox",pod="a",model="toxicity_encoder"}': "0+15x20",
        'nv_inference_queue_duration_us{namespace="tritox",pod="idle",model="toxicity_encoder"}': "0x20",
        'nv_inference_request_success{namespace="tritox",pod="idle",model="toxicity_encoder"}': "0x20",
        'nv_gpu_utilization{namespace="tritox",pod="a",gpu_uuid="x"}': "0.5x20",
    }
    matchers = 'namespace="tritox",pod=~"a|idle"'
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": adapter_query(queue, matchers),
                        "eval_time": "4m",
                        "exp_samples": [{"labels": '{pod="a"}', "value": 40}, {"labels": '{pod="idle"}', "value": 0}],
                    },
                    {
                        "expr": adapter_query(gpu, matchers),
                        "eval_time": "4m",
                        "exp_samples": [{"labels": '{pod="a"}', "value": 50}],
                    },
                ],
            }
        ],
    }
    (tmp_path / "test.yml").write_text(yaml.safe_dump(test))
    result = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_grafana_finds_the_board() -> None:
    provisioning = ROOT / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    used = {json.dumps(panel["datasource"]) for panel in BOARD["panels"] if "datasource" in panel}
    assert used == {json.dumps({"type": "prometheus", "uid": source["uid"]})}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    (provider,) = yaml.safe_load((provisioning / "dashboards/tritox.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"


# --- real servers

Series = dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's tokenizer, a near-empty encoder, and a cascade that is a cache alone."""
    folder = tmp_path_factory.mktemp("monitored") / "r"
    folder.mkdir()
    near_empty.write(REPOSITORY, folder)
    settings = read_settings(REPOSITORY / "toxicity/1/export.json")
    version = folder / "toxicity_cascade/1"
    version.mkdir(parents=True)
    for name, template in CASCADE_FILES.items():
        shutil.copy(TEMPLATES / template, version / name)
    shutil.copy(folder / "toxicity_tokenizer/1/normalizer.py", version)
    (version / "settings.json").write_text(json.dumps(cascade_settings(settings, 1)))
    (version.parent / "config.pbtxt").write_text(cascade(settings, 1))
    return folder


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running
        end_at_once(running.pid)


@pytest.fixture(scope="module")
def comments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("comments") / "labelled.jsonl"
    with file.open("w") as out:
        for i in range(400):
            text = " ".join(["please", "look", "at", "the", "map"][: i % 5 + 1]) + f" {i}" + " muslim" * (i % 4 == 0)
            labels = {label: int((i + at) % 9 == 0) for at, label in enumerate(LABELS)}
            out.write(json.dumps({"text": text, **labels}) + "\n")
    return file


@pytest.fixture(scope="module")
def reference(triton: TritonServer, comments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reference") / "reference.json"
    command = ["reference", "--data", str(comments), "--out", str(file), "--curated", f"own={comments}"]
    assert drift_main([*command, "--triton", triton.grpc_url, "--metrics", "none"]) == 0  # lengths take their time
    return file


@pytest.fixture(scope="module")
def shown(triton: TritonServer, reference: Path, comments: Path, tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What Triton, the gateway and the drift monitor show, by name."""
    prom = tmp_path_factory.mktemp("prom") / "drift.prom"
    keys = prom.with_name("keys.txt")
    keys.write_text("0123456789abcdef name=slow rate=1\n")
    command = [sys.executable, "-m", "serve.gateway", "--triton", triton.grpc_url, "--port", "0", "--feedback", "none"]
    command += ["--keys", str(keys)]
    gateway = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert gateway.stdout is not None
        address = "http://" + gateway.stdout.readline().split("http://")[1].split()[0]
        body = json.dumps({"texts": ["hello", "you"]}).encode()
        ask = urllib.request.Request(
            f"{address}/predict?key=0123456789abcdef", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError, match="429"):
            for _ in range(20):
                with urllib.request.urlopen(ask, timeout=30):
                    pass
        with closing(ToxicityClient(triton.grpc_url, model="toxicity_cascade")) as client:
            client.classify(["one", "two"])
        records = prom.with_name("scored.jsonl")
        with closing(ToxicityClient(triton.grpc_url)) as client, records.open("w") as out:
            texts = [json.loads(line)["text"] for line in comments.read_text().splitlines()]
            for text, result in zip(texts, client.classify(texts), strict=True):
                out.write(json.dumps({"text": text, **result.to_dict()}) + "\n")
        common = ["--reference", str(reference), "--prom", str(prom)]
        assert drift_main(["records", str(records), *common]) == 0
        text = prom.read_text()
        assert drift_main(["rescore", "--curated", f"own={comments}", "--triton", triton.grpc_url, *common]) == 0
        text += prom.read_text()
        time.sleep(1.0)  # counts are sent a few times a second
        for url in (triton.metrics_url, f"{address}/metrics"):
            with urllib.request.urlopen(url, timeout=30) as reply:
                text += reply.read().decode()
    finally:
        gateway.terminate()
        gateway.communicate(timeout=30)
    return series_of(text)


def series_of(text: str) -> Series:
    found: Series = {}
    for line in text.splitlines():
        match = re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ", line)
        if match and not line.startswith("#"):
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            found.setdefault(match[1], []).append(labels)
    return found


def matches(labels: Mapping[str, str], matchers: Mapping[str, tuple[str, str]]) -> bool:
    for label, (operator, value) in matchers.items():
        if operator in ("=", "!="):
            same = labels.get(label, "") == value
        else:
            same = re.fullmatch(value, labels.get(label, "")) is not None
        if same is operator.startswith("!"):
            return False
    return True


@pytest.mark.triton
def test_rules_and_board_read_what_there_is(shown: Series) -> None:
    read = 0
    for where, expression in expressions():
        for name, matchers in selectors(expression):
            if name.startswith(("envoy_", "nv_gpu_")) or name in NOT_HERE:
                continue
            if name in RECORDED:
                continue
            assert name in shown, f"{where} reads {name}, which nobody shows"
            kept = {
                label: matcher
                for label, matcher in matchers.items()
                if label not in ("pod", "job", "code") or (label == "code" and not re.search("[45]", matcher[1]))
            }
            assert any(matches(labels, kept) for labels in shown[name]), f"{where}: no series of {name} has {kept}"
            read += 1
    assert read > 50


def test_envoy_shows_what_rules_and_board_read(tmp_path: Path) -> None:
    certificates = pytest.importorskip("serve.certificates")
    envoy = pytest.importorskip("serve.envoy")
    pytest.importorskip("cryptography")
    try:
        envoy.find_envoy()
    except envoy.ServeError as error:
        pytest.skip(str(error))
    certificates.make(tmp_path, ["localhost"])
    with envoy.Envoy([("127.0.0.1", 9)], tmp_path / "envoy", tmp_path / "keys") as running:
        address = f"http://127.0.0.1:{running.ports['stats']}/stats/prometheus"
        with urllib.request.urlopen(address, timeout=10) as reply:
            there = series_of(reply.read().decode())
        # how its pod says goodbye, while it is here
        *_, deployment = [
            each
            for each in yaml.safe_load_all((ROOT / "docker/kubernetes/base/envoy.yaml").read_text())
            if each["kind"] == "Deployment"
        ]
        (pod,) = deployment["spec"]["template"]["spec"]["containers"]
        bash, option, script = pod["lifecycle"]["preStop"]["exec"]["command"]
        script = script.replace("127.0.0.1/9903", f"127.0.0.1/{running.ports['admin']}").replace("sleep 20", "sleep 0")
        said = subprocess.run([bash, option, script], capture_output=True, text=True, timeout=20, check=True).stdout
        assert said.startswith("HTTP/1.1 200 OK") and "\nOK\n" in said
    used = 0
    for where, expression in expressions():
        for name, matchers in selectors(expression):
            if name.startswith("envoy_"):
                assert name in there, f"{where} reads {name}, which Envoy does not show"
                assert any(matches(labels, matchers) for labels in there[name]), f"{where}: {name} {matchers}"
                used += 1
    assert used > 5


@pytest.mark.slow
@pytest.mark.triton
def test_live_traffic_is_compared_by_the_servers_own_histograms(
    triton: TritonServer, comments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference.json"
    command = ["reference", "--data", str(comments), "--out", str(reference), "--triton", triton.grpc_url]
    assert drift_main([*command, "--metrics", triton.metrics_url]) == 0
    capsys.readouterr()

    def read() -> str:
        with urllib.request.urlopen(triton.metrics_url, timeout=30) as reply:
            return str(reply.read().decode())

    def counted(text: str) -> list[float]:
        names = ("tritox_encoder_score_count", "tritox_tokenizer_length_count")
        return [sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(name)) for name in names]

    def after(text: str) -> str:
        """What is shown once 400 comments more are counted, by each label."""
        wanted = [count + 400 * each for count, each in zip(counted(text), (len(LABELS), 1), strict=True)]
        deadline = time.monotonic() + 20
        while counted(found := read()) != wanted and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def looked(name: str) -> dict[str, Any]:
        before = tmp_path / f"{name}.txt"
        command = ["live", "--reference", str(reference), "--before", str(before), "--metrics", triton.metrics_url]
        code = drift_main([*command, "--scores", "encoder", "--json", "-"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {**found, "code": code}

    texts = [json.loads(line)["text"] for line in comments.read_text().splitlines()]
    with closing(ToxicityClient(triton.grpc_url)) as client:
        time.sleep(3.3)  # until what came before is counted
        (tmp_path / "same.txt").write_text(first := read())
        client.classify(texts)
        (tmp_path / "other.txt").write_text(second := after(first))
        same = looked("same")
        client.classify(["a much longer comment than any of those before " * 4 + str(i) for i in range(400)])
        after(second)
        other = looked("other")
    assert (same["code"], same["verdict"], same["comments"]) == (0, "steady", 400)
    assert {(f["what"], f["group"]) for f in same["findings"]} == {
        ("length", ""),
        *(("score", label) for label in LABELS),
    }
    assert max(f["value"] for f in same["findings"]) < 0.01
    assert other["code"] == 1
    length = next(f for f in other["findings"] if f["what"] == "length")
    assert length["verdict"] == "drifted" and length["value"] > 1
