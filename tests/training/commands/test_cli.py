"""The command's exit codes and messages: 0 done, 2 wrong use, 1 failed."""

import html
import io
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from training.commands.cli import main


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data", "cats"), "unknown data 'cats'"),
        (("--data", "npz:"), "needs a file or folder"),
        (("--data", "npz:absent.npz"), "no such file"),
        (("--data", "fashion-mnist:absent"), "apt install dataset-fashion-mnist"),
        (("--data", "digits", "--network", "vast"), "unknown network 'vast'"),
        (("--data", "digits", "--network", "absent_module:net"), "absent_module"),
        (("--data", "digits", "--loss", "vast"), "--loss is 'vast'; expected one of erm"),
        (("--data", "digits", "--loss", "logit-adjusted", "--sampler", "balanced"), "divide"),
        (("--data", "digits", "--epochs", 1, "--steps", 1), "two lengths"),
        (("--data", "digits", "--adam-beta2", 1), "--adam-beta2 is 1.0; expected at least 0"),
        (("--data", "digits", "--recipe", "vast"), "unknown recipe 'vast'"),
        (("--data", "digits", "--device", "abacus"), "--device abacus"),
        (
            ("--data", "digits", "--profile", "exp", "--max-per-class", 500),
            "500 training rows of class 0",
        ),
        (
            ("--data", "digits", "--profile", "exp", "--imbalance-ratio", 1000),
            "leaves a class empty",
        ),
        (("--data", "digits", "--name", "a/b"), "not a model name"),
        ((), "--data is missing"),
    ],
)
def test_wrong_use_exits_2_and_names_what_was_wrong(command, tmp_path, flags, said):
    code, result, err = command("fit", "--models", tmp_path, "--runs", tmp_path, *flags)
    assert (code, result) == (2, None)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_or_verb_exits_2(command):
    one_seed = ("compare", "--data", "digits", "--out", "x", "--seed", "3")  # it takes --seeds
    for arguments in (("fit", "--dat", "digits"), ("train",), (), one_seed):
        with pytest.raises(SystemExit) as stopped:
            command(*arguments)
        assert stopped.value.code == 2


def test_a_run_that_diverges_exits_1_and_says_what_to_do(command, own_npz, tmp_path):
    code, _, err = command(
        "fit", "--data", f"npz:{own_npz}", "--lr", 1e30, "--steps", 50, "--warmup", 0, "--quiet",
        "--models", tmp_path / "models", "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert code == 1
    assert "--lr" in err
    assert not (tmp_path / "models").exists()


def test_data_tells_counts_and_groups(command, own_npz):
    code, result, _ = command("data", f"npz:{own_npz}", "--json")
    assert code == 0
    assert result["splits"]["train"]["class_counts"] == [60, 40, 30, 20, 12, 8, 6, 4, 3, 2, 2, 2]
    assert result["splits"]["test"]["n"] == 120
    assert result["groups"] == {"many": 0, "medium": 4, "few": 8}


def test_data_with_a_profile_tells_what_a_fit_would_train_on(command):
    _, result, _ = command(
        "data",
        "digits",
        "--profile",
        "step",
        "--imbalance-ratio",
        10,
        "--max-per-class",
        100,
        "--json",
    )
    assert result["splits"]["train"]["class_counts"] == [100] * 5 + [10] * 5
    assert result["splits"]["val"]["class_counts"] == [30] * 10
    assert result["splits"]["test"]["class_counts"] == [40] * 10


def test_a_table_is_for_stderr_and_the_folder_for_stdout(own_npz, tmp_path, capsys):
    from training.commands.cli import main

    code = main(
        ["fit", "--data", f"npz:{own_npz}", "--network", "linear", "--steps", "20", "--quiet",
         "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs")]
    )  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0
    assert captured.out.strip() == str(tmp_path / "models" / "own" / "1")
    assert "balanced" in captured.err


def test_scores_for_people_come_with_their_intervals(command, own_npz, tmp_path):
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    data = ("--data", f"npz:{own_npz}")
    command("fit", *data, "--network", "linear", "--steps", 20, "--quiet", *places)
    folder = tmp_path / "models" / "own" / "1"
    _, result, _ = command("evaluate", folder, *data, "--target", "backward-5", "--json")
    _, _, reported = command("evaluate", folder, *data, "--target", "backward-5")
    for key in ("error", "balanced_error"):
        low, high = (f"{100 * end:.2f}%" for end in result[f"{key}_interval"])
        assert f"{key.replace('_', ' ')} {low} … {high}" in reported


