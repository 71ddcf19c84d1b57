"""Whatever would fail after training fails before it, within seconds and with the reason."""

import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from training.faults import short
from training.learning.losses import make_loss
from training.run.prepare import make_network, prepare
from training.run.recipe_file import make
from training.run.rehearsal import rehearse


def rehearsed(own_npz, models, network, **settings):
    recipe = make(None, {"data": f"npz:{own_npz}", "network": network, "name": "tried"} | settings)
    ready = prepare(recipe)
    made = make_network(recipe, ready)
    # quantised layers keep other objects there, too
    state = {key: value for key, value in made.state_dict().items() if torch.is_tensor(value)}
    before = {key: value.clone() for key, value in state.items()}
    rehearse(recipe, ready, made, models=models)
    return made, before


def test_an_error_in_no_code_of_the_users_names_a_file_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loss = make_loss("erm", np.array([5, 3, 2]))
    with ThreadPoolExecutor() as threads:  # so that no line of this test is on the way
        out_of_range = threads.submit(loss, torch.zeros(2, 3), torch.tensor([0, 7])).exception()
        absent = threads.submit(Path.read_text, tmp_path / "absent").exception()
    named = re.search(r"\(traceback: (.+)\)$", short(out_of_range))
    told = Path(named[1]).read_text(encoding="utf-8")
    assert told.startswith("Traceback")
    assert "losses.py" in told
    assert "traceback" not in short(absent)


ODD = "tests.support.odd_networks"


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("two", "returns a tuple of 2; expected the logits alone"),
        ("late", "returns a tuple of 2 while it trains; expected the logits alone"),
        ("named", "returns a dict with scores; expected the logits alone"),
        ("thousand", r"returns shape \[2, 1000\] for 2 rows; expected \[2, 12\]"),
        ("one", r"returns shape \[2, 1\] for 2 rows; expected \[2, 12\]"),
        ("softmaxed", "returns probabilities; expected logits"),
        ("endless", "returns NaN or infinity before it is trained"),
        (
            "fixed",
            r"its ONNX file takes 2 rows at a time, but not 1; nothing was .* x.flatten\(1\)",
        ),
        ("branching", "cannot be exported to ONNX: .*; nothing was trained"),
        ("raising", "the factory raised OSError: no route to the weights"),
        ("narrow", r"fails on an input of shape \[2, 6\]: RuntimeError: mat1 and mat2"),
        ("complex_numbers", "returns complex64 on cpu; expected real numbers"),
        ("nowhere", "returns float32 on meta; expected real numbers"),
        ("sparse", "returns float32 in a sparse tensor on cpu; expected real numbers"),
        ("detached", "no parameter that can be trained leads to its logits"),
        ("mixing", "a row alone gets other logits than next to another row"),
        ("drawing", "a row alone gets other logits than next to another row"),
        ("scripted", r"holds TorchScript \(RecursiveScriptModule\).*; give the torch.nn.Module"),
        ("quantised", r"holds a quantised layer \(Linear\), which cannot be trained; give"),
        ("halved", "its weights are float16; give it in float32, as .float\\(\\) does"),
        ("empty", r"its weights have no numbers \(device meta\); draw or load them first"),
        ("locked", "cannot be copied: TypeError: cannot pickle"),
        ("leaving", r"the factory raised SystemExit: exit code 0 \(odd_networks.py, line \d+\)"),
        ("unspeakable", r"the factory raised Unspeakable \(odd_networks.py, line \d+\)"),
        ("absent", "module 'tests.support.odd_networks' has no function 'absent'"),
    ],
)
def test_a_network_that_cannot_be_published_is_refused_by_name(own_npz, tmp_path, factory, said):
    with pytest.raises((ValueError, RuntimeError), match=f"network {ODD}:{factory}: {said}"):
        rehearsed(own_npz, tmp_path / "models", f"{ODD}:{factory}")
    assert not (tmp_path / "models").exists()


