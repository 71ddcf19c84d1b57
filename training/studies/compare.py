"""Runs `training compare`: trains methods × seeds on one data set, and reports the results."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.data.dataset import Dataset
from training.faults import BadData, RunFailed, WrongUse, writing_to
from training.loop.checkpoint import CHANGED, filled
from training.loop.interrupt import Interrupted
from training.loop.last_layer import features_of, last_layer
from training.loop.processes import Processes
from training.loop.train import Keeping
from training.run.prepare import contents, prepare_data
from training.run.provenance import made_by
from training.run.recipe import AUTO, FREE, Recipe
from training.run.run import Finished, Running, run
from training.studies import report as comparison_report
from training.studies.methods import (
    ADAM_RATE,
    ADAM_RUN,
    METHODS,
    ON_FEATURES,
    RUNS,
    Method,
    runs_of,
)
from training.studies.numbers import results_of
from training.studies.outcomes import Outcome, SplitOutputs
from training.studies.side_by_side import shares_of, train_side_by_side

KEEP_FEATURES = frozenset(m.run for m in METHODS if m.afterwards in ON_FEATURES)
FREE_SETTINGS = ("seed", *FREE)


def compare(
    recipe: Recipe,
    *,
    methods: Sequence[Method],
    seeds: Sequence[int],
    out: Path,
    processes: Processes,
    say: Callable[[str], None],
    quiet: bool = True,
    command: str = "",
    jobs: int | None = 1,
    threads: int | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Train the missing runs, score all, write the report; return the object of results.json.

    recipe: the shared settings; each method brings its own loss and sampler. A finished run is a
    file in out/runs and is not trained again; an interrupted run continues from its checkpoint.
    Seeds and methods can be added later. command: the command line, for the report. jobs: how many
    runs are trained at the same time, and threads: those of each run; None decides, see
    `side_by_side.shares_of`. The same number of threads gives the same weights for any number of
    jobs. cache: the folder for decoded images. Raises WrongUse when `out` holds a comparison with
    other settings.
    """
    data = prepare_data(replace(recipe, seed=seeds[0]))
    out.mkdir(parents=True, exist_ok=True)
    remember_settings(recipe, out, files=contents(data))
    wanted = [
        OneRun(recipe, name, seed, out, cache) for seed in seeds for name in runs_of(tuple(methods))
    ]
    shares = shares_of(data, runs=len(wanted), processes=processes, jobs=jobs, threads=threads)
    number = {one.name: place for place, one in enumerate(wanted, 1)}

    def done(name: str, seconds: float) -> None:
        say(f"[{number[name]}/{len(wanted)}] {name}: {seconds:.0f} s")

    missing = [one for one in wanted if not one.outcome.exists()]
    if shares.jobs > 1 and len(missing) > 1:
        say(f"{len(missing)} runs to train, {shares.jobs} at a time")
        train_side_by_side(missing, shares=shares, device=processes.device, quiet=quiet, done=done)
    else:
        with _threads(shares.threads):
            for one in missing:
                seconds = one.finish(processes, quiet=quiet)
                if seconds is not None:
                    done(one.name, seconds)
                processes.wait()
    say("scoring")
    results = results_of(
        methods=methods,
        seeds=seeds,
        load=lambda run, seed: Outcome.load(outcome_path(out, run, seed)),
    )
    document = {"settings": settings_of(recipe), "data": _about(recipe, data)} | results
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    with writing_to(out):
        (out / "results.json").write_text(text, encoding="utf-8")
        comparison_report.write(document, out, made=made_by(command))
    return document


@dataclass(frozen=True)
class OneRun:
    """A run of the comparison in `out`: a key of RUNS, trained with one seed."""

    recipe: Recipe
    run: str
    seed: int
    out: Path
    cache: Path | None = None

    @property
    def name(self) -> str:
        """The run and its seed, for messages."""
        return f"{self.run}, seed {self.seed}"

    @property
    def outcome(self) -> Path:
        """The file of the finished run."""
        return outcome_path(self.out, self.run, self.seed)

    def finish(self, processes: Processes, *, quiet: bool, label: str = "") -> float | None:
        """Train the run, from its checkpoint if there is one, and write its outcome.

        label: what the lines of its progress begin with, if other runs are trained at the same
        time. Returns the seconds that it took; None in all processes but the first. Raises
        Interrupted and RunFailed, which name the run.
        """
        checkpoint = checkpoint_path(self.out / "runs", self.run, self.seed)
        try:
            outcome = outcome_of(
                replace(
                    recipe_for(self.recipe, self.run),
                    seed=self.seed,
                    name=f"{self.run}-{self.seed}",
                ),
                checkpoint=checkpoint,
                cache=self.cache,
                keep_features=self.run in KEEP_FEATURES,
                processes=processes,
                quiet=quiet,
                label=label,
            )
        except Interrupted as stopped:
            raise Interrupted(f"{self.name}: {stopped}") from None
        except RunFailed as failed:
            others = "; without this method in --methods, the same command goes on with the others"
            on_disk = isinstance(failed.__cause__, OSError)
            raise RunFailed(
                f"{self.name}: {failed}\nThe finished runs are kept{'' if on_disk else others}"
            ) from failed
        if outcome is None:
            return None
        try:
            outcome.save(self.outcome)
        except OSError as error:
            raise RunFailed(
                f"{self.outcome}: cannot be written: {error.strerror or error}; make room, and the "
                "same command goes on with the finished runs"
            ) from error
        checkpoint.unlink(missing_ok=True)
        return outcome.seconds


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Train with this number of threads on the CPU; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recipe_for(recipe: Recipe, run: str) -> Recipe:
    """Return the comparison's recipe with the changes that the run `run` makes to it."""
    base = shared_by_all(recipe)
    own = replace(base, **RUNS[run])
    assert base.lr is not None  # resolved
    return own if own.optimiser == base.optimiser else replace(own, lr=base.lr * ADAM_RATE)


