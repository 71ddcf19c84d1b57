"""Moving priors as JSON, and making keys, from the command line."""

import asyncio
import hashlib
import io
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from service.__main__ import main
from service.api.edge.keys import parse_keys
from service.commands.revisions import _changes
from service.contract.members.body import PriorBody, parse_prior
from service.priors.store import open_store
from tests.support.eventually import eventually_async
from tests.support.priors import following, make_bundle


def fill(url):
    pets, cars = make_bundle(), make_bundle(name="cars", class_names=("a", "b"), class_counts=None)

    async def write():
        async with following(url) as priors:
            for i in range(1, 4):
                await priors.put(
                    pets, "default", parse_prior({"target": [i, 1, 1], "note": f"n{i} é"}), by="ops"
                )
            await priors.put(pets, "winter", parse_prior({"target": [1, 1, 2]}), by="ops")
            await priors.remove(pets, "winter", by="ops")
            await priors.put(cars, "default", parse_prior({"label_frequencies": [1, 2]}), by="ops")

    asyncio.run(write())


def everything(url):
    store = open_store(url)
    store.open()
    entries = [
        (e.model, e.name, e.revision, e.body, e.class_digest, e.updated_at, e.by, e.note, e.deleted)
        for e in store.everything()
    ]
    store.close()
    return sorted(entries, key=lambda entry: entry[:3])


def test_an_export_imported_elsewhere_is_the_same_history(store_url, tmp_path, capsys):
    fill(store_url)
    out, other = tmp_path / "priors.json", f"sqlite:///{tmp_path}/other.db"
    assert main(["priors", "export", "--store", store_url, "--out", str(out)]) == 0
    assert main(["priors", "import", "--store", other, str(out)]) == 0
    assert everything(other) == everything(store_url)
    assert "priors: 3 imported with their history" in capsys.readouterr().err
    assert main(["priors", "import", "--store", other, str(out)]) == 0
    assert everything(other) == everything(store_url), "importing twice changes nothing"


def test_an_import_brings_a_known_prior_up_to_date_and_keeps_its_history(
    tmp_path, capsys, monkeypatch
):
    one, other = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/other.db"
    fill(one)

    async def write():
        async with following(other) as priors:
            await priors.put(make_bundle(), "default", parse_prior({"target": [9, 9, 1]}), by="me")

    asyncio.run(write())
    monkeypatch.setenv("PRIORDIAL_STORE", one)
    assert main(["priors", "export", "--model", "pets"]) == 0
    text = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["priors", "import", "--store", other, "-"]) == 0
    ours = [entry for entry in everything(other) if entry[1] == "default"]
    assert [(entry[2], entry[6]) for entry in ours] == [(1, "me"), (2, "import")]
    assert ours[1][3].target == [3, 1, 1]
    assert not [entry for entry in everything(other) if entry[0] == "cars"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format="x"),
        lambda d: d.pop("entries"),
        lambda d: d["entries"][0].update(revision=2),
        lambda d: d["entries"][0].update(name="Winter"),
        lambda d: d["entries"][0].update(name="uniform"),
        lambda d: d["entries"][0].update(model="../x"),
        lambda d: d["entries"][0].update(class_digest="xyz"),
        lambda d: (
            d["entries"][0].update(body={"target": {"cat": -1}})
            or d["entries"][0]["body"].update(smoothing=-1)
        ),
        lambda d: d["entries"][0].update(note="\0"),
        lambda d: d["entries"][0].update(updated_at="2026-01-01T00:00:00"),
        lambda d: d["entries"][0].update(more=1),
    ],
)
def test_a_wrong_document_is_refused_and_changes_nothing(tmp_path, capsys, change):
    one, other = f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/other.db"
    fill(one)
    assert main(["priors", "export", "--store", one]) == 0
    document = json.loads(capsys.readouterr().out)
    change(document)
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(document))
    assert main(["priors", "import", "--store", other, str(wrong)]) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("content", [b"\xff\x00", b"", "é".encode("utf-16"), b"[]"])