MODULES = {
    "cut": ("def net(:", r"importing cut raised SyntaxError: .* \(cut.py, line 1\)"),
    "leaves": ("raise SystemExit(0)", "importing leaves raised SystemExit: exit code 0"),
    "lost": ("import no_such_library", "importing lost raised ModuleNotFoundError: .*library"),
    "breaks": ("1 / 0", r"importing breaks raised ZeroDivisionError: .* \(breaks.py, line 1\)"),
    "here.py": ("", "expected module:function, as Python imports it"),
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    own_npz, tmp_path, monkeypatch, module
):
    text, said = MODULES[module]
    (tmp_path / f"{module.removesuffix('.py')}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"network {module}:net: {said}"):
        rehearsed(own_npz, tmp_path / "models", f"{module}:net")


def test_outputs_between_0_and_1_are_told_as_those_of_a_sigmoid(own_npz, tmp_path, capsys):
    rehearsed(own_npz, tmp_path / "models", f"{ODD}:squashed")
    assert "every output of 32 rows lies between 0 and 1" in capsys.readouterr().err


def test_small_first_logits_of_a_built_in_network_are_not_taken_for_those_of_a_sigmoid(
    own_npz, tmp_path, capsys
):
    recipe = make(None, {"data": f"npz:{own_npz}", "network": "linear", "name": "tried"})
    ready = prepare(recipe)
    made = make_network(recipe, ready)
    layer = made[-1][-1]
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, 0.4)
    rehearse(recipe, ready, made, models=tmp_path / "models")
    assert "sigmoid" not in capsys.readouterr().err


def test_a_network_that_fails_in_training_is_told_with_step_and_line(command, own_npz, tmp_path):
    kept = ("--models", tmp_path / "models", "--runs", tmp_path / "runs", "--name", "tired")
    network = ("--network", f"{ODD}:tiring", "--steps", 9, "--checkpoint-steps", 1, "--quiet")
    code, _, said = command("fit", "--data", f"npz:{own_npz}", *network, *kept)
    assert code == 1
    assert "step 2 failed on a batch of shape [128, 6]: ValueError: too tired" in said
    assert "(odd_networks.py, line" in said
    assert "checkpoint.pt holds an earlier step, --resume continues from it" in said


def test_a_layer_that_has_no_length_is_no_fault(own_npz, tmp_path):
    rehearsed(own_npz, tmp_path / "models", f"{ODD}:uncounted")


@pytest.mark.parametrize("factory", ["hugging", "auxiliary"])
def test_logits_are_taken_from_what_such_libraries_return(own_npz, tmp_path, factory):
    made, _ = rehearsed(own_npz, tmp_path / "models", f"{ODD}:{factory}")
    assert made.train()(torch.zeros(3, 6)).shape == (3, 12)


def test_batches_of_one_row_are_refused_where_the_network_normalises_over_them(own_npz, tmp_path):
    with pytest.raises(ValueError, match=r"a training step of one row fails: .*--batch over"):
        rehearsed(own_npz, tmp_path, f"{ODD}:normed", batch=1)


def test_a_split_whose_logits_do_not_fit_into_memory_is_refused_before_training(
    own_npz, tmp_path, monkeypatch
):
    """100,000 classes with 100,000 validation rows, say; here the memory is small."""
    monkeypatch.setattr("training.run.rehearsal.available_memory", lambda: 120 * 12 * 20)
    rehearsed(own_npz, tmp_path, "mlp")
    monkeypatch.setattr("training.run.rehearsal.available_memory", lambda: 120 * 12 * 20 - 1)
    with pytest.raises(RuntimeError, match=r"logits of 120 test rows for 12 classes take .* GB"):
        rehearsed(own_npz, tmp_path, "mlp")


def test_a_rehearsal_leaves_network_and_folders_as_they_were(own_npz, tmp_path):
    home = tmp_path / "models" / "tried"
    home.mkdir(parents=True)
    made, before = rehearsed(own_npz, tmp_path / "models", f"{ODD}:normed")
    after = made.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in made.parameters())
    assert list(home.iterdir()) == []


def test_a_folder_of_runs_that_cannot_be_written_is_told_with_the_cure(own_npz, tmp_path, command):
    (tmp_path / "runs").write_text("a file, not a folder")
    places = ("--models", tmp_path / "models", "--runs", tmp_path / "runs")
    fit = ("fit", "--data", f"npz:{own_npz}", "--network", "linear", "--steps", 2, "--quiet")
    code, _, said = command(*fit, "--name", "own", *places)
    assert code == 1
    assert "runs/own: no checkpoint could be kept here: " in said
    assert "give another --runs" in said


def test_a_place_that_cannot_be_written_is_named_before_the_training(own_npz, tmp_path):
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(RuntimeError, match="models: the model could not be published here"):
        rehearsed(own_npz, tmp_path / "models", "mlp")
