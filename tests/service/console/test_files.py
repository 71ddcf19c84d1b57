"""The console's files: only its own, from this host, with headers that keep it so."""

import re

import httpx

from service.api.console import FOLDER


def test_the_page_may_load_and_call_nothing_but_its_own_host(served):
    answer = httpx.get(served.url + "/", headers={"Accept": "text/html,*/*;q=0.8"})
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    sources = set(re.findall(r"(?<=\s)(?:'[a-z]+'|[a-z]+:)(?=[\s;]|$)", policy))
    assert sources <= {"'self'", "'none'", "data:", "blob:"}
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_client_that_does_not_ask_for_html_is_told_that_the_service_is_alive(served):
    answer = httpx.get(served.url + "/")
    assert answer.json() == {"status": "alive"}
    assert answer.headers["vary"] == "Accept"


def test_no_own_file_names_another_host():
    for path in FOLDER.rglob("*"):
        if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts:
            found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", path.read_text())
            assert found == [], path.name


def test_an_unchanged_file_is_not_sent_again(served):
    first = httpx.get(served.url + "/console/main.js")
    again = httpx.get(
        served.url + "/console/main.js", headers={"If-None-Match": first.headers["etag"]}
    )
    assert first.status_code == 200
    assert first.headers["content-type"].startswith("text/javascript")
    assert again.status_code == 304
    assert again.content == b""


def test_what_is_not_a_file_of_the_console_is_not_found(served):
    for path in ("/console/nothing.js", "/console/../app.py", "/console/%2e%2e/app.py"):
        answer = httpx.get(served.url + path)
        assert answer.status_code == 404
        assert answer.json()["type"] == "/problems/not-found"


def test_every_vendored_file_has_its_licence_and_its_origin():
    vendor = FOLDER / "vendor"
    origin = (vendor / "README.md").read_text()
    for path in vendor.glob("*.[jc]s*"):
        assert f"`{path.name}`" in origin
    for licence in re.findall(r"`([a-z-]+\.LICENSE)`", origin):
        assert (vendor / licence).stat().st_size > 1000
