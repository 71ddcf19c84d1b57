"""Progress of a run: a bar on stderr, a log with a line per step, and optionally TensorBoard."""

import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor
from tqdm import tqdm

from training.faults import RunFailed, WrongUse, say

SMOOTHING = 0.05  # weight of a new loss in the moving average that the bar shows
DIVERGED = 1e9  # a run whose loss is larger never recovers
LINE_SECONDS = 10.0
"""Seconds between lines of progress when stderr is not a terminal, as in a cluster's log."""


def stage(text: str, *, quiet: bool) -> None:
    """Print the next stage of the run, unless it is quiet."""
    if not quiet:
        say(text)


class Progress:
    """Collects the loss of each step, and reads the values every `flush_steps` steps.

    Reading makes the CPU wait for the device, so on a GPU it is not done at each step.

    steps: of the whole run. first_step: the first step of this process; more than 0 after a resume.
    batch_rows: rows of a step, for the rate shown. log: a file with a line for each step.
    tensorboard: a folder. quiet: show no bar.
    """

    def __init__(
        self,
        *,
        steps: int,
        first_step: int,
        batch_rows: int,
        log: Path | None,
        tensorboard: Path | None,
        flush_steps: int,
        quiet: bool,
    ) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            file=sys.stderr,
            disable=quiet or not terminal,
            # a terminal without a size, as in some containers, counts as 80 columns wide
            dynamic_ncols=_has_width(),
            ncols=None if _has_width() else 80,
            mininterval=0.5,
        )
        self._steps = steps
        self._at = first_step
        self._line_due = math.inf if quiet or terminal else 0.0
        self._batch_rows = batch_rows
        self._flush_steps = flush_steps
        self._waiting: list[tuple[int, float, Tensor]] = []
        self._smooth: float | None = None
        self._done = 0
        self._started = time.monotonic()
        self._log = _opened_log(log, first_step)
        self._board = _opened_board(tensorboard, first_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._bar.close()
            if self._log is not None:
                self._log.close()
            if self._board is not None:
                self._board.close()

    def step(self, step: int, *, loss: Tensor, rate: float) -> None:
        """Record one finished step."""
        self._waiting.append((step, rate, loss))
        if len(self._waiting) >= self._flush_steps:
            self.flush()

    def flush(self) -> None:
        """Show and write the collected steps. Raises RunFailed when a loss is not finite."""
        for step, rate, tensor in self._waiting:
            loss = float(tensor)
            if self._log is not None:
                self._log.write(json.dumps({"step": step, "loss": loss, "rate": rate}) + "\n")
            if self._board is not None:
                self._board.add_scalar("train/loss", loss, step)
                self._board.add_scalar("train/rate", rate, step)
            if not abs(loss) < DIVERGED:  # NaN compares false
                raise RunFailed(
                    f"the loss is {loss:g} at step {step}, with a learning rate of {rate:g}: "
                    "lower --lr, lengthen --warmup, or use --precision fp32"
                )
            self._smooth = (
                loss if self._smooth is None else self._smooth + SMOOTHING * (loss - self._smooth)
            )
        if self._smooth is not None and self._waiting:
            self._done += len(self._waiting)
            rows = self._batch_rows * self._done / (time.monotonic() - self._started)
            self._bar.set_postfix_str(f"loss {self._smooth:.3f}, {rows:,.0f} rows/s", refresh=False)
            self._bar.update(len(self._waiting))
            self._at += len(self._waiting)
            self._show_line(rows)
        if self._log is not None:
            self._log.flush()
        self._waiting.clear()

    def _show_line(self, rows_a_second: float) -> None:
        """Print a line every LINE_SECONDS, where there is no bar."""
        now = time.monotonic()
        if now < self._line_due:
            return
        self._line_due = now + LINE_SECONDS
        say(
            f"step {self._at:,} of {self._steps:,}, loss {self._smooth:.3f}, "
            f"{rows_a_second:,.0f} rows/s"
        )


def _has_width() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # no terminal, or a stream without a file descriptor
        return False


def _opened_log(path: Path | None, first_step: int) -> Any:
    """The log, cut back to the steps before first_step, since later steps are run again."""
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    if first_step and path.exists():
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:first_step]
    file = path.open("w", encoding="utf-8")
    file.writelines(kept)
    return file


def _opened_board(folder: Path | None, first_step: int) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise WrongUse(
            "--tensorboard needs the tensorboard extra: pip install 'priordial[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=first_step)
