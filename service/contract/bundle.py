"""The folder of a published model: model.onnx, and model.json, checked."""

import codecs
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from service.contract.adjustment import MAX_TAU, MIN_TAU, Vector
from service.contract.inputs.spec import InputSpec
from service.contract.members.body import pydantic_errors
from service.contract.members.named import SLICE
from service.contract.members.sparse import SPARSE_FROM
from service.contract.portions import MAX_FAULTS, Long, Undecodable, decode, left_out, release
from service.contract.prior import OwnSource, own_source
from service.contract.shift.estimation import Estimation
from service.contract.strict import Strict
from service.contract.values import Positive, Single, Temperature, no_boolean

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "model.json"
MAX_MANIFEST_BYTES = 64 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")

PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
"""The probability used in place of 0 before taking a logarithm: 1.1754944e-38."""


class InvalidBundle(ValueError):
    """A model folder that cannot be served; the message names the file and every wrong field."""


class Calibration(Strict):
    """Turns decision scores into logits: `scale` · score + `bias`, each [C]."""

    scale: Long[Single]
    bias: Long[Single]


class OutputSpec(Strict):
    """The output of the graph that holds [batch, C] logits, probabilities or decision scores.

    Scores are not log posteriors; `calibration` turns them into logits.
    """

    name: str
    kind: Literal["logits", "probabilities", "scores"]
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "scores") != (self.calibration is not None):
            raise ValueError("kind 'scores' and calibration must be used together")
        return self

    def logits(self, values: NDArray[Any]) -> NDArray[Any]:
        """Logits [n, C] of the output's values [n, C]; a probability of 0 stays finite."""
        if self.kind == "probabilities":
            found: NDArray[Any] = np.log(np.maximum(values, PROBABILITY_FLOOR))
            return found
        if self.calibration is not None:
            scale = np.asarray(self.calibration.scale, values.dtype)
            return np.asarray(values * scale + np.asarray(self.calibration.bias, values.dtype))
        return values


