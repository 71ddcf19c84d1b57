"""API keys: roles, rotation, limits, and what never leaks."""

import os

import pytest

from service.api.edge.access import (
    MAX_LIST_BYTES,
    Access,
    ExposedWithoutKeys,
    check_exposure,
    open_to_others,
)
from service.api.edge.errors import Problem
from service.api.edge.keys import InvalidKeys, make_key, parse_key_setting, parse_keys
from service.observe.log import ANONYMOUS


def bearer(secret):
    return [(b"host", b"x"), (b"authorization", b"Bearer " + secret.encode())]


def refusal(access, headers, role):
    with pytest.raises(Problem) as caught:
        access.check(headers, role)
    return caught.value


def test_without_keys_nobody_is_asked():
    access = Access()
    assert access.open_to_all
    assert access.check([], "operate") == ANONYMOUS


@pytest.mark.parametrize("text", [";", "# ops operate", " "])
def test_a_setting_without_a_key_does_not_open_the_service(text):
    with pytest.raises(InvalidKeys, match="--api-keys holds no key; expected NAME ROLE"):
        parse_key_setting(text)
    assert parse_key_setting("") == []


def test_a_list_that_an_editor_began_with_a_byte_order_mark_is_read(tmp_path):
    _, key = make_key("me", ["observe"])
    file = tmp_path / "keys"
    file.write_text(key.line() + "\n", encoding="utf-8-sig")
    assert not Access(file=file).open_to_all


def test_a_list_without_a_key_lets_nobody_in_and_says_how_to_add_one(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    access = Access(file=file)
    assert not access.open_to_all
    assert f"{file} has no key, so nobody can use the service; add one with" in caplog.text


def test_a_key_opens_what_its_roles_allow():
    secret, key = make_key("ops", ["operate"])
    access = Access([key])
    assert access.check(bearer(secret), "operate") == "ops"
    assert access.check(bearer(secret), "observe") == "ops", "who may change may look"
    assert refusal(access, bearer(secret), "predict").status == 403
    assert access.check([(b"x-api-key", secret.encode())], "operate") == "ops"
    assert access.check([(b"authorization", b"bearer  " + secret.encode())], "operate") == "ops"


def test_missing_and_wrong_keys_are_told_apart_without_showing_any():
    secret, key = make_key("ops", ["operate"])
    access = Access([key])
    missing = refusal(access, [], "operate")
    assert (missing.status, missing.headers["WWW-Authenticate"]) == (401, "Bearer")
    for wrong in ("", "x", secret[:-1], secret + "x", "é" * 10):
        problem = refusal(access, bearer(wrong), "operate")
        assert problem.status == 401
        assert len(wrong) < 5 or wrong not in problem.detail
    assert (
        refusal(access, [(b"authorization", b"Basic " + secret.encode())], "operate").status == 401
    )


def test_two_keys_of_one_name_are_valid_at_once():
    (old, first), (new, second) = make_key("ops", ["operate"]), make_key("ops", ["operate"])
    access = Access([first, second])
    assert access.check(bearer(old), "operate") == access.check(bearer(new), "operate") == "ops"
    assert refusal(Access([second]), bearer(old), "operate").status == 401


def test_a_key_that_asks_too_often_is_told_when_to_come_back():
    secret, key = make_key("batch", ["predict"], per_second=0.5)
    other_secret, other = make_key("calm", ["predict"])
    access = Access([key, other])
    assert access.check(bearer(secret), "predict") == "batch"
    problem = refusal(access, bearer(secret), "predict")
    assert (problem.status, problem.kind) == (429, "rate-limited")
    assert int(problem.headers["Retry-After"]) >= 1
    assert access.check(bearer(other_secret), "predict") == "calm", "the limit is each key's own"


def test_a_list_of_keys_is_read_again_when_it_changes(tmp_path):
    (old, first), (new, second) = make_key("ops", ["operate"]), make_key("ops", ["operate"])
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{first.line()}\n")
    access = Access(file=file)
    assert access.check(bearer(old), "operate") == "ops"

    def change(text):
        temporary = tmp_path / "new"
        temporary.write_text(text)
        temporary.replace(file)
        access._checked_at = -10.0  # a second has passed

    change(f"{first.line()}\n{second.line()}\n")
    assert access.check(bearer(old), "operate") == access.check(bearer(new), "operate")
    change(f"{second.line()}\n")
    assert refusal(access, bearer(old), "operate").status == 401
    change("rubbish")
    assert access.check(bearer(new), "operate") == "ops", (
        "a broken list leaves the keys as they were"
    )
    file.unlink()
    access._checked_at = -10.0
    assert access.check(bearer(new), "operate") == "ops"
    change("")
    assert not access.open_to_all, "an emptied list lets nobody in"
    assert refusal(access, [], "operate").status == 401


@pytest.mark.parametrize(
    "line",
    [
        "ops operate",
        "ops operate sha256:12",
        "ops operate plain-key",
        "ops root sha256:" + "0" * 64,
        "o/s operate sha256:" + "0" * 64,
        "ops operate sha256:" + "0" * 64 + " rate=0",
        "ops operate sha256:" + "0" * 64 + " rate=x",
        "ops operate sha256:" + "0" * 64 + " rate=1 more",
    ],
)
def test_a_wrong_line_is_refused_without_being_shown(line):
    with pytest.raises(InvalidKeys, match="line 2") as caught:
        parse_keys("\n" + line)
    assert "plain-key" not in str(caught.value)


def test_keys_may_come_on_one_line():
    lines = [make_key(name, ["predict"])[1].line() for name in ("a", "b")]
    assert [key.name for key in parse_keys(";".join(lines))] == ["a", "b"]


def test_a_list_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InvalidKeys, match="No such file"):
        Access(file=tmp_path / "none")
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidKeys, match="UTF-8"):
        Access(file=tmp_path / "keys")


