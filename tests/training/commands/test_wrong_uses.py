"""More than 150 wrong uses: each is refused with one line, none with a traceback.

They are made from a table: every flag of a number with every wrong number, every verb without what
it needs, and every kind of data that is not what it says.
"""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support import data_files as files
from training.commands.cli import main

NUMBERS = {
    "--batch": ("0", "-4", "x", "", "99999999999"),
    "--accumulate": ("0", "-1", "x"),
    "--steps": ("0", "-1", "1.5", "x"),
    "--epochs": ("0", "-1", "nan", "inf"),
    "--lr": ("0", "-1", "nan", "inf", "x"),
    "--momentum": ("1", "-0.1", "nan"),
    "--weight-decay": ("-1", "nan", "x"),
    "--warmup": ("-1", "nan", "1e9"),
    "--milestones": ("0.9,0.1", "-1", "x", "1e9"),
    "--drop": ("0", "-1", "nan"),
    "--adam-beta2": ("1", "-1", "nan"),
    "--seed": ("-1", "x", "99999999999999999999999"),
    "--pad": ("-1", "x"),
    "--validation-per-class": ("-1", "x"),
    "--imbalance-ratio": ("-1", "nan", "10"),
    "--max-per-class": ("0", "-2", "5"),
    "--loss-tau": ("-1", "nan", "x"),
    "--norm-tau": ("0.5", "nan"),
    "--penalty": ("0", "-1", "nan"),
    "--threads": ("0", "-1", "x"),
    "--workers": ("-1", "x"),
    "--checkpoint-steps": ("0", "-1"),
    "--checkpoint-seconds": ("-1", "nan", "x"),
    "--samples": ("-1", "x"),
    "--image-std": ("0,1,1", "nan", "x"),
    "--image-mean": ("nan", "x"),
    "--image-size": ("0", "-1"),
}
NAMES = {
    "--loss": ("vast", ""),
    "--sampler": ("vast", ""),
    "--network": ("vast", "os:path", "absent:net", ":", "json:loads", "cnn"),
    "--optimiser": ("vast",),
    "--schedule": ("vast",),
    "--tokens": ("vast", "characters", "split-words", "subwords"),
    "--afterwards": ("vast",),
    "--augment": ("vast", "flip"),
    "--precision": ("fp8",),
    "--device": ("abacus", "cuda:99", ""),
    "--recipe": (
        "vast",
        "vast.toml",
        "",
        "../recipes/fashion",
        "latin.toml",
        "rates.toml",
        "names.toml",
        "typo.toml",
        "dates.toml",
        "empty.toml",
        "empty",
    ),
    "--models": ("", "own.csv", "own.csv/models"),
    "--runs": ("", "own.csv"),
    "--name": ("a/b", "", "..", ".hidden", "a b"),
    "--resize": ("vast", "0"),
    "--color": ("CMYK",),
    "--profile": ("vast",),
    "--publish-tau": ("vast",),
    "--loss-option": ("gamma", "gamma=x", "vast=1", "=1"),
    "--sampler-option": ("beta=1", "vast=1", "switch"),
    "--freeze": ("vast", "1.2.3"),
    "--lr-of": ("vast=1", "1=0", "1=x"),
    "--init": ("vast", "."),
}
DATA = (
    "", "vast", "vast:x", "npz:", "npz:absent.npz", "npz:.", "table:", "table:absent.csv",
    "table:own.csv", "table:own.csv?label", "table:own.csv?label=", "table:own.csv?label=vast",
    "table:own.csv?label=kind&text=kind", "table:own.csv?label=kind&split=a",
    "table:own.csv?label=kind&without=vast", "table:own.csv?label=kind&category=vast",
    "table:own.csv?label=kind&encoding=vast", "table:own.csv?label=kind&label=a",
    "table:own.csv?label=kind&vast=1", "table:empty.csv?label=kind", "table:head.csv?label=kind",
    "table:ragged.csv?label=kind", "table:latin1.csv?label=kind", "table:dates.csv?label=kind",
    "table:one.csv?label=kind", "table:unlike.csv?label=kind", "table:infinite.csv?label=kind",
    "table:twice.csv?label=kind", "table:fake.parquet?label=kind",
    "table:own.csv?label=a&text=kind", "table:pointer.csv?label=kind", "table:page.csv?label=kind",
    "table:packed.csv?label=kind", "table:lists.parquet?label=kind", "table:empty?label=kind",
    "table:commas.csv?label=kind", "table:days.csv?label=kind", "table:measured.csv?label=kind",
    "table:https://example.org/t.csv?label=kind", "npz:single.npz", "npz:bytes.npz", "npz:far.npz",
    "npz:pointer.csv",
    "images:", "images:absent", "images:own.csv", "images:empty", "images:broken", "list:",
    "list:absent.txt", "list:a,b@.", "list:own.csv,own.csv@.", "cifar10:", "cifar10:absent",
    "cifar100:empty", "inaturalist:absent", "inaturalist:empty", "fashion-mnist:absent",
    "npz:own.csv",
    "npz:objects.npz", "npz:lengths.npz", "npz:nan.npz", "npz:lacks.npz", "npz:one.npz",
    "npz:onehot.npz", "npz:nothing.npz", "npz:unnamed.npz", "npz:scalar.npz", "digits:x?y",
    "table:absent.parquet?label=kind", "table:nan.parquet?label=kind",
    "table:bytes.parquet?label=kind", "table:hollow.parquet?label=kind",
    "table:gap.parquet?label=kind", "table:first.parquet?label=kind",
    "table:same.parquet?label=kind", "table:own.csv?label=kind;split=b", "table:own.csv?label=%zz",
    "npz:halves.npz", "npz:ternary.npz", "npz:codes.npz", "npz:nameless.npz", "npz:rowless.npz",
    "npz:lacks.npz?label=kind", "npz:pipe", "table:pipe?label=kind", "images:pipe",
    "list:pipe,pipe@.",
    "images:undecodable", "images:unclassed", "images:hollow", "images:broken?x=1",
    "inaturalist:listed", "inaturalist:deep", "inaturalist:listed?vast=1", "inaturalist:nameless",
)  # fmt: skip
MODEL = str(Path(__file__).parents[3] / "models" / "digits" / "2")
OTHERS = (
    ("evaluate",),
    ("evaluate", "absent"),
    ("evaluate", "absent", "--data", "digits"),
    ("evaluate", ".", "--data", "digits"),
    ("estimate", "absent", "--data", "digits"),
    ("calibrate", "absent", "--data", "digits"),
    ("calibrate", "own.csv", "--data", "digits"),
    ("score", "absent.csv", "--model", "absent", "--out", "out.parquet"),
    ("score", "own.csv", "--model", ".", "--out", "out.parquet"),
    ("compare", "--data", "digits"),
    ("compare", "--data", "digits", "--out", "out", "--methods", "vast"),
    ("compare", "--data", "digits", "--out", "out", "--seeds", "x"),
    ("compare", "--data", "vast", "--out", "out"),
    ("compare", "--data", "digits", "--out", "out", "--methods", ","),
    ("compare", "--data", "digits", "--out", "", "--seeds", "1"),
    ("synthetic", "--out", "out", "--seed", "-1"),
    ("evaluate", MODEL, "--data", "digits", "--tau", "nan"),
    ("evaluate", MODEL, "--data", "digits", "--target", "forward-inf"),
    ("evaluate", MODEL, "--data", "digits", "--target", "own.csv"),
    ("evaluate", MODEL, "--data", "table:own.csv?label=kind"),
    ("estimate", MODEL, "--data", "digits", "--held-out", "table:own.csv?label=kind"),
    ("score", "rows.npy", "--model", MODEL, "--out", "out.parquet", "--tau", "nan"),
    ("score", "rows.npy", "--model", MODEL, "--out", "rows.csv"),
    ("score", "rows.npy", "--model", MODEL, "--out", "empty"),
    ("score", "rows.npy", "--model", MODEL, "--out", ""),
    ("score", "", "--model", MODEL, "--out", "out.parquet"),
    ("score", "packed.csv", "--model", MODEL, "--out", "out.parquet"),
    ("score", "mine.parquet", "--model", MODEL, "--out", "mine.parquet"),
    ("score", "own.csv", "--model", MODEL, "--out", "out.parquet", "--columns", "a,a"),
    ("synthetic", "--out", "own.csv", "--seeds", "x"),
    ("data",),
    ("data", "vast"),
    ("vast",),
    (),
    ("fit",),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of a user that are not what they say."""
    home = tmp_path_factory.mktemp("wrong")
    rows = [f"{i},{i % 3}.5,{'abc'[i % 3]}" for i in range(30)]

    def write(name, *lines, encoding="utf-8"):
        (home / name).write_text("\n".join(lines) + "\n", encoding=encoding)

    write("own.csv", "a,b,kind", *rows)
    write("empty.csv")
    write("head.csv", "a,b,kind")
    write("ragged.csv", "a,b,kind", *rows, "1,2")
    write("latin1.csv", "a,b,kind", *rows, "1,2,café", encoding="latin-1")
    write("dates.csv", "a,b,kind", *(f"2024-01-{i + 1:02},1,{'ab'[i % 2]}" for i in range(28)))
    write("one.csv", "a,b,kind", *(f"{i},1,cat" for i in range(9)))
    write("unlike.csv", "a,b,kind", *(f"{i},1,k{i}" for i in range(9)))
    write("infinite.csv", "a,b,kind", *rows, "inf,1,a")
    write("twice.csv", "a,a,kind", *rows)
    write("fake.parquet", "a,b,kind", *rows)
    write("pointer.csv", "version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 9")
    write("page.csv", "<!DOCTYPE html>", "<title>404</title>")
    write("commas.csv", "a,kind", *(f'"{i},5",{"ab"[i % 2]}' for i in range(30)))
    write("days.csv", "a,kind", *(f"{i + 1:02}.01.2024,{'ab'[i % 2]}" for i in range(28)))
    write("measured.csv", "a,kind", *(f"{i},{i // 2}.{i}" for i in range(60)))
    (home / "packed.csv").write_bytes(gzip.compress((home / "own.csv").read_bytes()))
    lists = pa.table({"a": range(6), "kind": [["x"], ["y"]] * 3})
    parquet.write_table(lists, home / "lists.parquet")
    parquet.write_table(pa.table({"a": range(64)}), home / "mine.parquet")
    np.save(home / "rows.npy", np.zeros((3, 64)))
    recipe = 'data = "table:own.csv?label=kind"'
    write("latin.toml", recipe, 'description = "café"', encoding="latin-1")
    write("rates.toml", recipe, "[lr_of]", 'conv = "small"')
    write("names.toml", recipe, "freeze = [1, 2]")
    write("typo.toml", recipe, "learning_rate = 1")
    write("dates.toml", recipe, "lr = 2024-01-01")
    (home / "empty.toml").mkdir()
    (home / "empty").mkdir()
    files.write_class_folders(home / "broken", (3, 3), names=("ant", "bee"))
    next((home / "broken").rglob("*.jpg")).write_bytes(b"<html>")
    x, y = np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1])
    sets = {
        "objects": (np.array([[{}]] * 6, dtype=object), y),
        "lengths": (x[:5], y),
        "nan": (x * np.nan, y),
        "one": (x, y * 0),
        "onehot": (x, np.eye(2)[y]),
        "nothing": (x[:, :0], y),
        "unnamed": (x, np.array(["", "a"])[y]),
        "bytes": (x, np.array([b"\xff", b"a"])[y]),
        "far": (x + 1e300, y),
        "halves": (np.array(["a\ud800"] * 6), y),
        "ternary": (x, np.array([-1, 0, 1] * 2)),
        "codes": (x, y * 2_000_000_000),
        "nameless": (x, np.array([0, 1, np.nan] * 2)),
        "rowless": (x[:0], y[:0]),
    }
    for name, (inputs, labels) in sets.items():
        arrays = {"x_train": inputs, "y_train": labels, "x_test": inputs, "y_test": labels}
        np.savez(home / f"{name}.npz", **arrays)
    np.savez(home / "lacks.npz", x_train=x)
    np.savez(home / "scalar.npz", x_train=x, y_train=np.int64(1), x_test=x, y_test=y)
    columns = {"nan": [np.nan, 1.0] * 3, "bytes": [b"\xff", b"a"] * 3, "hollow": ["a", "b"] * 3}
    for name, kinds in columns.items():
        cells = [[]] * 6 if name == "hollow" else range(6)
        parquet.write_table(pa.table({"a": cells, "kind": kinds}), home / f"{name}.parquet")
    cells = {"gap": [[1.0], None, [2.0]] * 2, "first": [None, [1.0], [2.0]] * 2}
    for name, lists in cells.items():
        parquet.write_table(
            pa.table({"a": lists, "kind": ["a", "b"] * 3}), home / f"{name}.parquet"
        )
    same = pa.Table.from_arrays(
        [pa.array(range(6))] * 2 + [pa.array(["a", "b"] * 3)], ["a", "a", "kind"]
    )
    parquet.write_table(same, home / "same.parquet")
    os.mkfifo(home / "pipe")
    files.write_class_folders(home / "undecodable", (3, 3), names=("ant", "bee"))
    (home / "undecodable" / "ant").rename(os.fsdecode(os.fsencode(home) + b"/undecodable/\xff"))
    files.write_class_folders(home / "unclassed" / "test", (3, 3), names=("ant", "bee"))
    (home / "unclassed" / "train").mkdir()
    write_competitions(home)
    np.save(home / "single.npy", x)
    (home / "single.npy").rename(home / "single.npz")
    return home


def write_competitions(home):
    """Folders like those of iNaturalist's, each with another fault in its JSON files."""
    image, annotation = {"id": 0, "file_name": "a.jpg"}, {"image_id": 0, "category_id": 0}
    right = {"images": [image], "annotations": [annotation], "categories": [{"id": 0, "name": "x"}]}
    documents = {
        "listed": json.dumps(right | {"images": [{"id": [0], "file_name": "a.jpg"}]}),
        "nameless": json.dumps(right | {"images": [{"id": 0}]}),
        "deep": "[" * 100_000,
    }
    for name, text in documents.items():
        (home / name).mkdir()
        for part in ("train", "val"):
            (home / name / f"{part}2018.json").write_text(text)


def wrong_uses():
    """Each wrong command, without the folders that fit writes to."""
    fit = ("fit", "--data", "table:own.csv?label=kind")
    for flags in (NUMBERS, NAMES):
        for flag, values in flags.items():
            for value in values:
                yield (*fit, f"{flag}={value}")
    for spec in DATA:
        yield ("fit", f"--data={spec}")
    yield from OTHERS


def outcome(arguments, folder):
    """What is wrong with the answer to a wrong use; None for a refusal with a reason."""
    kept = ("--models=models", "--runs=runs", "--quiet") if arguments[:1] == ("fit",) else ()
    try:
        code = main([*arguments[:1], *kept, *arguments[1:]])
    except SystemExit as stopped:  # of argparse
        code = stopped.code
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        return f"{type(error).__name__}: {error}"
    if code not in (1, 2):
        return f"exit {code}"
    left = [name for name in ("models", "out", "out.parquet") if (folder / name).exists()]
    for name in left:
        shutil.rmtree(folder / name, ignore_errors=True)
    return f"left {left}" if left else None


def test_every_wrong_use_is_refused_with_a_reason(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert (Path(MODEL) / "model.json").is_file()
    uses = list(wrong_uses())
    assert len(uses) >= 150
    faults = {}
    for arguments in uses:
        fault = outcome(arguments, folder)
        said = capsys.readouterr().err
        if fault is None and not said.strip():
            fault = "no reason"
        if fault is None and "Traceback" in said:
            fault = "a traceback"
        if fault is not None:
            faults[" ".join(arguments)] = fault
    assert faults == {}
