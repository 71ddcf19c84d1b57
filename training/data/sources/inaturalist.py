"""Images named by the JSON of iNaturalist's competition of 2018."""

import json
from pathlib import Path
from typing import Any

from training.data.dataset import Dataset
from training.data.sources.digest import files_digest
from training.data.sources.listing import ImageOptions, existing_folder, image_dataset
from training.faults import BadData, WrongUse


def load(spec: str, folder: str, *, options: ImageOptions) -> Dataset:
    """The 2018 competition's train2018.json and val2018.json beside the images; its val is our test split."""
    home = existing_folder(folder)
    files = {split: _one_json(home, stem) for split, stem in (("train", "train"), ("test", "val"))}
    documents = {split: _read_json(file) for split, file in files.items()}
    categories = _categories(files["train"], documents["train"])
    index = {identifier: position for position, identifier in enumerate(categories)}
    listing = {split: _annotated(files[split], documents[split], index, home) for split in files}
    data = image_dataset(spec, listing, tuple(categories.values()), options=options, root=home)
    data.origin["sha256"] = files_digest(files.values())
    return data


def _one_json(home: Path, stem: str) -> Path:
    found = sorted(
        path for path in [*home.glob(f"{stem}*.json"), *home.glob(f"annotations/{stem}*.json")]
    )
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise WrongUse(f"{home}: expected one {stem}2018.json, found {listed}")
    return found[0]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BadData(f"{file}: is not JSON: {error}") from error
    for member in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(member), list):
            raise BadData(f"{file}: has no list '{member}'")
    assert isinstance(content, dict)
    return content


def _categories(file: Path, document: dict[str, Any]) -> dict[int, str]:
    """Id -> name, by id; names that are there twice get their id."""
    found = document.get("categories")
    if not isinstance(found, list) or not found:
        raise BadData(f"{file}: has no list 'categories'")
    names: dict[int, str] = {}
    for row, category in enumerate(found):
        try:
            names[int(category["id"])] = str(category.get("name", category["id"]))
        except (KeyError, TypeError, ValueError):
            raise BadData(f"{file}, categories, row {row}: has no whole-number id") from None
    listed = list(names.values())
    return {
        key: f"{names[key]} ({key})" if listed.count(names[key]) > 1 else names[key]
        for key in sorted(names)
    }


def _annotated(
    file: Path, document: dict[str, Any], index: dict[int, int], home: Path
) -> tuple[list[str], list[Any]]:
    files = {
        image.get("id"): image.get("file_name")
        for image in document["images"]
        if isinstance(image, dict)
    }
    paths: list[str] = []
    labels: list[Any] = []
    for row, annotation in enumerate(document["annotations"]):
        where = f"{file}, annotations, row {row}"
        if not isinstance(annotation, dict):
            raise BadData(f"{where}: is no object")
        name, category = files.get(annotation.get("image_id")), annotation.get("category_id")
        if not name:
            raise BadData(f"{where}: image_id {annotation.get('image_id')} is not among the images")
        if category not in index:
            raise BadData(f"{where}: category_id {category} is not among the categories")
        path = home / name
        if not path.is_file():
            raise BadData(f"{where}: {path} is not there")
        paths.append(str(path))
        labels.append(index[category])
    return paths, labels
