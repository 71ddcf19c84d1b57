"""The pods of the Helm chart as containers of the image: user, paths, variables and probes fit."""

import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.images.engine import ROOT, docker
from tests.support.eventually import eventually

CHART = ROOT / "deploy" / "helm" / "priordial"
STORE = "sqlite:////tmp/priordial.db"
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def pods():
    """The pods' specifications of the chart, by the kind of the object that makes them."""
    program = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed (run: .venv/bin/python deploy/tools.py)")
    values = {
        "models.hostPath": "/models",
        "store.existingSecret": "store",
        "apiKeys.allowAnonymous": "true",
        "settings.defaultModel": "fashion",
    }
    flags = [each for name, value in values.items() for each in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [program, "template", "release", CHART, *flags], capture_output=True, text=True, check=True
    )
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    return {
        each["kind"]: each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] in ("Deployment", "Job")
    }


def options(pod):
    """How Docker runs the only container of a pod, as Kubernetes would."""
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["capabilities"]["drop"] == ["ALL"]
    assert "command" not in container
    yield from ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
    yield from ("--user", f"{security['runAsUser']}:{pod['securityContext']['runAsGroup']}")
    yield from ("--memory", container["resources"]["limits"]["memory"].replace("i", "").lower())
    for each in container["env"]:
        yield from ("--env", f"{each['name']}={each.get('value', STORE)}")
    for mount in container["volumeMounts"]:
        if mount["name"] == "models":
            yield from ("--volume", f"{ROOT / 'models'}:{mount['mountPath']}:ro")
        else:
            yield from ("--tmpfs", f"{mount['mountPath']}:size=64m,mode=1777")


def test_the_pod_of_the_deployment_serves_and_its_probes_are_answered(pods, start):
    pod = pods["Deployment"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == 8000
    running = start(
        *options(pod),
        *("--publish", f"127.0.0.1::{ports['metrics']}"),
        command=container.get("args", ()),
    )
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        assert get["port"] == "http"
        eventually(lambda path=get["path"]: running.answers(path))
    address = docker("port", running.name, ports["metrics"]).splitlines()[0]
    assert "priordial_ready 1" in httpx.get(f"http://{address}/metrics", timeout=30).text
    assert running.answers("/models/fashion")


def test_the_pod_that_prepares_the_store_ends_well(pods, image):
    pod = pods["Job"]
    (container,) = pod["containers"]
    docker("run", "--rm", *options(pod), image, *container["args"])
