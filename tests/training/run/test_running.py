"""How a run is carried out: precision, streaming, a user's own network, and what it shows
meanwhile.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.contract.bundle import load_bundle
from service.contract.resources import Processors
from tests.support import data_files as files
from training.commands import fit as fitting
from training.commands.cli import main
from training.data.augment import Augmentation
from training.data.feed import Place, make_feed
from training.data.order import Part, batches
from training.faults import RunFailed, WrongUse
from training.learning.losses import make_loss
from training.learning.resnet import released_resnet32, resnet32
from training.learning.samplers import make_sampler
from training.loop.checkpoint import CheckpointFile
from training.loop.processes import Processes
from training.loop.progress import Progress
from training.loop.train import Keeping, Plan, RunState, make_optimiser, training_step
from training.run import export
from training.run.prepare import prepare
from training.run.recipe_file import make
from training.run.run import fit_network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return files.write_class_folders(tmp_path_factory.mktemp("own") / "pictures", (24, 12, 6))


def logged(log):
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()]


@pytest.mark.parametrize(("quota", "threads"), [(None, 0), (3.0, 3)])
def test_a_session_takes_no_more_threads_than_the_control_group_allows(monkeypatch, quota, threads):
    monkeypatch.setattr(export, "processors", lambda: Processors(64, 64, quota, "cpu.max"))
    assert export.session_options(0).intra_op_num_threads == threads
    assert export.session_options(5).intra_op_num_threads == 5


def test_fit_trains_with_no_more_threads_than_the_control_group_allows(monkeypatch, tmp_path):
    monkeypatch.setattr(fitting, "available_threads", lambda: 1)
    before = torch.get_num_threads()
    flags = ("--network", "linear", "--steps", "1", "--models", tmp_path, "--runs", tmp_path)
    try:
        torch.set_num_threads(2)
        assert main(["fit", "--name", "a", "--data", "digits", *map(str, flags)]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_learns_what_one_in_single_learns(tmp_path, precision):
    losses = {}
    for name in ("fp32", precision):
        given = {"data": "digits", "network": "linear", "steps": 60, "lr": 0.02}
        recipe = make(None, given | {"precision": name})
        keeping = Keeping(log=tmp_path / f"{name}.jsonl", quiet=True)
        network = fit_network(recipe, prepare(recipe), keeping=keeping, processes=Processes(CPU))
        assert all(p.dtype == torch.float32 for p in network.parameters())
        losses[name] = np.array(logged(tmp_path / f"{name}.jsonl"))
    assert np.isfinite(losses[precision]).all()
    assert losses[precision][-5:].mean() < 0.5 * losses[precision][:5].mean()
    assert np.abs(losses[precision] - losses["fp32"])[:5].max() < 0.05
    assert not np.array_equal(losses[precision], losses["fp32"])


def test_the_scale_of_fp16_gradients_goes_on_from_a_checkpoint(tmp_path):
    def state():
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 3)
        plan = Plan(steps=4, batch_rows=8, precision="fp16")
        scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**10, growth_interval=2)
        return RunState(network, make_optimiser(network, plan), scaler), plan

    trained, plan = state()
    objective = make_loss("erm", np.array([3, 2, 1]))
    inputs, labels = torch.randn(8, 4), torch.arange(8) % 3
    for _ in range(3):
        training_step(
            trained.network, inputs, labels, objective=objective, state=trained, plan=plan
        )
    assert trained.scaler.get_scale() == 2.0**11  # it grew after two steps without overflow
    file = CheckpointFile(tmp_path / "checkpoint.pt", {})
    file.save(trained, step=3, random_states=[])
    fresh, _ = state()
    assert file.load(fresh, device=CPU) == 3
    assert fresh.scaler.state_dict() == trained.scaler.state_dict()


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_streamed_images_are_the_batches_of_images_in_memory(folders, augment):
    recipe = make(None, {"data": f"images:{folders}", "network": "cnn", "augment": augment})
    found = []
    for in_memory in (True, False):
        ready = prepare(recipe, in_memory=in_memory)
        feed = make_feed(ready.data, Augmentation(augment), Place(CPU, Part(), 0, workers=1))
        sampler = make_sampler("uniform", ready.data.train.labels, 3, seed=0)
        order = batches(sampler, rows=len(ready.data.train), batch_rows=8, steps=6)
        found.append(list(feed.batches(order)))
    assert len(found[0]) == 6
    for (inputs, labels), (streamed, their_labels) in zip(*found, strict=True):
        assert torch.equal(inputs, streamed)
        assert torch.equal(labels, their_labels)


def test_random_crops_differ_from_step_to_step_and_not_from_run_to_run(folders):
    given = {"data": f"images:{folders}", "image_size": 16, "augment": "resized-crop-flip"}
    ready = prepare(make(None, given))

    def crops(workers):
        augmentation = Augmentation("resized-crop-flip")
        feed = make_feed(ready.data, augmentation, Place(CPU, Part(), 0, workers=workers))
        rows = np.arange(8)
        return [inputs for inputs, _ in feed.batches(iter([(0, rows), (1, rows)]))]

    first, again = crops(0), crops(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_a_shorter_memory_of_adam_forgets_a_large_gradient_sooner():
    def moved_after_a_shock(**given):
        """How far a weight goes in 50 small steady steps that follow one large gradient."""
        recipe = make(
            None, {"data": "digits", "optimiser": "adamw", "weight_decay": 0.0, "lr": 0.05} | given
        )
        network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        optimiser = make_optimiser(network, recipe.plan(rows=1))
        found = []
        for gradient in [-1.0, *50 * [0.01]]:
            network.weight.grad = torch.full((1, 1), gradient)
            optimiser.step()
            found.append(network.weight.item())
        return found[25] - found[-1]

    assert moved_after_a_shock() == moved_after_a_shock(adam_beta2=0.999)
    assert moved_after_a_shock(adam_beta2=0.9) > 3 * moved_after_a_shock() > 0


def test_a_run_goes_on_with_its_tokenizer_in_another_place_and_not_with_another(tmp_path):
    network = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = RunState(network, torch.optim.SGD(network.parameters()), scaler)
    path = tmp_path / "own.pt"
    before = {"tokens": "own.json", "tokens_sha256": "a1"}
    CheckpointFile(path, before).save(state, step=7, random_states=[])
    moved = CheckpointFile(path, before | {"tokens": "there/own.json"})
    assert moved.load(state, device=CPU) == 7
    other = CheckpointFile(path, before | {"tokens_sha256": "b2"})
    with pytest.raises(WrongUse, match="the contents of the file of --tokens have changed"):
        other.load(state, device=CPU)


def test_a_checkpoint_from_before_a_setting_is_of_a_run_with_what_it_was_then(tmp_path):
    network = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = RunState(network, torch.optim.SGD(network.parameters()), scaler)
    CheckpointFile(tmp_path / "old.pt", {"lr": 0.1}).save(state, step=7, random_states=[])
    now = CheckpointFile(tmp_path / "old.pt", {"lr": 0.1, "adam_beta2": 0.999})
    assert now.load(state, device=CPU) == 7
    other = replace(now, identity={"lr": 0.1, "adam_beta2": 0.95})
    with pytest.raises(WrongUse, match=r"--adam-beta2 was 0\.999 and is 0\.95"):
        other.load(state, device=CPU)


@pytest.mark.parametrize("make_network", [resnet32, released_resnet32])
def test_a_resnet_takes_a_step_and_learns_its_batch(make_network):
    torch.manual_seed(0)
    network = make_network(10, (3, 32, 32))
    inputs, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    assert network(inputs).shape == (8, 10)
    plan = Plan(steps=4, batch_rows=8, lr=0.05)
    state = RunState(
        network, make_optimiser(network, plan), torch.amp.GradScaler("cpu", enabled=False)
    )
    objective = make_loss("erm", np.ones(10))
    losses = [
        float(training_step(network, inputs, labels, objective=objective, state=state, plan=plan))
        for _ in range(4)
    ]
    assert losses[-1] < losses[0]


FACTORY = """
from torch import nn

