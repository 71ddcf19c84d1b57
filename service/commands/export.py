"""`python -m service export`: the adjusted model as one plain ONNX file, for any runtime.

The file's outputs are bit-identical to those of the service. `config.pbtxt` and `labels.txt` for
Triton are written beside it, as are the model's files of external data.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from service.commands.messages import reason_of
from service.contract.adjustment import InvalidTau, check_tau
from service.contract.bundle import (
    MANIFEST_FILE,
    MODEL_FILE,
    Bundle,
    InvalidBundle,
    is_version,
    load_bundle,
    versions,
)
from service.contract.members.body import InvalidPrior, PriorBody
from service.contract.nearest import nearest_path
from service.contract.prior import UnknownLabelFrequencies
from service.graph import baked, foreign
from service.graph.session import UnusableModel, open_graph, open_plain
from service.graph.trial import random_rows
from service.priors.names import DEFAULT
from service.priors.revisions import (
    BUILT_IN,
    InvalidReference,
    PriorDoesNotFit,
    PriorReference,
    PriorRevision,
    StoreUnavailable,
    UnknownPrior,
    parse_prior_reference,
)
from service.priors.snapshot import (
    EMPTY,
    advance,
    resolve,
    resolve_built_in,
    resolve_inline,
    resolve_stored,
)
from service.priors.store import open_store, store_url
from service.priors.store.engine import InvalidStoreUrl
from service.process.exit_codes import DONE, FAILED, WRONG_USE

CONFIG_FILE, LABELS_FILE = "config.pbtxt", "labels.txt"
MAX_BATCH_SIZE = 64
_WRONG_USE = (InvalidTau, InvalidReference, InvalidStoreUrl, InvalidPrior, UnknownPrior)
_FAILED = (
    InvalidBundle, PriorDoesNotFit, StoreUnavailable, UnknownLabelFrequencies, UnusableModel,
    foreign.UnsupportedGraph, OSError,
)  # fmt: skip
_TRITON = {
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "STRING", "bool": "BOOL",
    "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip


_LOCALE_NOTE = (
    "note     the file asks for a locale that is not installed here (en_US.UTF-8 unless it names "
    "another). The service uses C.UTF-8 instead; where the file runs, install the locale"
)


class NotExported(ValueError):
    """The model or the target cannot be exported; the message says why."""


def run(flags: argparse.Namespace, *, store: str) -> int:
    """Write the file: its path on stdout, notes on stderr. Returns 0 done, 1 failed, 2
    wrong use.
    """
    try:
        notes = export(flags, store=store)
    except (NotExported, *_WRONG_USE) as error:
        sys.stderr.write(f"priordial: {error}\n")
        return WRONG_USE
    except _FAILED as error:
        sys.stderr.write(f"priordial: {reason_of(error)}\n")
        return FAILED
    sys.stderr.write("".join(f"{note}\n" for note in notes))
    sys.stdout.write(f"{flags.out}\n")
    return DONE


def export(flags: argparse.Namespace, *, store: str) -> list[str]:
    """Write the file, Triton's files and the external data. Returns notes for the user."""
    folder = _folder(flags.model)
    _check_target(flags.out)
    bundle = load_bundle(folder)
    tau = check_tau(bundle.tau if flags.tau is None else flags.tau)
    revision = prior_of(bundle, flags.prior, store=store)
    if revision.offset is None and (tau or flags.inputs):
        raise NotExported(
            f"the label frequencies of '{bundle.name}' are unknown, so only --tau 0 without "
            "--inputs can be exported; name a prior with label_frequencies"
        )
    offset = np.zeros(len(bundle.class_names), np.float32)
    if revision.offset is not None and (tau or flags.inputs):
        offset = np.asarray(revision.offset, np.float32)
    if flags.inputs and not np.isfinite(offset).all():
        raise NotExported(
            "the prior gives a class probability 0, so its shift is infinite: leave out --inputs, "
            "or give the class a small probability"
        )
    content, names, external = _composed(folder, bundle, offset, tau, as_inputs=flags.inputs)
    out, labels = flags.out, ("\n".join(bundle.class_names) + "\n").encode()
    _check_labels(out, labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    _write(out, content)
    for name in external:
        (out.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, out.parent / name)
    found = _check(folder, bundle, out, offset=offset, tau=tau, names=names)
    config = triton_config(bundle, out, names, as_inputs=flags.inputs)
    _write(out.parent / CONFIG_FILE, config.encode())
    _write(out.parent / LABELS_FILE, labels)
    return [*_notes(bundle, revision, tau, names, external, as_inputs=flags.inputs), *found]


def _check_target(out: Path) -> None:
    """Raise NotExported for a path that cannot be a file, or that lies in a published model."""
    if out.is_dir() or not out.name:
        raise NotExported(f"--out is '{out}', which is a folder; expected a file as FOLDER/m.onnx")
    if Path(os.path.realpath(out)).is_symlink():
        raise NotExported(f"--out is '{out}', a link that leads to itself; name another file")
    if out.exists() and not out.is_file():  # the file would take the place of the device itself
        raise NotExported(
            f"--out is '{out}', a pipe, device or socket; expected the name of a file"
        )
    if out.exists() and out.suffix != ".onnx":
        raise NotExported(
            f"--out is '{out}', which exists and is not an .onnx file; name another file"
        )
    if (out.parent / MANIFEST_FILE).exists():
        raise NotExported(
            f"--out is '{out}', in the folder of a published model, which is never edited; name "
            "a file elsewhere"
        )


def prior_of(bundle: Bundle, text: str, *, store: str) -> PriorRevision:
    """The prior that `--prior` names. Raises the errors of priors and of the store."""
    if Path(text).suffix == ".json":
        try:
            body = json.loads(Path(text).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise OSError(
                f"--prior {text}: {error.strerror}; expected a JSON file, or the name of a stored "
                "prior"
            ) from None
        except ValueError as error:
            raise NotExported(
                f"--prior {text}: not JSON: {error}; expected an object with target or "
                "label_frequencies"
            ) from None
        return resolve_inline(bundle, body)
    reference = parse_prior_reference(text)
    if reference.name in BUILT_IN:
        return resolve_built_in(bundle, reference.name)
    found = _stored(bundle, reference, store) if _exists(store_url(store)) else None
    if found is not None:
        return found
    if reference.name == DEFAULT and reference.at is None:
        return resolve(bundle, DEFAULT, 0, PriorBody(), (DEFAULT, 0))
    raise UnknownPrior(
        f"no prior '{text}' of model '{bundle.name}' in the store {store}; "
        f"`priors list` shows the stored ones"
    )


def _stored(bundle: Bundle, reference: PriorReference, url: str) -> PriorRevision | None:
    with closing(open_store(url)) as held:
        held.open(create=False)
        if reference.at is not None:
            entry = held.read(bundle.name, reference.name, reference.at)
        else:
            state = advance(EMPTY, held.newest().entries).get((bundle.name, reference.name))
            entry = None if state is None else state.fitting.get(bundle.class_digest)
    return None if entry is None else resolve_stored(bundle, entry, bundle.class_digest)


def _exists(url: str) -> bool:
    """False for a SQLite file that does not exist yet, in which nothing can be stored."""
    prefix = "sqlite:///"
    return not url.startswith(prefix) or Path(url.removeprefix(prefix)).exists()


def _folder(path: Path) -> Path:
    """The folder of a version: the one that the path names, or the newest of the model it names."""
    if is_version(path.name) and not versions(path):
        return Path(os.path.realpath(path))  # unlike resolve(), it takes a loop of links
    found = versions(path)
    if not found:
        raise NotExported(
            f"{path} is not a model folder{nearest_path(path)}; expected models/NAME or "
            "models/NAME/VERSION"
        )
    return Path(os.path.realpath(path / str(found[-1])))


def _composed(
    folder: Path, bundle: Bundle, offset: Any, tau: float, *, as_inputs: bool
) -> tuple[bytes, baked.Names, list[str]]:
    import onnx

    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    external = foreign.external_files(model, folder)
    scores = bundle.output.calibration
    names = baked.bake(
        model,
        output=bundle.output.name,
        kind=bundle.output.kind,
        temperature=bundle.temperature,
        calibration=None if scores is None else (scores.scale, scores.bias),
        shift=offset,
        tau=tau,
        as_inputs=as_inputs,
    )
    held = {item.key: item for item in model.metadata_props}
    entry = held.get("class_names") or model.metadata_props.add()
    entry.key, entry.value = "class_names", json.dumps(bundle.class_names, ensure_ascii=False)
    return model.SerializeToString(), names, external


def _check(
    folder: Path, bundle: Bundle, out: Path, *, offset: Any, tau: float, names: baked.Names
) -> list[str]:
    """Compare the file with the service's own graph, bit by bit, on random rows. Returns notes."""
    import onnx

    graph = open_graph(folder, bundle, provider="cpu")
    rows = next(random_rows(bundle.input, bundle.input.shape[0] or 8, free=8))
    size = bundle.max_batch_rows or len(rows)
    mended = onnx.load(out, load_external_data=False)
    needs_other_locale = foreign.mend_locales(mended)
    plain = open_plain(out, mended.SerializeToString() if needs_other_locale else None)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        n = len(part)
        try:
            served = graph.run(
                part,
                tau=np.full(n, tau, np.float32),
                prior_index=np.zeros(n, np.int64),
                prior_table=offset[np.newaxis],
                top_k=1,
                full=True,
            )
        except Exception:  # noqa: BLE001 - rows of a free size that the graph does not take
            break
        found = plain(graph.feeds(part))
        wanted = (
            (names.probabilities, served.probabilities),
            (names.adjusted_logits, served.adjusted_logits),
            (names.class_index, served.top_index),
            (names.class_probability, served.top_probability),
        )
        for name, values in wanted:
            if values is None or not np.array_equal(found[name], values, equal_nan=True):
                raise UnusableModel(
                    f"{out}: '{name}' differs from the service's answer; report this bug"
                )
    return [_LOCALE_NOTE] if needs_other_locale else []


def triton_config(bundle: Bundle, out: Path, names: baked.Names, *, as_inputs: bool) -> str:
    """Triton's config.pbtxt: batching where the graph's batch size is free, and optional inputs."""
    specs = bundle.input.columns or (bundle.input,)
    batched = not as_inputs and bundle.input.shape[0] is None and bundle.max_batch_rows != 1
    skip = 1 if batched else 0
    classes = len(bundle.class_names)
    batch = [] if batched else [-1]
    inputs = [
        _tensor(spec.name, _TRITON[spec.dtype], [-1 if n is None else n for n in spec.shape[skip:]])
        for spec in specs
    ]
    if as_inputs:
        inputs += [
            _tensor(names.tau, "FP32", [1], "optional: true"),
            _tensor(names.shift, "FP32", [classes], "optional: true"),
        ]
    outputs = [
        _tensor(names.probabilities, "FP32", [*batch, classes], f'label_filename: "{LABELS_FILE}"'),
        _tensor(names.adjusted_logits, "FP32", [*batch, classes]),
        _tensor(names.class_index, "INT64", [*batch, 1]),
        _tensor(names.class_probability, "FP32", [*batch, 1]),
    ]
    lines = [
        f'name: "{bundle.name}"',
        'platform: "onnxruntime_onnx"',
        f'default_model_filename: "{out.name}"',
        f"max_batch_size: {(bundle.max_batch_rows or MAX_BATCH_SIZE) if batched else 0}",
        "input [\n" + ",\n".join(inputs) + "\n]",
        "output [\n" + ",\n".join(outputs) + "\n]",
        *(["dynamic_batching { }"] if batched else []),
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, datatype: str, dims: Sequence[int], more: str = "") -> str:
    parts = [
        f'name: "{name}"',
        f"data_type: TYPE_{datatype}",
        f"dims: [ {', '.join(map(str, dims))} ]",
    ]
    return "  { " + "  ".join([*parts, *([more] if more else [])]) + " }"


def _notes(
    bundle: Bundle,
    revision: PriorRevision,
    tau: float,
    names: baked.Names,
    external: Sequence[str],
    *,
    as_inputs: bool,
) -> list[str]:
    prior = "an inline prior" if revision.name is None else f"{revision.name}@{revision.revision}"
    outputs = (
        names.probabilities, names.adjusted_logits, names.class_index, names.class_probability,
    )  # fmt: skip
    notes = [
        f"model    {bundle.name} version {bundle.version}, {len(bundle.class_names)} classes",
        f"prior    {prior}, tau {tau:g}" + (" (defaults of the inputs)" if as_inputs else ""),
        f"outputs  {', '.join(outputs)}: equal to the service's, bit by bit",
        f"beside   {', '.join([CONFIG_FILE, LABELS_FILE, *external])}",
    ]
    if as_inputs:
        notes.append(f"inputs   {names.tau} [1], {names.shift} [classes]: log source − log target")
    if bundle.input.tokenizer is not None:
        notes.append("note     the file takes tokens; the caller must tokenise texts")
    if bundle.input.kind == "image":
        notes.append("note     the file takes tensors; the caller must prepare images")
    if revision.prior.costs is not None:
        notes.append("note     the file has probabilities only; the caller must decide by cost")
    if revision.prior.switch is not None:
        notes.append("note     the file has this prior only, not those that it leads to")
    return notes


def _check_labels(out: Path, labels: bytes) -> None:
    """Raise NotExported where the labels would replace those of another model, or a user's file."""
    there = out.parent / LABELS_FILE
    if there.is_file() and not out.exists() and there.read_bytes() != labels:
        raise NotExported(
            f"'{there}' exists already, with other labels; export into another folder"
        )


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary file and rename it, so that no reader sees a partial file.

    A link stays, and what it leads to is written.
    """
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
