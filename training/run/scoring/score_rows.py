"""Scores files of unlabelled rows with a published model, as the service would answer them.

Rows are read block by block, so that a file may be larger than memory. The answers to a block are
written to a part file under a temporary name, which is then renamed. A run that is killed loses
only its unfinished blocks, and the same command then scores only these. At the end the parts are
joined into one file.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import adjust_logits, log_target_prior, softmax
from service.contract.bundle import MANIFEST_FILE
from service.contract.shift.verdict import assess
from training.data.sources.digest import files_digest
from training.data.streams.blocks import read_blocks
from training.data.streams.find import find_sources
from training.data.streams.rows import Block, Reading, Source
from training.faults import RunFailed, WrongUse
from training.run.export import open_output
from training.run.published import Published, checked_tau, prior_of
from training.run.scoring.on_ray import SHARES_OF_A_WORKER, run_on_ray
from training.run.scoring.parts import Parts, part_of, write_part
from training.run.scoring.processes import Report, run_in_processes

if TYPE_CHECKING:
    import pyarrow as pa

ANSWERS = (
    *("file", "row", "label", "index", "probability"),
    *("unadjusted_label", "unadjusted_index", "unadjusted_probability"),
    *("top_index", "top_probability", "probabilities"),
)
"""The columns of the answers."""
MAX_ESTIMATE_CELLS = 4_000_000
"""The most logits that an estimate uses: 32 MB."""


@dataclass(frozen=True)
class Scoring:
    """What to answer for each row, and with which adjustment.

    tau: the strength of the adjustment; None takes the model's default_tau. prior: uniform,
    training, or a JSON file. top_k: how many of the best classes to write per row; 0: only the
    first. probabilities: write the probabilities of all C classes too. threads: of one graph call;
    0 lets onnxruntime decide. target: [C], replaces the prior's own target.
    """

    model: Path
    tau: float | None = None
    prior: str = "uniform"
    top_k: int = 0
    probabilities: bool = False
    threads: int = 0
    target: tuple[float, ...] | None = None


def score_rows(
    place: str,
    out: Path,
    scoring: Scoring,
    *,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    array: str | None = None,
    block_rows: int = 8192,
    workers: int = 1,
    engine: str = "processes",
    estimate_first: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Score every row that `place` names and write the answers to `out`, a Parquet file.

    columns: the features, in the model's order; None takes those that model.json names, else all
    that are neither kept nor left out. estimate_first: first read the rows to estimate their class
    prior, and answer with it if its verdict is `usable`. engine: processes of this machine, or ray,
    whose machines must all see the files under the same names. Returns counts and settings.
    Raises WrongUse for wrong arguments, BadData for rows that cannot be read, and RunFailed when
    the answers cannot be written.
    """
    scorer = _Scorer(scoring)
    sources = find_sources(place)
    _check_out(out, sources)
    _check_kept(keep)
    reading = Reading(
        spec=scorer.model.bundle.input,
        columns=_columns(columns, scorer.trained_columns()),
        keep=tuple(keep),
        leave_out=tuple(leave_out),
        array=array,
        rows=block_rows,
    )
    estimated = None
    if estimate_first:
        estimated = _estimated(sources, reading, scorer)
        if estimated["used"]:
            scoring = replace(scoring, target=tuple(estimated["candidate"].values()))
            scorer = _Scorer(scoring)
    identity = _identity(sources, reading, scorer)
    with Parts.begun(out, identity) as parts:
        skipped = parts.count()
        count = workers * SHARES_OF_A_WORKER if engine == "ray" else workers
        shares = [
            _Share(scoring, tuple(sources), reading, parts.folder, worker, count)
            for worker in range(count)
        ]
        if engine == "ray":
            run_on_ray([share.anywhere() for share in shares], workers=workers)
        elif workers == 1:
            shares[0].run(scorer, report)
        else:
            run_in_processes(shares, report)
        if _listing(sources) != identity["data"]:
            raise RunFailed(
                f"{place}: files changed while they were scored, so {parts.folder} holds answers "
                "to both; delete it, and run the command again"
            )
        of_csv = all(source.kind == ".csv" for source in sources)
        counts, changed, rows = parts.join(written=reading.keep if of_csv else ())
    names = scorer.model.bundle.class_names
    return {
        "out": str(out),
        "model": str(scoring.model),
        "tau": scorer.tau,
        "prior": scoring.prior,
        **({} if estimated is None else {"estimate": estimated}),
        "n": rows,
        "changed": changed,
        "predicted": {name: counts[index] for index, name in enumerate(names) if counts[index]},
        "resumed_blocks": skipped,
    }


