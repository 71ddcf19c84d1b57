"""Reads bodies of /predict and /adjust that contain images, and turns them into the input
tensor.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from service.api.edge.errors import Problem
from service.api.edge.request import Request
from service.batching.pool import Pool
from service.batching.work import Abandoned, Deadline, DeadlinePassed, Overloaded
from service.contract.bundle import Bundle
from service.repository.served import ServedModel
from service.wire.columns import ordered_rows, rows_of_columns
from service.wire.faults import InvalidInput, Malformed
from service.wire.forms import parse_form
from service.wire.parameters import NO_PARAMETERS, Parameters, text_parameters
from service.wire.shown import NO_ROWS, short
from service.wire.tables.reader import DEAR_TYPES, TYPES

T = TypeVar("T")

NPY = "application/x-npy"
_ARRAY_TYPES = frozenset({NPY})
JSON_TYPES = frozenset({"application/json", "text/json", ""})
JSON_LINES = frozenset(
    {
        *("application/jsonlines", "application/x-jsonlines", "application/jsonl"),
        *("application/x-ndjson", "application/ndjson"),
    }
)
"""JSON Lines, one instance per line: the form in which SageMaker's batch transform splits files."""
UNCHOSEN_TYPES = frozenset(
    {"application/x-www-form-urlencoded", "text/plain", "application/octet-stream"}
)
"""The content types that curl, wget, urllib, fetch and aiohttp send unless the caller sets one."""
_JSON_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]{0,99}\{")
LARGE_BYTES = 128 * 1024
"""Longer JSON bodies and forms are read in a thread, since they would hold up the event loop."""
LARGE_ARRAY_BYTES = 2**20
"""Longer bodies that hold arrays as raw bytes are read in a thread."""
DEAR_BYTES = 4096
"""Before a longer body is parsed, the queue is asked whether it has room."""


class Content:
    """The encoded images of a request, and the parameters sent with them."""

    __slots__ = ("_images", "parameters")

    def __init__(
        self, images: Sequence[bytes | bytearray] | list[str], parameters: Parameters
    ) -> None:
        self._images, self.parameters = images, parameters

    @classmethod
    def of(cls, request: Request) -> "Content":
        """Read a body that is an image or a form of images.

        Raises Malformed or Problem(unsupported-media-type).
        """
        kind, body = request.content_type, request.body
        if not body:
            raise Malformed("the body is empty; expected instances, an array, a table or an image")
        if kind.startswith("image/"):
            return cls([body], NO_PARAMETERS)
        if kind == "multipart/form-data":
            form = parse_form(request.headers[b"content-type"], body)
            if not form.files:
                raise Malformed("the multipart body holds no file; send each image as a file part")
            return cls(form.files, text_parameters(form.fields))
        raise Problem(
            "unsupported-media-type",
            f"content type '{kind[:80]}' is not accepted; expected application/json, "
            f"application/jsonlines, application/x-npy, {', '.join(TYPES)}, image/* or "
            "multipart/form-data",
        )

    @classmethod
    def of_instances(cls, instances: list[Any]) -> "Content":
        """Take JSON instances, each an image in base64 or {"b64": …}. Raises InvalidInput."""
        images = []
        for row, item in enumerate(instances):
            image = item["b64"] if isinstance(item, dict) and item.keys() == {"b64"} else item
            if not isinstance(image, str):
                raise InvalidInput(
                    f'instance {row} is {short(item)}; expected {{"b64": "…"}}, an image in base64'
                )
            images.append(image)
        return cls(images, NO_PARAMETERS)

    async def decoded_images(
        self, request: Request, model: ServedModel, pool: Pool, deadline: Deadline
    ) -> NDArray[Any]:
        """Decode the images in the pool. Returns the model's input tensor.

        Raises InvalidInput for a model without image input, InvalidImage, and the pool's errors.
        """
        kind = model.bundle.input.kind
        if kind != "image":
            remedy = (
                "; to send pictures, import it again with --image"
                if model.bundle.input.may_be_pixels
                else "; send its rows as JSON, CSV, .npy or another table"
            )
            raise InvalidInput(
                f"model '{model.bundle.name}' takes {kind} input, not images{remedy}"
            )
        return await decoded(request, model, self._images, pool, deadline)


async def decoded(
    request: Request,
    model: ServedModel,
    encoded: Sequence[bytes | bytearray | str],
    pool: Pool,
    deadline: Deadline,
) -> NDArray[Any]:
    """Decode images in the pool. Returns the model's input tensor.

    encoded: image files as bytes, or base64 texts. Raises InvalidImage, and the pool's errors,
    which are counted as refusals of the request.
    """
    # It needs Pillow, which was imported when a model that takes images was loaded.
    from service.wire import images

    return await in_pool(
        pool,
        functools.partial(images.image_array, encoded, model.bundle.input),
        request=request,
        model=model,
        size=sum(map(len, encoded)),
        deadline=deadline,
    )


async def in_pool(
    pool: Pool,
    call: Callable[[], T],
    *,
    request: Request,
    model: ServedModel,
    size: int,
    deadline: Deadline,
) -> T:
    """Run `call()` in the pool and return its result.

    size: bytes of the request that it reads. If the pool refuses it, the refusal is counted for
    the model, and the pool's error is raised.
    """
    try:
        return await pool.run(call, size=size, deadline=deadline, caller=request)
    except (Overloaded, DeadlinePassed, Abandoned) as error:
        model.batcher.refused(error)
        raise


def is_json(request: Request) -> bool:
    """Whether a body is JSON: by its media type, or by its first byte if that type is only the
    default of the client's library (`UNCHOSEN_TYPES`).
    """
    kind = request.content_type
    return kind in JSON_TYPES or (
        kind in UNCHOSEN_TYPES and _JSON_OBJECT.match(request.body) is not None
    )


def is_large(request: Request, array_types: frozenset[str] = _ARRAY_TYPES) -> bool:
    """Whether a request's body takes so long to parse that the pool should do it.

    array_types: the content types of bodies that hold arrays as raw bytes.
    """
    length = len(request.body)
    if request.content_type in DEAR_TYPES:
        return True
    return length > LARGE_BYTES and (
        length > LARGE_ARRAY_BYTES or request.content_type not in array_types
    )


def may_pin(body: bytes | bytearray) -> bool:
    """Whether a JSON body may contain a `version` parameter.

    Only both ends of a large body are searched, where `parameters` usually is: searching all of it
    would block the event loop. If a version is missed, the request may be refused because the
    newest version is busy, although the version that it names is not.
    """
    if len(body) <= LARGE_BYTES:
        return b"version" in body
    half = LARGE_BYTES // 2
    return body.find(b"version", 0, half) >= 0 or body.find(b"version", len(body) - half) >= 0


def instances_of_columns(document: dict[str, Any], *, max_rows: int) -> list[Any]:
    """Turn an `inputs` member, {column: list of values}, into rows by column name.

    Raises Malformed if `instances` is given too, TooLarge, or InvalidInput if there is no row.
    """
    if "instances" in document:
        raise Malformed("the body has 'instances' and 'inputs'; expected only one of them")
    rows = rows_of_columns(document["inputs"], max_rows=max_rows)
    if not rows:
        raise InvalidInput(NO_ROWS)
    return rows


def rows_by_name(instances: list[Any], bundle: Bundle) -> list[Any]:
    """Turn objects by column name into rows of a model with one input. Raises InvalidInput."""
    names = bundle.column_names
    assert names is not None
    rows = ordered_rows(instances, names)
    return [row[0] for row in rows] if bundle.input.kind == "text" and len(names) == 1 else rows


def rows_or_images(instances: list[Any], bundle: Bundle) -> tuple[list[Any], bool]:
    """Return the rows of JSON instances, and whether they are images in base64.

    Raises InvalidInput.
    """
    if bundle.input.columns:
        return instances, False
    if isinstance(instances[0], dict):
        instances = _rows_of_objects(instances, bundle)
    first = instances[0]
    return instances, isinstance(first, dict) or (
        bundle.input.kind == "image" and isinstance(first, str)
    )


def _rows_of_objects(instances: list[Any], bundle: Bundle) -> list[Any]:
    """Turn objects, sent to a model with one input, into its rows. Objects that hold images stay.

    An object has a value for each column name, or the row under the name of the input, as
    TensorFlow Serving takes it. An image may be under any one name. Raises InvalidInput.
    """
    spec, names = bundle.input, bundle.column_names
    under_input = all(isinstance(each, dict) and each.keys() == {spec.name} for each in instances)
    by_column = names is not None and spec.kind in {"tensor", "text"}
    if by_column and (spec.name in (names or ()) or not under_input):
        return rows_by_name(instances, bundle)
    if under_input:
        return [each[spec.name] for each in instances]
    if spec.kind == "image":
        return [_only_image(each) for each in instances]
    if instances[0].keys() == {"b64"}:
        return instances
    raise no_column_names(bundle)


def _only_image(instance: Any) -> Any:
    """Return the image of an instance that holds one under any single name; else the instance
    itself.
    """
    if isinstance(instance, dict) and len(instance) == 1:
        (value,) = instance.values()
        if isinstance(value, dict | str) and "b64" not in instance:
            return value
    return instance


def no_column_names(bundle: Bundle) -> InvalidInput:
    """Make the error for rows by column name that a model without column names got.

    The values could not be put in order, and in a wrong order they would get wrong answers.
    """
    return InvalidInput(
        f"model '{bundle.name}' has no column names, so rows cannot be put in order by name: send "
        "each row without names, as a list in the model's order, or import the model again with "
        "--column-names"
    )


def instances_of(document: dict[str, Any]) -> list[Any]:
    """Return the `instances` member, a list of at least one row. Raises Malformed, InvalidInput."""
    if "instances" not in document:
        raise Malformed("the body has no 'instances'; expected a list of rows under that name")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput(f"instances are {short(instances)}; expected a list of rows")
    if not instances:
        raise InvalidInput(NO_ROWS)
    return instances
