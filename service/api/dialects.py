"""The scoring routes of other servers, translated to /predict: their paths and body formats.

| server | scores at |
| --- | --- |
| TensorFlow Serving, KServe V1 | /v1/models/{model}[/versions/{version}]:predict |
| SageMaker, MLflow | /invocations |
| Azure ML | /score |
| Vertex AI | the route that it configures, /predict by default |

The answer is that of /predict. Its `predictions` have one entry for each instance, as all these
clients expect.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import orjson

from service.api.content import is_json, is_large, no_column_names, rows_by_name
from service.api.edge.request import Answer, Later, Request
from service.api.predict import Predict
from service.batching.queue import Entry, Reply
from service.contract.bundle import Bundle
from service.contract.portions import release
from service.repository.served import ServedModel
from service.wire.arrays import texts_per_row
from service.wire.faults import Malformed
from service.wire.json_text import parse_json_object
from service.wire.shown import short

_V1 = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]{1,9}))?:predict")
INVOCATIONS = ("/invocations", "/score")
"""The scoring paths of SageMaker and MLflow, and of Azure ML."""
_ROWS = ("instances", "inputs", "dataframe_split", "dataframe_records", "input_data")
_FRAME = {"columns", "data", "index"}
_MEMBERS = (*_ROWS, "params", "parameters", "signature_name")
_ATTRIBUTES = b"x-amzn-sagemaker-custom-attributes"
Find = Callable[[str | None, int | None], ServedModel]
"""Finds a model by name and version; None for the default one."""


class Dialect:
    """A scoring route of another server: it translates the body, and /predict does the rest."""

    with_error = False

    def __init__(self, predict: Predict, find: Find, *, template: str) -> None:
        """Make a route on top of /predict.

        predict: answers the translated requests. find: finds a model.
        template: the path template, as metrics and the log show it.
        """
        self._predict, self._find, self.template = predict, find, template

    def begin(self, request: Request, path: dict[str, str], reply: Reply) -> Answer | Later | None:
        """Queue the rows of a request, as /predict does."""
        query, body = request.query, request.body
        if "version" in path:
            query = _joined(b"version=" + path["version"].encode(), query)
        attributes = request.headers.get(_ATTRIBUTES)
        if attributes is not None:  # SageMaker passes this header on, and no query string
            query = _joined(query, attributes.strip().replace(b",", b"&"))
        if is_json(request):
            version = int(path["version"]) if "version" in path else None
            model = self._find(path.get("model"), version)
            if is_large(request):
                return self._large(request, model, path, query=query, reply=reply)
            body = _translated(body, model.bundle)
        return self._predict.begin(request.with_body(body, query=query), path, reply)

    async def _large(
        self,
        request: Request,
        model: ServedModel,
        path: dict[str, str],
        *,
        query: bytes,
        reply: Reply,
    ) -> None:
        """Translate a large body in the pool; that of /predict is then read there, too."""
        with model.held():
            body = await self._predict.aside(
                request, model, partial(_translated_aside, request.body, model.bundle)
            )
        later = self._predict.begin(request.with_body(body, query=query), path, reply)
        if later is not None:
            await later

    def encode(self, entries: Sequence[Entry]) -> Sequence[Answer]:
        """Return the answers of /predict to these entries."""
        return self._predict.encode(entries)


class V1(Dialect):
    """The V1 protocol of TensorFlow Serving and KServe."""

    with_error = True

    def match(self, path: str) -> dict[str, str] | None:
        """Return the model, and the version if the path has one; None for another path."""
        if not path.startswith("/v1/models/"):
            return None
        found = _V1.fullmatch(path)
        if found is None:
            return None
        model, version = found.groups()
        return {"model": model} if version is None else {"model": model, "version": version}


class Invocations(Dialect):
    """The scoring path of SageMaker, MLflow, Azure ML or Vertex AI, for the default model."""

    def match(self, path: str) -> dict[str, str] | None:
        """Return an empty object, since the path has no parameters; None for another path."""
        return {} if path == self.template else None


def _joined(one: bytes, other: bytes) -> bytes:
    return one + b"&" + other if one and other else one or other


def _translated(body: bytes | bytearray, bundle: Bundle) -> bytes:
    """Translate a JSON body of another server to /predict. Raises Malformed or InvalidInput."""
    return _of_document(parse_json_object(body, _MEMBERS), bundle)


def _of_document(document: dict[str, Any], bundle: Bundle) -> bytes:
    rows = [name for name in _ROWS if name in document]
    if len(rows) != 1:
        raise Malformed(
            f"the body has {' and '.join(rows) or 'no rows'}; expected one of {', '.join(_ROWS)}"
        )
    made: dict[str, Any] = {"instances": _instances(rows[0], document[rows[0]], bundle)}
    parameters = {**_object(document, "params"), **_object(document, "parameters")}
    if parameters:
        made["parameters"] = parameters
    return orjson.dumps(made)


def _translated_aside(body: bytes | bytearray, bundle: Bundle) -> bytes:
    """Translate a long body; called in a thread, where the decoded body is also freed, in slices.

    Otherwise the traceback of an error would keep that body until the event loop has answered.
    """
    document = parse_json_object(body, _MEMBERS)
    try:
        return _of_document(document, bundle)
    finally:
        release(document)


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Malformed(f"{name} is {short(found)}; expected an object")
    return found


def _instances(name: str, given: Any, bundle: Bundle) -> Any:
    """Rows in the form that /predict takes."""
    if name == "dataframe_split" or (name == "input_data" and _is_frame(given)):
        return _split_frame(name, given, bundle)
    if name == "dataframe_records":
        return _records(given, bundle)
    if name in {"inputs", "input_data"} and isinstance(given, dict):
        return _columns(given, bundle)
    return given


def _is_frame(given: Any) -> bool:
    """Whether Azure ML's `input_data` is a table, not rows or named tensors."""
    return isinstance(given, dict) and "data" in given and given.keys() <= _FRAME


