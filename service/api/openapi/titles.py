"""The titles that `/docs` shows: of each group, in the page's order, and of each operation."""

TAGS = {
    "prediction": "Classify inputs, with a τ and a prior for each request or each row.",
    "priors": "Change the class mix while the service runs. Every change is a revision.",
    "feedback": "True labels of answers, and the error of live traffic computed from them.",
    "models": "The models that are served, how they were trained, and how good they are.",
    "access": "API keys and their roles.",
    "health": "Probes and metrics.",
    "open inference protocol": "The protocol of KServe and Triton, for the same models.",
    "other servers' protocols": "The paths of TensorFlow Serving, KServe V1 and SageMaker.",
}
OPERATIONS = {
    "get /health/live": "Ask whether the process makes progress",
    "get /health/ready": "Ask whether requests should be sent here",
    "get /metrics": "Scrape the metrics",
    "get /metrics/recent": "Read a model's counters of the last minutes",
    "get /metrics/targets": "List the metrics ports of all replicas",
    "get /models": "List the models",
    "get /models/{model}": "Describe a model",
    "patch /models/{model}": "Change which versions of a model serve",
    "get /models/{model}/replicas": "Show which versions of a model each worker serves",
    "get /models/{model}/rollout": "Compare the version on trial with the one before",
    "put /models/{model}/rollout": "Put a version on trial",
    "post /models/{model}/rollout/promote": "Promote the version on trial",
    "post /models/{model}/rollout/take-back": "Take the version on trial back",
    "get /models/{model}/report": "Read a model's scores and curves",
    "get /models/{model}/samples/{number}.png": "Fetch a sample picture of a model",
    "get /whoami": "Show the key in use and its roles",
    "get /ping": "Ask whether the service is ready, as SageMaker does",
    "get /health": "Ask whether the service is ready, as MLflow does",
    "get /v1/models": "List the models, as KServe V1 does",
    "get /v1/models/{model}": "Show a model's state, as KServe V1 does",
    "get /v1/models/{model}/versions/{version}": "Show a version's state, as KServe V1 does",
    "get /v1/models/{model}/metadata": "Describe a model, as TensorFlow Serving does",
    "get /v1/models/{model}/versions/{version}/metadata": (
        "Describe a version, as TensorFlow Serving does"
    ),
    "get /v2": "Describe the server",
    "get /v2/health/live": "Ask whether the process makes progress",
    "get /v2/health/ready": "Ask whether requests should be sent here",
    "get /v2/models/stats": "Read the statistics of every model",
    "get /v2/models/{model}": "Describe a model's inputs and outputs",
    "get /v2/models/{model}/config": "Read a model's configuration",
    "get /v2/models/{model}/ready": "Ask whether a model answers",
    "get /v2/models/{model}/stats": "Read a model's statistics",
    "post /v2/repository/index": "List every version with its state",
    "post /v2/repository/models/{model}/load": "Load a model's newest versions",
    "post /v2/repository/models/{model}/unload": "Stop serving a model",
    "get /priors": "List the stored priors",
    "put /priors": "Store a new revision of the default prior",
    "get /priors/{name}": "Read a prior",
    "put /priors/{name}": "Store a new revision of a prior",
    "patch /priors/{name}": "Add observed counts to a prior",
    "delete /priors/{name}": "Take a prior out of use",
    "get /priors/{name}/revisions": "List a prior's revisions",
    "post /priors/{name}/rollback": "Go back to an older revision",
    "get /priors/{name}/replicas": "Show which revision each worker serves",
    "post /priors/{name}/preview": "Preview a prior on recent traffic",
    "post /feedback": "Report the true labels of answers",
    "get /feedback": "Read the error of live traffic",
    "get /priors/{name}/contexts": "Read the class mix of each context",
    "get /priors/{name}/shift": "Follow the class mix of traffic over time",
    "get /priors/{name}/estimate": "Estimate the class mix of recent traffic",
    "post /priors/{name}/estimate/adopt": "Adopt the estimated class mix as the target",
}
"""Titles by method and path. If a path with /models/{model} or /versions/{version} has no entry, it
gets the title of the path without that part.
"""
_OF_MODEL, _OF_VERSION = (
    ("/models/{model}/priors", "/models/{model}/feedback"),
    "/versions/{version}",
)


def title(method: str, path: str) -> str | None:
    """Return the title of an operation; None if the route keeps its own.

    >>> title("get", "/models/{model}/priors/{name}")
    "Read a prior, by the model's name"
    """
    if found := OPERATIONS.get(f"{method} {path}"):
        return found
    if path.startswith(_OF_MODEL):
        found = OPERATIONS.get(f"{method} {path.removeprefix('/models/{model}')}")
        return found and f"{found}, by the model's name"
    if _OF_VERSION in path:
        found = OPERATIONS.get(f"{method} {path.replace(_OF_VERSION, '')}")
        return found and f"{found}, by version"
    return None
