"""Reads recipes from TOML files, by name or path; flags override their settings."""

import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from datetime import date, time
from importlib import resources
from pathlib import Path
from typing import Any

from service.contract.bundle import check_model_name
from service.contract.nearest import did_you_mean, nearest_path
from training.faults import WrongUse
from training.run.recipe import Recipe

FIELDS = {field.name: field for field in fields(Recipe)}
LONGEST = 100
"""Characters of a wrong value that a message shows."""
WORDS: dict[type, str] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of numbers, such as [0.6, 0.85]",
    dict: "a table of numbers, such as { gamma = 2 }",
}
NETWORK_DEFAULTS: dict[str, dict[str, Any]] = {
    # each word occurs in few rows, so its vector needs a step size of its own
    "text": {"optimiser": "adamw", "lr": 0.005, "weight_decay": 0.01},
}


def names() -> list[str]:
    """Return the names of the recipes in the package."""
    folder = resources.files("training") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def make(recipe: str | None, given: Mapping[str, Any]) -> Recipe:
    """Make a recipe from a file, with the given settings in place of the file's.

    recipe: the name of a recipe in the package, or the path of a TOML file; None starts from the
    defaults. Raises WrongUse for an unknown name, an unknown setting, or a value of another type.
    """
    settings: dict[str, Any] = {}
    if recipe is not None:
        settings = read(recipe)
        settings["recipe"] = settings.get("recipe", Path(recipe).name.removesuffix(".toml"))
    settings |= given
    for length, other in (("epochs", "steps"), ("steps", "epochs")):
        if length in given and other not in given:
            settings.pop(other, None)
    stray = [key for key in ("imbalance_ratio", "max_per_class") if key in settings]
    if stray and settings.get("profile") is None:
        raise WrongUse(
            f"--{stray[0].replace('_', '-')} has no effect without a profile; add --profile exp or "
            "step, or leave it out"
        )
    if "data" not in settings:
        raise WrongUse("--data is missing; give the data to train on")
    settings = NETWORK_DEFAULTS.get(settings.get("network", ""), {}) | settings
    settings.setdefault("name", _name_of(settings["data"]))
    try:
        check_model_name(settings["name"])
    except ValueError as error:
        raise WrongUse(f"--name: {error}") from None
    return Recipe(**settings)


def read(recipe: str) -> dict[str, Any]:
    """Read and check the settings of a recipe file. Raises WrongUse."""
    if recipe.endswith(".toml"):
        where = recipe
        try:
            text = Path(recipe).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise WrongUse(
                f"--recipe {recipe}: {error.strerror}{nearest_path(Path(recipe))}; expected a TOML "
                f"file, or one of {', '.join(names())}"
            ) from error
        except UnicodeDecodeError as error:
            raise WrongUse(
                f"--recipe {recipe}: is not UTF-8 text: {error}; save it as UTF-8"
            ) from error
    else:
        where = f"{recipe}.toml"
        file = resources.files("training") / "recipes" / where
        if recipe not in names():
            raise WrongUse(
                f"unknown recipe '{recipe}'; expected {', '.join(names())}, or a path that ends "
                f"in .toml{did_you_mean(recipe, names())}"
            )
        text = file.read_text(encoding="utf-8")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WrongUse(f"{where}: is not TOML: {error}; correct that line") from error
    return {key: _checked(where, key, value) for key, value in content.items()}


def _checked(where: str, key: str, value: Any) -> Any:
    if key not in FIELDS:
        near = did_you_mean(key, FIELDS)
        raise WrongUse(f"{where}: unknown setting '{key}'; expected {', '.join(FIELDS)}{near}")
    wanted = typing.get_type_hints(Recipe)[key]
    kinds = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    kind = next(k for k in kinds if k is not type(None))
    origin = typing.get_origin(kind) or kind
    if kinds == (str, int, type(None)):  # resize
        origin = str if isinstance(value, str) else int
    if origin is float:
        return _number(where, key, value)
    if origin is dict and isinstance(value, dict):
        return {name: _number(where, f"{key}.{name}", each) for name, each in value.items()}
    if kind == tuple[float, ...] and isinstance(value, list):
        return tuple(_number(where, f"a number of {key}", each) for each in value)
    if kind == tuple[str, ...] and _all_names(value):
        return tuple(value)
    if origin is tuple or not isinstance(value, origin) or _is_other_bool(value, origin):
        words = "a list of names" if kind == tuple[str, ...] else WORDS[origin]
        raise WrongUse(f"{where}: {key} is {_written(value)}; expected {words}")
    return value


def _all_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_other_bool(value: Any, kind: type) -> bool:
    return isinstance(value, bool) and kind is not bool


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise WrongUse(f"{where}: {key} is {_written(value)}; expected {WORDS[float]}")
    try:
        return float(value)
    except OverflowError:
        raise WrongUse(
            f"{where}: {key} has {len(str(value))} digits; expected a number below 1.8e308"
        ) from None


def _written(value: Any) -> str:
    """A value as TOML writes it, cut off where it is long."""
    text = str(value) if isinstance(value, date | time) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _name_of(data: str) -> str:
    """Make a model name from a data specification: its kind, or its file or folder name."""
    kind, _, place = data.partition(":")
    stem = Path(place.partition("?")[0].partition(",")[0].partition("@")[0]).stem if place else ""
    wanted = stem if kind in ("npz", "table", "images", "list") and stem else kind
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:64] or "model"
