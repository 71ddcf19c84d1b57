"""Reads flags and PRIORDIAL_* environment variables into one frozen Settings."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.contract.nearest import did_you_mean, nearest_path

_MODELS = Path("models")
PROVIDERS = ("auto", "cpu", "cuda")
_PREFIX = "PRIORDIAL_"
_LIKE_THE_PREFIX = 0.85
"""PRIODIAL and PRIMORDIAL are this near to the prefix; PRINCIPAL is not."""
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


ROOT_PATH = re.compile(r"(?=.{1,200}\Z)(?:/[A-Za-z0-9._~-]+){1,16}")
"""A path prefix, which goes into links and redirects: `//host` would lead to another host."""


class InvalidSetting(ValueError):
    """A flag or environment variable is unknown or has an invalid value."""


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


THREADS_A_PROCESSOR = 16
"""More threads of a graph call for each processor are refused: 1,024 on two never got a model
ready.
"""


@dataclass(frozen=True)
class Settings:
    """All settings. `max_batch_rows` is `--max-batch-rows` and PRIORDIAL_MAX_BATCH_ROWS."""

    models: Path | str = _setting(  # noqa: RUF009 - it is dataclasses.field
        _MODELS, "folder of published models, or a URL: s3://, gs://, az://, hf:// or https://"
    )
    models_cache: Path | None = _setting(  # noqa: RUF009 - it is dataclasses.field
        None, "folder for the local copy of models from a URL; default: one in the temporary folder"
    )
    models_cache_mib: int = _setting(
        10_240, "MiB that the local copy of models from a URL may take", low=1, high=10**8
    )
    host: str = _setting(
        "127.0.0.1", "address to listen on; other than loopback needs keys or --allow-anonymous"
    )
    port: int = _setting(8000, "port to listen on; 0: any free port", low=0, high=65535)
    metrics_port: int = _setting(0, "a separate port for /metrics; 0: none", low=0, high=65535)
    grpc_port: int = _setting(
        0,
        "port for the Open Inference Protocol over gRPC beside --port (extra grpc); 0: none",
        low=0,
        high=65535,
    )
    workers: int = _setting(1, "processes that share the port", low=1, high=256)
    store: str = _setting(
        "auto",
        "where priors are kept: sqlite:///FILE or postgresql://…; auto: priordial.db here, if it "
        "exists or this is a clone of the project, else in the user's data folder",
    )
    store_reads: str = _setting(
        "", "standby of a PostgreSQL --store, from which priors are read; writes go to --store"
    )
    store_optional: bool = _setting(
        False, "start with the built-in priors when the store cannot be reached"
    )
    provider: str = _setting("auto", "where graphs run: auto, cpu or cuda", choices=PROVIDERS)
    predict_route: str = _setting(
        "", "one more path for the default model's /predict, such as Vertex AI's AIP_PREDICT_ROUTE"
    )
    health_route: str = _setting(
        "", "one more path that answers 200 when ready, such as Vertex AI's AIP_HEALTH_ROUTE"
    )
    device_id: int = _setting(0, "number of the GPU that graphs run on", low=0, high=255)
    gpu_memory_mib: int = _setting(
        0, "MiB of the GPU that one model may take; 0: no limit", low=0, high=10**7
    )
    tf32: bool = _setting(
        False, "let the GPU round the inputs of matrix products and convolutions to TensorFloat-32"
    )
    default_model: str | None = _setting(
        None, "the model of /predict and /priors; default: the only model"
    )
    allow_no_models: bool = _setting(
        False, "be ready without any model; models are loaded later, by call or SIGHUP"
    )
    keep_versions: int = _setting(
        2, "newest versions of each model that are loaded", low=1, high=100
    )
    max_loaded_mib: int = _setting(
        0,
        "MiB that loaded models may take, counted as twice their files and 3 MiB; others are "
        "loaded when a request names them, and the least recently used are unloaded; 0: load all",
        low=0,
        high=10**7,
    )
    rollout: float = _setting(
        1.0,
        "share of the requests that a new version of a model gets until it is promoted; 1: all",
        low=1e-6,
        high=1.0,
    )
    models_poll_seconds: float = _setting(
        0.0,
        "seconds between looks for new model versions; 0: only on SIGHUP or load (of a URL: 30)",
        low=0.0,
        least=0.1,
        high=86_400,
    )
    intra_op_threads: int = _setting(
        0, "threads of one graph call; 0: as many as this process may use", low=0, high=1024
    )
    max_batch_rows: int = _setting(64, "most rows of one graph call", low=1, high=65536)
    max_queued_rows: int = _setting(
        2048, "rows that may be queued for one model; more are refused with 429", low=1, high=10**7
    )
    max_queue_ms: int = _setting(
        300,
        "ms that a request may wait, by the model's measured cost; else it gets 429; 0: no limit",
        low=0,
        high=10**7,
    )
    max_queued_mib: int = _setting(
        256, "MiB of inputs that may be queued for one model", low=1, high=10**6
    )
    max_body_mib: int = _setting(64, "largest request body in MiB", low=1, high=4096)
    max_grpc_mib: int = _setting(
        8,
        "largest gRPC message in MiB, at most --max-body-mib; one of 32 holds all requests 0.1 s",
        low=1,
        high=2047,
    )
    max_bodies_mib: int = _setting(
        0,
        "MiB of request bodies that a process holds at once, until they are answered; more are "
        "refused with 429; 0: a quarter of the memory that the workers may use together",
        low=0,
        high=10**6,
    )
    max_header_kib: int = _setting(64, "largest headers of a request in KiB", low=1, high=1024)
    max_url_kib: int = _setting(32, "longest URL of a request in KiB", low=1, high=63)
    keep_alive_seconds: float = _setting(
        75.0,
        "seconds after which an idle connection is closed; set it above the limit of a proxy",
        low=0.1,
        high=86_400,
    )
    root_path: str = _setting(
        "",
        "path prefix that a proxy in front removes, such as /priordial, for links in /docs",
        may_be_empty=True,
    )
    inline_us: int = _setting(
        100, "batches that take up to this many µs run on the event loop", low=0, high=10**6
    )
    timeout_ms: int = _setting(
        30_000, "deadline in ms of a request that sets none", low=1, high=86_400_000
    )
    read_seconds: float = _setting(
        60.0, "seconds in which a request must arrive; else it gets 408", low=0.1, high=86_400
    )
    hang_seconds: float = _setting(
        60.0,
        "seconds after which a graph call or other work that still runs ends the process",
        low=0.1,
        high=86_400,
    )
    load_seconds: float = _setting(
        600.0,
        "seconds in which a model must open and warm up; else its load fails, and others keep "
        "serving",
        low=0.1,
        high=86_400,
    )
    tau_cap: float = _setting(10.0, "largest tau that a request may ask for", low=1e-6, high=1000)
    max_class_series: int = _setting(
        1000,
        "most metric series by class of a model; further classes are counted together",
        low=1,
        high=10**6,
    )
    drain_seconds: float = _setting(
        0.0, "seconds to keep serving after SIGTERM, reported as not ready", low=0, high=3600
    )
    keys: Path | None = _setting(  # noqa: RUF009 - it is dataclasses.field
        None, "file of API keys, one per line as `priordial key` prints them"
    )
    api_keys: str = _setting(
        "", "the lines of --keys, separated by ';' (hashes only, never a key itself)"
    )
    require_if_match: bool = _setting(
        False, "refuse a write to a stored prior without If-Match (428)"
    )
    max_flip_share: float = _setting(
        1.0,
        "refuse a prior that would change a larger share of recent answers, unless ?force=1; 1: "
        "never",
        low=0.0,
        high=1.0,
    )
    webhook: str = _setting(
        "", "URL that gets a signed POST for every change of a prior through this service"
    )
    webhook_secret: str = _setting(
        "", "key of the webhook's HMAC signature; give it as a variable, not as a flag"
    )
    calibrated_source: bool = _setting(
        True,
        "adjust a model by its measured source prior; --no-calibrated-source uses its class_counts",
    )
    recent_rows: int = _setting(
        4096,
        "recent answers of a model whose logits are kept, for previews and estimates; 0: none",
        low=0,
        high=10**6,
    )
    recent_mib: int = _setting(
        16, "MiB of recent logits that are kept for a model", low=1, high=10**4
    )
    shift_seconds: float = _setting(
        60.0,
        "seconds between judgements of the traffic's class mix, which is then stored and combined",
        low=1,
        high=3600,
    )
    feedback_mib: int = _setting(
        0,
        "MiB of answers of a model version that each worker keeps for POST /feedback; 0: none",
        low=0,
        high=10**4,
    )
    feedback_hours: float = _setting(
        24.0, "hours after an answer in which feedback may refer to it", low=0.01, high=8784
    )
    feedback_store_rows: int = _setting(
        0,
        "newest answers of a model version that each worker also keeps in the store, for feedback "
        "after a restart and through other replicas; 0: none",
        low=0,
        high=100_000,
    )
    allow_anonymous: bool = _setting(
        False, "serve without keys on an address that other machines can reach"
    )
    log_format: str = _setting(
        "auto", "text, json, or auto: text on a terminal", choices=("auto", "text", "json")
    )
    traces: bool = _setting(
        False, "send OpenTelemetry traces to the collector in the OTEL_* environment variables"
    )

    measure_loop_turns: bool = _setting(
        False,
        "measure how long the event loop is held (priordial_loop_turn_seconds), for debugging",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range. Raises InvalidSetting, which names the flag."""
        for item in dataclasses.fields(self):
            value, meta = getattr(self, item.name), item.metadata
            flag = flag_of(item.name)
            if "choices" in meta and value not in meta["choices"]:
                raise InvalidSetting(
                    f"{flag} is '{value}'; expected {', '.join(meta['choices'])}"
                    f"{did_you_mean(value, meta['choices'])}"
                )
            if "low" in meta and not meta["low"] <= value <= meta["high"]:
                raise InvalidSetting(f"{flag} is {value}; expected {meta['low']} to {meta['high']}")
            if "least" in meta and 0 < value < meta["least"]:
                raise InvalidSetting(
                    f"{flag} is {value}; expected 0, or {meta['least']} to {meta['high']}"
                )
        self._check_ports()
        if self.webhook and not re.match(r"https?://[^/?#:@\s]", self.webhook):
            raise InvalidSetting(
                f"--webhook is '{self.webhook[:80]}'; expected an http or https URL with a host"
            )
        if self.webhook and not self.webhook_secret:
            raise InvalidSetting(
                "--webhook needs a key for its signatures: set PRIORDIAL_WEBHOOK_SECRET"
            )
        self._check_sizes()
        self._check_address()
        for name in ("predict_route", "health_route"):
            path = getattr(self, name)
            if path and not re.fullmatch(r"/[A-Za-z0-9._~/-]{1,200}", path):
                raise InvalidSetting(
                    f"{flag_of(name)} is '{path[:80]}'; expected a path such as /score"
                )

    def _check_address(self) -> None:
        """Refuse a host with more than an address, and a prefix that is not a path.

        Raises InvalidSetting.
        """
        if "/" in self.host or re.fullmatch(r"[^:]+:[0-9]*", self.host):
            raise InvalidSetting(
                f"--host is '{self.host[:80]}'; expected an address or a name alone, such as "
                "127.0.0.1; give the port with --port"
            )
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))
        if self.root_path and not ROOT_PATH.fullmatch(self.root_path):
            raise InvalidSetting(
                f"--root-path is '{self.root_path[:80]}'; expected a path such as /priordial"
            )

    def _check_sizes(self) -> None:
        """Refuse sizes that contradict each other. Raises InvalidSetting."""
        if 0 < self.max_bodies_mib < self.max_body_mib:
            raise InvalidSetting(
                f"--max-bodies-mib is {self.max_bodies_mib}; expected 0, or at least "
                f"--max-body-mib, {self.max_body_mib}"
            )
        if self.feedback_store_rows and not self.feedback_mib:
            raise InvalidSetting(
                f"--feedback-store-rows is {self.feedback_store_rows}, and --feedback-mib is 0, so "
                "no answers are kept; set --feedback-mib above 0"
            )

    def _check_ports(self) -> None:
        """Refuse a port that two servers would use. Raises InvalidSetting."""
        for name, others in (("metrics_port", ("port",)), ("grpc_port", ("metrics_port", "port"))):
            port = getattr(self, name)
            for other in others:
                if port and port == getattr(self, other):
                    raise InvalidSetting(
                        f"{flag_of(name)} is {port}, which is also {flag_of(other)}; choose another"
                    )


