"""Reads class names and class counts from the files in which users have them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.commands.importing.refusal import ImportRefused
from service.contract.inputs.spec import InputSpec
from service.contract.nearest import did_you_mean, nearest_path


def read_names(path: Path, *, deduplicate: bool) -> list[str]:
    """Class names in output order. Raises ImportRefused.

    The file is JSON when it begins with a bracket: a list; an object from index to name (Hugging
    Face's `id2label`, or a `config.json` that holds one); or an object from name to index (Keras'
    `class_indices`, `label2id`). Any other file has one name a line. deduplicate: give a repeated
    name a suffix.
    """
    where = f"--class-names {path}"
    text = text_of(path, "--class-names")
    if text.lstrip()[:1] in {"[", "{"}:
        found = names_of_json(numbers_as_names(json_of(text, path, "--class-names")))
        if found is None:
            raise ImportRefused(
                f"{where}: expected a list of strings or numbers, an object from index to name "
                "(id2label) or an object from name to index (class_indices), with indices 0, 1, 2 …"
            )
        return unique_names(found, where=where, unit="entry", deduplicate=deduplicate)
    lines = text.rstrip().replace("\r\n", "\n").split("\n")
    return unique_names(lines, where=where, unit="line", deduplicate=deduplicate)


def column_names(path: Path) -> list[str]:
    """The names in a file: one a line, or a JSON list. Raises ImportRefused."""
    where = f"--column-names {path}"
    text = text_of(path, "--column-names")
    if text.lstrip().startswith("["):
        found = names_of_json(json_of(text, path, "--column-names"))
        if found is None:
            raise ImportRefused(f"{where}: expected a list of strings")
    else:
        found = text.rstrip().replace("\r\n", "\n").split("\n")
    return unique_names(found, where=where, unit="name")


def read_columns(path: Path, spec: InputSpec) -> list[str]:
    """Names of a row's columns, in the model's order. Raises ImportRefused if they do not fit."""
    where, names = f"--column-names {path}", column_names(path)
    if spec.columns or spec.kind == "image" or len(spec.shape) > 2:
        raise ImportRefused(
            f"{where}: is for a model whose only input is [batch, columns]; this model takes "
            f"{spec.kind} {spec.shape}"
        )
    width = 1 if len(spec.shape) == 1 else spec.shape[1]
    if width not in {None, len(names)}:
        raise ImportRefused(
            f"{where}: has {len(names)} names; expected {width}, one for each column of the model"
        )
    return names


def numbers_as_names(value: Any) -> Any:
    """A decoded list, or an object from index to name, with numbers, true and false as text.

    An object of whole numbers is left as it is: it goes from name to index. The member `id2label`
    of an object always goes from index to name.
    """
    if isinstance(value, list):
        return [_as_text(each) for each in value]
    if not isinstance(value, dict) or all(type(each) is int for each in value.values()):
        return value
    found = {key: _as_text(each) for key, each in value.items()}
    if isinstance(value.get("id2label"), dict):
        found["id2label"] = {key: _as_text(each) for key, each in value["id2label"].items()}
    return found


def _as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


def names_of_json(value: Any) -> list[str] | None:
    """Names in output order from a decoded list or object; None when it is neither.

    Either the keys or the values of an object must be the indices 0 … C - 1. If an object has the
    member `id2label`, as a Hugging Face config does, that member is used.
    """
    if isinstance(value, dict) and isinstance(value.get("id2label"), dict):
        value = value["id2label"]
    if isinstance(value, dict):
        by_key, by_value = _indexed(value.items()), _indexed((v, k) for k, v in value.items())
        return by_key if _are_names(by_key) else by_value if _are_names(by_value) else None
    return value if _are_names(value) else None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) for n in value)


def unique_names(
    names: Sequence[str], *, where: str, unit: str, deduplicate: bool = False
) -> list[str]:
    """Check that names are unique and not empty, and return them. Raises ImportRefused.

    where: the flag and the file, for messages. unit: the word for a place in it, such as "line";
    places count from 1.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names, 1):
        if not name.strip():
            raise ImportRefused(
                f"{where}: {unit} {place} is empty; write a name there, or give other names with "
                "the flag"
            )
        if is_cut(name):
            raise ImportRefused(
                f"{where}: {unit} {place} is {name!a}, which holds half of a character (a "
                "lone surrogate) or a byte that is not UTF-8; write the whole character, or give "
                "other names with the flag"
            )
        places.setdefault(name, []).append(place)
    repeated = {name: at for name, at in places.items() if len(at) > 1}
    if repeated and not deduplicate:
        shown = "; ".join(
            f"{unit} {' and '.join(map(str, at[:4]))}: '{name}'"
            for name, at in list(repeated.items())[:3]
        )
        more = f"; and {len(repeated) - 3} more" if len(repeated) > 3 else ""
        raise ImportRefused(
            f"{where}: names must be unique, but these are repeated: {shown}{more}. "
            "Give them different names, or let --deduplicate add a number"
        )
    taken, found = set(names), []
    for place, name in enumerate(names, 1):
        at = places[name]
        number = at.index(place) + 1
        if number == 1:
            found.append(name)
            continue
        while f"{name} ({number})" in taken:
            number += 1
        taken.add(f"{name} ({number})")
        found.append(f"{name} ({number})")
    return found


