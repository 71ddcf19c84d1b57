"""Reads images named by the JSON files of an iNaturalist competition."""

import json
from pathlib import Path
from typing import Any

from service.contract.nearest import nearest_path
from training.data.dataset import Dataset
from training.data.sources.digest import files_digest
from training.data.sources.listing import ImageOptions, existing_folder, image_dataset
from training.faults import BadData, WrongUse


def load(spec: str, place: str, *, options: ImageOptions) -> Dataset:
    """Load DIR[?train=FILE&val=FILE], with train*.json and val*.json beside the images.

    The images of val become the test split. Categories without a training image are left out, so
    that part of a download can be used.
    """
    folder, _, query = place.partition("?")
    chosen = dict(part.partition("=")[::2] for part in query.split("&") if part)
    unknown = [name for name in chosen if name not in ("train", "val")]
    if unknown:
        raise WrongUse(f"{spec}: unknown option '{unknown[0]}'; expected ?train=FILE&val=FILE")
    home = existing_folder(folder)
    files = {
        split: _one_json(home, stem, chosen.get(stem))
        for split, stem in (("train", "train"), ("test", "val"))
    }
    documents = {split: _read_json(file) for split, file in files.items()}
    categories = _categories(files["train"], documents["train"])
    listed = [each.get("category_id") for each in _objects(documents["train"]["annotations"])]
    used = {category for category in listed if isinstance(category, int | str)}
    if used & set(categories):
        kept = {key: name for key, name in categories.items() if key in used}
    else:
        kept = categories
    notes: tuple[str, ...] = ()
    if len(kept) < len(categories):
        absent = f"{len(categories) - len(kept)} of {len(categories)} categories"
        notes = (f"{absent} have no training image and are left out",)
    left_out = set(categories) - set(kept)
    index = {identifier: position for position, identifier in enumerate(kept)}
    listing = {
        split: _annotated(files[split], documents[split], index, home, left_out) for split in files
    }
    data = image_dataset(
        spec, listing, tuple(kept.values()), options=options, root=home, notes=notes
    )
    data.origin["sha256"] = files_digest(files.values())
    return data


def _objects(values: list[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _one_json(home: Path, stem: str, chosen: str | None) -> Path:
    if chosen is not None:
        if not (home / chosen).is_file():
            raise WrongUse(
                f"{home / chosen}: no such file{nearest_path(home / chosen)}; expected one of "
                "iNaturalist's JSON files"
            )
        return home / chosen
    found = sorted([*home.glob(f"{stem}*.json"), *home.glob(f"annotations/{stem}*.json")])
    if not found:
        raise WrongUse(f"{home}: expected {stem}2018.json, {stem}.json or another {stem}*.json")
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(home)) for path in found)
        raise WrongUse(
            f"{home}: has {listed}; choose one: inaturalist:{home}?{stem}={found[0].name}"
        )
    return found[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadData(f"{file}: is not JSON: {error}; download it again") from error
    for member in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(member), list):
            raise BadData(
                f"{file}: has no list '{member}'; expected iNaturalist's JSON, as in COCO"
            )
    assert isinstance(content, dict)
    return content


def _categories(file: Path, document: dict[str, Any]) -> dict[int, str]:
    """Return the categories' names by id, in ascending order; repeated names get their id added."""
    found = document.get("categories")
    if not isinstance(found, list) or not found:
        raise BadData(f"{file}: has no list 'categories'; expected iNaturalist's JSON, as in COCO")
    names: dict[int, str] = {}
    for row, category in enumerate(found):
        try:
            names[int(category["id"])] = str(category.get("name", category["id"]))
        except (KeyError, TypeError, ValueError):
            raise BadData(
                f"{file}, categories, row {row}: has no id; expected a whole number"
            ) from None
    listed = list(names.values())
    return {
        key: f"{names[key]} ({key})" if listed.count(names[key]) > 1 else names[key]
        for key in sorted(names)
    }


def _file_names(file: Path, document: dict[str, Any]) -> dict[int | str, str]:
    """Return the file name of each image by its id."""
    found: dict[int | str, str] = {}
    for row, image in enumerate(document["images"]):
        known = image if isinstance(image, dict) else {}
        identifier, name = known.get("id"), known.get("file_name")
        if not isinstance(identifier, int | str) or not isinstance(name, str) or not name:
            raise BadData(
                f"{file}, images, row {row}: has no id or no file_name; expected a number and the "
                "path of an image"
            )
        found[identifier] = name
    return found


def _annotated(
    file: Path, document: dict[str, Any], index: dict[int, int], home: Path, left_out: set[int]
) -> tuple[list[str], list[Any]]:
    files = _file_names(file, document)
    paths: list[str] = []
    labels: list[Any] = []
    for row, annotation in enumerate(document["annotations"]):
        where = f"{file}, annotations, row {row}"
        if not isinstance(annotation, dict):
            raise BadData(f"{where}: is not an object; expected image_id and category_id")
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image, int | str) or not isinstance(category, int | str):
            raise BadData(f"{where}: has no image_id or category_id; expected a number for each")
        name = files.get(image)
        if name is None:
            raise BadData(
                f"{where}: image_id {image} is not among the images; take both from one release"
            )
        if category in left_out:
            continue
        if category not in index:
            raise BadData(
                f"{where}: category_id {category} is not among the categories; take both from one "
                "release"
            )
        path = home / name
        if not path.is_file():
            raise BadData(
                f"{where}: {path} does not exist; unpack the images beside the JSON files"
            )
        paths.append(str(path))
        labels.append(index[category])
    return paths, labels
