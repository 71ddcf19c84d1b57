"""The name and help text of every metric."""

from collections.abc import Callable

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

COUNTERS = {
    "priordial_predictions": "Predictions by class, with and without the adjustment",
    "priordial_group_predictions": "Predictions by group (many, medium, few) of the class",
    "priordial_decisions_changed": "Predictions whose class the adjustment changed",
    "priordial_version_requests": "Requests by model version: scored or failed",
    "priordial_version_inference_seconds": "Seconds of graph calls by model version",
    "priordial_decisions": "Answers under a prior with costs, by what the costs decided",
    "priordial_feedback": "Answers that feedback labelled, by whether they were right",
    "priordial_requests": "HTTP requests by route template and status",
    "priordial_rejected": "Requests that were not scored, by reason",
    "priordial_worker_restarts": "Workers that replaced another one, by how that one ended",
}
HISTOGRAMS = {
    "priordial_request_seconds": ("Time from the first byte of a request to its answer", SECONDS),
    "priordial_queue_seconds": ("Time that a request's rows waited for a batch", SECONDS),
    "priordial_inference_seconds": ("Time of one graph call", SECONDS),
    "priordial_batch_rows": ("Rows of one graph call", ROWS),
    "priordial_tau": ("The tau that each row was adjusted with", TAUS),
}
GAUGES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "priordial_queued_rows": ("Rows that wait for a batch", sum),
    "priordial_prior_revision": ("The revision of each prior that every worker serves", min),
    "priordial_prior_stored_timestamp_seconds": (
        "Unix time at which the revision in force was stored, by its number and its author",
        max,
    ),
    "priordial_ready": ("1 while every worker's readiness says ready, else 0", min),
    "priordial_degraded": ("1 while the readiness of any worker says degraded, else 0", max),
    "priordial_prior_divergence": (
        "Jensen-Shannon divergence (nats) of the mean adjusted probability from the expected mix",
        max,
    ),
    "priordial_estimated_prior_divergence": (
        "Jensen-Shannon divergence (nats) of traffic's class mix from a prior's target",
        max,
    ),
    "priordial_estimate_verdict": (
        "1 for the verdict on the newest rows of a model's traffic, 0 for the other verdicts",
        max,
    ),
    "priordial_estimate_rows": ("Effective rows that the tracked class mix rests on", max),
    "priordial_target_expected": (
        "1 where a prior's target is the class mix expected in traffic, else 0",
        max,
    ),
    "priordial_rollout_share": (
        "Share of the requests without a version that a version on trial answers",
        max,
    ),
    "priordial_balanced_error": (
        "Balanced error of live traffic: value, and the low and high end of its 95 % interval",
        max,
    ),
    "priordial_loop_turn_seconds": (
        "Longest time that the event loop was held since the start (--measure-loop-turns)",
        max,
    ),
    "priordial_loop_work_seconds": (
        "Longest processor time of the event loop's own thread in one turn (--measure-loop-turns)",
        max,
    ),
    "priordial_model_info": ("1 for each served model version, with its execution provider", max),
    "priordial_build_info": ("1, with the version of the service", max),
}
"""Family → its help, and the function that combines the values of several workers."""
VECTOR_GAUGES = {
    "priordial_target_prior": "The target of each prior by class, as the scraped worker serves it",
    "priordial_estimated_prior": "The tracked class mix of a model's traffic",
    "priordial_estimated_prior_low": "Lower end of its 95 % interval",
    "priordial_estimated_prior_high": "Upper end of its 95 % interval",
    "priordial_group_target_prior": "The target of each prior by group (many, medium, few)",
}
"""Shown by the scraped worker alone: they are too large to be shared every second."""
