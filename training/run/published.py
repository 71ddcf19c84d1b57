"""Runs published models in onnxruntime, and scores them on any split."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import InvalidTau, Vector, check_tau, log_source_prior
from service.contract.bundle import MANIFEST_FILE, Bundle, InvalidBundle, load_bundle
from service.contract.inputs.columns import fields, float_names, float_rows
from service.contract.inputs.familiarity import MEASURED_ROWS, InputStatistics, measure
from service.contract.inputs.tokens import TokenizerUnusable, Tokens
from service.contract.members.body import InvalidPrior, PriorBody, parse_prior
from service.contract.prior import Prior, UnknownLabelFrequencies, resolve_prior
from training.data.dataset import Dataset, ImageSpec, Known, Split, counts_of
from training.data.feed import graph_inputs
from training.data.image_files import ImageFiles
from training.data.long_tail import shifted_rows
from training.data.problems import long_texts
from training.data.sources import load as sources
from training.data.splits import set_aside_validation
from training.faults import BadData, WrongUse, nearest_class, say
from training.run.export import open_output, run_session
from training.scores.evaluate import score


@dataclass(frozen=True)
class Published:
    """A published model whose files match the checksums in model.json."""

    folder: Path
    bundle: Bundle

    @classmethod
    def open(cls, folder: Path) -> "Published":
        """Open models/<name>/<version>.

        Raises WrongUse when there is no such folder, BadData when it is not a complete model.
        """
        if not folder.is_dir():
            raise WrongUse(f"{folder}: no such model folder; expected models/<name>/<version>")
        if not (folder / MANIFEST_FILE).exists():
            inside = sorted(str(file.parent) for file in folder.glob(f"*/{MANIFEST_FILE}"))
            offered = f"; is {inside[-1]} meant?" if inside else ""
            raise WrongUse(
                f"{folder}: is not a model folder, since it has no {MANIFEST_FILE}; expected "
                f"models/<name>/<version>{offered}"
            )
        try:
            return cls(folder, load_bundle(folder.resolve()))
        except InvalidBundle as error:
            raise BadData(str(error)) from error

    @property
    def num_classes(self) -> int:
        """The number of classes, C."""
        return len(self.bundle.class_names)

    def log_source_prior(self) -> Vector | None:
        """The log source prior [C] with which the service adjusts.

        It is the measured one if there is one, else that of training; None if neither is known.
        """
        measured = self.bundle.calibrated_log_source
        return self.training_source_prior() if measured is None else measured

    def training_source_prior(self) -> Vector | None:
        """[C] log sigma as training implies it; None if the model has no class_counts."""
        counts = self.bundle.class_counts
        if counts is None:
            return np.zeros(self.num_classes) if self.bundle.loss_tau == 1 else None
        return log_source_prior(counts, loss_tau=self.bundle.loss_tau)

    def logits(self, data: Dataset, split: Split, *, threads: int = 0) -> NDArray[np.float32]:
        """Return the raw logits [N, C] of a split; the log of the output if it is probabilities."""
        output = self.bundle.output
        session, name = open_output(self.folder / "model.onnx", output.name, threads=threads)
        feeds = self.feeder(session)
        batches = (feeds(rows) for rows in self._inputs(data, split))
        return output.logits(run_session(session, batches, output=name))

    def statistics(self, data: Dataset, split: Split) -> InputStatistics | None:
        """Compute mean and spread of a split's float inputs; None if there are none."""
        names = float_names(self.bundle.input)
        if not names:
            return None
        rows = np.unique(np.linspace(0, len(split) - 1, MEASURED_ROWS).astype(np.int64))
        measured = [float_rows(batch, names) for batch in self._inputs(data, split.take(rows))]
        return measure(np.concatenate(measured), layout=self.bundle.input.layout)

    def feeder(self, session: Any) -> Callable[[NDArray[Any]], dict[str, NDArray[Any]]]:
        """A function from rows to the graph's inputs by name. Raises WrongUse."""
        spec = self.bundle.input
        if spec.tokenizer is not None:
            dtypes = {
                i.name: "int32" if "int32" in i.type else "int64" for i in session.get_inputs()
            }
            try:
                return Tokens(self.folder, spec.tokenizer, dtypes)
            except TokenizerUnusable as error:
                raise WrongUse(str(error)) from error
        return lambda rows: {spec.name: rows} if rows.dtype.names is None else fields(rows)

    @property
    def known(self) -> Known:
        """Return the facts about the model's inputs that are needed to read data for it."""
        data = self.bundle.provenance.get("data") or {}
        spec, names = self.bundle.input, self.bundle.column_names
        return Known(
            tuple(self.bundle.class_names),
            tuple(names) if names is not None and spec.kind in {"tensor", "columns"} else None,
            data.get("sha256"),
            spec.columns,
            spec.missing,
            spec.kind == "text",
        )

    def rows(self, spec: str, *, split: str | None, quiet: bool = False) -> tuple[Dataset, Split]:
        """Load rows to score, with labels in the order of this model's classes.

        split: train, val or test. None takes the test rows; if the data has none and the model was
        not trained on it, all rows. quiet: do not say what was noticed in the data. Raises WrongUse
        when there are no such rows, or the rows or their classes do not fit the model.
        """
        settings = self.bundle.provenance.get("settings") or {}
        seed = self.bundle.provenance.get("seed") or 0
        data = sources.load(spec, seed=seed, known=self.known)
        for note in () if quiet else data.notes:
            say(f"{spec}: {note}")
        own = data.origin.get("sha256") in (None, self.known.sha256)
        if split is None and data.whole is not None and not own:
            return data, self._fitting(spec, data, data.whole, quiet=quiet)
        if split == "val" and own and self.bundle.provenance.get("refit"):
            raise WrongUse(
                f"{spec}: the model was trained again on all rows, so none of its validation rows "
                "is left; give labelled rows that it has not seen, or fit it with --no-refit"
            )
        if split == "val" and data.labelled:
            data = set_aside_validation(
                data, per_class=settings.get("validation_per_class"), seed=seed
            )
        found = {"train": data.train, "val": data.val, "test": data.test}[split or "test"]
        if found is None and split is None and not own:
            found = data.val or data.train
        if found is None or not len(found):
            raise WrongUse(f"{spec}: has no {split or 'test'} rows{_offered(data)}")
        return data, self._fitting(spec, data, found, quiet=quiet)

    def say_which(self, data: Dataset, rows: Split, *, split: str | None) -> None:
        """Say that all rows of new data are used, if `rows` chose them."""
        if split is None and data.whole is not None and len(rows) == len(data.whole):
            say(f"{data.spec}: using all {len(rows):,} rows, as no split is named")

    def _fitting(self, spec: str, data: Dataset, rows: Split, *, quiet: bool) -> Split:
        """The rows with the labels of this model; says which texts the service would refuse."""
        for note in () if quiet else long_texts(data.kind, "chosen", rows):
            say(f"{spec}: {note}")
        return self._own_classes(spec, data, rows)

    def _own_classes(self, spec: str, data: Dataset, split: Split) -> Split:
        if not data.labelled:
            return split
        position = {name: index for index, name in enumerate(self.bundle.class_names)}
        unknown = [name for name in data.class_names if name not in position]
        if unknown:
            raise WrongUse(
                f"{spec}: class '{unknown[0]}' is not one of the model's ({len(unknown)} like it)"
                f"{nearest_class(unknown[0], self.bundle.class_names)}{_numbered(spec, unknown)}"
            )
        return Split(
            split.inputs, np.array([position[name] for name in data.class_names])[split.labels]
        )

    def _inputs(self, data: Dataset, split: Split) -> Iterator[NDArray[Any]]:
        spec = self.bundle.input
        image = self._image(data)
        if image is not None and isinstance(split.inputs, ImageFiles):
            split = Split(replace(split.inputs, spec=image), split.labels)
        for batch in graph_inputs(split, image):
            own, wanted = batch.shape[1:], spec.shape[1:]
            if len(own) != len(wanted) or any(
                size not in (None, found) for size, found in zip(wanted, own, strict=True)
            ):
                raise WrongUse(f"{data.spec}: a row is {list(own)}; the model takes {wanted}")
            plain = batch.dtype.kind in "OV"
            yield batch if plain else batch.astype(spec.dtype, copy=False)

    def _image(self, data: Dataset) -> ImageSpec | None:
        spec = self.bundle.input
        if spec.kind != data.kind:
            raise WrongUse(f"the model takes {spec.kind} input; {data.spec} holds {data.kind} rows")
        if spec.kind != "image":
            return None
        assert spec.size is not None
        assert spec.color is not None
        assert spec.resize is not None
        channels = 1 if spec.color == "L" else 3
        return ImageSpec(
            size=(spec.size[0], spec.size[1]),
            color=spec.color,
            resize=spec.resize,
            mean=tuple(spec.mean or [0.0] * channels),
            std=tuple(spec.std or [1.0] * channels),
            resample=spec.resample,
            fill=spec.fill,
            scale=spec.scale,
        )


