"""Shows the progress of a run: a bar on stderr, a log line per step, and optionally TensorBoard."""

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
from training.loop.interrupt import raise_if_swallowed

SMOOTHING = 0.05  # weight of a new loss in the moving average that the bar shows
DIVERGED = 1e9  # a run whose loss exceeds this never recovers
LINE_SECONDS = 10.0
"""Seconds between lines of progress when stderr is not a terminal, as in a cluster's log."""


def stage(text: str, *, quiet: bool) -> None:
    """Print `text`, the name of the run's next stage, on stderr unless `quiet`.

    Raises KeyboardInterrupt if Ctrl-C came in the last stage and had no effect.
    """
    raise_if_swallowed()
    if not quiet:
        say(text)


class Progress:
    """Collects the loss of each step, and reads the values every `flush_steps` steps.

    Reading a loss makes the CPU wait for the device, so on a GPU not every step does it.

    steps: the steps of the whole run. first_step: the step to start at; above 0 after a resume.
    batch_rows: the rows of a step, to compute rows/s. flush_steps: the steps between two reads.
    log: the file that gets a line per step; None writes none. tensorboard: the folder for
    TensorBoard's files; None writes none. quiet: show neither a bar nor lines. label: the name of
    one of several runs at the same time; they show lines that begin with it, and no bar.
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
        label: str = "",
    ) -> None:
        terminal = sys.stderr.isatty() and not label
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
        self._line_due = time.monotonic() + LINE_SECONDS if label else 0.0
        if quiet or terminal:
            self._line_due = math.inf
        self._label = f"{label}: " if label else ""
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
        """Record a finished step.

        step: its number, from 0. loss: a scalar, still on the device. rate: its learning rate.
        """
        self._waiting.append((step, rate, loss))
        if len(self._waiting) >= self._flush_steps:
            self.flush()

    def flush(self) -> None:
        """Show and log the collected steps. Raises RunFailed when a loss is not finite or huge."""
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
        """Print a line at most every LINE_SECONDS, in place of the bar."""
        now = time.monotonic()
        if now < self._line_due:
            return
        self._line_due = now + LINE_SECONDS
        say(
            f"{self._label}step {self._at:,} of {self._steps:,}, loss {self._smooth:.3f}, "
            f"{rows_a_second:,.0f} rows/s"
        )


def _has_width() -> bool:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # stderr is not a terminal, or has no file descriptor
        return False


def _opened_log(path: Path | None, first_step: int) -> Any:
    """Open the log, cut back to the steps before first_step: the later ones run again."""
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
