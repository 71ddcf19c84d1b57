"""Data specifications to data sets: `load` is the only door."""

from training.data import digits, fashion, npz
from training.data.dataset import Dataset
from training.faults import WrongUse

FORMS = {
    "digits": "digits",
    "fashion-mnist": "fashion-mnist[:DIR]",
    "npz": "npz:FILE",
}


def load(spec: str, *, seed: int) -> Dataset:  # noqa: ARG001 - for the sources that draw their split
    """Read what a specification names. Raises WrongUse for a bad specification, BadData for bad contents.

    seed: of the split, for data that brings no test rows of its own.
    """
    kind, _, place = spec.partition(":")
    if kind not in FORMS:
        raise WrongUse(f"unknown data '{spec}'; expected {', '.join(FORMS.values())}")
    if FORMS[kind].endswith((":FILE", ":DIR")) and not place:
        raise WrongUse(f"--data {kind} needs a place: {FORMS[kind]}")
    if kind == "digits":
        return digits.load(spec)
    if kind == "fashion-mnist":
        return fashion.load(spec, place or None)
    return npz.load(spec, place)
