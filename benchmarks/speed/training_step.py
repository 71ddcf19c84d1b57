"""The cost of data and loss in a training step, as ratios within one run. Run by hand:

    python -m benchmarks.speed.training_step [--rounds 12] [--seconds 0.4] [--only CASE …]
        [--out runs/benchmarks/training.json]

`data` compares speeds: steps per second of the whole step (order of the rows, gathering,
augmentation, forward, backward, optimiser) over those of the same step on one resident batch.
`loss` compares times: seconds of a step with the logit-adjusted loss over those with cross-entropy,
at 1,000 classes. The two sides of a ratio share a network and take turns, in blocks of steps. A
figure is the median of the ratios of each round, with quartiles. torch uses one thread. The images
of `jpegs` are decoded by another process, so that case needs a second core.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from training.data.augment import Augmentation
from training.data.dataset import Dataset, ImageSpec, Split
from training.data.feed import Place, make_feed
from training.data.image_cache import cached_pixels
from training.data.image_files import ImageFiles
from training.data.order import Part, batches
from training.data.text import Vocabulary
from training.learning.losses import Objective, make_loss
from training.learning.networks import build
from training.learning.samplers import make_sampler
from training.loop.checkpoint import RunState
from training.loop.train import Plan, make_optimiser, training_step

WHOLE_STEP, ADJUSTED = 0.95, 1.02  # the goals
BATCH = 128
CPU = torch.device("cpu")
ENDLESS = 10**9  # steps


@dataclass
class Case:
    """A network with its optimiser, and batches to take steps on."""

    name: str
    network: torch.nn.Module
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    objective: Objective
    ahead: int = 0
    """The most batches that are prepared in advance."""
    state: RunState = field(init=False)
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(steps=ENDLESS, batch_rows=BATCH)
        optimiser = make_optimiser(self.network, self.plan)
        self.state = RunState(self.network, optimiser, torch.amp.GradScaler("cpu", enabled=False))

    def step(self, batch: tuple[torch.Tensor, torch.Tensor], objective: Objective) -> float:
        """Take one step and wait for its loss, as a run on the CPU does."""
        loss = training_step(
            self.network, *batch, objective=objective, state=self.state, plan=self.plan
        )
        return float(loss)


def case(name: str, data: Dataset, network: str, augmentation: str, *, workers: int = 0) -> Case:
    """A case as `training fit` would put it together."""
    shape = (data.image.channels, *data.image.size) if data.image else data.train.inputs.shape[1:]
    torch.manual_seed(0)
    built = build(
        network,
        num_classes=data.num_classes,
        input_shape=shape,
        idf=data.vocabulary.idf if data.vocabulary else None,
    )
    if data.image is not None:
        built.to(memory_format=torch.channels_last)
    feed = make_feed(data, Augmentation(augmentation), Place(CPU, Part(), 0, workers))
    sampler = make_sampler("uniform", data.train.labels, data.num_classes, seed=0)
    order = batches(sampler, rows=len(data.train), batch_rows=BATCH, steps=ENDLESS)
    objective = make_loss("erm", data.class_counts)
    return Case(name, built, feed.batches(order), objective, ahead=2 * workers)


def dataset(kind: str, inputs, classes: int, **more) -> Dataset:
    labels = np.arange(len(inputs)) % classes
    names = tuple(map(str, range(classes)))
    return Dataset("made", kind, names, Split(inputs, labels), **more)


def spec_of(side: int, channels: int) -> ImageSpec:
    return ImageSpec(
        (side, side),
        "RGB" if channels == 3 else "L",
        "stretch",
        (0.5,) * channels,
        (0.25,) * channels,
    )


def pictures(side: int, channels: int, rows: int) -> Dataset:
    made = np.random.default_rng(0).integers(0, 256, (rows, side, side, channels), np.uint8)
    return dataset("image", made, 10, image=spec_of(side, channels))


def jpegs(folder: Path, side: int, rows: int) -> Dataset:
    """Images as large and smooth as photographs: 320 × 240, randomly cropped to side × side."""
    rng = np.random.default_rng(0)
    paths = []
    for row in range(rows):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        paths.append(str(folder / f"{row}.jpg"))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    spec = spec_of(side, 3)
    return dataset("image", ImageFiles.of(paths, spec), 10, image=spec)


def texts(rows: int) -> Dataset:
    """Reviews of 200 words, drawn from 20,000 words by Zipf's law."""
    rng = np.random.default_rng(0)
    words = (20_000 ** rng.random((rows, 200))).astype(int)
    found = np.empty(rows, object)
    found[:] = [" ".join(f"w{word}" for word in row) for row in words]
    return dataset("text", found, 10, vocabulary=Vocabulary.learnt(found))


def numbers(features: int, classes: int, rows: int) -> Dataset:
    made = np.random.default_rng(0).normal(size=(rows, features)).astype(np.float32)
    return dataset("tensor", made, classes)


def cached(folder: Path, side: int, rows: int) -> Dataset:
    """Images of `jpegs`, cropped to side × side and mapped from the file that `--cache` makes."""
    data = jpegs(folder, side, rows)
    assert isinstance(data.train.inputs, ImageFiles)
    found, _ = cached_pixels(data.train.inputs, folder / "cache")
    return data.with_splits(train=Split(found, data.train.labels), val=None)


