"""Loads the data set that a specification names; other packages read data only through `load`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from service.contract.nearest import did_you_mean
from training.data.dataset import Dataset, Known
from training.data.sources import cifar, digits, fashion, folders, inaturalist, npz, table
from training.data.sources.listing import ImageOptions
from training.faults import WrongUse

FORMS = {
    "digits": "digits",
    "fashion-mnist": "fashion-mnist[:DIR]",
    "cifar10": "cifar10:DIR",
    "cifar100": "cifar100:DIR",
    "images": "images:DIR",
    "list": "list:TRAIN.txt,VAL.txt,TEST.txt@ROOT",
    "inaturalist": "inaturalist:DIR",
    "npz": "npz:FILE",
    "table": table.FORM,
}
FREE = ("digits", "fashion-mnist")  # need no place
IN_FILES = ("images", "list", "inaturalist")


def load(
    spec: str, *, seed: int, options: ImageOptions | None = None, known: Known | None = None
) -> Dataset:
    """Load the data set that a specification names.

    seed: for drawing test rows if the data has none. options: how image files become the tensor.
    known: what the published model that will score the rows states; training rows and labels may
    then be missing. Raises WrongUse for a bad specification, BadData for bad contents.
    """
    kind, _, place = spec.partition(":")
    if kind not in FORMS:
        near = did_you_mean(kind, FORMS) or _meant(spec)
        raise WrongUse(f"unknown data '{spec}'; expected {', '.join(FORMS.values())}{near}")
    if kind not in FREE and not place:
        raise WrongUse(f"--data {kind} needs a file or folder: {FORMS[kind]}")
    if kind == "digits" and place:
        raise WrongUse(
            f"{spec}: digits is part of scikit-learn and takes no place; give digits alone"
        )
    options = options or ImageOptions()
    if kind not in IN_FILES and options.decoding:
        raise WrongUse(
            f"{spec}: --image-size, --resize and --color are for {', '.join(IN_FILES)}; leave them "
            "out"
        )
    data = _load(kind, spec, place, seed=seed, options=options, known=known)
    if known is None:
        data.check_trainable()
    return replace(data, image=options.normalising(data.image, spec))


def _meant(spec: str) -> str:
    """The end of a message about a file or folder that was given without its form."""
    path = Path(spec.partition("?")[0])
    forms = {".csv": "table", ".parquet": "table", ".npz": "npz"}
    form = "images" if path.is_dir() else forms.get(path.suffix.lower())
    if form is None or not path.exists():
        return ""
    query = "?label=COLUMN" if form == "table" and "?" not in spec else ""
    return f"; did you mean '{form}:{spec}{query}'?"


def _load(
    kind: str, spec: str, place: str, *, seed: int, options: ImageOptions, known: Known | None
) -> Dataset:
    loaders: dict[str, Callable[[], Dataset]] = {
        "digits": lambda: digits.load(spec),
        "fashion-mnist": lambda: fashion.load(spec, place or None),
        "cifar10": lambda: cifar.load(spec, kind, place),
        "cifar100": lambda: cifar.load(spec, kind, place),
        "images": lambda: folders.load_folder(spec, place, seed=seed, options=options, known=known),
        "list": lambda: folders.load_lists(spec, place, options=options),
        "inaturalist": lambda: inaturalist.load(spec, place, options=options),
        "npz": lambda: npz.load(spec, place, known=known),
        "table": lambda: table.load(spec, place, seed=seed, known=known),
    }
    return loaders[kind]()