def _numbered(spec: str, unknown: list[str]) -> str:
    """What to do about labels that are positions in a list of classes, as arrays often have."""
    if not (spec.startswith("npz:") and all(name.isdecimal() for name in unknown)):
        return ""
    return "; if the labels number the classes from 0, add their names as the array class_names"


def evaluate(
    folder: Path,
    spec: str,
    *,
    split: str | None = None,
    tau: float | None = None,
    target: str = "uniform",
    threads: int = 0,
) -> dict[str, Any]:
    """Score a published model on a split; return the scores with model, split, target and tau.

    If the source prior is unknown, `at_tau` has no numbers at 1.

    split: as in `Published.rows`. tau: the model's default_tau if None. target: `uniform`;
    `training` (the model's own counts); a JSON file with a target or a whole prior; `forward-K` or
    `backward-K`, which resamples the split to a long tail of ratio K and adjusts to that target.
    threads: 0 lets onnxruntime decide. Raises WrongUse when the data or the target does not fit.
    """
    model = Published.open(folder)
    data, rows = model.rows(spec, split=split)
    model.say_which(data, rows, split=split)
    if not data.labelled:
        raise WrongUse(f"{spec}: has no labels, so it cannot be scored; use `training estimate`")
    used = model.bundle.tau if tau is None else checked_tau(tau)
    rows, log_target, log_source = _target(model, rows, target)
    only_unadjusted = log_source is None
    if log_source is None:
        if used:
            raise WrongUse(
                f"{folder} has no class_counts, so its source prior is unknown; give --tau 0"
            )
        log_source = np.zeros(model.num_classes)
    scores = score(
        model.logits(data, rows, threads=threads),
        rows.labels,
        log_source_prior=log_source,
        temperature=model.bundle.temperature,
        chosen_tau=used,
        train_class_counts=model.bundle.class_counts,
        log_target_prior=log_target,
    )
    if only_unadjusted:
        del scores["at_tau"]["1"]
    return {
        "bundle": str(folder),
        "data": spec,
        "split": split or "test",
        "target": target,
        "tau": used,
        **scores,
    }