def test_only_loopback_goes_without_keys():
    for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"):
        check_exposure(host, has_keys=False, allow_anonymous=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        with pytest.raises(ExposedWithoutKeys, match="loopback"):
            check_exposure(host, has_keys=False, allow_anonymous=False)
        check_exposure(host, has_keys=True, allow_anonymous=False)
        check_exposure(host, has_keys=False, allow_anonymous=True)


def test_a_list_that_never_ends_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it, so that a read would never return
    for file in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InvalidKeys, match=": a pipe, device or socket; expected a regular"):
            Access(file=tmp_path / file)
    long = tmp_path / "long"
    long.touch()
    os.truncate(long, 2**40)  # takes no room on the disk, and a terabyte when it is read
    with pytest.raises(InvalidKeys, match=f"expected a list of at most {MAX_LIST_BYTES}"):
        Access(file=long)


def test_a_list_that_becomes_a_pipe_leaves_the_previous_keys(tmp_path, monkeypatch):
    secret, key = make_key("me", ["observe"])
    file = tmp_path / "keys"
    file.write_text(key.line())
    access = Access(file=file)
    file.unlink()
    os.mkfifo(file)
    monkeypatch.setattr("service.api.edge.access._REREAD_SECONDS", 0.0)
    assert access.check(bearer(secret), "observe") == "me"


def test_a_list_that_every_user_could_add_keys_to_is_told(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(make_key("one", ["predict"])[1].line())
    tmp_path.chmod(0o755)
    for mode in (0o600, 0o644, 0o660):
        file.chmod(mode)
        assert open_to_others(file) is None
    file.chmod(0o666)
    Access(file=file)
    assert "can be written by every user of this machine" in caplog.text
    assert f"chmod o-w '{file}'" in caplog.text
    file.chmod(0o600)
    tmp_path.chmod(0o777)
    assert f"the folder of the list of keys '{tmp_path}'" in open_to_others(file)
    tmp_path.chmod(0o1777)  # as Kubernetes mounts a Secret: others may not replace the file
    assert open_to_others(file) is None


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("predcit", "unknown role 'predcit'; .*; did you mean 'predict'?"),
        ("OPERATE", "unknown role 'OPERATE'; .*; did you mean 'operate'?"),
        ("operate,", "a role is missing next to a comma; write ROLE,ROLE without blanks"),
    ],
)
def test_a_role_that_is_none_is_told_with_the_nearest(roles, words):
    line = make_key("ops", ["operate"])[1].line().replace("operate", roles)
    with pytest.raises(InvalidKeys, match=f"^line 1: {words}".replace("?", "[?]")):
        parse_keys(line)
