"""Checkpoints of a run, written atomically. A run continued from one gives identical results."""

import contextlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
import torch
from torch import nn

from training.faults import RunFailed, WrongUse, instead, readable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Identity: TypeAlias = Mapping[str, Any]
RandomState: TypeAlias = dict[str, Any]
FORMAT = 1
LATER: Mapping[str, Any] = {
    "adam_beta2": 0.999,
    "skip_broken": False,
    "tokens": "words",
    "penalty": None,
    "init": None,
    "freeze": (),
    "lr_of": {},
    "features_once": False,
}
"""Settings missing from older checkpoints, with the fixed values they had before."""
CHANGED: Mapping[str, str] = {
    "data_sha256": "the contents of --data have changed",
    "tokens_sha256": "the contents of the file of --tokens have changed",
}
"""The message for input files that differ from those of the checkpoint's run."""


@dataclass(frozen=True)
class RunState:
    """The parts of a run that training changes.

    The order of the data, the augmentation and the learning rate are functions of the step, so a
    checkpoint need not hold them.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


@dataclass(frozen=True)
class CheckpointFile:
    """One run's checkpoint at `path`.

    identity: the run's settings; a run continues only from a file with equal ones.
    compared: whether it is kept for `compare`, which has other flags than `fit`.
    """

    path: Path
    identity: Identity
    compared: bool = False

    @property
    def _another(self) -> str:
        return "--out" if self.compared else "--name"

    @property
    def _folder(self) -> str:
        return "--out" if self.compared else "--runs"

    @property
    def _discards(self) -> str:
        return "deleting the file" if self.compared else "--restart"

    def save(self, state: RunState, *, step: int, random_states: Sequence[RandomState]) -> None:
        """Write the state after `step` steps, atomically.

        After a power failure the file holds either the old or the new state. random_states: one per
        process, in order of rank.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "step": step,
            "network": state.network.state_dict(),
            "optimiser": state.optimiser.state_dict(),
            "scaler": state.scaler.state_dict(),
            "random": list(random_states),
        }
        staging = self.path.with_suffix(".tmp")
        try:
            with staging.open("wb") as file:
                torch.save(document, file)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's, where the disk is full
            staging.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
            raise RunFailed(
                f"{self.path}: the checkpoint of step {step} cannot be written: {reason}; make "
                f"room or give another {self._folder}"
            ) from error

    def load(self, state: RunState, *, device: torch.device, rank: int = 0) -> int:
        """Restore the saved state and return its step; 0 when there is no checkpoint.

        Raises WrongUse when the checkpoint belongs to another run, RunFailed when it cannot be
        read.
        """
        if not self.path.exists():
            return 0
        try:
            document = torch.load(self.path, map_location=device, weights_only=True)
            saved = dict(document["identity"])
        except Exception as error:  # torch raises various classes for a damaged file
            raise RunFailed(
                f"{self.path}: is not a whole checkpoint of this command{_other(self.path)}; "
                f"{self._discards} discards it and starts again from the beginning"
            ) from error
        self._check(saved)
        try:
            state.network.load_state_dict(document["network"])
            state.optimiser.load_state_dict(document["optimiser"])
        except (RuntimeError, ValueError, KeyError) as error:  # the user has edited the network
            raise WrongUse(
                f"{self.path} is the checkpoint of another network than this "
                f"{self.identity.get('network')}: {readable(error)} (undo what was changed in it, "
                f"or give another {self._another}; {self._discards} discards this checkpoint)"
            ) from error
        state.scaler.load_state_dict(document["scaler"])
        # With more processes than before, the new ones keep their fresh state.
        if rank < len(document["random"]):
            restore_random(document["random"][rank])
        return int(document["step"])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock file beside the checkpoint. Raises WrongUse when another process holds it.

        The system releases the lock when the process ends, even if it is killed.
        """
        if fcntl is None:  # not on Windows
            yield
            return
        path = self.path.with_suffix(".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = _locked_file(path, another=self._another)
        except OSError as error:
            raise RunFailed(
                f"{self.path.parent}: no checkpoint could be kept here: {error.strerror or error}; "
                f"give another {self._folder}, or make the folder writable"
            ) from error
        with file:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the checkpoint, if there is one."""
        self.path.unlink(missing_ok=True)

    def _check(self, found: Identity) -> None:
        saved = filled(found, like=self.identity)
        differing = {
            key: CHANGED.get(key)
            or f"{_flag(key)} was {_told(saved.get(key))} and is {_told(self.identity.get(key))}"
            for key in sorted({*saved, *self.identity})
            if saved.get(key) != self.identity.get(key)
        }
        if set(differing) > {"total_steps"}:
            del differing["total_steps"]  # it follows from the others
        tokens = self.identity.get("tokens_sha256")
        if tokens is not None and saved.get("tokens_sha256") == tokens:
            differing.pop("tokens", None)  # the same tokenizer in another place
        if differing:
            raise WrongUse(
                f"{self.path} is the checkpoint of another run: {'; '.join(differing.values())} "
                f"(give the same settings, or another {self._another}; {self._discards} discards "
                "this checkpoint)"
            )


def _other(path: Path) -> str:
    """Say what file is in the place of a checkpoint. A ZIP archive is one of torch's own files."""
    found = instead(path)
    return " (it was cut short, or made by another version)" if "ZIP" in found else found


def _told(value: Any) -> str:
    return "not given" if value is None else repr(value)


def _flag(key: str) -> str:
    return "the number of steps" if key == "total_steps" else f"--{key.replace('_', '-')}"


def _locked_file(path: Path, *, another: str) -> TextIO:
    """Open and lock the lock file; if its last owner has just deleted it, create a new one.

    another: the flag for a run of another place. Raises WrongUse, naming the owner's process, when
    another process holds the lock.
    """
    while True:
        file = path.open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except BlockingIOError:
            file.seek(0)
            owner = file.read(32).strip() or "unknown"
            file.close()
            raise WrongUse(
                f"{path.parent}: process {owner} is training this run; "
                f"wait until it has finished, or give another {another}"
            ) from None
        file.close()


def filled(settings: Mapping[str, Any], *, like: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an older file's settings: missing ones get the values that were fixed at that
    time.
    """
    return {key: value for key, value in LATER.items() if key in like} | dict(settings)


def random_state() -> RandomState:
    """Return the state of every random generator that a network may draw from."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - a user's network may use it
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: RandomState) -> None:
    """Restore the random generators to a state that `random_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002 - see above
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Restore every random generator on exit, so that draws inside do not affect later ones."""
    before = random_state()
    try:
        yield
    finally:
        restore_random(before)
