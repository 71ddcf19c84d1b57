"""Implements `priordial import --validation`: publishes an imported model with its calibration.

The service imports a model, and the training package calibrates it. Both work in a temporary
folder, so that the model is published once, with its calibration.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from service.__main__ import main as serve
from service.__main__ import make_parser
from service.contract.bundle import load_bundle
from service.contract.next_steps import to_serve
from service.contract.publication import publish


def import_and_calibrate(given: Sequence[str]) -> int:
    """Run `import …` with `--validation SPEC` among its flags. Returns an exit status."""
    from training.__main__ import run

    rest, spec = _taken(given)
    wanted = make_parser("priordial").parse_known_args(rest)[0]
    with tempfile.TemporaryDirectory(prefix="priordial-import-") as folder:
        imported, notes = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(imported), contextlib.redirect_stderr(notes):
            status = serve([*rest, "--models", folder], prog="priordial")
        first = imported.getvalue().strip()
        reported = (
            "" if status else to_serve(Path(first))
        )  # made now, because the folder is temporary
        sys.stderr.write(notes.getvalue().replace(reported, "") if reported else notes.getvalue())
        if status:
            return status
        answer = io.StringIO()
        with contextlib.redirect_stdout(answer):
            calibrate = ["calibrate", first, "--data", spec_of(spec), "--json"]
            status = run(calibrate, prog="priordial import --validation")
        if status:
            return status
        found = json.loads(answer.getvalue())
        written = _published(Path(found["bundle"]), wanted.models)
    sys.stderr.write(
        f"calibrated on {found['rows']:,} rows: {found['calibration']}, "
        f"temperature {found['temperature']:.3g}\n{to_serve(written)}"
    )
    sys.stdout.write(f"{written}\n")
    return 0


def spec_of(text: str) -> str:
    """Return a specification for `training --data`, made from a path's suffix; or the text."""
    path = Path(text)
    if path.is_dir():
        return f"images:{text}"
    if path.suffix == ".npz":
        return f"npz:{text}"
    if path.suffix in (".csv", ".parquet"):
        return f"table:{text}?label=label"
    return text


def _published(calibrated: Path, models: Path) -> Path:
    """Publish a calibrated folder in the repository, as the next version of its model."""
    bundle = load_bundle(calibrated)
    fields = json.loads((calibrated / "model.json").read_text(encoding="utf-8"))
    for name in ("format_version", "name", "version", "files"):
        del fields[name]
    fields["provenance"]["calibrated"].pop("from_version")

    def write_files(folder: Path) -> None:
        for name in bundle.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(calibrated / name, folder / name)
        shutil.copyfile(calibrated / "report.json", folder / "report.json")

    return publish(models, bundle.name, fields=fields, write_files=write_files)


def _taken(given: Sequence[str]) -> tuple[list[str], str]:
    """Return the arguments without `--validation`, and its value; exit if it has none."""
    rest, spec = [], ""
    words = iter(given)
    for word in words:
        if word == "--validation":
            spec = next(words, "")
        elif word.startswith("--validation="):
            spec = word.partition("=")[2]
        else:
            rest.append(word)
    if not spec:
        make_parser("priordial").error("argument --validation: expected labelled rows")
    return rest, spec