def _split_frame(member: str, given: Any, bundle: Bundle) -> Any:
    """Turn {"columns": […], "data": [[…], …]} into rows by column name, or plain rows.

    member: the name of the body's member, for messages. The rows of a table of one column may be
    its values.
    """
    if not isinstance(given, dict) or "data" not in given:
        raise Malformed(f"{member} is {short(given)}; expected an object with columns and data")
    if not isinstance(given["data"], list):
        raise Malformed(f"the data of {member} are {short(given['data'])}; expected a list of rows")
    unknown = sorted(set(given) - _FRAME)
    if unknown:
        raise Malformed(
            f"{member} has an unknown member '{unknown[0][:60]}'; expected columns, data and index"
        )
    columns, data = given.get("columns"), given["data"]
    if columns is None or (_are_positions(columns) and not _takes_one_value(bundle)):
        return data
    if not isinstance(columns, list) or len({str(name) for name in columns}) != len(columns):
        raise Malformed(f"the columns of {member} are {short(columns)}; expected different names")
    if len(columns) == 1:
        data = [values if isinstance(values, list) else [values] for values in data]
    for row, values in enumerate(data):
        if not isinstance(values, list) or len(values) != len(columns):
            raise Malformed(
                f"row {row} of {member} is {short(values)}; expected {len(columns)} values"
            )
    names = [str(name) for name in columns]
    return _ordered([dict(zip(names, values, strict=True)) for values in data], bundle)


def _are_positions(columns: Any) -> bool:
    """Whether the columns are 0, 1, 2 …, as pandas numbers them in a frame without names."""
    return isinstance(columns, list) and [str(name) for name in columns] == [
        str(at) for at in range(len(columns))
    ]


def _records(given: Any, bundle: Bundle) -> Any:
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise Malformed(f"dataframe_records is {short(given)}; expected a list of objects")
    if given and all(_are_positions(list(row)) for row in given) and not _takes_one_value(bundle):
        return [list(row.values()) for row in given]
    return _ordered(given, bundle)


def _columns(given: dict[str, Any], bundle: Bundle) -> Any:
    """Turn named tensors into instances: the only tensor itself, or columns into rows by name."""
    if len(given) == 1 and not bundle.input.columns:
        return next(iter(given.values()))
    for name, values in given.items():
        if not isinstance(values, list):
            raise Malformed(
                f"column '{name[:60]}' of inputs is {short(values)}; expected a list with the "
                "value of each row"
            )
    lengths = {name: len(values) for name, values in given.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name[:40]}: {count}" for name, count in list(lengths.items())[:8])
        raise Malformed(
            f"the columns have different lengths ({shown}); expected lists of one length"
        )
    rows = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    return _ordered(rows, bundle)


def _ordered(rows: list[dict[str, Any]], bundle: Bundle) -> Any:
    """Put the values of rows by column name into the order of the model's training table.

    Raises InvalidInput if the model has no column names, or other ones: values in the wrong order
    would give wrong answers without a warning.
    """
    if bundle.input.columns:
        return rows
    if _takes_one_value(bundle):
        only = _only_column(rows)
        if only is not None:
            return only
    if bundle.column_names is None:
        raise no_column_names(bundle)
    return rows_by_name(rows, bundle)


def _takes_one_value(bundle: Bundle) -> bool:
    """Whether a row is one text, or an image."""
    spec = bundle.input
    return spec.kind == "image" or (spec.kind == "text" and texts_per_row(spec) == 1)


def _only_column(rows: list[dict[str, Any]]) -> list[Any] | None:
    """The values of rows that all have the same single column; None for other rows."""
    names = {name for row in rows for name in row}
    if len(names) != 1 or not all(rows):
        return None
    (name,) = names
    return [row[name] for row in rows]
