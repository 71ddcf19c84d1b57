"""Scores files of unlabelled rows with a published model, as the service would answer them.

Rows are read block by block, so that a file may be larger than memory. The answers to a block are
written to a part file under a temporary name, which is then renamed. A run that is killed loses
only its unfinished blocks, and the same command then scores only these. At the end the parts are
joined into one file.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import adjust_logits, log_target_prior, softmax
from service.contract.shift.verdict import assess
from training.data import stream
from training.faults import Fault, RunFailed, WrongUse
from training.run.export import open_output
from training.run.published import Published, checked_tau, prior_of
from training.run.scoring.on_ray import SHARES_OF_A_WORKER, run_on_ray

if TYPE_CHECKING:
    import pyarrow as pa

RUN_FILE = "run.json"
MAX_ESTIMATE_CELLS = 4_000_000
"""The most logits that an estimate uses: 32 MB."""
Report = Callable[[int, int], None]
"""A function that is called with the numbers of blocks and rows done so far."""


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
    sources = stream.find(place)
    _check_out(out, sources)
    reading = stream.Reading(
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
    parts = out.with_name(out.name + ".parts")
    skipped = _begin(parts, _identity(sources, reading, scorer))
    count = workers * SHARES_OF_A_WORKER if engine == "ray" else workers
    shares = [
        _Share(scoring, tuple(sources), reading, parts, worker, count) for worker in range(count)
    ]
    try:
        if engine == "ray":
            run_on_ray([share.anywhere() for share in shares], workers=workers)
        elif workers == 1:
            shares[0].run(scorer, report)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(_Share.run, shares))
        counts, changed, rows = _join(parts, out)
    except OSError as error:
        raise RunFailed(
            f"{out}: cannot be written: {error.strerror}; {parts} keeps what is done, "
            "and the same command resumes from there"
        ) from error
    except Fault:  # what is wrong with the rows or the model may show in the first block only
        if not any(parts.glob("*.parquet")):
            shutil.rmtree(parts, ignore_errors=True)
        raise
    shutil.rmtree(parts)
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


def _check_out(out: Path, sources: Sequence[stream.Source]) -> None:
    """Raise WrongUse unless the answers get a file of their own, with the name of its kind."""
    if out.suffix.lower() != ".parquet" or out.is_dir():
        kind = "is a folder" if out.is_dir() else "is written as Parquet"
        raise WrongUse(f"--out {out}: {kind}; expected a file name that ends in .parquet")
    if any(out.resolve() == source.path.resolve() for source in sources):
        raise WrongUse(
            f"--out {out}: is among the data, which it would overwrite; name another file"
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

    def answers(self, source: stream.Source, block: stream.Block) -> "pa.Table":
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
            "file": list(block.names) if block.names else [source.path.name] * len(rows),
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


def _estimated(
    sources: Sequence[stream.Source], reading: stream.Reading, scorer: _Scorer
) -> dict[str, Any]:
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
        for _, block in stream.blocks(source, reading, skip=lambda _: False):
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
    sources: tuple[stream.Source, ...]
    reading: stream.Reading
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

            for number, block in stream.blocks(source, self.reading, skip=skip):
                _write(scorer.answers(source, block), self._part(position, number))
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
        return self.parts / f"{source:06d}-{block:08d}.parquet"


def _write(table: "pa.Table", target: Path) -> None:
    """Write a part file atomically."""
    from pyarrow import parquet

    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    parquet.write_table(table, temporary)
    temporary.rename(target)


def _identity(
    sources: Sequence[stream.Source], reading: stream.Reading, scorer: _Scorer
) -> dict[str, Any]:
    """Return the facts that must be equal for one run to continue another."""
    files = [file for source in sources for file in (source.files or (source.path,))]
    listing = hashlib.sha256()
    for file in files:
        state = file.stat()
        listing.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    prior = scorer.prior
    adjustment = hashlib.sha256(prior.log_target.tobytes())
    adjustment.update(b"" if prior.log_source is None else prior.log_source.tobytes())
    return {
        "model": scorer.model.bundle.files,
        "tau": scorer.tau,
        "prior": adjustment.hexdigest(),
        "data": listing.hexdigest(),
        "columns": list(reading.columns or ()),
        "keep": list(reading.keep),
        "leave_out": list(reading.leave_out),
        "array": reading.array,
        "block_rows": reading.rows,
        "top_k": scorer.scoring.top_k,
        "probabilities": scorer.scoring.probabilities,
    }


def _begin(parts: Path, identity: dict[str, Any]) -> int:
    """Make the folder of parts, or reuse that of a stopped run; return its finished blocks' number.

    Raises WrongUse when the stopped run had other settings.
    """
    record = parts / RUN_FILE
    if record.exists():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [name for name, value in identity.items() if before.get(name) != value]
        if changed:
            raise WrongUse(
                f"{parts} holds a stopped run with other {' and '.join(changed)}; "
                "delete it to start again"
            )
        for leftover in parts.glob(".*.parquet.*"):
            leftover.unlink()
        return len(list(parts.glob("*.parquet")))
    try:
        parts.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(identity), encoding="utf-8")
    except OSError as error:
        raise RunFailed(
            f"{parts}: cannot be written: {error.strerror}; make room, or give another --out"
        ) from error
    return 0


def _join(parts: Path, out: Path) -> tuple[Counter[int], int, int]:
    """Join the parts to one file, in order.

    Returns (predictions by class, decisions that differ from tau 0, rows).
    """
    from pyarrow import parquet

    counts: Counter[int] = Counter()
    changed = rows = 0
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    writer = None
    for part in sorted(parts.glob("*.parquet")):
        table = parquet.read_table(part)
        index = table.column("index").to_numpy()
        counts.update(index.tolist())
        changed += int((index != table.column("unadjusted_index").to_numpy()).sum())
        rows += table.num_rows
        if writer is None:
            writer = parquet.ParquetWriter(temporary, table.schema)
        writer.write_table(table)
    if writer is None:
        raise WrongUse("the data holds no rows; expected at least one")
    writer.close()
    temporary.rename(out)
    return counts, changed, rows
