"""Writes the Helm chart's values.schema.json: every value that the chart takes, typed.

    python deploy/chart_schema.py

The settings of the service are read from `service.settings`, so that the chart takes exactly those.
A test fails when the written file differs from what this program would write.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "deploy" / "helm" / "priordial" / "values.schema.json"
OWN = {
    "host",
    "port",
    "metrics_port",
    "models",
    "models_cache",
    "store",
    "store_reads",
    "keys",
    "api_keys",
    "allow_anonymous",
}
"""Settings that the chart itself sets, from other values."""


def camel(name: str) -> str:
    """Convert a name to camel case: `max_batch_rows` becomes `maxBatchRows`."""
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def setting(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Return the JSON Schema of one setting; null keeps the service's default."""
    kind = {bool: "boolean", int: "integer", float: "number"}.get(field.type, "string")  # type: ignore[arg-type]
    made: dict[str, Any] = {"type": [kind, "null"], "description": field.metadata["help"]}
    if "low" in field.metadata:
        made |= {"minimum": field.metadata["low"], "maximum": field.metadata["high"]}
    if "choices" in field.metadata:
        made["enum"] = [*field.metadata["choices"], None]
    return made


def _object(required: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    made = {"type": "object", "additionalProperties": False, "properties": properties}
    return made | ({"required": list(required)} if required else {})


TEXT = {"type": "string"}
NAMED = {"type": "string", "minLength": 1}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
SOME = {"type": "integer", "minimum": 1}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
URL = {"type": "string", "pattern": "^https?://"}
INTERVAL = {"type": "string", "pattern": "^([1-9][0-9]*(h|m|s|ms))+$"}
LIST = {"type": "array"}
MAP = {"type": "object"}


PROBE = _object(
    initialDelaySeconds=COUNT,
    periodSeconds=SOME,
    timeoutSeconds=SOME,
    successThreshold=SOME,
    failureThreshold=SOME,
    terminationGracePeriodSeconds=SOME,
)
"""What a user may set of a probe: its request is the chart's. Kubernetes takes no 0 here."""
ONCE = PROBE | {"properties": PROBE["properties"] | {"successThreshold": {"const": 1}}}
"""A startup or liveness probe, of which Kubernetes takes no other `successThreshold`."""
DISRUPTION = {
    "type": ["integer", "string"],
    "minimum": 1,
    "pattern": "^(0*[1-9][0-9]?|100)%$",
    "description": "1 or more, or a share such as 25%: 0 lets no node be drained",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of all values of the chart."""
    from service.settings import Settings

    settings = {
        camel(field.name): setting(field)
        for field in dataclasses.fields(Settings)
        if field.name not in OWN
    }
    whole = _object(
        replicaCount=COUNT,
        image=_object(
            repository=NAMED,
            tag=TEXT,
            digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
            pullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
            pullSecrets=LIST,
        ),
        settings=_object(**settings),
        store=_object(existingSecret=TEXT, key=NAMED, migrate=FLAG, readsKey=TEXT),
        apiKeys=_object(existingSecret=TEXT, key=NAMED, allowAnonymous=FLAG),
        models=_object(
            persistentVolumeClaim=TEXT,
            image=TEXT,
            hostPath={"type": "string", "pattern": "^(/.*)?$"},
            url={"type": "string", "pattern": "^((s3|gs|az|hf|https?)://.+)?$"},
            cacheSize={"type": "string", "pattern": "^[1-9][0-9]{0,8}[MGT]i$"},
        ),
        resources=MAP,
        gpu=_object(enabled=FLAG, resource=NAMED, count=SOME),
        terminationGracePeriodSeconds=COUNT,
        preStopSeconds=COUNT,
        service=_object(type={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, port=PORT),
        metricsPort=PORT,
        probes=_object(startup=ONCE, readiness=PROBE, liveness=ONCE),
        autoscaling=_object(
            enabled=FLAG,
            minReplicas=SOME,
            maxReplicas=SOME,
            targetCPUUtilizationPercentage={"type": "integer", "minimum": 1, "maximum": 100},
        ),
        keda=_object(
            enabled=FLAG,
            minReplicas=SOME,
            maxReplicas=SOME,
            serverAddress=URL,
            queuedRowsPerReplica=SOME,
            pollingInterval=SOME,
            cooldownPeriod=COUNT,
        ),
        podDisruptionBudget=_object(enabled=FLAG, maxUnavailable=DISRUPTION),
        networkPolicy=_object(enabled=FLAG, ingressFrom=LIST, metricsFrom=LIST, egressTo=LIST),
        serviceMonitor=_object(enabled=FLAG, interval=INTERVAL, labels=MAP),
        prometheusRule=_object(enabled=FLAG, labels=MAP, runbookUrl=URL),
        dashboards=_object(enabled=FLAG, label=NAMED),
        httpRoute=_object(enabled=FLAG, parentRefs=LIST, hostnames=LIST),
        serviceAccount=_object(create=FLAG, name=TEXT, annotations=MAP),
        podAnnotations=MAP,
        podLabels=MAP,
        nodeSelector=MAP,
        tolerations=LIST,
        affinity=MAP,
        topologySpreadConstraints=LIST,
        extraEnv=LIST,
        **{"global": MAP},
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", **whole}


def text() -> str:
    """Return the content of values.schema.json."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    SCHEMA.write_text(text(), encoding="utf-8")
