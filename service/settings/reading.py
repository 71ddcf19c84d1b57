"""Reads flags and PRIORDIAL_* environment variables into one frozen Settings."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.contract.nearest import did_you_mean
from service.settings.fields import Settings, check_range
from service.settings.names import PREFIX, InvalidSetting, flag_of, variable_of

_LIKE_THE_PREFIX = 0.85
"""From this similarity on, the start of a variable's name counts as the prefix misspelt: PRIODIAL
and PRIMORDIAL do, PRINCIPAL does not.
"""
_NOT_SETTINGS = re.compile(r"PRIORDIAL_(TEST_\w+|LEAVE_NOTHING_OUT|URL)")
"""Variables for tests and clients, which the service ignores."""
_SERVICE_LINK = re.compile(
    r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
"""Variables that Kubernetes sets in every container for a Service named `priordial`."""

_PLATFORMS = {
    "port": ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"),
    "predict_route": ("AIP_PREDICT_ROUTE",),
    "health_route": ("AIP_HEALTH_ROUTE",),
}
"""Variables that Vertex AI and SageMaker set; PRIORDIAL_* and flags override them."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare a flag for each setting. Flags that are not given stay absent from the result."""
    for item in dataclasses.fields(Settings):
        parts = [*_range(item.metadata), *_default(item), variable_of(item.name)]
        shown = f"{item.metadata['help']} ({'; '.join(parts)})"
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction}
            if item.type is bool
            else {"metavar": _metavar(item)}
        )
        parser.add_argument(
            flag_of(item.name),
            dest=item.name,
            default=argparse.SUPPRESS,
            help=shown.replace("%", "%%"),
            **kind,
        )


def _range(meta: Mapping[str, Any]) -> Iterator[str]:
    """Yield the accepted numbers, if a setting is a number."""
    if "least" in meta:
        yield f"0, or {meta['least']:g} to {int(meta['high']):,}"
    elif "low" in meta:
        yield f"{meta['low']:g} to {int(meta['high']):,}"


def _default(item: "dataclasses.Field[Any]") -> Iterator[str]:
    """Yield the default in words, unless the help has it."""
    if item.type is bool:
        yield f"default {'on' if item.default else 'off'}"
    elif item.default not in (None, ""):
        shown = f"{item.default:g}" if isinstance(item.default, float) else item.default
        yield f"default {shown}"
    elif "default:" not in item.metadata["help"]:
        yield "default none"


_UNITS = {
    "mib": "MIB", "kib": "KIB", "seconds": "SECONDS", "ms": "MILLISECONDS", "us": "MICROSECONDS",
    "hours": "HOURS", "rows": "ROWS", "port": "PORT", "share": "SHARE", "rollout": "SHARE",
    "cap": "TAU", "model": "NAME", "host": "ADDRESS", "route": "PATH", "path": "PATH",
    "store": "URL", "reads": "URL", "webhook": "URL", "secret": "TEXT", "models": "DIR|URL",
    "cache": "DIR", "keys": "FILE",
}  # fmt: skip
"""The placeholder for the value of a flag in the help, by the last word of the flag's name."""


