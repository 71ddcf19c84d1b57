"""docker-compose.yml in a real Docker engine: the service on PostgreSQL, and the monitoring."""

import json
import os
import shutil
import subprocess
import sys

import httpx
import pytest

from tests.images.conftest import COMPOSE
from tests.images.engine import ROOT, Container, docker, run
from tests.support.eventually import eventually

PROJECT = "priordial-test"
WATCHING = ("prometheus", "alertmanager", "alerts")
"""The services of the profile `monitoring` for which Debian has a package; Grafana has none."""
pytestmark = pytest.mark.timeout(2400)


class Stack:
    """A copy of what the compose file needs, with free ports and secrets of its own."""

    def __init__(self, folder):
        self.folder = folder
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        for port in (8000, 9090, 9093, 9095, 3000):
            text = text.replace(f"127.0.0.1:{port}:{port}", f"127.0.0.1::{port}")
        (folder / "docker-compose.yml").write_text(text, encoding="utf-8")
        for name in ("deploy", "models", "service", "priordial", "training"):
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns("secrets", "__pycache__"),
            )
        for name in ("pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, folder)
        shutil.copy(ROOT / ".dockerignore", folder)
        for each in (folder, folder.parent):
            each.chmod(0o755)

    def make_secrets(self):
        """What `python3 deploy/make_secrets.py` prints."""
        command = [sys.executable, "deploy/make_secrets.py"]
        return subprocess.run(
            command, cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout

    def secret(self, name):
        return (self.folder / "deploy/secrets" / name).read_text().strip()

    def compose(self, *arguments):
        """Run `docker compose ARGUMENTS`; AssertionError with what it prints where it fails."""
        done = subprocess.run(
            [*compose_command(), "-p", PROJECT, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=1800,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def container(self, service):
        (name,) = docker(
            *("ps", "--all", "--format", "{{.Names}}"),
            *("--filter", f"label=com.docker.compose.project={PROJECT}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        ).split()
        return Container(name)

    def url(self, service, port):
        return f"http://{docker('port', self.container(service).name, port).splitlines()[0]}"

    def health(self, service):
        return self.container(service).state["Health"]["Status"]

    def client(self, key="console_key"):
        return httpx.Client(
            base_url=self.url("service", 8000),
            headers={"x-api-key": self.secret(key)},
            timeout=30,
        )


def compose_command():
    """`docker compose`, or its predecessor."""
    if run("compose", "version").returncode == 0:
        return ["docker", "compose"]
    if program := shutil.which("docker-compose"):
        return [program]
    pytest.skip("neither `docker compose` nor docker-compose is installed (Debian: docker-compose)")


@pytest.fixture(scope="module")
def stack(base, provide, tmp_path_factory):
    provide("db")
    compose_command()
    stack = Stack(tmp_path_factory.mktemp("compose"))
    printed = stack.make_secrets()
    assert stack.secret("console_key") in printed
    run("rm", "--force", *docker("ps", "-aq", "--filter", f"name={PROJECT}").split())
    try:
        stack.compose("up", "--build", "--detach")
        eventually(lambda: stack.health("service") == "healthy", seconds=120)
        yield stack
    except BaseException as error:
        error.add_note(stack.compose("logs", "--tail", "50"))
        raise
    finally:
        stack.compose("--profile", "monitoring", "down", "--volumes")


@pytest.fixture(scope="module")
def watched(stack, provide):
    """The composed services and their monitoring, as far as its images can be had."""
    for name in WATCHING[:2]:
        provide(name)
    stack.compose("--profile", "monitoring", "up", "--detach", *WATCHING)
    for name in WATCHING:
        eventually(lambda name=name: stack.health(name) == "healthy", seconds=90)
    return stack


def put_prior(client, name, **prior):
    answer = client.put(f"/priors/{name}", json=prior)
    assert answer.is_success, answer.text
    return answer.json()["revision"]


def predicts(stack):
    with stack.client() as client, (ROOT / "examples/shirt.png").open("rb") as picture:
        answer = client.post("/predict", params={"tau": 1}, files={"image": picture})
        return answer.status_code == 200 and answer.json()["predictions"][0]["label"] == "shirt"


def test_every_container_is_healthy_and_restricted_as_the_file_says(stack):
    for name in ("service", "db"):
        assert stack.health(name) == "healthy"
        host = json.loads(docker("inspect", stack.container(name).name))[0]["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0


def test_the_keys_open_what_their_roles_allow_and_nothing_is_open_without_one(stack):
    assert predicts(stack)
    with stack.client() as client:
        assert client.get("/priors").status_code == 200
        assert set(client.get("/whoami").json()["roles"]) >= {"predict", "operate"}
    for path in ("/metrics", "/priors", "/whoami"):
        assert httpx.get(stack.url("service", 8000) + path, timeout=30).status_code == 401
    with stack.client("observe_key") as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/whoami").json()["roles"] == ["observe"]
        assert client.put("/priors/shop", json={"target": "uniform"}).status_code == 403


def test_the_store_is_postgresql_and_a_prior_outlives_the_containers(stack):
    with stack.client() as client:
        revision = put_prior(client, "shop", target="uniform")
    rows = stack.container("db").exec(
        *("psql", "-U", "priordial", "-d", "priordial", "-tA"),
        *("-c", "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"),
    )
    assert rows.split()
    password = stack.secret("postgres_password")
    assert password not in json.dumps(
        json.loads(docker("inspect", stack.container("service").name))
    )
    stack.compose("down")
    stack.compose("up", "--detach")
    stack.container("service").ready()
    with stack.client() as client:
        assert client.get("/priors/shop").json()["revision"] == revision


def test_a_second_key_is_made_and_a_second_run_of_make_secrets_changes_nothing(stack):
    before = stack.secret("api_keys")
    stack.make_secrets()
    assert stack.secret("api_keys") == before


def test_a_killed_service_is_started_again(stack):
    container = stack.container("service")
    pid = container.state["Pid"]
    os.kill(pid, 9)
    eventually(lambda: container.state["Running"] and container.state["Pid"] != pid, seconds=60)
    container.ready()
    assert predicts(stack)


def test_without_its_database_it_serves_the_last_priors_and_comes_back(stack):
    with stack.client() as client:
        put_prior(client, "season", target="uniform")
        stack.compose("stop", "db")

        def refused():
            answer = client.put("/priors/season", json={"target": "training"})
            return answer.status_code == 503

        eventually(refused, seconds=60)
        assert client.get("/priors/season").status_code == 200
        assert predicts(stack)
        ready = eventually(
            lambda: (found := client.get("/health/ready").json())["status"] == "degraded" and found,
            seconds=60,
        )
        assert "store" in ready["reason"]
        stack.compose("start", "db")
        eventually(lambda: client.get("/health/ready").json()["status"] == "ready", seconds=90)
        assert put_prior(client, "season", target="training") == 2
    assert stack.container("service").state["Running"]


def test_prometheus_scrapes_the_service_with_its_key(watched):
    url = watched.url("prometheus", 9090)

    def targets():
        found = httpx.get(f"{url}/api/v1/targets", timeout=30).json()["data"]["activeTargets"]
        return found and all(each["health"] == "up" for each in found) and found

    (target,) = eventually(targets, seconds=90)
    assert target["labels"]["job"] == "priordial"
    assert predicts(watched)

    def counted():
        query = {"query": "sum(priordial_requests_total)"}
        answer = httpx.get(f"{url}/api/v1/query", params=query, timeout=30).json()
        return answer["data"]["result"]

    assert float(eventually(counted, seconds=60)[0]["value"][1]) >= 1
    rules = httpx.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}


def test_an_alert_reaches_alertmanager_and_the_page(watched):
    """A stored prior is changed while Prometheus watches it: PriordialPriorChanged fires."""
    prometheus = watched.url("prometheus", 9090)
    query = {"query": 'priordial_prior_revision{prior="night"} == 1'}
    with watched.client() as client:
        put_prior(client, "night", target="uniform")
        eventually(
            lambda: httpx.get(f"{prometheus}/api/v1/query", params=query, timeout=30).json()[
                "data"
            ]["result"],
            seconds=60,
        )
        put_prior(client, "night", target="training")
    alerts = f"{watched.url('alertmanager', 9093)}/api/v2/alerts"

    def fired():
        found = httpx.get(alerts, timeout=30).json()
        return [each["labels"]["alertname"] for each in found]

    eventually(lambda: "PriordialPriorChanged" in fired(), seconds=240)
    page = watched.url("alerts", 9095)
    eventually(lambda: "PriordialPriorChanged" in httpx.get(page, timeout=30).text, seconds=120)


def test_what_was_left_out_is_named(watched):
    image = COMPOSE["services"]["grafana"]["image"]
    watching = stack_profile()
    assert watching - set(WATCHING) == {"grafana"}
    if run("image", "inspect", image).returncode != 0:
        pytest.skip(f"optional: {image} cannot be pulled, and Debian has no package of Grafana")
    watched.compose("--profile", "monitoring", "up", "--detach")
    eventually(lambda: watched.health("grafana") == "healthy", seconds=120)


def stack_profile():
    return {n for n, s in COMPOSE["services"].items() if s.get("profiles") == ["monitoring"]}
