"""Checks of addresses, paths and ports, and of settings that contradict each other."""

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from service.settings.names import InvalidSetting, flag_of

ROOT_PATH = re.compile(r"(?=.{1,200}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+){1,16}")
"""A path prefix, which goes into links and redirects: `//host` would lead to another host."""
_ROUTE = re.compile(r"(?=.{1,200}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~:-]+)+")
"""A path that no client and no proxy rewrites. Vertex AI's own path ends with `:predict`."""
_OWN = (
    *("/console/**", "/docs", "/feedback", "/health", "/health/live", "/health/ready"),
    *("/invocations", "/metrics", "/metrics/*", "/models", "/models/**", "/openapi.json"),
    *("/ping", "/predict", "/priors", "/priors/**", "/score", "/v1/models", "/v1/models/**"),
    *("/v2", "/v2/**", "/whoami"),
)
"""Paths of the service, and families of them. `*`: a name; `**`: all that may follow."""
_READY = (
    *("/health", "/health/ready", "/ping", "/v2/health/ready"),
    *("/v1/models/*", "/v2/models/*/ready"),
)
"""The paths among them that answer 200 when the service, or a model, is ready."""
_SCORES = ("/predict", "/invocations", "/score", "/models/*/predict", "/v1/models/*:predict")
"""The paths among them that answer as /predict does."""


def check_together(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise InvalidSetting for the first value that another one contradicts or makes useless.

    values: of all settings, each within its own range. defaults: the values if nothing is given.
    """
    _check_ports(values)
    _check_webhook(values)
    _check_sizes(values)
    _check_address(values)
    _check_routes(values)
    for name, reason in _without_effect(values):
        if values[name] != defaults[name]:
            raise InvalidSetting(f"{flag_of(name)} is {_shown(name, values[name])}, but {reason}")


def _without_effect(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each setting that would have no effect, and why, with what to do."""
    if not values["feedback_mib"]:
        why = "--feedback-mib is 0, so no answers are kept; set --feedback-mib above 0"
        yield "feedback_store_rows", why
        yield "feedback_hours", why
    if not values["recent_rows"]:
        why = "--recent-rows is 0, so no answers are kept; set --recent-rows above 0"
        yield "max_flip_share", why
        yield "recent_mib", why
    if not values["webhook"]:
        yield "webhook_secret", "--webhook is not set, so nothing is announced; set both or neither"
    if not isinstance(values["models"], str):
        why = f"--models is the folder '{values['models']}'; only models from a URL are copied"
        yield "models_cache", f"{why}, so leave it out"
        yield "models_cache_mib", f"{why}, so leave it out"
    if values["provider"] == "cpu":
        for name in ("device_id", "gpu_memory_mib", "tf32"):
            yield name, "--provider is cpu, which uses no GPU; leave out one of the two"
    if not values["grpc_port"]:
        yield "max_grpc_mib", "--grpc-port is 0, so there is no gRPC; set --grpc-port, too"
    elif values["max_grpc_mib"] > values["max_body_mib"]:
        most = values["max_body_mib"]
        yield "max_grpc_mib", f"--max-body-mib is {most}; expected at most as much"


def _shown(name: str, value: Any) -> str:
    if name == "webhook_secret":
        return "set"
    return f"{value}" if isinstance(value, int | float) else f"'{str(value)[:80]}'"


def _check_ports(values: Mapping[str, Any]) -> None:
    """Refuse a port that two servers would use."""
    for name, others in (("metrics_port", ("port",)), ("grpc_port", ("metrics_port", "port"))):
        port = values[name]
        for other in others:
            if port and port == values[other]:
                raise InvalidSetting(
                    f"{flag_of(name)} is {port}, which is also {flag_of(other)}; choose another"
                )


def _check_webhook(values: Mapping[str, Any]) -> None:
    webhook = values["webhook"]
    if webhook and not _is_web_address(webhook):
        raise InvalidSetting(
            f"--webhook is '{webhook[:80]}'; expected an http or https URL with a host, and with "
            "a number from 1 to 65535 where it has a port"
        )
    if webhook and not values["webhook_secret"]:
        raise InvalidSetting(
            "--webhook needs a key for its signatures: set PRIORDIAL_WEBHOOK_SECRET"
        )


def _is_web_address(url: str) -> bool:
    """Whether a request can be sent to a URL: it has a host and no blank, and its port is one."""
    if not re.fullmatch(r"https?://[^/?#:@\s][^\s\x00-\x1f\x7f]*", url):
        return False
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, or half of an IPv6 address
        return False


def _check_sizes(values: Mapping[str, Any]) -> None:
    bodies, body = values["max_bodies_mib"], values["max_body_mib"]
    if 0 < bodies < body:
        raise InvalidSetting(
            f"--max-bodies-mib is {bodies}; expected 0, or at least --max-body-mib, {body}"
        )


def _check_address(values: Mapping[str, Any]) -> None:
    """Refuse a host with more than an address, and a prefix that is not a path."""
    host, root = values["host"], values["root_path"].rstrip("/")
    if "/" in host or re.fullmatch(r"[^:]+:[0-9]*", host):
        raise InvalidSetting(
            f"--host is '{host[:80]}'; expected an address or a name alone, such as "
            "127.0.0.1; give the port with --port"
        )
    if root and not ROOT_PATH.fullmatch(root):
        raise InvalidSetting(f"--root-path is '{root[:80]}'; expected a path such as /priordial")


def _check_routes(values: Mapping[str, Any]) -> None:
    """Refuse an additional path that is malformed, that no request reaches, or that the service
    uses for something else.
    """
    root = values["root_path"].rstrip("/")
    for name, same in (("predict_route", _SCORES), ("health_route", _READY)):
        path = values[name]
        if not path:
            continue
        given = f"{flag_of(name)} is '{path[:80]}'"
        if not _ROUTE.fullmatch(path):
            raise InvalidSetting(
                f"{given}; expected a path such as /classify, of letters, digits and ._~:-"
            )
        if root and f"{path}/".startswith(f"{root}/"):
            raise InvalidSetting(
                f"{given}, but --root-path {root} is removed from each path, so no request reaches "
                f"it; give the path without {root}"
            )
        if any(map(_like(path), same)):  # it is there, and means the same
            continue
        own = next(filter(_like(path), _OWN), None)
        if own is not None:
            raise InvalidSetting(
                f"{given}, which the service uses itself ({own}); choose another path"
            )
    if values["predict_route"] and values["predict_route"] == values["health_route"]:
        raise InvalidSetting(
            f"--health-route is '{values['health_route'][:80]}', which is also --predict-route; "
            "choose another"
        )


def _like(path: str) -> Callable[[str], bool]:
    """Return the function that says whether a pattern, such as /models/*/predict, fits a path."""

    def fits(pattern: str) -> bool:
        form = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/:]+")
        return re.fullmatch(form, path) is not None

    return fits