def _metavar(item: "dataclasses.Field[Any]") -> str:
    if "choices" in item.metadata:
        return "|".join(item.metadata["choices"])
    if item.name == "api_keys":
        return "LINES"
    return _UNITS.get(item.name.rpartition("_")[2], "N")


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Read all settings: flags override the environment, which overrides the defaults.

    Raises InvalidSetting, which names a value by the variable that it came from.
    """
    environment = _own_variables(environment)
    values: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for item in dataclasses.fields(Settings):
        raw, name = flags.get(item.name), flag_of(item.name)
        if raw is not None:
            _check_overridden(item, environment)
        for variable in (variable_of(item.name), *_PLATFORMS.get(item.name, ())):
            if raw is None and variable in environment:
                raw, name = environment[variable], variable
                given_as[flag_of(item.name)] = variable
        if raw is not None:
            may_be_empty = item.metadata.get("may_be_empty", False)
            values[item.name] = raw if raw == "" and may_be_empty else _parsed(raw, item.type, name)
    try:
        return Settings(**values)
    except InvalidSetting as error:
        named = re.sub(
            r"--[a-z][a-z0-9-]*", lambda flag: given_as.get(flag[0], flag[0]), f"{error}"
        )
        raise InvalidSetting(named) from None


def _check_overridden(item: "dataclasses.Field[Any]", environment: Mapping[str, str]) -> None:
    """Refuse a wrong value of a variable that a flag overrides: without the flag, it would stop
    the next start. Raises InvalidSetting.
    """
    variable = variable_of(item.name)
    raw = environment.get(variable)
    if raw is None or (raw == "" and item.metadata.get("may_be_empty", False)):
        return
    check_range(variable, _parsed(raw, item.type, variable), item.metadata)


def read_store(flag: str | None, environment: Mapping[str, str]) -> str:
    """Read the setting --store alone, for verbs without the others. Raises InvalidSetting."""
    variable = variable_of("store")
    given = {variable: environment[variable]} if variable in environment else {}
    return read_settings({"store": flag}, given).store


def _own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are read. Raises InvalidSetting for unknown PRIORDIAL_*."""
    known = {variable_of(item.name) for item in dataclasses.fields(Settings)}
    linked = "KUBERNETES_SERVICE_HOST" in environment
    platforms = {name for names in _PLATFORMS.values() for name in names}
    found = {name: value for name, value in environment.items() if name in platforms}
    for name, value in environment.items():
        if not name.startswith(PREFIX):
            _check_prefix(name, known)
            continue
        if _NOT_SETTINGS.fullmatch(name):
            continue
        if linked and _SERVICE_LINK.fullmatch(name) and (name not in known or "://" in value):
            continue
        if name == "PRIORDIAL_KEY" and value.startswith("priordial_"):
            continue  # the examples store a client's key under this name
        if name not in known:
            bare = {known_name.removeprefix(PREFIX) for known_name in known}
            near = did_you_mean(name.removeprefix(PREFIX), bare).replace("'", f"'{PREFIX}", 1)
            raise InvalidSetting(f"{name} is not a setting{near or '; serve --help lists all'}")
        found[name] = value
    return found


def _check_prefix(name: str, known: Collection[str]) -> None:
    """Refuse a setting whose prefix is misspelt, as in PRIODIAL_PORT or priordial_port.

    Raises InvalidSetting.
    """
    prefix, _, rest = name.upper().partition("_")
    likeness = difflib.SequenceMatcher(None, prefix, PREFIX.rstrip("_")).ratio()
    if PREFIX + rest in known and likeness > _LIKE_THE_PREFIX:
        raise InvalidSetting(f"{name} is not a setting; did you mean '{PREFIX}{rest}'?")


def _parsed(raw: Any, kind: Any, name: str) -> Any:
    if not isinstance(raw, str):
        return raw
    if not raw.strip():
        raise InvalidSetting(f"{name} is empty; give it a value, or unset it to use the default")
    if kind is bool:
        if raw.lower() not in ("0", "1", "true", "false"):
            raise InvalidSetting(f"{name} is '{raw[:80]}'; expected 1 or 0")
        return raw.lower() in ("1", "true")
    if kind in (int, float):
        try:
            if "_" in raw or not raw.isascii():  # int() takes 8_0 and other alphabets' digits
                raise ValueError
            return kind(raw)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InvalidSetting(f"{name} is '{raw[:80]}'; expected {what}") from None
    if kind == Path | str:
        return raw if "://" in raw else Path(raw)
    return Path(raw) if kind in (Path, Path | None) else raw


def describe() -> Sequence[tuple[str, str, str, str]]:
    """Return (flag, variable, default, help) of every setting, for the documents."""
    return [
        (flag_of(i.name), variable_of(i.name), str(i.default), i.metadata["help"])
        for i in dataclasses.fields(Settings)
    ]
