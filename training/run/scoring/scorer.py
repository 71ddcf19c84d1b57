"""Answers blocks of rows with a published model, and estimates the class prior of all rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract.adjustment import adjust_logits, log_target_prior, softmax
from service.contract.members.costs import REJECTED
from service.contract.shift.verdict import assess, block_for
from training.data.streams.blocks import read_blocks
from training.data.streams.rows import Block, Reading, Source
from training.faults import WrongUse
from training.run.export import open_output
from training.run.published import Published, checked_tau, prior_of

if TYPE_CHECKING:
    import pyarrow as pa

ANSWERS = (
    *("file", "row", "label", "index", "probability"),
    *("unadjusted_label", "unadjusted_index", "unadjusted_probability"),
    *("top_index", "top_probability", "probabilities"),
)
"""The columns of the answers."""
DECISION = ("decision", "decision_index", "expected_cost")
"""The columns that answers have too where the prior has costs."""
ERROR = "error"
"""The column that says why a row is broken, if such rows are skipped."""
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


class Scorer:
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

    def columns(self) -> tuple[str, ...]:
        """The columns of the answers."""
        return ANSWERS if self.prior.costs is None else (*ANSWERS, *DECISION)

    def trained_columns(self) -> tuple[str, ...] | None:
        """The columns of the table that the model was trained on; None if not in model.json."""
        found = self.model.bundle.column_names
        return None if found is None else tuple(found)

    def answers(self, source: Source, block: Block) -> "pa.Table":
        """Return the answers to a block, one row each; the adjustment is in float64.

        A broken row has an empty answer. The column `error` is there if the block has such rows.
        """
        import pyarrow as pa

        rows = np.arange(len(block))
        named = {
            **block.kept,
            "file": source.names_of(block),
            "row": pa.array(rows + block.start),
        }
        found = self._answers(block.inputs)
        if block.broken:
            whole = ~np.isin(rows, list(block.broken))
            places = pa.array(whole.cumsum() - 1, mask=~whole)
            found = found.take(places)
            errors = [block.broken.get(row) for row in rows.tolist()]
            found = found.append_column(ERROR, pa.array(errors, pa.string()))
        return pa.table({**named, **dict(zip(found.column_names, found.columns, strict=True))})

    def _answers(self, inputs: NDArray[Any]) -> "pa.Table":
        """Return the answers to rows that are not broken."""
        import pyarrow as pa

        bundle = self.model.bundle
        logits = self.logits(inputs)
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
            "label": names.take(pa.array(best)),
            "index": pa.array(best),
            "probability": pa.array(probabilities[rows, best]),
            "unadjusted_label": names.take(pa.array(own)),
            "unadjusted_index": pa.array(own),
            "unadjusted_probability": pa.array(unadjusted[rows, own]),
        }
        if self.prior.costs is not None:
            decided = self.prior.costs.decide(probabilities)
            index = pa.array(decided.index, mask=decided.index == REJECTED)
            found = (names.take(index), index, pa.array(decided.expected_cost))
            columns.update(zip(DECISION, found, strict=True))
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
        if not len(inputs):
            return np.empty((0, len(bundle.class_names)))
        found = [
            self._session.run([self._output], self._feeds(inputs[start : start + 256]))[0]
            for start in range(0, len(inputs), 256)
        ]
        raw = np.concatenate(found).astype(np.float64)
        return bundle.output.logits(raw)


def estimated_prior(sources: Sequence[Source], reading: Reading, scorer: Scorer) -> dict[str, Any]:
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
    own_frequencies = not scorer.prior.calibrated and bundle.calibrated_log_source is not None
    calibration, uncalibrated = block_for(bundle.estimation, own_frequencies=own_frequencies)
    found = assess(
        held,
        temperature=bundle.temperature,
        log_source=scorer.prior.log_source,
        current=scorer.prior.target,
        calibration=calibration,
        class_frequencies=bundle.class_counts,
        uncalibrated=uncalibrated,
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