def shared_by_all(recipe: Recipe) -> Recipe:
    """Return the recipe with one network and one optimiser for all methods.

    L-BFGS is not used: it takes every row, so samplers would have no effect, and it would stop at a
    different point for each method.
    """
    network = "mlp" if recipe.network == AUTO else recipe.network
    return replace(recipe, network=network, optimiser=recipe.optimiser or "sgd").resolved()


def outcome_of(
    recipe: Recipe,
    *,
    checkpoint: Path | None,
    cache: Path | None = None,
    keep_features: bool,
    processes: Processes,
    quiet: bool = True,
    label: str = "",
) -> Outcome | None:
    """Train a recipe, from its checkpoint if there is one, and return the outcome.

    The outcome has the logits, the last layer and, with keep_features, the features. With several
    processes, all but the first return None. Raises BadData when the data has no test split.
    """
    finished = run(
        recipe,
        running=Running(models=None, runs=None, checkpoint=checkpoint, cache=cache),
        keeping=Keeping(
            resume=True, quiet=quiet, label=label, going_on="the same command resumes from it"
        ),
        processes=processes,
    )
    if finished is None:
        return None
    return _outcome(finished, processes.device, keep_features=keep_features)


def _outcome(finished: Finished, device: torch.device, *, keep_features: bool) -> Outcome:
    ready, network = finished.ready, finished.network
    data = ready.data
    if data.test is None:
        raise BadData(f"{data.spec}: has no test split to compare methods on; give data with one")
    splits = {"train": data.train, "val": data.val, "test": data.test}
    features = {
        name: features_of(network, data, split, device=device)
        for name, split in splits.items()
        if keep_features and split is not None
    }
    parts = {
        name: SplitOutputs(splits[name].labels, logits, features.get(name))  # type: ignore[union-attr]  # there are logits only of splits that exist
        for name, logits in finished.logits.items()
    }
    return Outcome(
        class_counts=data.class_counts,
        recorded_loss_tau=ready.recorded.loss_tau,
        source_prior=ready.recorded.source_prior,
        seconds=finished.seconds,
        test=parts["test"],
        val=parts.get("val"),
        train_labels=data.train.labels if keep_features else None,
        train_features=features.get("train"),
        layer=last_layer(network) if ready.objective.head == "linear" else None,
    )


def outcome_path(out: Path, run: str, seed: int) -> Path:
    """Return the path of a finished run's file."""
    return out / "runs" / f"{run}-seed{seed}.npz"


def checkpoint_path(folder: Path, run: str, seed: int) -> Path:
    """Return the path of an unfinished run's checkpoint."""
    return folder / f"{run}-seed{seed}.pt"


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all runs share and, under `erm-adam`, those of the Adam run."""
    fields = json.loads(json.dumps(asdict(shared_by_all(recipe))))
    varied = {key for changes in RUNS.values() for key in changes} - {*RUNS[ADAM_RUN]}
    shared = {k: v for k, v in fields.items() if k not in FREE_SETTINGS and k not in varied}
    adam = asdict(recipe_for(recipe, ADAM_RUN))
    return shared | {ADAM_RUN: {key: adam[key] for key in ("lr", *RUNS[ADAM_RUN])}}


def remember_settings(recipe: Recipe, out: Path, *, files: Mapping[str, str | None]) -> None:
    """Write settings.json. Raises WrongUse when it exists with other settings.

    files: checksums of the data and the tokenizer; older settings lack them. The settings of
    erm-adam may change until such a run exists; older files lack them, too.
    """
    path = out / "settings.json"
    settings = {**settings_of(recipe), **files}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        before = {**files, **filled(found, like=settings)}
        if not any((out / "runs").glob(f"{ADAM_RUN}-seed*")):
            before[ADAM_RUN] = settings[ADAM_RUN]
        if files.get("tokens_sha256", before) == before.get("tokens_sha256"):
            before["tokens"] = settings["tokens"]  # the same tokenizer in another place
        differing = [
            CHANGED.get(key) or f"{key} was {before.get(key)!r} and is {settings.get(key)!r}"
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        if differing:
            others = before | {ADAM_RUN: None} != settings | {ADAM_RUN: None}
            hint = "" if others else f" (remove runs/{ADAM_RUN}-seed* to train those again)"
            raise WrongUse(
                f"{out} holds another comparison: {'; '.join(differing)}; "
                f"give the same settings, or another --out{hint}"
            )
    text = json.dumps(settings, ensure_ascii=False, indent=1) + "\n"
    with writing_to(path):
        path.write_text(text, encoding="utf-8")


def _about(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    return {
        "spec": recipe.data,
        "sha256": data.origin.get("sha256"),
        "class_names": list(data.class_names),
        "class_counts": [int(count) for count in data.class_counts],
        "n": {
            name: len(split)
            for name, split in (("train", data.train), ("val", data.val), ("test", data.test))
            if split is not None
        },
    }