CASES: dict[str, Callable[[Path], Case]] = {
    "cifar": lambda _: case("cifar", pictures(32, 3, 12_406), "resnet32", "crop-flip"),
    "fashion": lambda _: case("fashion", pictures(28, 1, 12_406), "cnn", "flip"),
    "crops": lambda _: case("crops", pictures(28, 1, 12_406), "cnn", "crop-flip"),
    "table": lambda _: case("table", numbers(64, 10, 20_000), "mlp", "none"),
    "text": lambda _: case("text", texts(5_000), "text", "none"),
    "jpegs": lambda folder: case(
        "jpegs", jpegs(folder, 32, 1_024), "resnet32", "resized-crop-flip", workers=1
    ),
    "cached": lambda folder: case("cached", cached(folder, 224, 1_024), "cnn", "crop-flip"),
}
LOSS_CASES: dict[str, Callable[[Path], Case]] = {
    "mlp": lambda _: case("mlp", numbers(64, 1_000, 20_000), "mlp", "none"),
    "cnn": lambda _: case(
        "cnn",
        dataset("image", pictures(32, 3, 8_000).train.inputs, 1_000, image=spec_of(32, 3)),
        "cnn",
        "none",
    ),
}


def data_rounds(found: Case, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """(seconds a step on one resident batch, seconds of the whole step) of each round."""
    resident = next(found.batches)
    for _ in range(3):
        found.step(resident, found.objective)
    fewest = 2 + 2 * found.ahead
    steps = max(fewest, _steps_in(seconds, lambda: found.step(resident, found.objective)))
    results = []
    for number in range(rounds):

        def on_one() -> float:
            return _timed(steps, lambda: found.step(resident, found.objective))

        def whole() -> float:
            for _ in range(
                found.ahead
            ):  # batches that were prepared in advance are not part of the measurement
                next(found.batches)
            return _timed(steps, lambda: found.step(next(found.batches), found.objective))

        results.append(_in_turn(on_one, whole, number))
    return results


def loss_rounds(found: Case, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """(seconds of a step with cross-entropy, with the logit-adjusted loss) of each round."""
    batch = next(found.batches)
    classes = found.network[-1].out_features
    tail = np.maximum(5, 1280 * 256 ** (-np.arange(classes) / classes)).astype(int)
    adjusted = make_loss("logit-adjusted", tail)
    steps = _steps_in(seconds, lambda: found.step(batch, adjusted))
    return [
        _in_turn(
            lambda: _timed(steps, lambda: found.step(batch, found.objective)),
            lambda: _timed(steps, lambda: found.step(batch, adjusted)),
            number,
        )
        for number in range(rounds)
    ]


def _in_turn(
    one: Callable[[], float], other: Callable[[], float], number: int
) -> tuple[float, float]:
    """Run both, in alternating order: a machine that slows down then favours neither."""
    if number % 2:
        second, first = other(), one()
        return first, second
    return one(), other()


def _steps_in(seconds: float, step: Callable[[], object]) -> int:
    return max(2, round(seconds / min(_timed(1, step) for _ in range(3))))


def _timed(steps: int, step: Callable[[], object]) -> float:
    """Seconds a step."""
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begun) / steps


def summary(
    kind: str, found: Case, results: list[tuple[float, float]], *, at_least: bool
) -> dict[str, object]:
    """The line of one case. at_least: the ratio is one of speeds, so a high one is good.

    Otherwise it is a ratio of times, so a low one is good.
    """
    ratios = [first / second if at_least else second / first for first, second in results]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    goal = WHOLE_STEP if at_least else ADJUSTED
    return {
        "kind": kind,
        "case": found.name,
        "base_ms": 1e3 * statistics.median(first for first, _ in results),
        "ms": 1e3 * statistics.median(second for _, second in results),
        "ratio": ratio,
        "quartiles": [low, high],
        "goal": goal,
        "met": ratio >= goal if at_least else ratio <= goal,
        "rounds": results,
    }


HEADER = f"{'what':5} {'case':8} {'base ms':>8} {'ms':>8} {'ratio':>6} {'quartiles':>13}  goal"


def line(row: dict) -> str:
    low, high = row["quartiles"]
    sign = "≥" if row["kind"] == "data" else "≤"
    return (
        f"{row['kind']:5} {row['case']:8} {row['base_ms']:8.2f} {row['ms']:8.2f} "
        f"{row['ratio']:6.3f} "
        f"{low:6.3f}–{high:.3f}  {'met ' if row['met'] else 'MISSED'} {sign} {row['goal']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--seconds", type=float, default=0.4, help="seconds of a block, which has at least 2 steps"
    )
    parser.add_argument("--only", nargs="+", default=[*CASES, *LOSS_CASES])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/training.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="priordial-bench-") as folder:
        for kind, cases in (("data", CASES), ("loss", LOSS_CASES)):
            measure = data_rounds if kind == "data" else loss_rounds
            for name in [name for name in cases if name in given.only]:
                found = cases[name](Path(folder))
                results = measure(found, given.rounds, given.seconds)
                rows.append(summary(kind, found, results, at_least=kind == "data"))
                print(line(rows[-1]), flush=True)
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
