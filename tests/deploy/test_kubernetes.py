"""The Helm chart and the KServe files, rendered and checked against their readers' types."""

import dataclasses
import io
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api import models as trainer_models
from pydantic import ValidationError

from deploy import chart_schema
from service.settings import Settings, variable_of
from tests.support import kubernetes_types
from training.commands.cli import make_parser

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "priordial"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNBOOK = PROJECT["urls"]["Documentation"].split("#")[0] + "/blob/main/docs/runbook.md"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
ELSEWHERE = {"ScaledObject", "ServiceMonitor", "PrometheusRule", "HTTPRoute"}
"""Kinds that Kubernetes itself does not define; the first three are held to their operators'
models.
"""
TYPES = Path(sys.prefix) / "share" / "kubernetes-types"


@pytest.fixture(scope="module")
def helm():
    program = shutil.which("helm", path=str(Path(sys.executable).parent)) or shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed (run: .venv/bin/python deploy/tools.py)")

    def run(*arguments):
        return subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="module")
def rendered(helm):
    """Objects of the chart for each values file."""

    def render(values, *more):
        done = helm("template", "release", CHART, "--namespace", "shop", "-f", values, *more)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return {values.stem: render(values) for values in VALUES}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_the_chart_passes_strict_lint(helm, values):
    done = helm("lint", "--strict", CHART, "-f", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [path.stem for path in VALUES])
def test_what_is_rendered_is_what_kubernetes_takes(rendered, values, tmp_path):
    from kubernetes_validate import utils

    for item in rendered[values]:
        if item["kind"] in ELSEWHERE:
            continue
        shown = io.StringIO()
        with redirect_stdout(shown):
            utils.validate(item, "1.37", strict=True)
        assert "Couldn't find schema" not in shown.getvalue(), item["kind"]


def test_what_operators_read_is_what_their_models_take(rendered):
    from cloudcoil.models.keda import v1alpha1 as keda
    from cloudcoil.models.prometheus_operator import v1 as monitoring

    models = {
        "ScaledObject": keda.ScaledObject,
        "ServiceMonitor": monitoring.ServiceMonitor,
        "PrometheusRule": monitoring.PrometheusRule,
    }
    checked = Counter()
    for item in (each for items in rendered.values() for each in items):
        if item["kind"] in models:
            read = models[item["kind"]].model_validate(item)
            assert _known(item, read.model_dump(by_alias=True, exclude_none=True))
            checked[item["kind"]] += 1
    assert set(checked) == set(models)


def _known(given, kept, path=""):
    """Whether no field of `given` was dropped or kept only as an unknown extra."""
    if isinstance(given, dict):
        for name, value in given.items():
            assert name in kept, f"{path}/{name} is no field of its kind"
            _known(value, kept[name], f"{path}/{name}")
    return True


def test_there_is_a_scaler_of_each_kind_and_none_beside_a_fixed_number_of_replicas(rendered):
    kinds = {name: {item["kind"] for item in items} for name, items in rendered.items()}
    assert "HorizontalPodAutoscaler" in kinds["ha-values"]
    assert "ScaledObject" in kinds["keda-values"]
    for name, items in rendered.items():
        (deployment,) = (each for each in items if each["kind"] == "Deployment")
        scaled = kinds[name] & {"HorizontalPodAutoscaler", "ScaledObject"}
        assert ("replicas" in deployment["spec"]) != bool(scaled)


def test_the_chart_takes_every_setting_of_the_service_and_no_other():
    assert chart_schema.text() == chart_schema.SCHEMA.read_text(encoding="utf-8"), (
        "run: python deploy/chart_schema.py"
    )
    settings = chart_schema.schema()["properties"]["settings"]["properties"]
    named = {chart_schema.camel(field.name) for field in dataclasses.fields(Settings)}
    assert set(settings) | {chart_schema.camel(name) for name in chart_schema.OWN} == named