class Bundle(Strict):
    """model.json, as models/README.md describes it.

    inputs: those of a graph with several, for `input.kind` "columns"; instances are objects by
    their names. max_batch_rows: the largest batch that the graph may run; 1 where its rows
    influence each other.
    """

    format_version: Annotated[Literal[1], BeforeValidator(no_boolean)]
    name: str
    version: Annotated[int, Field(ge=1, lt=10**9)]
    description: str = ""
    class_names: Annotated[Long[str], Field(min_length=2)]
    class_counts: Long[Positive] | None
    loss_tau: Annotated[float, Field(ge=0, le=MAX_TAU)]
    temperature: Temperature = 1.0
    default_tau: Annotated[float, Field(ge=0, le=MAX_TAU)] | None = None
    input: InputSpec
    inputs: Annotated[Long[InputSpec], Field(min_length=2)] | None = None
    output: OutputSpec
    max_batch_rows: Annotated[int, Field(ge=1, le=10**9)] | None = None
    files: dict[str, str]
    estimation: Estimation | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    _adjusts_with_block: bool = PrivateAttr(default=True)
    _own_source: OwnSource | None = PrivateAttr(default=None)
    _class_digest: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_model_name(self.name)
        self._check_class_names()
        if self.class_counts is not None and len(self.class_counts) != len(self.class_names):
            raise ValueError(
                f"class_counts has {len(self.class_counts)} entries; expected "
                f"{len(self.class_names)}, as many as class_names"
            )
        self._check_columns()
        calibration = self.output.calibration
        if calibration is not None and not (
            len(calibration.scale) == len(calibration.bias) == len(self.class_names)
        ):
            raise ValueError(
                f"output.calibration needs {len(self.class_names)} entries in scale and in bias"
            )
        unknown_source = (
            self.class_counts is None and self.loss_tau != 1 and self.estimation is None
        )
        if self.default_tau is None:
            object.__setattr__(self, "default_tau", 0.0 if unknown_source else 1.0)
        elif self.default_tau and unknown_source:
            raise ValueError(
                f"default_tau is {self.default_tau:g}; expected 0, since class_counts is null and "
                "loss_tau is not 1: give class_counts, or calibrate the model"
            )
        elif self.default_tau and self.default_tau < MIN_TAU:
            raise ValueError(
                f"default_tau is {self.default_tau:g}; expected 0 or at least {MIN_TAU:g}"
            )
        if MODEL_FILE not in self.files:
            raise ValueError(
                f"files does not name {MODEL_FILE}; add it with the sha256 of the file"
            )
        self._check_estimation()
        return self

    def _check_class_names(self) -> None:
        """Raise ValueError for an empty or repeated name.

        The names go into many small sets: growing a large one would copy it in a single call.
        """
        seen: list[set[str]] = [set() for _ in range(len(self.class_names) // SLICE + 1)]
        for name in self.class_names:
            if not name:
                raise ValueError("class_names has an empty name; give each class a name")
            part = seen[hash(name) % len(seen)]
            if name in part:
                raise ValueError(f"class_names has '{name}' twice; give each class its own name")
            part.add(name)

    def _check_estimation(self) -> None:
        block = self.estimation
        if block is None:
            return
        if block.num_classes != len(self.class_names):
            raise ValueError(
                f"estimation has {block.num_classes} classes, class_names {len(self.class_names)}; "
                "calibrate the model again"
            )
        if block.temperature != self.temperature:
            raise ValueError(
                f"estimation.temperature is {block.temperature:g}, and temperature "
                f"{self.temperature:g}; expected equal ones: calibrate the model again"
            )

    def _check_columns(self) -> None:
        if (self.input.kind == "columns") != (self.inputs is not None):
            raise ValueError("input.kind 'columns' and inputs must be used together")
        for column in self.inputs or []:
            if column.kind not in {"tensor", "text"} or column.tokenizer is not None:
                raise ValueError(
                    f"inputs: '{column.name}' is {column.kind}; expected tensor or text"
                )
        names = [column.name for column in self.inputs or []]
        if len(set(names)) != len(names):
            raise ValueError(
                f"inputs has a name twice: {', '.join(names)}; give each input its own name"
            )
        self.input._columns = tuple(self.inputs or ())  # noqa: SLF001 - its own room

    @property
    def column_names(self) -> list[str] | None:
        """The names of a row's columns, in the model's order; None if model.json has none.

        A model with one input keeps them in `provenance.data.columns`.
        """
        if self.inputs is not None:
            return [column.name for column in self.inputs]
        data = self.provenance.get("data")
        names = data.get("columns") if isinstance(data, dict) else None
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            return None
        return names or None

    @property
    def class_digest(self) -> str:
        """The digest of the class names in order, which identifies the class list; computed
        once.
        """
        if self._class_digest is None:
            self._class_digest = class_digest(self.class_names)
        return self._class_digest

    @property
    def calibrated_log_source(self) -> Vector | None:
        """[C] log of the measured source prior less the bias; None without an estimation block.

        Also None where a class had no validation row, or where adjusting does not use the block.
        """
        block = self.estimation
        if block is None or not block.calibrates_every_class or not self._adjusts_with_block:
            return None
        return block.log_source

    @property
    def own_source(self) -> OwnSource | None:
        """The vectors that all priors without label frequencies of their own share; computed once.

        None for a short class list, whose priors share nothing, and where class_counts hold a 0.
        """
        if self._own_source is None:
            counts = self.class_counts
            if len(self.class_names) < SPARSE_FROM or (counts is not None and not all(counts)):
                return None
            self._own_source = own_source(
                self.class_counts,
                classes=len(self.class_names),
                loss_tau=self.loss_tau,
                calibrated_log_source=self.calibrated_log_source,
            )
        return self._own_source

    def work_out(self) -> None:
        """Compute the cached values of the class list now, in this thread: 0.3 s for 10^6
        classes.
        """
        _ = self.class_digest, self.own_source

    def without_calibrated_source(self) -> Self:
        """A copy of this model that is adjusted with its class_counts instead of the estimation
        block.
        """
        plain = self.model_copy()
        plain._adjusts_with_block = False  # noqa: SLF001 - of its own class
        plain._own_source = None  # noqa: SLF001 - of its own class
        return plain

    @property
    def tau(self) -> float:
        """The tau for requests that name none."""
        assert self.default_tau is not None
        return self.default_tau


def class_digest(class_names: list[str]) -> str:
    """sha256 of the class names in output order, as a JSON list, which is made in slices."""
    found = hashlib.sha256(b"[")
    for at in range(0, len(class_names), SLICE):
        part = json.dumps(class_names[at : at + SLICE], ensure_ascii=False)[1:-1]
        found.update((", " if at else "").encode() + part.encode())
    found.update(b"]")
    return found.hexdigest()


def check_model_name(name: str) -> str:
    """Return the name if it is safe as a folder, in a URL and as a metric label.

    Raises ValueError otherwise.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' is not a model name; expected letters, digits, '.', '_', '-', at most 64"
        )
    return name


def is_version(folder_name: str) -> bool:
    """Whether a folder's name is a version: 1, 2, 3 … without leading zeros."""
    return _VERSION.fullmatch(folder_name) is not None


def versions(model_folder: Path) -> list[int]:
    """The versions published in a model's folder, oldest first; none if there is no such folder.

    A link that leads nowhere or to itself counts, so that its load says what is wrong with it.
    Raises OSError for a folder that cannot be listed.
    """
    try:
        found = [
            entry.name
            for entry in model_folder.iterdir()
            if is_version(entry.name) and (entry.is_dir() or _leads_nowhere(entry))
        ]
    except NotADirectoryError:
        return []
    except FileNotFoundError:
        if _leads_nowhere(model_folder):
            raise
        return []
    return sorted(map(int, found))


def _leads_nowhere(entry: Path) -> bool:
    """Whether an entry of a folder is a link whose target is missing, or which leads to itself."""
    return entry.is_symlink() and not entry.exists()


def models_of(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return (the versions of each model that has one, why a model's folder cannot be listed).

    Both are by model name, and empty for a folder that is missing or cannot be listed.
    """
    found: dict[str, list[int]] = {}
    unreadable = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return {}, {}
    for entry in entries:
        try:
            found[entry.name] = versions(entry)
        except OSError as error:
            if _NAME.fullmatch(entry.name):  # lost+found of a mounted disk, for one, is not a model
                link = f", a link to '{entry.readlink()}'" if entry.is_symlink() else ""
                unreadable[entry.name] = (
                    f"{entry}{link}: {error.strerror}; expected a folder that this user can read"
                )
    return {name: numbers for name, numbers in found.items() if numbers}, unreadable


def misplaced(folder: Path) -> list[str]:
    """Describe each model file that does not lie in NAME/VERSION and is therefore not served.

    It lies in the model's own folder, or in one whose name is not a version number. Hidden folders
    are left out: a model that is being published lies in one.
    """
    reasons = []
    for file in (MANIFEST_FILE, MODEL_FILE):
        for found in sorted(folder.glob(f"[!.]*/{file}")):
            right = found.parent / "1" / file
            reasons.append(f"'{found}' is in the folder of no version; expected '{right}'")
        for found in sorted(folder.glob(f"[!.]*/[!.]*/{file}")):
            reason = f"'{found.parent}' is not named as a version is; expected 1, 2, 3 …"
            if not is_version(found.parent.name) and reason not in reasons:
                reasons.append(reason)
    return reasons


def parse_bundle(text: str | bytes, *, where: str = MANIFEST_FILE) -> Bundle:
    """Validate the text of a model.json. Raises InvalidBundle naming every wrong field."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    raw = raw.removeprefix(codecs.BOM_UTF8)  # Windows' editors write it before UTF-8
    document = None
    try:
        document = decode(raw)
        return Bundle.model_validate(document)
    except Undecodable as error:
        raise InvalidBundle(f"{where}: {error}") from None
    except ValidationError as error:
        found, more = pydantic_errors(error), left_out(error)
        shown = [f"{name}: {message}" if name else message for name, message in found[:MAX_FAULTS]]
        more += max(0, len(found) - MAX_FAULTS)
        if more:
            shown.append(f"and {more} more faults")
        raise InvalidBundle(f"{where}: {'; '.join(shown)}") from None
    finally:
        release(document)


def load_bundle(folder: Path) -> Bundle:
    """Read and verify models/<name>/<version>: the manifest, that it fits its path, and every
    file's sha256.
    """
    manifest = folder / MANIFEST_FILE
    try:
        if manifest.exists() and not manifest.is_file():  # a pipe would never be read to its end
            raise InvalidBundle(f"{manifest}: not a file; expected a JSON file of that name")
        if manifest.stat().st_size > MAX_MANIFEST_BYTES:
            raise InvalidBundle(
                f"{manifest}: larger than {MAX_MANIFEST_BYTES} bytes, the most that is read; "
                "publish the model again"
            )
        bundle = parse_bundle(manifest.read_bytes(), where=str(manifest))
    except OSError as error:
        if _leads_nowhere(folder):
            raise InvalidBundle(
                f"{folder}: a link to '{folder.readlink()}', which leads to no folder; link it "
                "to a published version, or remove it"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise InvalidBundle(
                f"{folder}: has no {MANIFEST_FILE}; publish the model with `priordial import "
                "FILE.onnx`, which writes it"
            ) from error
        raise InvalidBundle(
            f"{manifest}: {error.strerror}; expected a file that this user can read"
        ) from error
    if (bundle.name, str(bundle.version)) != (folder.parent.name, folder.name):
        raise InvalidBundle(
            f"{manifest}: names {bundle.name} version {bundle.version}, but is in the folder "
            f"{folder.parent.name}/{folder.name}; rename the folder, or publish the model again"
        )
    for name, digest in bundle.files.items():
        try:
            found = sha256_of(inside(folder, name))
        except OSError as error:
            raise InvalidBundle(
                f"{folder / name}: {error.strerror}; expected a file that this user can read"
            ) from error
        if found != digest.lower():
            raise InvalidBundle(
                f"{folder / name}: its sha256 is not that of {MANIFEST_FILE}, so the file was "
                "changed or cut short; copy the whole folder again"
            )
    return bundle


def inside(folder: Path, name: str) -> Path:
    """Return folder/name with links followed.

    Raises InvalidBundle when that lies outside the folder or is not a file.
    """
    path = Path(os.path.realpath(folder / name))  # unlike resolve(), it takes a loop of links
    if not path.is_relative_to(os.path.realpath(folder)):
        raise InvalidBundle(
            f"{folder}: '{name}' leaves the folder; expected a path to a file within it"
        )
    if not path.is_file():
        raise InvalidBundle(f"{folder}: '{name}' is missing; copy the whole folder again")
    return path


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
