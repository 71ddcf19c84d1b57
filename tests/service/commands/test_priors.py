"""Moving priors as JSON, and making keys, from the command line."""

import asyncio
import hashlib
import io
import json
import stat

import pytest

from service.__main__ import main
from service.contract.prior import parse_prior
from service.keys import parse_keys
from service.priors.store import open_store
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
    assert "3 priors taken over" in capsys.readouterr().err
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
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
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