def _offered(data: Dataset) -> str:
    """Return a hint that names the splits of the data."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    there = [
        f"--split {name}" for name, split in splits.items() if split is not None and len(split)
    ]
    return f"; it has {', '.join(there)}" if there else ""


def checked_tau(tau: float) -> float:
    """The tau of a flag. Raises WrongUse."""
    try:
        return check_tau(tau)
    except InvalidTau as error:
        raise WrongUse(f"--tau: {error}") from error


def _target(model: Published, rows: Split, target: str) -> tuple[Split, Vector, Vector | None]:
    """Return the rows to score, log rho [C] of the target, and log sigma [C] or None."""
    direction, _, ratio = target.partition("-")
    if direction in ("forward", "backward") and ratio:
        return _shifted(model, rows, direction, ratio)
    prior = prior_of(model.bundle, target)
    if prior.costs is not None:
        say(
            f"--target {target}: the scores are of the most probable class and leave out the "
            "prior's costs; `training score` has the decisions by cost"
        )
    return rows, prior.log_target, prior.log_source


def prior_of(bundle: Bundle, target: str, *, flag: str = "--target") -> Prior:
    """Return the prior that a flag names.

    target: uniform, training, or a JSON file of a target or a whole prior. flag: for messages.
    Raises WrongUse when the file cannot be read or does not fit the model, or has a context or
    schedule.
    """
    body: dict[str, Any] = {"target": target}
    if target not in ("uniform", "training"):
        body = _read_prior(Path(target), flag=flag)
    try:
        prior = resolve_prior(
            parse_prior(body),
            class_names=bundle.class_names,
            class_counts=bundle.class_counts,
            loss_tau=bundle.loss_tau,
            calibrated_log_source=bundle.calibrated_log_source,
        )
    except (InvalidPrior, UnknownLabelFrequencies) as error:
        raise WrongUse(f"{flag} {target}: {error}") from error
    if prior.switch is not None:
        raise WrongUse(
            f"{flag} {target}: its context or schedule leads to other stored priors, which only "
            "the service has; give the prior that applies to these rows, or leave out context and "
            "schedule to use this one"
        )
    return prior


def _shifted(
    model: Published, rows: Split, direction: str, ratio: str
) -> tuple[Split, Vector, Vector | None]:
    try:
        k = float(ratio)
    except ValueError:
        k = 0.0
    if not 1 <= k < math.inf:
        raise WrongUse(
            f"--target {direction}-{ratio}: expected {direction}-K with K of at least 1, as in "
            f"{direction}-25"
        )
    if model.bundle.class_counts is None:
        raise WrongUse(
            f"--target {direction}-{ratio}: the model has no class_counts to rank its classes; "
            "give uniform or a JSON file"
        )
    counts = np.asarray(model.bundle.class_counts)
    absent = np.flatnonzero(counts_of(rows.labels, model.num_classes) == 0)
    if len(absent):
        raise WrongUse(
            f"--target {direction}-{ratio}: {len(absent)} of {model.num_classes} classes have no "
            f"row in this split (the first is '{model.bundle.class_names[absent[0]]}'), so it "
            "cannot be resampled to that mix; give rows of every class, or another target"
        )
    kept = rows.take(shifted_rows(rows.labels, direction=direction, ratio=k, class_counts=counts))
    own = counts_of(kept.labels, model.num_classes)
    return kept, np.log(own / own.sum()), model.log_source_prior()


def _read_prior(path: Path, *, flag: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        shifted = "forward-K, backward-K " if flag == "--target" else ""
        raise WrongUse(
            f"{flag} {path}: {error.strerror}; expected uniform, training, {shifted}or a JSON file"
        ) from error
    except ValueError as error:
        raise WrongUse(
            f"{flag} {path}: is not JSON: {error}; expected an object by class name, or a prior"
        ) from error
    whole = isinstance(content, dict) and any(  # a number is the value of a class of that name
        name in content and not isinstance(content[name], (int, float))
        for name in PriorBody.model_fields
    )
    return content if whole else {"target": content}