def _check_out(out: Path, sources: Sequence[Source]) -> None:
    """Raise WrongUse unless the answers get a file of their own, with the name of its kind."""
    if out.suffix.lower() != ".parquet" or out.is_dir():
        kind = "is a folder" if out.is_dir() else "is written as Parquet"
        raise WrongUse(f"--out {out}: {kind}; expected a file name that ends in .parquet")
    if Path(os.path.realpath(out)).is_symlink():
        raise WrongUse(f"--out {out}: is a link that leads to itself; name another file")
    if out.exists() and not out.is_file():
        raise WrongUse(f"--out {out}: is a pipe, device or socket; expected the name of a file")
    if any(out.resolve() == source.path.resolve() for source in sources):
        raise WrongUse(
            f"--out {out}: is among the data, which it would overwrite; name another file"
        )


def _check_kept(keep: Sequence[str]) -> None:
    """Raise WrongUse for a column to keep that would take the place of one of the answers."""
    taken = next((name for name in keep if name in ANSWERS), None)
    if taken is not None:
        raise WrongUse(
            f"--keep {taken}: the answers have a column of that name themselves; rename the "
            "column in the data"
        )


def _columns(
    named: Sequence[str] | None, trained: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """The columns of the features in the model's order. Raises WrongUse for another order."""
    if not named:
        return trained
    twice = next((name for name in named if list(named).count(name) > 1), None)
    if twice is not None:
        raise WrongUse(f"--columns: names '{twice}' twice; keep one of them")
    if trained is not None and tuple(named) != trained and set(named) == set(trained):
        raise WrongUse(
            f"--columns: the model was trained on these columns in the order "
            f"{','.join(trained[:20])}; give them so, or leave out --columns"
        )
    return tuple(named)


class _Scorer:
    """An opened model with its adjustment."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self.model = Published.open(scoring.model)
        bundle = self.model.bundle
        self.tau = bundle.tau if scoring.tau is None else checked_tau(scoring.tau)
        self.prior = prior_of(bundle, scoring.prior, flag="--prior")
        if self.tau and self.prior.log_source is None:
            raise WrongUse(
                f"{scoring.model} has no class_counts, so its source prior is unknown; "
                "give --tau 0, or a --prior file with label_frequencies"
            )
        if scoring.target is not None:
            target = np.asarray(scoring.target)
            vectors = self.prior.vectors._replace(
                target=target, log_target=log_target_prior(target)
            )
            self.prior = replace(self.prior, vectors=vectors)
        self._session, self._output = open_output(
            scoring.model / "model.onnx", bundle.output.name, threads=scoring.threads
        )
        self._feeds = self.model.feeder(self._session)

    def trained_columns(self) -> tuple[str, ...] | None:
        """The columns of the table that the model was trained on; None if not in model.json."""
        found = self.model.bundle.column_names
        return None if found is None else tuple(found)

    def answers(self, source: Source, block: Block) -> "pa.Table":
        """Return the answers to a block, one row each; the adjustment is in float64."""
        import pyarrow as pa

        bundle = self.model.bundle
        logits = self.logits(block.inputs)
        unadjusted = softmax(logits / bundle.temperature)
        probabilities = unadjusted
        if self.tau:
            assert self.prior.log_source is not None
            adjusted = adjust_logits(
                logits,
                log_source_prior=self.prior.log_source,
                log_target_prior=self.prior.log_target,
                tau=self.tau,
                temperature=bundle.temperature,
            )
            probabilities = softmax(adjusted)
        names = pa.array(bundle.class_names)
        rows = np.arange(len(logits))
        best, own = probabilities.argmax(axis=1), unadjusted.argmax(axis=1)
        columns: dict[str, Any] = {
            **block.kept,
            "file": source.names_of(block),
            "row": pa.array(rows + block.start),
            "label": names.take(pa.array(best)),
            "index": pa.array(best),
            "probability": pa.array(probabilities[rows, best]),
            "unadjusted_label": names.take(pa.array(own)),
            "unadjusted_index": pa.array(own),
            "unadjusted_probability": pa.array(unadjusted[rows, own]),
        }
        if self.scoring.top_k:
            k = min(self.scoring.top_k, probabilities.shape[1])
            top = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
            columns["top_index"] = _rows_of(top)
            columns["top_probability"] = _rows_of(np.take_along_axis(probabilities, top, axis=1))
        if self.scoring.probabilities:
            columns["probabilities"] = _rows_of(probabilities)
        return pa.table(columns)

    def logits(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Compute the logits [n, C] of a block, 256 rows per graph call."""
        bundle = self.model.bundle
        found = [
            self._session.run([self._output], self._feeds(inputs[start : start + 256]))[0]
            for start in range(0, len(inputs), 256)
        ]
        raw = np.concatenate(found).astype(np.float64)
        return bundle.output.logits(raw)


def _estimated(sources: Sequence[Source], reading: Reading, scorer: _Scorer) -> dict[str, Any]:
    """Estimate the class prior of the rows, from a sample of at most MAX_ESTIMATE_CELLS logits."""
    bundle = scorer.model.bundle
    if scorer.prior.log_source is None:
        raise WrongUse(
            "--estimate needs the model's label frequencies; give a --prior file with "
            "label_frequencies, or run `training calibrate` first"
        )
    most = max(1, MAX_ESTIMATE_CELLS // len(bundle.class_names))
    rng, seen = np.random.default_rng(0), 0
    held = np.empty((0, len(bundle.class_names)))
    for source in sources:
        for _, block in read_blocks(source, reading, skip=lambda _: False):
            logits = scorer.logits(block.inputs)
            free = min(len(logits), most - len(held))
            held = np.concatenate([held, logits[:free]]) if free else held
            seen += free
            for row in logits[free:]:  # reservoir sampling: every row has the same chance
                seen += 1
                place = int(rng.integers(seen))
                if place < most:
                    held[place] = row
    if not len(held):
        raise WrongUse("the data holds no rows; expected at least one")
    measured = bundle.calibrated_log_source is not None and scorer.prior.calibrated
    found = assess(
        held,
        temperature=bundle.temperature,
        log_source=scorer.prior.log_source,
        current=scorer.prior.target,
        calibration=bundle.estimation if measured else None,
        class_frequencies=bundle.class_counts,
    )
    names, estimate = bundle.class_names, found.estimate

    def by_class(vector: Any) -> dict[str, float]:
        return dict(zip(names, vector.tolist(), strict=True))

    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "used": found.verdict == "usable",
        "n": len(held),
        "prior": by_class(estimate.prior),
        "low": by_class(estimate.low),
        "high": by_class(estimate.high),
        "candidate": by_class(found.candidate),
        "evidence": found.evidence(),
    }


def _rows_of(values: NDArray[Any]) -> "pa.Array":
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


@dataclass(frozen=True)
class _Share:
    """The blocks that one process scores: every `workers`-th block of each source."""

    scoring: Scoring
    sources: tuple[Source, ...]
    reading: Reading
    parts: Path
    worker: int
    workers: int

    def run(self, scorer: "_Scorer | None" = None, report: Report | None = None) -> None:
        """Score the blocks of this share that have no part file yet."""
        scorer = scorer or _Scorer(self.scoring)
        blocks = rows = 0
        for position, source in enumerate(self.sources):

            def skip(number: int, position: int = position) -> bool:
                mine = number % self.workers == self.worker
                return not mine or self._part(position, number).exists()

            for number, block in read_blocks(source, self.reading, skip=skip):
                write_part(scorer.answers(source, block), self._part(position, number))
                blocks, rows = blocks + 1, rows + len(block.inputs)
                if report is not None:
                    report(blocks, rows)

    def anywhere(self) -> "_Share":
        """Return the share with absolute paths, for a process with another working folder."""
        sources = tuple(
            replace(
                source,
                path=source.path.resolve(),
                files=tuple(file.resolve() for file in source.files),
            )
            for source in self.sources
        )
        scoring = replace(self.scoring, model=self.scoring.model.resolve())
        if scoring.prior not in ("uniform", "training"):
            scoring = replace(scoring, prior=str(Path(scoring.prior).resolve()))
        return replace(self, scoring=scoring, sources=sources, parts=self.parts.resolve())

    def _part(self, source: int, block: int) -> Path:
        return part_of(self.parts, source, block)


def _identity(sources: Sequence[Source], reading: Reading, scorer: _Scorer) -> dict[str, Any]:
    """Return the facts that must be equal for one run to continue another."""
    prior = scorer.prior
    adjustment = hashlib.sha256(prior.log_target.tobytes())
    adjustment.update(b"" if prior.log_source is None else prior.log_source.tobytes())
    return {
        "model": files_digest([scorer.scoring.model / MANIFEST_FILE]),
        "tau": scorer.tau,
        "prior": adjustment.hexdigest(),
        "data": _listing(sources),
        "columns": list(reading.columns or ()),
        "keep": list(reading.keep),
        "leave_out": list(reading.leave_out),
        "array": reading.array,
        "block_rows": reading.rows,
        "top_k": scorer.scoring.top_k,
        "probabilities": scorer.scoring.probabilities,
    }


def _listing(sources: Sequence[Source]) -> str:
    """Return a digest of the names, sizes and times of the files that are scored."""
    listing = hashlib.sha256()
    for file in (file for source in sources for file in (source.files or (source.path,))):
        try:
            state = file.stat()
        except OSError:  # it was deleted
            continue
        listing.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return listing.hexdigest()