def resnet(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

def nothing(num_classes):
    return num_classes
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, in the folder that the command is run in."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "own_networks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "own_networks"
    sys.modules.pop("own_networks", None)


def fit(command, tmp_path, folders, network, *flags):
    return command(
        "fit",
        "--name",
        "own",
        "--data",
        f"images:{folders}",
        "--network",
        network,
        "--steps",
        6,
        "--batch",
        8,
        "--models",
        tmp_path / "models",
        "--runs",
        tmp_path / "runs",
        "--threads",
        1,
        "--json",
        *flags,
    )


def test_a_network_of_the_users_own_module_is_trained_on_a_folder_of_jpegs(
    command, tmp_path, folders, own_module
):
    flags = ("--tensorboard", tmp_path / "board", "--no-in-memory", "--workers", 1)
    code, result, err = fit(command, tmp_path, folders, f"{own_module}:resnet", *flags)
    assert code == 0, err
    bundle = load_bundle(tmp_path / "models" / "own" / "1")
    assert bundle.class_names == ["ant", "bee", "cat"]
    assert result["test"]["n"] == 8
    assert "loss " in err
    assert "rows/s" in err
    events = scalars(tmp_path / "board")
    assert events["train/loss"] == pytest.approx(
        logged(tmp_path / "runs" / "own" / "steps.jsonl"), rel=1e-6
    )
    assert len(events["train/rate"]) == 6


def scalars(folder):
    """Values by name, from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]
    }


def test_a_factory_that_makes_no_network_is_refused(command, tmp_path, folders, own_module):
    code, _, err = fit(command, tmp_path, folders, f"{own_module}:nothing")
    assert code == 2
    assert "expected a torch.nn.Module" in err


def test_torchvisions_resnet_18_is_trained_on_a_folder_of_jpegs(command, tmp_path, folders):
    pytest.importorskip("torchvision", reason="optional: torchvision is not installed")
    code, result, err = fit(command, tmp_path, folders, "torchvision.models:resnet18", "--quiet")
    assert code == 0, err
    assert result["test"]["n"] == 8


def test_the_bar_shows_loss_rows_a_second_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    settings = {"first_step": 0, "batch_rows": 8, "log": None, "tensorboard": None}
    with Progress(steps=20, flush_steps=1, quiet=False, **settings) as progress:
        for step in range(10):
            progress.step(step, loss=torch.tensor(0.5), rate=0.1)
        progress._bar.refresh()
        shown = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "10/20" in shown
    assert "loss 0.500" in shown
    assert "rows/s" in shown
    assert "<00:" in shown  # tqdm: elapsed<left


def test_without_a_terminal_progress_is_lines_rather_than_a_bar(capsys):
    settings = {"first_step": 4, "batch_rows": 8, "log": None, "tensorboard": None}
    with Progress(steps=20, flush_steps=1, quiet=False, **settings) as progress:
        for step in range(4, 14):
            progress.step(step, loss=torch.tensor(0.5), rate=0.1)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    assert shown.startswith("training: step 5 of 20, loss 0.500, ")
    with Progress(steps=20, flush_steps=1, quiet=True, **settings) as progress:
        progress.step(4, loss=torch.tensor(0.5), rate=0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e12])
def test_a_loss_that_is_lost_stops_with_its_step_and_its_rate(loss):
    settings = {"first_step": 0, "batch_rows": 8, "log": None, "tensorboard": None}
    with (
        pytest.raises(RunFailed, match=r"at step 3, with a learning rate of 0\.1: lower --lr"),
        Progress(steps=20, flush_steps=1, quiet=True, **settings) as progress,
    ):
        progress.step(3, loss=torch.tensor(loss), rate=0.1)