def test_what_is_no_export_is_refused_by_the_name_of_its_file(tmp_path, capsys, content):
    file = tmp_path / "priors.json"
    file.write_bytes(content)
    store = f"sqlite:///{tmp_path}/p.db"
    assert main(["priors", "import", str(file), "--store", store]) == 2
    assert f"error: '{file}' is not an export of priors: " in capsys.readouterr().err


def test_an_export_makes_no_store_and_says_what_is_missing(tmp_path, capsys):
    assert main(["priors", "export", "--store", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert not (tmp_path / "none.db").exists()
    assert main(["priors", "export", "--store", "mysql://u:secret@h/d"]) == 2
    assert (
        main(
            ["priors", "import", "--store", f"sqlite:///{tmp_path}/x.db", str(tmp_path / "no.json")]
        )
        == 1
    )
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "0", "1e-320", "1e308"])
def test_a_rate_that_is_no_number_of_requests_is_refused(capsys, number):
    assert main(["key", "ops", f"--rate={number}"]) != 0
    assert "expected rate= and a number of requests a second above 0" in capsys.readouterr().err


def test_a_large_rate_is_written_as_a_list_of_keys_takes_it(capsys):
    assert main(["key", "ops", "--rate=2345678"]) == 0
    assert "rate=2345678" in capsys.readouterr().err


