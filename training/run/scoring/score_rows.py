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
from typing import Any

from service.contract.bundle import MANIFEST_FILE
from training.data.sources.digest import files_digest
from training.data.streams.blocks import read_blocks
from training.data.streams.find import find_sources
from training.data.streams.rows import Reading, Source
from training.faults import RunFailed, WrongUse
from training.run.scoring.on_ray import SHARES_OF_A_WORKER, run_on_ray
from training.run.scoring.parts import Parts, part_of, write_part
from training.run.scoring.processes import Report, run_in_processes
from training.run.scoring.scorer import ERROR, Scorer, Scoring, estimated_prior


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
    skip_broken: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Score every row that `place` names and write the answers to `out`, a Parquet file.

    columns: the features, in the model's order; None takes those that model.json names, else all
    that are neither kept nor left out. estimate_first: first read the rows to estimate their class
    prior, and answer with it if its verdict is `usable`. engine: processes of this machine, or ray,
    whose machines must all see the files under the same names. skip_broken: give a row that cannot
    be read an empty answer, and the reason in the column `error`. Returns counts and settings.
    Raises WrongUse for wrong arguments, BadData for a row that cannot be read, or with skip_broken
    if none can be, and RunFailed when the answers cannot be written.
    """
    scorer = Scorer(scoring)
    sources = find_sources(place)
    _check_out(out, sources)
    _check_kept(keep, (*scorer.columns(), ERROR) if skip_broken else scorer.columns())
    features = _columns(columns, scorer.trained_columns())
    taken = next((name for name in leave_out if name in (features or ())), None)
    if taken is not None:
        raise WrongUse(
            f"--leave-out {taken}: the model takes this column; leave out the flag, or name the "
            "features with --columns"
        )
    reading = Reading(
        spec=scorer.model.bundle.input,
        columns=features,
        keep=tuple(keep),
        leave_out=tuple(leave_out),
        array=array,
        rows=block_rows,
        skip_broken=skip_broken,
    )
    estimated = None
    if estimate_first:
        estimated = estimated_prior(sources, reading, scorer)
        if estimated["used"]:
            scoring = replace(scoring, target=tuple(estimated["candidate"].values()))
            scorer = Scorer(scoring)
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
        joined = parts.join(written=reading.keep if of_csv else (), errors=skip_broken)
    names = scorer.model.bundle.class_names
    return {
        "out": str(out),
        "model": str(scoring.model),
        "tau": scorer.tau,
        "prior": scoring.prior,
        **({} if estimated is None else {"estimate": estimated}),
        "n": joined.rows,
        "changed": joined.changed,
        "predicted": {
            name: joined.predicted[index]
            for index, name in enumerate(names)
            if joined.predicted[index]
        },
        **({"broken": joined.broken, "first_broken": joined.first_broken} if skip_broken else {}),
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


def _check_kept(keep: Sequence[str], answers: Sequence[str]) -> None:
    """Raise WrongUse for a column to keep that would take the place of one of the answers."""
    taken = next((name for name in keep if name in answers), None)
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


@dataclass(frozen=True)
class _Share:
    """The blocks that one process scores: every `workers`-th block of each source."""

    scoring: Scoring
    sources: tuple[Source, ...]
    reading: Reading
    parts: Path
    worker: int
    workers: int

    def run(self, scorer: "Scorer | None" = None, report: Report | None = None) -> None:
        """Score the blocks of this share that have no part file yet."""
        scorer = scorer or Scorer(self.scoring)
        blocks = rows = 0
        for position, source in enumerate(self.sources):

            def skip(number: int, position: int = position) -> bool:
                mine = number % self.workers == self.worker
                return not mine or self._part(position, number).exists()

            for number, block in read_blocks(source, self.reading, skip=skip):
                write_part(scorer.answers(source, block), self._part(position, number))
                blocks, rows = blocks + 1, rows + len(block)
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


def _identity(sources: Sequence[Source], reading: Reading, scorer: Scorer) -> dict[str, Any]:
    """Return the facts that must be equal for one run to continue another.

    One fact may differ: a continued run may begin to skip broken rows (`parts.WIDENED`).
    """
    prior = scorer.prior
    adjustment = hashlib.sha256(prior.log_target.tobytes())
    adjustment.update(b"" if prior.log_source is None else prior.log_source.tobytes())
    if prior.costs is not None:
        adjustment.update(prior.costs.digest())
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
        "skip_broken": reading.skip_broken,
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
