"""All settings: their names, defaults, ranges and help."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.contract.nearest import did_you_mean
from service.settings.names import InvalidSetting, flag_of
from service.settings.together import check_together

_MODELS = Path("models")
PROVIDERS = ("auto", "cpu", "cuda")


def _setting(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


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
        "port for the Open Inference Protocol over gRPC, besides --port (extra grpc); 0: none",
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
        "seconds between polls for new model versions; 0: only on SIGHUP or load (of a URL: 30)",
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
        "largest gRPC message in MiB, at most --max-body-mib; one of 32 delays all requests 0.1 s",
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
        """Refuse wrong values. Raises InvalidSetting, which names the flag."""
        for item in dataclasses.fields(self):
            check_range(flag_of(item.name), getattr(self, item.name), item.metadata)
        check_together(vars(self), {item.name: item.default for item in dataclasses.fields(self)})
        object.__setattr__(self, "root_path", self.root_path.rstrip("/"))


def check_range(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    """Raise InvalidSetting for a value that its field does not allow, whatever the others are.

    name: as the user gave it. meta: of the field.
    """
    if "choices" in meta and value not in meta["choices"]:
        raise InvalidSetting(
            f"{name} is '{value}'; expected {', '.join(meta['choices'])}"
            f"{did_you_mean(value, meta['choices'])}"
        )
    if "low" in meta and not meta["low"] <= value <= meta["high"]:
        raise InvalidSetting(f"{name} is {value}; expected {meta['low']} to {meta['high']}")
    if "least" in meta and 0 < value < meta["least"]:
        raise InvalidSetting(f"{name} is {value}; expected 0, or {meta['least']} to {meta['high']}")
