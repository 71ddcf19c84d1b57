"""Every wrong setting is refused with a message that names it and the nearest right name."""

import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest

from service.__main__ import main
from service.settings import (
    InvalidSetting,
    Settings,
    add_flags,
    check_extras,
    check_paths,
    check_threads,
    flag_of,
    read_settings,
    variable_of,
)
from tests.support.small_models import publish_model


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PRIORDIAL_PROT", "PRIORDIAL_PORT"),
        ("PRIORDIAL_MODLES", "PRIORDIAL_MODELS"),
        ("PRIORDIAL_KEY", "PRIORDIAL_KEYS"),
        ("PRIORDIAL_MAX_BATCH_ROW", "PRIORDIAL_MAX_BATCH_ROWS"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_right_name(name, near):
    with pytest.raises(InvalidSetting, match=rf"{name} is not a setting; did you mean '{near}'\?"):
        read_settings({}, {name: "/x"})


def test_a_variable_that_is_like_no_other_is_refused_without_a_guess():
    with pytest.raises(
        InvalidSetting, match=r"PRIORDIAL_ZZZZZZ is not a setting; serve --help lists all$"
    ):
        read_settings({}, {"PRIORDIAL_ZZZZZZ": "1"})


def test_variables_of_other_programs_and_of_clients_are_left_alone():
    environment = {"PATH": "/bin", "PRIORDIAL_KEY": "priordial_secret", "PRIORDIAL_TEST_X": "1"}
    assert read_settings({}, environment) == Settings()


def test_variables_that_kubernetes_makes_for_a_service_of_this_name_are_left_alone():
    links = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "PRIORDIAL_SERVICE_HOST": "10.0.0.2",
        "PRIORDIAL_SERVICE_PORT": "8000",
        "PRIORDIAL_SERVICE_PORT_HTTP": "8000",
        "PRIORDIAL_PORT": "tcp://10.0.0.2:8000",
        "PRIORDIAL_PORT_8000_TCP": "tcp://10.0.0.2:8000",
        "PRIORDIAL_PORT_8000_TCP_ADDR": "10.0.0.2",
        "PRIORDIAL_GRAFANA_PORT_3000_TCP_PROTO": "tcp",
    }
    assert read_settings({}, links) == Settings()
    assert read_settings({}, {**links, "PRIORDIAL_PORT": "9000"}).port == 9000
    with pytest.raises(InvalidSetting, match="PRIORDIAL_SERVICE_HOST"):
        read_settings({}, {"PRIORDIAL_SERVICE_HOST": "10.0.0.2"})


@pytest.mark.parametrize("name", ["KEYS", "MODELS", "DEFAULT_MODEL", "API_KEYS", "HOST", "PORT"])
def test_an_empty_value_is_refused_rather_than_taken_for_something(name):
    with pytest.raises(InvalidSetting, match=f"PRIORDIAL_{name} is empty"):
        read_settings({}, {f"PRIORDIAL_{name}": ""})


def test_answers_are_stored_only_where_answers_are_kept():
    with pytest.raises(InvalidSetting, match="--feedback-mib is 0, so no answers are kept"):
        read_settings({"feedback_store_rows": "100"}, {})
    read_settings({"feedback_store_rows": "100", "feedback_mib": "16"}, {})


def test_a_choice_that_is_misspelt_is_refused_with_the_nearest():
    with pytest.raises(InvalidSetting, match=r"expected auto, cpu.*did you mean 'cuda'\?"):
        read_settings({"provider": "cudda"}, {})


@pytest.mark.parametrize("value", ["8_0", "٨٠", "8.5", "0x50", ""])
def test_a_number_is_written_in_digits(value):
    with pytest.raises(InvalidSetting, match="PRIORDIAL_PORT is"):
        read_settings({}, {"PRIORDIAL_PORT": value})


@pytest.mark.parametrize("verb", ["serve", "check"])
def test_a_flag_that_is_cut_short_is_refused_with_the_whole_one(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--worker", "2"])
    assert "--worker 2; did you mean '--workers'?" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["models/linear", "models/linear/1"])
def test_the_folder_of_one_model_is_refused(tmp_path, folder):
    publish_model(tmp_path / "models", "linear")
    with pytest.raises(InvalidSetting, match=r"which is one model; expected the folder that holds"):
        check_paths(Settings(models=tmp_path / folder))
    check_paths(Settings(models=tmp_path / "models"))


@pytest.mark.parametrize(("one", "other"), [("metrics", "grpc"), ("metrics", ""), ("grpc", "")])
def test_two_servers_on_one_port_are_refused(one, other):
    names = [f"{each}_port".lstrip("_") for each in (one, other)]
    with pytest.raises(
        InvalidSetting, match=r"-port is 9000, which is also --.*port; choose another"
    ):
        read_settings(dict.fromkeys(names, "9000"), {})


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
def test_a_number_that_is_none_or_out_of_range_is_refused(value):
    with pytest.raises(InvalidSetting, match="drain-seconds"):
        read_settings({"drain_seconds": value}, {})