def check_order(given: list[str], held: list[str]) -> None:
    """Raise ImportRefused if the given names are those of the file in another order."""
    if given == held or sorted(given) != sorted(held):
        return
    at = next(i for i, name in enumerate(given) if name != held[i])
    raise ImportRefused(
        f"the class names are those of the file in another order: name {at + 1} is '{given[at]}', "
        f"and in the file it is '{held[at]}', so each answer would get the name of another class. "
        "Leave out --class-names, or put the names into the order of the outputs"
    )


def is_cut(text: str) -> bool:
    """Whether a text holds half of a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def read_counts(path: Path, class_names: list[str]) -> list[float]:
    """[C] counts of a JSON list or object. Raises ImportRefused naming the class that is wrong."""
    where = f"--class-counts {path}"
    found = json_of(text_of(path, "--class-counts"), path, "--class-counts")
    if isinstance(found, list) and len(found) != len(class_names):
        raise ImportRefused(
            f"{where}: has {len(found)} counts; expected {len(class_names)}, one for each class"
        )
    if isinstance(found, list):
        found = dict(zip(class_names, found, strict=True))
    if not isinstance(found, dict):
        raise ImportRefused(f"{where}: expected a list or an object by class name")
    known = set(class_names)
    for name in found:
        if name not in known:
            shown = ascii(name) if is_cut(name) else f"'{name}'"
            near = did_you_mean(name, class_names, most=100_000)
            raise ImportRefused(
                f"{where}: unknown class {shown}{near or '; expected the names of the classes'}"
            )
    for name in class_names:
        count = found.get(name)
        if count is None:
            raise ImportRefused(
                f"{where}: class '{name}' has no count; give the training rows of every class"
            )
        if isinstance(count, bool) or not isinstance(count, (int, float)) or not 0 < count < 1e300:
            raise ImportRefused(f"{where}: '{name}' has count {count!r}; expected more than 0")
    return [float(found[name]) for name in class_names]


def text_of(path: Path, flag: str) -> str:
    """The text of a file. Raises ImportRefused naming the flag."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ImportRefused(
            f"{flag} {path}: {error.strerror}{nearest_path(path)}; expected a file that this user "
            "can read"
        ) from None
    except UnicodeDecodeError:
        raise ImportRefused(f"{flag} {path}: not UTF-8 text; save it as UTF-8") from None


def json_of(text: str, path: Path, flag: str) -> Any:
    """Decoded JSON. Raises ImportRefused naming the flag."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImportRefused(
            f"{flag} {path}: not JSON: {error}; correct it there, or write it again"
        ) from None


def _indexed(pairs: Any) -> list[str] | None:
    """The names of (index, name) pairs in order; None unless the indices are 0 … n - 1."""
    by_index: dict[int, Any] = {}
    for index, name in pairs:
        try:
            by_index[int(index)] = name
        except (TypeError, ValueError):
            return None
    if sorted(by_index) != list(range(len(by_index))) or not by_index:
        return None
    return [by_index[i] for i in range(len(by_index))]
