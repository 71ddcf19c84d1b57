"""Every error and warning says what to do: it names what is expected, a remedy or a place."""

import ast
import re

import pytest

from tests.documents.blocks import ROOT

FILES = [
    path
    for room in ("service", "training")
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.name.endswith("_pb2.py")
]
LOGS = {"warning", "error", "exception", "critical"}
VERBS = (
    "add allow ask calibrate call check choose close convert copy correct create decode delete "
    "download encode end export give hold import install keep leave lengthen let load lower make "
    "measure move name open pass publish put raise read remove rename replace resume restore roll "
    "run save scale see send set shorten sort split start stay stop store subtract take train try "
    "unpack upgrade use wait write"
)
ACTIONS = re.compile(
    r"expected|at (?:most|least)|must|needs?\b|takes?\b|only for|did you mean|again|restart"
    r"|report this|pip install|\b(?:GET|PUT|POST)\b|next (?:attempt|one starts)|same command"
    r"|lists (?:them|those|all)|`(?:priordial|priors|training) "
    rf"|(?:\(|[;:,.] |\b(?:or|and|to|so|first) )(?:{VERBS.replace(' ', '|')})\b",
    re.IGNORECASE,
)
NOT_SHOWN = {
    "the client left before its request was decoded",  # the connection is closed
    "the client has left",
    "nothing can be written to ",  # from here on, caught by the service, which says more
    "padding within the text",
    "the supervisor has ended",
    "an automatic step brings its own model; nothing looks up ' '",
    "a position before the start",
    "there is nothing to combine",
    "the stored tracker state has other half-lives than this release",
    "the stored tracker state has another ' ' than this model",
    "the stored tracker state holds an impossible ' '",
    "the stored tracker state holds a prior or weights that are all 0",
    "no space left",
    "revision   of prior ' ' is in the store only",
    "an inline prior of many values is checked in a thread",
    "a prior of many classes is made ready in a thread",
    "abort always raises",
    "this step adopts nothing",
    "no answer within   s g",
    " bytes ,",
    "one level holds both lists and values",
    "a level holds both lists and values",
    "lists of one level differ in length",
}
"""Messages that no client, operator or user sees."""


def _messages(path):
    """(line, whether it ends in another message or a list, text) of what is raised or logged."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            call = node.exc
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOGS
            and getattr(node.func.value, "id", "") in {"log", "logger"}
        ):
            call = node
        else:
            continue
        parts = [
            each
            for each in ast.walk(call)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        text = " ".join(
            each.value for each in sorted(parts, key=lambda at: (at.lineno, at.col_offset))
        )
        if text.count(" ") >= 2:
            yield node.lineno, _ends_open(call), text


def _ends_open(call):
    """Whether the message ends in a value, such as another message with its own remedy."""
    for each in ast.walk(call):
        if isinstance(each, ast.JoinedStr) and isinstance(each.values[-1], ast.FormattedValue):
            return True
        if isinstance(each, ast.Constant) and str(each.value).endswith(("%s", "%s%s%s")):
            return True
        if isinstance(each, ast.BinOp):
            return True
    return False


@pytest.mark.parametrize("room", ["service", "training"])
def test_a_message_says_what_is_expected_or_what_to_do(room):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in FILES
        if path.is_relative_to(ROOT / room)
        for line, ends_open, text in _messages(path)
        if not ends_open and not ACTIONS.search(text) and text not in NOT_SHOWN
    ]
    assert found == []


def test_a_message_without_a_remedy_is_found(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('raise RunFailed("the network was not exported to ONNX")\n')
    assert [not ACTIONS.search(text) for _, _, text in _messages(module)] == [True]
