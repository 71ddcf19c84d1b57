"""Health and reflection over gRPC, within their bounds."""

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.api.rpc import standard

OF_ALL = health_pb2.HealthCheckRequest()


def test_watches_beyond_the_limit_are_refused_and_those_that_ended_make_room(monkeypatch):
    monkeypatch.setattr(standard, "MAX_WATCHES", 2)

    async def scenario():
        server = grpc.aio.server()
        standard.add_standard_services(server, service="a.B", ready=lambda: None)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watches = [health.Watch(OF_ALL) for _ in range(2)]
            serving = health_pb2.HealthCheckResponse.SERVING
            assert [(await each.read()).status for each in watches] == [serving] * 2
            with pytest.raises(grpc.aio.AioRpcError, match="2 calls of Watch are open") as refused:
                await health.Watch(OF_ALL).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await health.Check(OF_ALL)).status == serving
            watches[0].cancel()
            states = []

            async def again():
                with contextlib.suppress(grpc.aio.AioRpcError):
                    states.append((await health.Watch(OF_ALL).read()).status)

            for _ in range(50):
                await again()
                if states:
                    break
            assert states == [serving]
        await server.stop(None)

    asyncio.run(scenario())
