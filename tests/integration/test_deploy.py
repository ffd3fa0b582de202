"""What is in deploy/: it renders, it is valid for every Kubernetes version that we name, and it says nothing the binary lacks."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
VERSIONS = ["1.30", "1.31", "1.32", "1.33", "1.34"]
KUBECTL = Path(sys.executable).with_name("kubectl")
FOLDERS = ["base", "overlays/trial", "overlays/keys-example"]


def render(folder, tmp_path):
    if folder == "overlays/keys-example":
        # A component is used from somebody's own overlay, as deploy/README.md shows it.
        own = tmp_path / "own"
        own.mkdir()
        shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
        (own / "kustomization.yaml").write_text(
            "resources:\n  - ../kubernetes/base\ncomponents:\n  - ../kubernetes/components/api-keys\n")
        path = own
    else:
        path = KUBERNETES / folder
    return subprocess.run([KUBECTL, "kustomize", str(path)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_renders_and_is_valid(folder, tmp_path):
    import kubernetes_validate

    objects = list(yaml.safe_load_all(render(folder, tmp_path)))
    assert len(objects) >= 14
    for version in VERSIONS:
        for thing in objects:
            kubernetes_validate.validate(thing, version, strict=True)


def test_the_validator_sees_a_misspelt_field():
    import kubernetes_validate

    thing = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "x"},
             "spec": {"maxUnavailble": 1, "selector": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(thing, "1.32", strict=True)


def options_of(baton, command):
    text = subprocess.run([baton, command, "--help"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s+--([a-z0-9-]+)", text, re.M))


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_only_what_the_binary_has(folder, baton, tmp_path):
    deployments = {}
    others = []
    for thing in yaml.safe_load_all(render(folder, tmp_path)):
        if thing["kind"] == "Deployment":
            deployments[thing["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]] = thing
        else:
            others.append(thing)
    assert set(deployments) == {"router", "prefill", "decode"}
    for role, deployment in deployments.items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        options = options_of(baton, role)
        assert container["args"][0] == role
        given = [a[2:] for a in container["args"] if a.startswith("--")]
        given += [e["name"][6:].lower().replace("_", "-") for e in container["env"] if e["name"].startswith("BATON_")]
        for name in given:
            assert name in options, f"{role}: there is no option --{name}"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            command = container[probe]["exec"]["command"]
            assert command[:2] == ["/usr/bin/baton", "health"]
            assert {a[2:] for a in command if a.startswith("--")} <= options_of(baton, "health")
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
        # Kubernetes waits for the drain to end before it kills.
        drain = 30 if role != "router" else 600
        assert pod["terminationGracePeriodSeconds"] > drain
    check_ports(deployments, others)


def check_ports(deployments, others):
    """Services and policies name ports that the pods they select have, and every pool has its budget."""
    names = {role: {p["name"]: p["containerPort"] for p in d["spec"]["template"]["spec"]["containers"][0].get("ports", [])}
             for role, d in deployments.items()}
    budgets = set()
    for thing in others:
        if thing["kind"] == "Service":
            ports = names[thing["spec"]["selector"]["app.kubernetes.io/component"]]
            for port in thing["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
        elif thing["kind"] == "PodDisruptionBudget":
            budgets.add(thing["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"])
        else:
            assert thing["kind"] == "NetworkPolicy"
            for rule in thing["spec"].get("ingress") or []:
                role = thing["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                for port in rule["ports"]:
                    assert port["port"] in names[role]
    assert budgets == {"router", "prefill", "decode"}
