"""The deployment files: valid for Kubernetes, and never a door to Triton for strangers."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from imis_net.serving.repository import MODELS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = {r["kind"]: r for r in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KINDS = ("PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler")


def container() -> dict:
    return KUBERNETES["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["1.24", "1.27"])
def test_each_resource_is_valid(kind: str, version: str) -> None:
    """Breaks if a field is misspelt or of a wrong type, which kubectl apply would refuse or ignore."""
    kubernetes_validate.validate(KUBERNETES[kind], version, strict=True)


def test_a_misspelt_field_is_found() -> None:
    """Breaks if the validation above lets everything pass."""
    broken = KUBERNETES["Service"] | {"spec": {"sesionAffinity": "ClientIP"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.27", strict=True)


def test_triton_is_reachable_by_its_users_alone() -> None:
    """Breaks if a change publishes Triton, which has no passwords, to a network."""
    assert KUBERNETES["Service"]["spec"]["type"] == "ClusterIP"
    assert KUBERNETES["NetworkPolicy"]["spec"]["policyTypes"] == ["Ingress"]
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["triton"]["ports"])


def test_the_repository_is_read_only_and_control_explicit() -> None:
    """Breaks if the server may write its models, or loads whatever appears in the folder."""
    triton = COMPOSE["services"]["triton"]
    assert all(volume.endswith(":ro") for volume in triton["volumes"])
    assert all(m["readOnly"] for m in container()["volumeMounts"] if m["name"] == "models")
    for arguments in (triton["command"], container()["args"]):
        assert "--model-control-mode=explicit" in arguments


def test_both_load_the_same_models_on_a_gpu() -> None:
    """Breaks if one of the two files is forgotten when a model is added, or the GPU is not asked for."""
    loads = [
        {a for a in arguments if a.startswith("--load-model=")}
        for arguments in (COMPOSE["services"]["triton"]["command"], container()["args"])
    ]
    assert loads[0] == loads[1] == {f"--load-model={model}" for model in MODELS}
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert COMPOSE["services"]["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
