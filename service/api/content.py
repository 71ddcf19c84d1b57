"""The body of a request to /predict or /adjust, in any of its forms, up to the model's input tensor."""

import functools
import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from service.api.edge.errors import Problem
from service.api.edge.request import HotRequest
from service.batching.pool import Pool
from service.batching.work import Abandoned, DeadlinePassed, Overloaded
from service.classifier import rejection
from service.contract.bundle import Bundle
from service.repository.served import ServedModel
from service.wire.arrays import (
    InvalidInput,
    Malformed,
    array_of,
    may_hold_strings,
    parse_json_object,
)
from service.wire.forms import parse_form
from service.wire.parameters import NO_PARAMETERS, Parameters, body_parameters, text_parameters

NPY = "application/x-npy"
TIMEOUT_HEADER = b"x-request-timeout-ms"
DEAR_BYTES = 4096
"""Reading a longer body costs more than to look first whether there is room for its rows."""
_MAX_TIMEOUT_MS = 86_400_000


class Content:
    """The body of a request, read as far as that needs no model."""

    __slots__ = ("_booleans", "_images", "_instances", "parameters")

    def __init__(
        self,
        parameters: Parameters,
        *,
        instances: list[Any] | None = None,
        booleans: bool = False,
        images: list[bytes] | list[str] | None = None,
    ) -> None:
        self.parameters = parameters
        self._instances, self._booleans = instances, booleans
        self._images = images

    @classmethod
    def of(cls, request: HotRequest) -> "Content":
        """By content type, but for a .npy tensor, which holds nothing else. Raises Malformed or Problem(unsupported-media-type)."""
        kind, body = request.content_type, request.body
        if kind in ("application/json", "text/json", ""):
            document = parse_json_object(body, ("instances", "parameters"))
            return cls(
                body_parameters(document.get("parameters")),
                instances=instances_of(document),
                booleans=may_hold_strings(body),
            )
        if not body:
            raise Malformed("the body is empty")
        if kind.startswith("image/"):
            return cls(NO_PARAMETERS, images=[bytes(body)])
        if kind == "multipart/form-data":
            form = parse_form(request.headers[b"content-type"], bytes(body))
            if not form.files:
                raise Malformed("the multipart body holds no file")
            return cls(text_parameters(form.fields), images=form.files)
        raise Problem(
            "unsupported-media-type",
            f"content type '{kind[:80]}' is not taken; expected application/json, application/x-npy, image/* or multipart/form-data",
        )

    def array(self, bundle: Bundle) -> NDArray[Any] | None:
        """The model's input tensor, or None when images must be decoded for it."""
        if self._instances is None:
            return None
        self._images = encoded_images(self._instances)
        if self._images is not None:
            return None
        return array_of(self._instances, bundle.input, are_numbers=not self._booleans)

    async def decoded_images(
        self, request: HotRequest, model: ServedModel, pool: Pool, deadline: float
    ) -> NDArray[Any]:
        """The model's input tensor of images, which are decoded in the pool."""
        kind, encoded = model.bundle.input.kind, self._images
        assert encoded is not None
        if kind != "image":
            raise InvalidInput(f"model '{model.bundle.name}' takes {kind} input, not images")
        return await decoded(request, model, encoded, pool, deadline)


async def decoded(
    request: HotRequest,
    model: ServedModel,
    encoded: Sequence[bytes | str],
    pool: Pool,
    deadline: float,
) -> NDArray[Any]:
    """The model's input tensor of encoded images. Raises InvalidImage and the errors of the pool, which are counted."""
    # It needs Pillow, and is there since a model that takes images was loaded.
    from service.wire import images

    try:
        return await pool.run(
            functools.partial(images.image_array, encoded, model.bundle.input),
            size=sum(map(len, encoded)),
            deadline=deadline,
            is_abandoned=request.is_abandoned,
        )
    except (Overloaded, DeadlinePassed, Abandoned) as error:
        model.metrics.rejected(rejection(error))
        raise


def instances_of(document: dict[str, Any]) -> list[Any]:
    """The `instances` member. Raises Malformed or InvalidInput."""
    if "instances" not in document:
        raise Malformed("the body has no 'instances'")
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput("instances must be a list")
    if not instances:
        raise InvalidInput("there are no instances")
    return instances


def encoded_images(instances: list[Any]) -> list[str] | None:
    """The base64 text when instances are {"b64": …}; None when they are arrays. Raises InvalidInput for a mixture."""
    if not isinstance(instances[0], dict):
        return None
    found = []
    for row, item in enumerate(instances):
        if not isinstance(item, dict) or set(item) != {"b64"} or not isinstance(item["b64"], str):
            raise InvalidInput(f'instance {row} is not of the form {{"b64": "…"}}')
        found.append(item["b64"])
    return found


def deadline_of(request: HotRequest, default_seconds: float) -> float:
    """When the caller stops waiting, in time.monotonic(). Raises Malformed."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return time.monotonic() + default_seconds
    if not given.isdigit() or not 0 < int(given) <= _MAX_TIMEOUT_MS:
        raise Malformed(
            f"X-Request-Timeout-Ms is '{given[:40].decode('latin-1')}'; expected 1 to {_MAX_TIMEOUT_MS}"
        )
    waited = time.perf_counter() - request.begun
    return time.monotonic() - waited + int(given) / 1000
