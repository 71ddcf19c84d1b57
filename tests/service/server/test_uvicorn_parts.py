"""Private parts of uvicorn that the service depends on: a release that changes one must fail here.

`framing.py` and `protocol.py` of `service/api/edge/`, and `service/server/connections.py`, override
or read them. When a test here fails after an update, compare these modules with uvicorn's new code,
then adjust the list.
"""

import ast
import inspect
import textwrap

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.edge import framing, protocol

SIGNATURES = {
    HttpToolsProtocol.__init__: ["self", "config", "server_state", "app_state", "_loop"],
    HttpToolsProtocol.connection_made: ["self", "transport"],
    HttpToolsProtocol.connection_lost: ["self", "exc"],
    HttpToolsProtocol.eof_received: ["self"],
    HttpToolsProtocol.data_received: ["self", "data"],
    HttpToolsProtocol.on_message_begin: ["self"],
    HttpToolsProtocol.on_url: ["self", "url"],
    HttpToolsProtocol.on_header: ["self", "name", "value"],
    HttpToolsProtocol.on_headers_complete: ["self"],
    HttpToolsProtocol.on_body: ["self", "body"],
    HttpToolsProtocol.on_message_complete: ["self"],
    HttpToolsProtocol.on_response_complete: ["self"],
    HttpToolsProtocol.shutdown: ["self"],
    HttpToolsProtocol._unset_keepalive_if_required: ["self"],
    HttpToolsProtocol.timeout_keep_alive_handler: ["self"],
    uvicorn.Server.__init__: ["self", "config"],
    uvicorn.Server.startup: ["self", "sockets"],
    uvicorn.Server.on_tick: ["self", "counter"],
    uvicorn.Server.shutdown: ["self", "sockets"],
    uvicorn.Server.capture_signals: ["self"],
}
ATTRIBUTES = {
    HttpToolsProtocol: {
        "app", "config", "cycle", "expect_100_continue", "flow", "headers", "loop", "parser",
        "pipeline", "scope", "server_state", "timeout_keep_alive", "timeout_keep_alive_task",
        "transport", "url",
    },
    RequestResponseCycle: {
        "disconnected", "keep_alive", "message_event", "response_complete", "response_started",
    },
    FlowControl: {"read_paused", "write_paused"},
    uvicorn.Server: {"force_exit", "lifespan", "servers", "server_state", "should_exit", "started"},
}  # fmt: skip


def own_attributes(owner):
    """Names that the class assigns to `self`, in any of its methods."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__qualname__)
def test_a_method_that_is_overridden_or_called_takes_what_it_took(method):
    assert list(inspect.signature(method).parameters) == SIGNATURES[method]


@pytest.mark.parametrize("owner", ATTRIBUTES, ids=lambda owner: owner.__name__)
def test_an_attribute_that_is_read_or_set_is_still_uvicorns_own(owner):
    assert ATTRIBUTES[owner] - own_attributes(owner) == set()


def test_nothing_else_of_uvicorns_protocol_is_touched():
    """A part that is used and not listed above would change unseen."""
    used = {
        node.attr
        for module in (framing, protocol)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    inherited = own_attributes(HttpToolsProtocol) | {
        name for name in vars(HttpToolsProtocol) if not name.startswith("__")
    }
    listed = ATTRIBUTES[HttpToolsProtocol] | {method.__name__ for method in SIGNATURES}
    assert (used & inherited) - listed == set()
