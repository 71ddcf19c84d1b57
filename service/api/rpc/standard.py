"""The services that every gRPC server offers: grpc.health.v1 and reflection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.calls import Context


def add_standard_services(server: Any, *, service: str, ready: Callable[[], str | None]) -> None:
    """Add health checks and reflection to a grpc.aio server.

    service: the full name of the server's own service. ready: returns why requests should not be
    sent here, or None.
    """
    health_pb2_grpc.add_HealthServicer_to_server(_Health(service, ready), server)
    names = (service, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection(
        (*names, reflection.SERVICE_NAME), server, pool=_Pool(pb.POOL)
    )


MAX_WATCHES = 1000
"""The most calls of Watch that a worker answers at a time; each takes about 10 kB."""


class _Pool:
    """The protobuf descriptors of this service and of all others, for gRPC reflection."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def find(*wanted: Any) -> Any:
            try:
                return getattr(self._own, name)(*wanted)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*wanted)

        return find


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: SERVING while the service is ready."""

    def __init__(self, service: str, ready: Callable[[], str | None]) -> None:
        self._service, self._ready = service, ready
        self._watches = 0

    def _status(self) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._ready() is None else states.NOT_SERVING)

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 - gRPC's name
        """Return the state of the service; NOT_FOUND for any other service name."""
        if request.service not in ("", self._service):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service '{request.service[:80]}'; expected {self._service}",
            )
        return self._status()

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """Yield the state now, and again whenever it has changed; it is checked once a second.

        RESOURCE_EXHAUSTED where MAX_WATCHES calls wait already.
        """
        if self._watches >= MAX_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHES} calls of Watch are open, the most allowed; call Check instead",
            )
        self._watches += 1
        try:
            last = None
            while True:
                found = self._watched(request.service)
                if found != last:
                    yield found
                    last = found
                await asyncio.sleep(1)
        finally:
            self._watches -= 1

    def _watched(self, service: str) -> health_pb2.HealthCheckResponse:
        """The state of a service; SERVICE_UNKNOWN for any other name."""
        if service in ("", self._service):
            return self._status()
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return health_pb2.HealthCheckResponse(status=unknown)
