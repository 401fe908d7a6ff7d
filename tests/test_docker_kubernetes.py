"""Kubernetes manifests: against the schemas of the API, and the files that the containers run. No cluster is here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from serve.__main__ import parser as serve_parser
from serve.drift.__main__ import parser as drift_parser
from serve.gateway.__main__ import parser as gateway_parser
from serve.probe import parser as probe_parser

KUBERNETES = ROOT / "docker/kubernetes"
VERSIONS = ("1.30", "1.37")
"""The oldest that has all that is used, and the newest that is known to the validator."""
Object = dict[str, Any]


def manifests(folder: str) -> list[Object]:
    """The files as they are, before Kustomize."""
    listed = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    files = [KUBERNETES / folder / name for name in listed if name.endswith(".yaml")]
    return [each for file in files for each in yaml.safe_load_all(file.read_text()) if each]


@cache
def built(folder: str) -> list[Object]:
    """What Kustomize makes of it."""
    command = ["--load-restrictor", "LoadRestrictionsNone", str(KUBERNETES / folder)]
    if shutil.which("kustomize"):
        command = ["kustomize", "build", *command]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize", *command]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def containers(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each Deployment's pod, with each of its containers."""
    for each in objects:
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            yield from ((pod, container) for container in pod["containers"])


def validate(objects: list[Object], versions: Sequence[str]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for each in objects:
        for version in versions:
            validator.validate(each, version, strict=True)


@pytest.mark.parametrize("folder", ["base", "monitoring"])
def test_the_files_are_what_the_api_takes(folder: str) -> None:
    validate(manifests(folder), VERSIONS[:1])


@pytest.mark.parametrize("folder", ["base", "gpu", "monitoring"])
def test_what_kustomize_makes_is_what_the_api_takes(folder: str) -> None:
    objects = built(folder)
    validate(objects, VERSIONS[-1:])
    assert {o["metadata"].get("namespace", "tritox") for o in objects} == {"tritox"}


def test_a_misspelt_field_is_found() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    broken = named(manifests("base"), "Deployment", "triton")
    broken["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(validator.ValidationError, match="livenesProbe"):
        validator.validate(broken, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("folder", ["base", "monitoring"])
def test_pods_are_restricted(folder: str) -> None:
    """As the policy `restricted` of the namespace wants it, and more."""
    for pod, container in containers(manifests(folder)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert container["livenessProbe"] != container["readinessProbe"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    for pod, container in containers(manifests("base")):
        stop = container["lifecycle"]["preStop"]
        seconds = stop["sleep"]["seconds"] if "sleep" in stop else int(re.findall(r"sleep (\d+)", str(stop))[0])
        assert pod["terminationGracePeriodSeconds"] >= seconds + 15, container["name"]


def test_the_commands_take_their_arguments() -> None:
    parsers = {"triton": serve_parser(), "gateway": gateway_parser(), "drift": drift_parser()}
    everything = [*manifests("base"), *manifests("monitoring")]
    seen = set()
    for _, container in containers(everything):
        if container["name"] in parsers:
            command = container.get("command", [])[3:]
            parsers[container["name"]].parse_args([*command, *container["args"]])  # exits where it does not
            seen.add(container["name"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            called = container.get(probe, {}).get("exec", {}).get("command", [])
            if "serve.probe" in called:
                probe_parser().parse_args(called[3:])
                seen.add(probe)
    assert seen == {*parsers, "readinessProbe", "livenessProbe"}


def test_envoy_finds_the_services_and_its_files() -> None:
    objects = manifests("base")
    envoy = yaml.safe_load((ROOT / "docker/envoy.yaml").read_text())
    resources = envoy["static_resources"]
    ports = {each["name"]: each["address"]["socket_address"]["port_value"] for each in resources["listeners"]}
    pod = named(objects, "Deployment", "envoy")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
    for cluster in resources["clusters"]:
        if cluster["name"] == "admin":
            continue
        (lb,) = cluster["load_assignment"]["endpoints"]
        address = lb["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        service = named(objects, "Service", address["address"])
        assert service["spec"]["clusterIP"] == "None", "Envoy balances over the pods' own addresses"
        assert address["port_value"] in {port["port"] for port in service["spec"]["ports"]}
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    listed = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["configMapGenerator"]
    secrets = {Path(file).name for file in listed[1]["files"]}
    texts = [(ROOT / "docker/envoy.yaml").read_text(), *(f.read_text() for f in (ROOT / "docker/envoy").glob("*.yaml"))]
    for path in re.findall(r"(?:path|filename): (/[\w./]+)", "\n".join(texts)):
        if path.startswith("/etc/envoy/secrets/"):
            assert Path(path).name in secrets
        elif not path.startswith(("/inference", "/models", "/metrics", "/healthz", "/stats", "/ready")):
            assert any(path.startswith(mount) for mount in mounts), path
    admin = envoy["admin"]["address"]["socket_address"]["port_value"]
    assert f"/dev/tcp/127.0.0.1/{admin}" in str(container["lifecycle"])


def test_selectors_choose_and_policies_name_ports_that_are_there() -> None:
    objects = [*manifests("base"), *manifests("monitoring")]
    pods = {
        o["metadata"]["name"]: (o["spec"]["template"]["metadata"]["labels"], o["spec"]["template"]["spec"])
        for o in objects
        if o["kind"] == "Deployment"
    }

    def chosen(selector: Object) -> list[Object]:
        wanted = selector.get("matchLabels", selector)
        return [spec for labels, spec in pods.values() if wanted.items() <= labels.items()]

    def ports(spec: Object) -> set[Any]:
        return {p["name"] for c in spec["containers"] for p in c["ports"]}

    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            (pod,) = chosen(spec["selector"])
            assert {port["targetPort"] for port in spec["ports"]} <= ports(pod)
        elif each["kind"] == "PodDisruptionBudget":
            assert len(chosen(spec["selector"])) == 1
        elif each["kind"] == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in pods
            assert "replicas" not in named(objects, "Deployment", spec["scaleTargetRef"]["name"])["spec"]
        elif each["kind"] == "NetworkPolicy" and spec["podSelector"]:
            (pod,) = chosen(spec["podSelector"])
            for rule in spec["ingress"]:
                assert {port["port"] for port in rule["ports"]} <= ports(pod), each["metadata"]["name"]
            for rule in spec["egress"]:
                own = [peer for peer in rule["to"] if "namespaceSelector" not in peer]
                for peer in own:
                    (other,) = chosen(peer["podSelector"])
                    assert {port["port"] for port in rule["ports"]} <= ports(other)
    (denied,) = [o for o in objects if o["kind"] == "NetworkPolicy" and not o["spec"]["podSelector"]]
    assert denied["spec"]["policyTypes"] == ["Ingress", "Egress"] and not {"ingress", "egress"} & set(denied["spec"])


def test_the_autoscalers_metrics_are_the_adapters() -> None:
    rules = yaml.safe_load((KUBERNETES / "monitoring/adapter.yaml").read_text())["rules"]["custom"]
    given = {rule["name"]["as"] for rule in rules}
    files = ["base/triton.yaml", "gpu/autoscaler.yaml"]
    objects = [each for file in files for each in yaml.safe_load_all((KUBERNETES / file).read_text())]
    asked = {
        metric["pods"]["metric"]["name"]
        for each in objects
        if each["kind"] == "HorizontalPodAutoscaler"
        for metric in each["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert asked == given


def test_images_are_pinned_and_on_gpus_there_are_gpus() -> None:
    for folder in ("base", "gpu", "monitoring"):
        for _, container in containers(built(folder)):
            assert re.search(r":v?\d[\w.-]*$", container["image"]), container["image"]
    objects = built("gpu")
    spec = named(objects, "Deployment", "triton")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["containers"][0]["readinessProbe"], "the patch leaves the rest"
    metrics = named(objects, "HorizontalPodAutoscaler", "triton")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Pods", "Pods"]


def test_secrets_are_those_that_the_command_makes(tmp_path: Path) -> None:
    certificates = pytest.importorskip("serve.certificates")
    pytest.importorskip("cryptography")
    certificates.make(tmp_path, ["tritox.example"])
    for pod, container in containers(manifests("base")):
        text = " ".join(container["args"]) + " ".join(str(each.get("value")) for each in container.get("env", []))
        for volume in pod["volumes"]:
            if "secret" not in volume:
                continue
            folder = tmp_path / volume["secret"]["secretName"]
            files = {file.name for file in folder.iterdir()}
            assert files, folder
            assert {item["key"] for item in volume["secret"].get("items", [])} <= files
            (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume["name"]]
            assert set(re.findall(rf"{mount}/([\w.]+)", text)) <= files


def test_the_page_makes_all_secrets() -> None:
    page = (KUBERNETES / "README.md").read_text()
    made = set(re.findall(r"for name in ([\w ]+);", page)[0].split())
    pods = [pod for pod, _ in containers(manifests("base"))]
    assert {v["secret"]["secretName"] for pod in pods for v in pod["volumes"] if "secret" in v} == made