def test_a_models_folder_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "models").mkdir()
    near = tmp_path / "models"
    with pytest.raises(InvalidSetting, match=rf"no such folder; did you mean '{near}'\?"):
        check_paths(Settings(models=tmp_path / "modles"))
    check_paths(Settings(models=tmp_path / "modles", allow_no_models=True))


def test_a_folder_in_place_of_keys_is_told(tmp_path):
    with pytest.raises(InvalidSetting, match="which is a folder; expected a file of keys"):
        check_paths(Settings(models=tmp_path, keys=tmp_path))


def test_more_threads_than_any_machine_can_use_are_refused():
    check_threads(Settings(intra_op_threads=32), processors=2)
    reported = "is 33; this process may use 2 processors, .* expected at most 32"
    with pytest.raises(InvalidSetting, match=reported):
        check_threads(Settings(intra_op_threads=33), processors=2)


def test_the_nearest_path_keeps_what_follows_the_misspelt_part(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(InvalidSetting, match=rf"did you mean '{tmp_path}/models/shop'\?"):
        check_paths(Settings(models=tmp_path / "modls" / "shop"))


def test_a_models_folder_that_is_a_file_and_a_missing_list_of_keys_are_refused(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("")
    with pytest.raises(InvalidSetting, match="expected a folder"):
        check_paths(Settings(models=file, allow_no_models=True))
    with pytest.raises(InvalidSetting, match=rf"no such file; did you mean '{file}'\?"):
        check_paths(Settings(models=tmp_path, keys=tmp_path / "key.txt"))


@pytest.mark.parametrize("name", ["models", "keys"])
def test_a_path_that_cannot_be_looked_at_is_refused_with_the_systems_reason(tmp_path, name):
    given = {"models": tmp_path, name: tmp_path / ("a" * 300)}
    reported = rf"--{name} is '.*a': File name too long; expected a .* that this user can read"
    with pytest.raises(InvalidSetting, match=reported):
        check_paths(Settings(**given))


def test_every_switch_can_be_turned_on_and_off_by_its_flag():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    for item in dataclasses.fields(Settings):
        if item.type is bool:
            flag = flag_of(item.name)
            for given, value in ((flag, True), (flag.replace("--", "--no-", 1), False)):
                found = read_settings(vars(parser.parse_args([given])), {})
                assert getattr(found, item.name) is value, given


def refusal_of(flags, environment):
    """The message with which settings are refused; None where they are taken."""
    try:
        read_settings(flags, environment)
    except InvalidSetting as error:
        return str(error)
    return None


ODD = ("nan", "inf", "-inf", "-1", "1e-320", "1e308", "1" * 5000, "1" * 400, "true", "0x10", "[]")


@pytest.mark.parametrize(
    "item",
    [item for item in dataclasses.fields(Settings) if item.type in (int, float)],
    ids=lambda item: item.name,
)
def test_an_odd_number_is_refused_or_has_a_meaning(item):
    taken = []
    for text in ODD:
        for source in ({item.name: text}, {}), ({}, {variable_of(item.name): text}):
            refusal = refusal_of(*source)
            if refusal is None:
                taken.append(text)
                continue
            assert flag_of(item.name) in refusal or variable_of(item.name) in refusal
            assert len(refusal) < 700
    # a share or a pause may be as short as it likes; an interval of polls may not
    least = ["1e-320"] * 2 if item.name in ("max_flip_share", "drain_seconds") else []
    assert taken == least


@pytest.mark.parametrize(
    "name",
    ["priordial_port", "Priordial_Port", "PRIODIAL_PORT", "PRIMORDIAL_PORT", "PRIORIDAL_PORT"],
)
def test_a_misspelt_prefix_is_refused(name):
    with pytest.raises(
        InvalidSetting, match=rf"{name} is not a setting; did you mean 'PRIORDIAL_PORT'"
    ):
        read_settings({}, {name: "8000"})


@pytest.mark.parametrize(
    "name",
    ["PORT", "PRINCIPAL_PORT", "PRIMARY_HOST", "PRIORITY_PORT", "priordial", "PRIODIAL_X", "_PORT"],
)
def test_a_variable_of_another_program_is_left_alone(name):
    assert read_settings({}, {name: "9"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "http://127.0.0.1"),
        ("host", "localhost:8000"),
        ("host", "127.0.0.1/8"),
        ("root_path", "priordial"),
        ("root_path", "//evil.example"),
        ("root_path", "http://x/priordial"),
        ("root_path", "/a?b"),
        ("root_path", "/" + "a" * 200),
        ("webhook", "http://"),
        ("webhook", "https:///hook"),
        ("webhook", "http://:80/hook"),
        ("webhook", "http://hooks.example:99999/"),
        ("webhook", "http://hooks.example:http/"),
        ("webhook", "http://[::1/"),
        ("webhook", "http://hooks .example/"),
        ("webhook", "https://hooks.example/x\r"),
        ("root_path", "/a/../b"),
        ("root_path", "/."),
    ],
)
def test_an_address_or_path_of_another_form_is_refused(name, value):
    with pytest.raises(InvalidSetting, match=rf"--{name.replace('_', '-')} is '") as refused:
        read_settings({name: value, "webhook_secret": "x"}, {})
    assert len(str(refused.value)) < 200


def test_hosts_and_prefixes_that_are_meant():
    for host in ("::1", "::", "127.0.0.1", "localhost", "fe80::1%eth0", "node-1.example"):
        assert read_settings({"host": host}, {}).host == host
    for path, kept in (("/", ""), ("/a/", "/a"), ("/ml/priors", "/ml/priors"), ("", "")):
        assert read_settings({"root_path": path}, {}).root_path == kept
    url = "https://user:secret@hooks.example:8443/x?y=z"
    assert read_settings({"webhook": url, "webhook_secret": "x"}, {}).webhook == url


VERTEX = "/v1/endpoints/7/deployedModels/8"
"""The paths that Vertex AI chooses where a model's specification has none begin like this."""


def test_the_paths_that_vertex_ai_chooses_itself_are_taken():
    given = {"AIP_PREDICT_ROUTE": f"{VERTEX}:predict", "AIP_HEALTH_ROUTE": VERTEX}
    found = read_settings({}, given)
    assert (found.predict_route, found.health_route) == (f"{VERTEX}:predict", VERTEX)


@pytest.mark.parametrize(
    ("predict", "health"),
    [
        ("/predict", "/health/ready"),
        ("/invocations", "/ping"),
        ("/v1/models/linear:predict", "/v1/models/linear"),
        ("/models/linear/predict", "/v2/models/linear/ready"),
        ("/score", "/health/vertex"),
    ],
)
def test_a_path_that_means_the_same_already_is_taken(predict, health):
    found = read_settings({"predict_route": predict, "health_route": health}, {})
    assert (found.predict_route, found.health_route) == (predict, health)


@pytest.mark.parametrize("flag", ["predict_route", "health_route"])
@pytest.mark.parametrize(
    "path",
    ["score", "/", "//", "/a b", "/a?b", "/a#b", "/{model}", "/a/../b", "/./a", "/a//b", "/a/",
     "/a\nb", "/ü", "/%41", "/" + "a" * 300],
)  # fmt: skip
def test_what_is_no_plain_path_is_refused(flag, path):
    with pytest.raises(InvalidSetting, match=r"-route is .*; expected a path such as /classify"):
        read_settings({flag: path}, {})


def test_one_path_for_two_answers_is_refused():
    with pytest.raises(
        InvalidSetting, match="is '/classify', which is also --predict-route; choose"
    ):
        read_settings({"predict_route": "/classify", "health_route": "/classify"}, {})


def test_a_path_that_the_prefix_would_be_cut_from_is_refused():
    with pytest.raises(InvalidSetting, match=r"no request reaches it; give the path without /a$"):
        read_settings({"root_path": "/a/", "predict_route": "/a/score"}, {})
    read_settings({"root_path": "/a", "predict_route": "/ab"}, {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_flip_share": "0.1", "recent_rows": "0"}, "--recent-rows is 0, so no answers are"),
        ({"recent_mib": "32", "recent_rows": "0"}, "--recent-rows is 0, so no answers are"),
        ({"feedback_hours": "1"}, "--feedback-mib is 0, so no answers are kept"),
        ({"webhook_secret": "deep"}, "--webhook is not set, so nothing is announced"),
        ({"models_cache": "/x"}, "only models from a URL are copied, so leave it out"),
        ({"models_cache_mib": "9"}, "only models from a URL are copied, so leave it out"),
        ({"device_id": "1", "provider": "cpu"}, "--provider is cpu, which uses no GPU"),
        ({"gpu_memory_mib": "1", "provider": "cpu"}, "--provider is cpu, which uses no GPU"),
        ({"tf32": "1", "provider": "cpu"}, "--provider is cpu, which uses no GPU"),
        ({"max_grpc_mib": "4"}, "--grpc-port is 0, so there is no gRPC"),
        ({"max_grpc_mib": "99", "grpc_port": "9"}, "--max-body-mib is 64; expected at most"),
    ],
)
def test_a_setting_that_another_one_makes_useless_is_refused(given, words):
    first = flag_of(next(iter(given)))
    with pytest.raises(InvalidSetting, match=f"^{first} is .*{words}") as refused:
        read_settings(given, {})
    assert "deep" not in str(refused.value), "a secret is not shown"


def test_settings_that_need_each_other_are_taken_together():
    read_settings({"max_flip_share": "0.1"}, {})
    read_settings({"models": "s3://shop/models", "models_cache": "/x", "models_cache_mib": "9"}, {})
    read_settings({"provider": "auto", "device_id": "1", "tf32": "1"}, {})
    read_settings({"grpc_port": "9", "max_grpc_mib": "64"}, {})
    read_settings({"grpc_port": "9", "max_body_mib": "1"}, {})
    read_settings({"feedback_mib": "1", "feedback_hours": "1"}, {})


def test_a_wrong_value_is_named_by_the_variable_that_it_came_from():
    with pytest.raises(InvalidSetting, match=r"^PRIORDIAL_PORT is 70000; expected 0 to 65535"):
        read_settings({}, {"PRIORDIAL_PORT": "70000"})
    with pytest.raises(InvalidSetting, match=r"^AIP_HTTP_PORT is 70000"):
        read_settings({}, {"AIP_HTTP_PORT": "70000"})
    both = {"PRIORDIAL_MAX_BODIES_MIB": "1", "PRIORDIAL_MAX_BODY_MIB": "2"}
    reported = "^PRIORDIAL_MAX_BODIES_MIB is 1; .* at least PRIORDIAL_MAX_BODY_MIB, 2$"
    with pytest.raises(InvalidSetting, match=reported):
        read_settings({}, both)
    with pytest.raises(InvalidSetting, match=r"^--max-bodies-mib is 1; .* PRIORDIAL_MAX_BODY_MIB"):
        read_settings({"max_bodies_mib": "1"}, both)


def test_a_port_for_grpc_without_its_packages_is_refused_with_the_command(monkeypatch):
    check_extras(Settings(grpc_port=9))
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    reported = r"--grpc-port is 9, but grpc_health is not installed.*priordial\[grpc\]"
    with pytest.raises(InvalidSetting, match=reported):
        check_extras(Settings(grpc_port=9))
    check_extras(Settings())


def test_a_refusal_is_one_line_that_can_be_printed_whatever_came(tmp_path):
    odd = os.fsdecode(b"a\n\xff\x1b[2J")
    for name in ("host", "predict_route", "root_path", "log_format", "port", "webhook"):
        with pytest.raises(InvalidSetting) as refused:
            read_settings({name: "/" + odd, "webhook_secret": "x"}, {})
        assert str(refused.value).isprintable()
        assert r"a\n\udcff\x1b[2J" in str(refused.value)
    with pytest.raises(InvalidSetting, match=r"keys is .*no such file") as refused:
        check_paths(Settings(models=tmp_path, keys=Path("/nowhere") / odd))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["models", "models_cache"])