def flag_of(name: str) -> str:
    """Return the flag of a setting: max_batch_rows → --max-batch-rows."""
    return "--" + name.replace("_", "-")


def flags() -> list[str]:
    """Return the flags of all settings."""
    return [flag_of(item.name) for item in dataclasses.fields(Settings)]


def variable_of(name: str) -> str:
    """Return the variable of a setting: max_batch_rows → PRIORDIAL_MAX_BATCH_ROWS."""
    return _PREFIX + name.upper()


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
"""What stands for the value of a flag in the help, by the last word of its name."""


def _metavar(item: "dataclasses.Field[Any]") -> str:
    if "choices" in item.metadata:
        return "|".join(item.metadata["choices"])
    if item.name == "api_keys":
        return "LINES"
    return _UNITS.get(item.name.rpartition("_")[2], "N")


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Read all settings: flags override the environment, which overrides the defaults.

    Raises InvalidSetting.
    """
    environment = _own_variables(environment)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Settings):
        raw, name = flags.get(item.name), flag_of(item.name)
        for variable in (variable_of(item.name), *_PLATFORMS.get(item.name, ())):
            if raw is None and variable in environment:
                raw, name = environment[variable], variable
        if raw is not None:
            may_be_empty = item.metadata.get("may_be_empty", False)
            values[item.name] = raw if raw == "" and may_be_empty else _parsed(raw, item.type, name)
    return Settings(**values)


def check_paths(settings: Settings) -> None:
    """Raise InvalidSetting when a file or folder that a setting names does not exist."""
    models, keys = settings.models, settings.keys
    if isinstance(models, str):  # a URL
        models = Path()
    if models.exists() and not models.is_dir():
        raise InvalidSetting(f"--models is '{models}'; expected a folder of published models")
    if not models.exists() and not settings.allow_no_models:
        raise InvalidSetting(
            f"--models is '{models}'; there is no such folder{nearest_path(models)} "
            "(use priordial demo to serve shipped models, --allow-no-models to start without any)"
        )
    if models.is_dir() and any(each.is_file() for each in _manifests_of_one(models)):
        raise InvalidSetting(
            f"--models is '{models}', which is one model; expected the folder that holds the "
            "folders of models"
        )
    if keys is not None and not keys.exists():
        raise InvalidSetting(
            f"--keys is '{keys}'; there is no such file{nearest_path(keys)} (`priordial key NAME "
            "--append FILE` makes one)"
        )
    if keys is not None and keys.is_dir():
        raise InvalidSetting(f"--keys is '{keys}', which is a folder; expected a file of keys")


def check_threads(settings: Settings, *, processors: int) -> None:
    """Raise InvalidSetting for so many threads that graph calls would never end.

    processors: how many threads of this process can run at the same time.
    """
    most = THREADS_A_PROCESSOR * processors
    if settings.intra_op_threads > most:
        raise InvalidSetting(
            f"--intra-op-threads is {settings.intra_op_threads}; this process may use {processors} "
            f"processors, and threads beyond that make graph calls slower; expected at most {most}"
        )


def _manifests_of_one(folder: Path) -> Iterator[Path]:
    """Manifests in a folder that is a model's or a version's, not the folder of all models."""
    yield folder / "model.json"
    yield from folder.glob("[0-9]*/model.json")


def _own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are read. Raises InvalidSetting for unknown PRIORDIAL_*."""
    known = {variable_of(item.name) for item in dataclasses.fields(Settings)}
    linked = "KUBERNETES_SERVICE_HOST" in environment
    platforms = {name for names in _PLATFORMS.values() for name in names}
    found = {name: value for name, value in environment.items() if name in platforms}
    for name, value in environment.items():
        if not name.startswith(_PREFIX):
            _check_prefix(name, known)
            continue
        if _NOT_SETTINGS.fullmatch(name):
            continue
        if linked and _SERVICE_LINK.fullmatch(name) and (name not in known or "://" in value):
            continue
        if name == "PRIORDIAL_KEY" and value.startswith("priordial_"):
            continue  # the examples store a client's key under this name
        if name not in known:
            bare = {known_name.removeprefix(_PREFIX) for known_name in known}
            near = did_you_mean(name.removeprefix(_PREFIX), bare).replace("'", f"'{_PREFIX}", 1)
            raise InvalidSetting(f"{name} is not a setting{near or '; serve --help lists all'}")
        found[name] = value
    return found


def _check_prefix(name: str, known: Collection[str]) -> None:
    """Refuse a setting whose prefix is misspelt, as in PRIODIAL_PORT or priordial_port.

    Raises InvalidSetting.
    """
    prefix, _, rest = name.upper().partition("_")
    likeness = difflib.SequenceMatcher(None, prefix, _PREFIX.rstrip("_")).ratio()
    if _PREFIX + rest in known and likeness > _LIKE_THE_PREFIX:
        raise InvalidSetting(f"{name} is not a setting; did you mean '{_PREFIX}{rest}'?")


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