def test_every_variable_that_the_chart_sets_is_a_setting_of_the_service(rendered):
    known = {variable_of(field.name) for field in dataclasses.fields(Settings)}
    for items in rendered.values():
        (deployment,) = (each for each in items if each["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        given = {each["name"] for each in container["env"] if each["name"].startswith("PRIORDIAL_")}
        assert given <= known
        assert "PRIORDIAL_STORE" in given


def test_every_default_of_the_chart_is_one_that_its_schema_takes():
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(values, chart_schema.schema())
    assert set(values) | {"global"} == set(chart_schema.schema()["properties"])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (("models.persistentVolumeClaim=",), "set exactly one of"),
        (("models.image=x",), "set exactly one of"),
        (("store.existingSecret=",), "store.existingSecret is empty"),
        (("apiKeys.existingSecret=",), "apiKeys.existingSecret is empty"),
        (("autoscaling.enabled=true", "keda.enabled=true"), "two scalers"),
        (("settings.drainSeconds=60",), "terminationGracePeriodSeconds"),
        (("settings.maxBatchRow=1",), "maxBatchRow"),
        (("settings.maxBatchRows=0",), "maxBatchRows"),
        (("replicaCount=two",), "replicaCount"),
        (("models.cacheSize=lots",), "cacheSize"),
        (
            (
                "models.persistentVolumeClaim=",
                "models.url=s3://b/m",
                "models.cacheSize=1Gi",
                "settings.modelsCacheMib=1025",
            ),
            "more than models.cacheSize, 1Gi",
        ),
        (("settings.modelsCacheMib=5",), "models.url is empty"),
        (("models.persistentVolumeClaim=", "models.url=shop/models"), "/models/url"),
        (("gpu.enabled=true", "gpu.count=0"), "/gpu/count"),
        (("gpu.enabled=true", "settings.provider=cpu"), "settings.provider is cpu"),
        (("metricsPort=8000",), "metricsPort is 8000, which is also the HTTP port"),
        (("settings.grpcPort=8000",), "settings.grpcPort is 8000, which is also the HTTP port"),
        (("settings.grpcPort=9000",), "which is also metricsPort, 9000"),
        (("service.port=9000",), "service.port is 9000, which is also metricsPort, 9000"),
        (("settings.grpcPort=80",), "service.port is 80, which is also settings.grpcPort, 80"),
        (("autoscaling.enabled=true", "autoscaling.minReplicas=11"), "autoscaling.maxReplicas, 10"),
        (("keda.enabled=true", "keda.minReplicas=11"), "keda.maxReplicas, 10"),
        (("keda.enabled=true", "keda.minReplicas=0"), "/keda/minReplicas"),
        (("autoscaling.enabled=true", "resources.requests.cpu=null"), "resources.requests.cpu"),
        (("podDisruptionBudget.maxUnavailable=0",), "/podDisruptionBudget/maxUnavailable"),
        (("podDisruptionBudget.maxUnavailable=0%",), "/podDisruptionBudget/maxUnavailable"),
        (("probes.liveness.periodSeconds=0",), "/probes/liveness/periodSeconds"),
        (("probes.startup.successThreshold=2",), "/probes/startup/successThreshold"),
        (("probes.liveness.httpGet.path=/x",), "httpGet"),
        (("resources.requests.memory=3Gi",), "memory is 3Gi, more than resources.limits.memory"),
        (("resources.limits.cpu=500m",), "cpu is 1, more than resources.limits.cpu, 500m"),
        (("image.repository=",), "/image/repository"),
        (("serviceMonitor.interval=soon",), "/serviceMonitor/interval"),
        (("extraEnv[0].name=PRIORDIAL_PORT",), "extraEnv sets PRIORDIAL_PORT"),
        (("preStopSeconds=60", "settings.drainSeconds=0"), "settings.drainSeconds = 60"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(helm, changed, says):
    flags = [part for each in changed for part in ("--set", each)]
    done = helm("template", "release", CHART, "-f", CHART / "ci" / "default-values.yaml", *flags)
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize("name", ["7shop", "shop.eu"])
def test_a_release_whose_service_kubernetes_would_not_take_is_refused(helm, name):
    done = helm("template", name, CHART, "-f", CHART / "ci" / "default-values.yaml")
    assert done.returncode != 0
    assert f"named '{name}'" in done.stderr


def test_no_name_of_the_longest_release_is_longer_than_kubernetes_takes(helm):
    done = helm("template", "a" * 53, CHART, "-f", CHART / "ci" / "default-values.yaml")
    items = [each for each in yaml.safe_load_all(done.stdout) if each]
    names = {each["kind"]: each["metadata"]["name"] for each in items}
    assert {"Job", "Service", "Deployment"} <= set(names)
    assert max(map(len, names.values())) <= 63
    assert names["Job"] != names["Deployment"]


def test_the_grpc_port_can_be_reached(helm):
    values = CHART / "ci" / "default-values.yaml"
    done = helm("template", "release", CHART, "-f", values, "--set", "settings.grpcPort=9001")
    items = [each for each in yaml.safe_load_all(done.stdout) if each]
    kinds = {each["kind"]: each.get("spec") for each in items}
    assert {"name": "grpc", "port": 9001, "targetPort": "grpc"} in kinds["Service"]["ports"]
    (container,) = kinds["Deployment"]["template"]["spec"]["containers"]
    assert {"name": "grpc", "containerPort": 9001} in container["ports"]
    assert {"port": "grpc"} in kinds["NetworkPolicy"]["ingress"][0]["ports"]


def test_what_may_be_left_out_leaves_a_pod_that_kubernetes_takes(helm):
    """A hook that sleeps 0 seconds is refused before Kubernetes 1.33."""
    flags = ("preStopSeconds=0", "resources.limits=null", "resources.requests=null")
    done = helm(
        *("template", "release", CHART, "-f", CHART / "ci" / "gpu-values.yaml"),
        *(part for each in flags for part in ("--set", each)),
    )
    items = [each for each in yaml.safe_load_all(done.stdout) if each]
    (deployment,) = (each for each in items if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "lifecycle" not in container
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_the_copy_of_models_stays_below_its_volume(helm):
    """Kubernetes ends a pod whose volume is overfull; the service's own default is 10 GiB."""
    done = helm(
        *("template", "release", CHART, "-f", CHART / "ci" / "bucket-values.yaml"),
        *("--set", "models.cacheSize=4Gi", "--set", "settings.modelsCacheMib=null"),
    )
    assert 'name: PRIORDIAL_MODELS_CACHE_MIB, value: "3686"' in done.stdout, done.stderr


def test_probes_and_ports_are_those_of_the_service(rendered):
    routes = (ROOT / "service" / "api" / "health.py").read_text(encoding="utf-8")
    for items in rendered.values():
        (deployment,) = (each for each in items if each["kind"] == "Deployment")
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        named = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container[probe]["httpGet"]
            assert get["path"] in routes
            assert get["port"] in named
        (service,) = (each for each in items if each["kind"] == "Service")
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
        assert (
            service["spec"]["selector"].items()
            <= deployment["spec"]["template"]["metadata"]["labels"].items()
        )
        drain = next(e["value"] for e in container["env"] if e["name"] == "PRIORDIAL_DRAIN_SECONDS")
        assert pod["terminationGracePeriodSeconds"] > float(drain)


def test_no_pod_runs_as_root_or_writes_to_its_image(rendered):
    for items in rendered.values():
        for item in items:
            if item["kind"] not in ("Deployment", "Job"):
                continue
            pod = item["spec"]["template"]["spec"]
            assert pod["automountServiceAccountToken"] is False
            for container in [*pod["containers"], *pod.get("initContainers", [])]:
                context = container["securityContext"]
                assert context["runAsNonRoot"]
                assert context["readOnlyRootFilesystem"]
                assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_chart_ships_the_rules_and_dashboards_of_the_compose_deployment(rendered):
    items = rendered["keda-values"]
    rules = [each["spec"] for each in items if each["kind"] == "PrometheusRule"]
    for name in ("alerts", "recording"):
        path = ROOT / "deploy" / "prometheus" / "rules" / f"{name}.yml"
        assert yaml.safe_load(path.read_text(encoding="utf-8")) in rules
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert values["prometheusRule"]["runbookUrl"] == RUNBOOK
    boards = {k: v for e in items if e["kind"] == "ConfigMap" for k, v in e["data"].items()}
    for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"):
        assert boards[path.name].strip() == path.read_text(encoding="utf-8").strip()


def test_alerts_of_the_chart_link_to_the_runbook_that_is_named(helm):
    url = "https://docs.shop.example/runbook.html"
    values = CHART / "ci" / "keda-values.yaml"
    done = helm(
        "template", "release", CHART, "-f", values, "--set", f"prometheusRule.runbookUrl={url}"
    )
    assert done.returncode == 0, done.stderr
    assert f"runbook_url: {url}#priordialdown" in done.stdout
    assert RUNBOOK not in done.stdout


def test_kubeflow_takes_the_training_job_and_a_misspelt_field_is_noticed():
    text = (ROOT / "deploy/kubeflow/trainjob.yaml").read_text(encoding="utf-8")
    assert _known_to_kubeflow(text)
    for right, wrong in (("numNodes", "numNode"), ("runtimeRef", "runtime"), ("claimName", "name")):
        assert not _known_to_kubeflow(text.replace(right, wrong))
    job = list(yaml.safe_load_all(text))[1]["spec"]["trainer"]["args"]
    make_parser("training").parse_args(job[job.index("fit") :])


def _known_to_kubeflow(text):
    """Whether its models take every document, and know each field: they drop unknown ones."""
    for item in yaml.safe_load_all(text):
        kind = getattr(trainer_models, f"TrainerV1alpha1{item['kind']}")
        try:
            if kind.from_dict(item).to_dict() != item:
                return False
        except ValidationError:
            return False
    return True


def test_kserve_takes_the_runtime_and_the_service_and_refuses_a_misspelt_field():
    if not (TYPES / "kserve").exists():
        pytest.skip("KServe's types are not here (run: .venv/bin/python deploy/tools.py)")
    kinds = kubernetes_types.validators(TYPES)
    known = {variable_of(field.name) for field in dataclasses.fields(Settings)}
    misspelt = {
        "servingruntime": ("protocolVersions", "secretKeyRef", "containerPort", "periodSeconds"),
        "inferenceservice": ("minReplicas", "storageUri"),
    }
    for name, fields in misspelt.items():
        text = (ROOT / "deploy" / "kserve" / f"{name}.yaml").read_text(encoding="utf-8")
        item = yaml.safe_load(text)
        kinds[item["kind"]].validate(item)
        assert set(re.findall(r"PRIORDIAL_\w+", text)) <= known
        for field in fields:
            with pytest.raises(jsonschema.ValidationError, match=f"{field}x"):
                kinds[item["kind"]].validate(
                    yaml.safe_load(text.replace(f"{field}:", f"{field}x:"))
                )