def test_a_folder_that_the_runtime_cannot_name_is_refused(tmp_path, name):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    given = {"models": "https://shop.example/models", name: folder}
    with pytest.raises(InvalidSetting, match=r"bytes are not text.*rename the folder"):
        check_paths(Settings(**given))


@pytest.mark.parametrize(
    ("line", "near"),
    [
        (["export", "m", "--out", "o", "--ta", "1"], "; did you mean '--tau'?"),
        (["priors", "list", "--stor", "x"], "; did you mean '--store'?"),
        (["key", "a", "--role", "x"], "; did you mean '--roles'?"),
        (
            ["import", "f.onnx", "--name", "x", "--class-name", "1"],
            "; did you mean '--class-names'?",
        ),
    ],
)
def test_an_unknown_flag_of_a_verb_is_refused_with_the_nearest_of_that_verb(capsys, line, near):
    with pytest.raises(SystemExit):
        main(line)
    (told,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert told.endswith(f"{' '.join(line[-2:])}{near}")


@pytest.mark.parametrize(
    ("variable", "raw", "flag", "words"),
    [
        ("PRIORDIAL_PORT", "eighty", {"port": "0"}, "PRIORDIAL_PORT is 'eighty'; expected a whole"),
        ("PRIORDIAL_PORT", "99999", {"port": "0"}, "PRIORDIAL_PORT is 99999; expected 0 to"),
        ("PRIORDIAL_PROVIDER", "gpu", {"provider": "cpu"}, "PRIORDIAL_PROVIDER is 'gpu'; expected"),
        ("PRIORDIAL_WORKERS", "", {"workers": "2"}, "PRIORDIAL_WORKERS is empty"),
    ],
)
def test_a_wrong_variable_is_refused_although_a_flag_overrides_it(variable, raw, flag, words):
    """Else it would stop the first start without the flag."""
    with pytest.raises(InvalidSetting, match=re.escape(words)):
        read_settings(flag, {variable: raw})
    assert read_settings(flag, {variable: next(iter(flag.values()))})