@pytest.mark.parametrize("cost", [-1, 1e308, 1e-320])
def test_an_imported_prior_is_checked_as_a_clients_is(tmp_path, capsys, cost):
    """The document is written by hand here: an export cannot hold such a cost."""
    fill(url := f"sqlite:///{tmp_path}/one.db")
    out = tmp_path / "priors.json"
    assert main(["priors", "export", "--store", url, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    document["entries"][0]["body"]["costs"] = {"miss": [cost, cost, cost]}
    out.write_text(json.dumps(document))
    other = f"sqlite:///{tmp_path}/other.db"
    assert (main(["priors", "import", "--store", other, str(out)]) != 0) == (cost != 1e-320)
    if cost != 1e-320:
        assert "costs.miss.0: expected a cost from 0 to 1e+12" in capsys.readouterr().err


def test_a_key_is_shown_once_and_kept_as_a_hash(tmp_path, capsys):
    file = tmp_path / "keys"
    assert (
        main(["key", "ops", "--roles", "operate,predict", "--rate", "5", "--append", str(file)])
        == 0
    )
    secret = capsys.readouterr().out.strip()
    (key,) = parse_keys(file.read_text())
    assert secret not in file.read_text()
    assert key.sha256 == hashlib.sha256(secret.encode()).digest()
    assert (key.name, sorted(key.roles), key.per_second) == ("ops", ["operate", "predict"], 5)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(["key", "ops", "--append", str(file)]) == 0
    assert len(parse_keys(file.read_text())) == 2
    assert main(["key", "no name"]) == 2
    assert main(["key", "ops", "--roles", "root"]) == 2


def test_migrate_makes_the_tables_once_and_keeps_what_is_stored(store_url, capsys):
    assert main(["priors", "migrate", "--store", store_url]) == 0
    assert everything(store_url) == []
    fill(store_url)
    before = everything(store_url)
    assert main(["priors", "migrate", "--store", store_url]) == 0
    assert everything(store_url) == before
    assert "up to date" in capsys.readouterr().err


def priors_command(url, *arguments):
    return main(["priors", *arguments, "--store", url])


def test_list_and_show_tell_what_is_in_use_and_how_it_came_to_be(store_url, capsys):
    fill(store_url)
    assert priors_command(store_url, "list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines[1:]] == [["cars", "default", "1"], ["pets", "default", "3"]]
    assert priors_command(store_url, "show") == 2
    assert "--model is missing, and the store has priors of cars, pets" in capsys.readouterr().err
    assert priors_command(store_url, "show", "--model", "pets", "--revision", "2") == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["3", "2", "1"]
    assert "n3 é" in out
    assert json.loads(out[out.index("{") :])["target"] == [2.0, 1.0, 1.0]
    assert priors_command(store_url, "show", "summer", "--model", "pets") == 2
    assert "'winter' of pets" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["list", "export"])
def test_a_model_that_the_store_does_not_know_is_no_empty_answer(sqlite_url, capsys, verb):
    fill(sqlite_url)
    assert priors_command(sqlite_url, verb, "--model", "pet") == 2
    shown = capsys.readouterr()
    assert "--model is 'pet', and the store has priors of cars, pets; did you mean" in shown.err
    assert shown.out == ""


def test_diff_names_the_classes_whose_share_differs(store_url, capsys):
    fill(store_url)
    assert priors_command(store_url, "diff", "--model", "pets") == 0
    out = capsys.readouterr().out
    assert "revision 2 -> 3" in out
    assert "target: 3 of 3 classes differ" in out
    assert "0.5 -> 0.6" in out
    assert priors_command(store_url, "diff", "--model", "pets", "--old", "0", "--new", "1") == 0
    assert "revision 0: nothing stored" in capsys.readouterr().out
    assert priors_command(store_url, "diff", "--model", "pets", "--old", "3", "--new", "3") == 0
    assert "no difference" in capsys.readouterr().out


def test_diff_counts_the_classes_that_a_prior_names_together():
    before = PriorBody(target={"cat": 1}, others=2)
    after = PriorBody(target={"cat": 1, "dog": 2, "fox": 5})
    lines = list(_changes("target", before, after))
    assert lines[0] == "target: 3 of 3 classes differ in their share"
    assert any("0.4 -> 0.25" in line for line in lines)


def test_rollback_goes_back_one_step_or_to_any_revision_while_services_follow(store_url, capsys):
    pets = make_bundle()
    wrong = parse_prior({"target": {"cat": 200_000, "dog": 1, "lynx": 1}})

    async def go():
        async with following(store_url) as priors:

            async def back(*arguments, code=0):
                done = await asyncio.to_thread(priors_command, store_url, "rollback", *arguments)
                assert done == code
                newest = (await priors.history("pets", "default", before=None, limit=1))[0]
                await eventually_async(lambda: held(priors) == (None if newest.deleted else newest))
                return newest

            def held(priors):
                found = priors.newest("pets", "default")
                return None if found is None else replace(found, body=None)

            await priors.put(pets, "default", wrong, by="me")
            gone = await back()  # the first revision was wrong: nothing is stored again
            assert gone.deleted
            assert gone.by.startswith("cli:")
            assert priors.select(pets).revision == 0
            await back(code=2)
            restored = await back("--to", "1", "--note", "on purpose")
            assert (restored.revision, restored.note) == (3, "on purpose")
            await priors.put(pets, "default", parse_prior({"target": [1, 2, 3]}), by="me")
            assert (await back()).note == "back to revision 3"
            assert (await back("--to", "3")).revision == 5
            assert "already equals revision 3" in capsys.readouterr().out
            await back("--to", "99", code=2)
            await back("--to", "0")
            assert priors.newest("pets", "default") is None

    asyncio.run(go())


@pytest.mark.parametrize("number", ["-1", "nan", "9" * 30, "9" * 5000, "1e3", "1.0", ""])
@pytest.mark.parametrize("verb", ["rollback --to", "show --revision", "diff --old", "diff --new"])
def test_a_number_that_is_no_revision_is_refused_by_name(capsys, verb, number):
    action, flag = verb.split()
    with pytest.raises(SystemExit) as ended:
        main(["priors", action, f"{flag}={number}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{flag}: expected a revision, a whole number of at least 0; got '" in said
    assert len(said) < 300


def test_a_rollback_is_announced_to_the_webhook_of_the_environment(tmp_path, capsys, monkeypatch):
    url = f"sqlite:///{tmp_path}/one.db"
    fill(url)
    sent = []
    monkeypatch.setattr(
        "service.commands.revisions.send", lambda *given: sent.append(given) or "status 500"
    )
    monkeypatch.setenv("PRIORDIAL_WEBHOOK", "http://127.0.0.1/hook")
    monkeypatch.setenv("PRIORDIAL_WEBHOOK_SECRET", "s")
    for _ in range(2):
        assert priors_command(url, "rollback", "--model", "pets", "--to", "1") == 0
    ((where, secret, changed),) = sent  # the second one changed nothing
    assert (where, secret) == ("http://127.0.0.1/hook", b"s")
    assert (changed.action, changed.entry.revision) == ("rollback", 4)
    assert "did not accept the announcement: status 500" in capsys.readouterr().err


def test_looking_at_a_store_that_is_not_there_makes_none(tmp_path, capsys):
    assert priors_command(f"sqlite:///{tmp_path}/none.db", "list") == 1
    assert "unavailable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "nowhere/keys"])
def test_a_key_that_no_list_can_take_is_not_shown(tmp_path, capsys, name):
    assert main(["key", "ops", "--append", str(tmp_path / name)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert f"error: {tmp_path / name}: " in told.err


def test_a_key_is_not_added_to_a_file_of_another_kind_nor_to_the_line_of_another_key(
    tmp_path, capsys
):
    other = tmp_path / "notes"
    other.write_text("buy milk")
    assert main(["key", "ops", "--append", str(other)]) == 2
    assert other.read_text() == "buy milk"
    told = capsys.readouterr()
    assert told.out == ""
    assert "notes: line 1: expected NAME ROLE" in told.err
    keys = tmp_path / "keys"
    assert main(["key", "one", "--append", str(keys)]) == 0
    keys.write_text(keys.read_text().rstrip("\n"))  # as an editor may leave it
    assert main(["key", "two", "--append", str(keys)]) == 0
    assert [key.name for key in parse_keys(keys.read_text())] == ["one", "two"]


def test_a_key_without_a_name_or_role_is_refused_with_what_came(capsys):
    assert main(["key", ""]) == 2
    assert "error: key '' with the roles 'predict': expected NAME" in capsys.readouterr().err
    assert main(["key", "ops", "--roles", ""]) == 2
    assert "key 'ops' with the roles '': expected NAME" in capsys.readouterr().err


def test_an_export_never_replaces_a_store_nor_costs_the_last_export(tmp_path, capsys, monkeypatch):
    fill(url := f"sqlite:///{tmp_path}/one.db")
    export = ["priors", "export", "--store", url, "--out"]
    assert main([*export, str(tmp_path / "one.db")]) == 2
    assert "which is a store; name another file" in capsys.readouterr().err
    assert everything(url)
    out = tmp_path / "priors.json"
    assert main([*export, str(out)]) == 0
    before = out.read_text()

    def full(*_, **__):
        raise OSError(28, "No space left on device", str(out))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert main([*export, str(out)]) == 1
    assert out.read_text() == before
    assert (
        "priors.json: No space left on device; make room, or name another"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("source", ["flag", "variable"])
def test_an_empty_store_is_refused_rather_than_taken_for_the_default(capsys, monkeypatch, source):
    given = ["--store", ""] if source == "flag" else []
    if source == "variable":
        monkeypatch.setenv("PRIORDIAL_STORE", "")
    with pytest.raises(SystemExit):
        main(["priors", "list", *given])
    named = "--store" if source == "flag" else "PRIORDIAL_STORE"
    assert f"error: {named} is empty" in capsys.readouterr().err


def test_an_export_keeps_a_link_and_writes_the_file_behind_it(tmp_path):
    fill(url := f"sqlite:///{tmp_path}/one.db")
    place, link = tmp_path / "place.json", tmp_path / "link.json"
    place.write_text("")
    link.symlink_to(place)
    assert main(["priors", "export", "--store", url, "--out", str(link)]) == 0
    assert link.is_symlink()
    assert json.loads(place.read_text())
