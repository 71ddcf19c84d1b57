"""The HTTP clients of other languages, as they are: Java's HttpClient, Node's fetch, and curl with
HTTP/2.
"""

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.server import running
from tests.support.small_models import inputs, publish_model

BODY = json.dumps({"instances": inputs(3).tolist()})
NODE = """
const [url, body] = process.argv.slice(1);
const headers = {"content-type": "application/json"};
const ask = async () => (await fetch(url, {method: "POST", headers, body})).text();
const all = Promise.all(Array.from({length: 16}, ask));
all.then((answers) => answers.forEach((answer) => console.log(answer)));
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models) as server:
        yield f"{server.url}/predict"


@pytest.fixture(scope="module")
def wanted(url):
    headers = {"content-type": "application/json"}
    return httpx.post(url, content=BODY, headers=headers).json()


def program(name, package):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


def output(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_java_asks_for_an_upgrade_and_is_answered_sixteen_times_at_once(url, wanted):
    java = program("java", "openjdk-17-jdk-headless")
    lines = output(java, str(Path(__file__).with_name("Ask.java")), url, BODY).splitlines()
    assert [json.loads(line.removeprefix("200 ")) for line in lines] == [wanted] * 16


def test_nodes_fetch_is_answered_sixteen_times_at_once(url, wanted):
    node = program("node", "nodejs")
    assert [json.loads(line) for line in output(node, "-e", NODE, url, BODY).splitlines()] == [
        wanted
    ] * 16


@pytest.mark.parametrize("flag", ["--http2", "--http1.1", "--http1.0"])
def test_curl_is_answered_whatever_version_it_prefers(url, wanted, flag):
    curl = program("curl", "curl")
    header = "content-type: application/json"
    shown = "\n%{http_version} %{num_connects}\n"
    reported = output(curl, "-sS", flag, "-H", header, "-d", BODY, "-w", shown, url, "-o", "-", url)
    assert [json.loads(line) for line in reported.splitlines() if line.startswith("{")] == [
        wanted
    ] * 2
    assert reported.splitlines()[-1].split()[0] in {"1.1", "1"}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_curl_unpacks_long_answers(url, coding):
    curl = program("curl", "curl")
    body = json.dumps({"instances": inputs(400).tolist()})
    kept = output(
        curl, "-sS", "-H", f"accept-encoding: {coding}", "--compressed", "-d", body,
        "-H", "content-type: application/json", "-w", "\n%header{content-encoding}",
        f"{url}?top_k=3",
    )  # fmt: skip
    answer, _, reported = kept.rpartition("\n")
    assert reported == coding
    assert len(json.loads(answer)["predictions"]) == 400
