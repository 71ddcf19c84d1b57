"""Behind a proxy that adds a path prefix, keeps connections, or wants compressed answers,
everything works.
"""

import gzip
import json
import re
from urllib.parse import urljoin

import httpx
import pytest
from backports import zstd

from service.api.edge.bodies import MIN_ASKED_BYTES, MIN_COMPRESSED_BYTES
from tests.support.server import running
from tests.support.small_models import inputs, publish_model


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    with running(models, root_path="/ml/priors") as server:
        yield server.url


BODY = {"instances": inputs(1).tolist()}


def resolved(page, base):
    """Where the links, scripts and pictures of a page lead that was loaded from `base`."""
    return {urljoin(base, link) for link in re.findall(r'(?:href|src)="([^"]+)"', page)}


def test_the_documents_link_to_the_prefix_that_the_proxy_removes(url):
    links = resolved(httpx.get(f"{url}/docs").text, "http://proxy/ml/priors/docs")
    assert "http://proxy/ml/priors/openapi.json" in links
    assert all(each.startswith("http://proxy/ml/priors/") for each in links)
    assert httpx.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/ml/priors"}]


def test_a_proxy_may_name_its_own_prefix(url):
    prefix = {"x-forwarded-prefix": "/other/"}
    links = resolved(httpx.get(f"{url}/docs", headers=prefix).text, "http://proxy/other/docs")
    assert "http://proxy/other/openapi.json" in links
    servers = httpx.get(f"{url}/openapi.json", headers=prefix).json()["servers"]
    assert servers == [{"url": "/other"}]
    assert httpx.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/ml/priors"}]


@pytest.mark.parametrize(
    "prefix",
    [
        "//evil.example",
        "https://evil.example",
        '/"><script>',
        "/a b",
        "/" + "a" * 300,
        "x",
        "/a/../b?c",
    ],
)
def test_a_prefix_that_is_no_plain_path_is_ignored(url, prefix):
    named = {"x-forwarded-prefix": prefix}
    assert httpx.get(f"{url}/docs", headers=named).text == httpx.get(f"{url}/docs").text
    servers = httpx.get(f"{url}/openapi.json", headers=named).json()["servers"]
    assert servers == [{"url": "/ml/priors"}]


def test_a_proxy_that_keeps_the_prefix_is_served_too(url):
    assert httpx.get(f"{url}/ml/priors/models").status_code == 200
    assert httpx.post(f"{url}/ml/priors/predict", json=BODY).status_code == 200
    assert httpx.post(f"{url}/predict", json=BODY).status_code == 200


def test_problems_name_the_path_without_the_prefix(url):
    for path in ("/nothing", "/ml/priors/nothing"):
        assert (
            httpx.get(url + path).json()["detail"]
            == "there is no route /nothing; /docs lists them all"
        )
    assert "error" in httpx.get(f"{url}/v2/nothing").json()


def test_long_answers_are_compressed_for_clients_that_accept_it_and_for_no_others(url):
    with httpx.Client(base_url=url) as client:
        plain = client.get("/openapi.json", headers={"accept-encoding": "identity"})
        packed = client.get("/openapi.json", headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.json() == plain.json()
        assert int(packed.headers["content-length"]) < len(plain.content) / 3
        for refusing in (
            "gzip;q=0",
            "br, GZIP; q=0.0",
            "x-gzip;q=0, identity",
            "gzip;q=x",
            "*;q=0",
        ):
            refused = client.get("/openapi.json", headers={"accept-encoding": refusing})
            assert "content-encoding" not in refused.headers, refusing
            assert refused.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
        live = client.get("/health/live", headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in live.headers


def test_long_scoring_answers_are_compressed_on_request_over_both_ways(url):
    many = {"instances": inputs(300).tolist()}
    with httpx.Client(base_url=url) as client:
        expected = client.post(
            "/predict?top_k=5", json=many, headers={"accept-encoding": "identity"}
        )
        assert "content-encoding" not in expected.headers
        for accept, packs in (
            ("gzip", "gzip"),
            ("*", "zstd"),
            ("zstd", "zstd"),
            ("gzip, deflate, br, zstd", "zstd"),
            ("gzip, zstd;q=0.5", "gzip"),
            ("gzip;q=0.5", "gzip"),
            ("gzip;q=0", None),
            ("br", None),
        ):
            for more in ({}, {"expect": "100-continue"}):
                with client.stream(
                    "POST",
                    "/predict?top_k=5",
                    json=many,
                    headers={"accept-encoding": accept, **more},
                ) as answer:
                    body = b"".join(answer.iter_raw())
                assert answer.headers.get("content-encoding") == packs
                unpacked = {"zstd": zstd.decompress, "gzip": gzip.decompress, None: bytes}[packs]
                assert json.loads(unpacked(body)) == expected.json()
        assert "content-encoding" not in client.post("/predict", json=BODY).headers


def test_shorter_scoring_answers_are_compressed_where_one_coding_alone_is_asked_for(url):
    some = {"instances": inputs(80).tolist()}
    asked = {"identity": None, "gzip": "gzip", "zstd": "zstd", "gzip, deflate": None, "*": None}
    with httpx.Client(base_url=url) as client:
        for accept, packs in asked.items():
            for more in ({}, {"expect": "100-continue"}):
                headers = {"accept-encoding": accept, **more}
                answer = client.post("/predict?top_k=5", json=some, headers=headers)
                assert answer.headers.get("content-encoding") == packs
                if packs is None:
                    assert MIN_ASKED_BYTES < len(answer.content) < MIN_COMPRESSED_BYTES


def test_a_body_of_several_gzip_members_is_read_whole(url):
    body = httpx.Request("POST", url, json=BODY).content
    packed = gzip.compress(body[:20]) + gzip.compress(body[20:])
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = httpx.post(f"{url}/predict", content=packed, headers=headers)
    assert answer.json() == httpx.post(f"{url}/predict", json=BODY).json()
