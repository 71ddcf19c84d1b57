"""A caller can find out which key it uses, what its roles allow, and why a key is not accepted."""

import httpx
import pytest

from service.api.edge.keys import make_key
from tests.support.server import running
from tests.support.small_models import publish_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    publish_model(models)
    made = {
        name: make_key(name, roles)
        for name, roles in {"asks": ["predict"], "sees": ["observe"], "runs": ["operate"]}.items()
    }
    lines = ";".join(key.line() for _, key in made.values())
    with running(models, api_keys=lines) as server:
        yield server.url, {name: secret for name, (secret, _) in made.items()}


def get(served, path, name=None):
    url, secrets = served
    headers = {} if name is None else {"authorization": f"Bearer {secrets.get(name, name)}"}
    return httpx.get(url + path, headers=headers)


@pytest.mark.parametrize(
    ("name", "roles", "missing"),
    [
        ("asks", ["predict"], ["observe", "operate"]),
        ("sees", ["observe"], ["operate", "predict"]),
        ("runs", ["observe", "operate"], ["predict"]),
    ],
)
def test_a_key_is_told_its_name_its_roles_and_those_it_lacks(served, name, roles, missing):
    assert get(served, "/whoami", name).json() == {
        "name": name,
        "roles": roles,
        "missing": missing,
        "keys_required": True,
    }


def test_a_key_that_is_not_accepted_is_told_why(served):
    for name, kind in ((None, "no-key"), ("priordial_wrong", "unknown-key")):
        refused = get(served, "/whoami", name)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json()["type"] == f"/problems/{kind}"


def test_a_report_and_its_sample_inputs_need_the_role_observe(served):
    for path, status in (("/models/linear/report", 200), ("/models/linear/samples/1.png", 404)):
        assert get(served, path).status_code == 401
        assert get(served, path, "asks").status_code == 403
        for name in ("sees", "runs"):
            assert get(served, path, name).status_code == status


def test_without_keys_everybody_is_anonymous_and_may_do_everything(tmp_path):
    publish_model(tmp_path)
    with running(tmp_path) as server:
        assert httpx.get(f"{server.url}/whoami").json() == {
            "name": "anonymous",
            "roles": ["observe", "operate", "predict"],
            "missing": [],
            "keys_required": False,
        }
        assert httpx.get(f"{server.url}/models/linear/report").status_code == 200


def test_a_report_that_is_nested_very_deeply_is_left_out_or_shown_and_never_fails(tmp_path):
    for name, levels in (("deep", 900), ("shallow", 200)):
        folder = publish_model(tmp_path, name)
        nested = '{"a":' * levels + "1" + "}" * levels
        (folder / "report.json").write_text(nested, encoding="ascii")
    with running(tmp_path) as server:
        assert httpx.get(f"{server.url}/models/deep/report").json() == {}
        assert httpx.get(f"{server.url}/models/shallow/report").text.count("a") == 200