def test_a_reader_that_goes_away_gets_no_traceback():
    command = (sys.executable, "-m", "training", "data", "digits", "--json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        reported = run.stderr.read().decode()
    assert run.returncode == 1
    assert reported == ""


def test_a_split_that_is_not_there_is_wrong_use(command, own_npz, tmp_path):
    code, _, err = command("evaluate", tmp_path / "absent", "--data", f"npz:{own_npz}")
    assert code == 2
    assert "no such model folder" in err


@pytest.mark.parametrize("verb", ["evaluate", "estimate"])
def test_rows_of_another_shape_than_a_published_models_are_wrong_use(
    command, own_npz, tmp_path, verb
):
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    data = ("--data", f"npz:{own_npz}")
    command("fit", *data, "--network", "linear", "--steps", 20, "--quiet", *places)
    arrays = dict(np.load(own_npz))
    narrow = tmp_path / "narrow.npz"
    np.savez(narrow, **arrays | {key: arrays[key][:, :4] for key in arrays if key[:2] == "x_"})
    code, _, err = command(verb, tmp_path / "models" / "own" / "1", "--data", f"npz:{narrow}")
    assert code == 2
    assert "a row is [4]; the model takes [" in err


def test_numbers_of_another_shape_than_the_models_are_refused(command, own_npz, tmp_path):
    arrays = dict(np.load(own_npz))
    arrays["x_test"] = arrays["x_test"][:, :4]
    path = tmp_path / "narrow.npz"
    np.savez(path, **arrays)
    code, _, err = command("fit", "--data", f"npz:{path}", "--models", tmp_path)
    assert code == 1
    assert "x_test" in err


@pytest.mark.parametrize(
    "flag", [("--checkpoint-steps", 0), ("--threads", 0), ("--workers", -1), ("--samples", -1)]
)
def test_a_count_that_cannot_be_is_refused_with_its_flag(capsys, flag):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--data", "digits", *map(str, flag)])
    assert stopped.value.code == 2
    name, value = flag
    message = capsys.readouterr().err
    assert f"argument {name}: '{value}': expected a number of at least" in message


def test_names_beyond_ascii_are_escaped_for_a_stream_that_is(own_npz, tmp_path, monkeypatch):
    with np.load(own_npz) as file:
        arrays = {**file, "class_names": [f"кот {index}" for index in range(12)]}
    np.savez(tmp_path / "own.npz", **arrays)
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    assert main(["data", f"npz:{tmp_path / 'own.npz'}", "--json"]) == 0
    plain.seek(0)
    assert json.loads(plain.read())["class_names"][1] == "кот 1"


@pytest.mark.parametrize("given", ["gamma", "gamma=x", "=2"])
def test_an_option_without_a_number_is_refused_with_its_form(capsys, given):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--data", "digits", "--loss-option", given])
    assert stopped.value.code == 2
    assert "expected NAME=NUMBER, as in gamma=2" in capsys.readouterr().err


def test_tokens_for_rows_of_numbers_are_refused(command):
    code, _, err = command("fit", "--data", "digits", "--tokens", "characters")
    assert code == 2
    assert "--tokens characters: digits holds no texts" in err


def test_the_command_that_a_report_records_can_be_pasted(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)).astype(np.float32), np.arange(60) % 3
    np.savez(tmp_path / "my rows.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    given = ["fit", "--name", "it", "--data", f"npz:{tmp_path / 'my rows.npz'}", "--quiet"]
    given += ["--network", "mlp", "--steps", "1", "--models", str(tmp_path / "models")]
    given += ["--runs", str(tmp_path / "runs")]
    assert main(given, prog="priordial train") == 0
    (page,) = tmp_path.rglob("report.html")
    [recorded] = re.findall(r"<code>(priordial train fit .*?)</code>", page.read_text("utf-8"))
    assert shlex.split(html.unescape(recorded)) == ["priordial", "train", *given]


def test_a_word_that_no_report_can_hold_is_refused_before_the_training(command, own_npz, tmp_path):
    fit = ("fit", "--data", f"npz:{own_npz}", "--network", "linear", "--models", tmp_path)
    code, _, err = command(*fit, "--description", "caf\udce9")
    assert code == 2
    assert "'caf?' is not UTF-8 text, so no report can hold it; give UTF-8" in err
    assert list(tmp_path.iterdir()) == []
