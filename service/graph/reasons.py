"""Turns what onnxruntime says of a graph or a row into one line in the words of a user."""

import re

import onnxruntime as ort

from service.process.threads import raise_limit

_PREAMBLES = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : "),
    re.compile(r"Load model from .*? failed: ?"),
    re.compile(r"(Fatal error|This is an invalid model\. (Error|Type Error)|Exception): "),
    re.compile(r"This is an invalid model\. "),
)
_IN_SOURCE = re.compile(r"/\S+\.(?:cc|h|cu|cuh):\d+ .*?\)(?: const)? (?:\[with .*?\] )?")
_WHILE_RUNNING = re.compile(
    r"Non-zero status code returned while running (?P<op>\w+) node\. Name:'(?P<name>.*?)' "
    r"Status Message: "
)
_TOO_NEW = (
    r"model (?P<what>IR version): (?P<has>\d+), max supported IR version: (?P<most>\d+)",
    r"Opset (?P<has>\d+) is under development.* domain (?P<what>\S+) is till opset (?P<most>\d+)",
)
_NO_OPERATOR = (
    r"(?P<domain>[\w.]*):(?P<op>\w+)\(-?\d+\) is not a registered function/op",
    r'In Node, \(".*?", (?P<op>\w+), "(?P<domain>[^"]+)", .* No opset import for domain',
    r"No Op registered for (?P<op>\w+) with domain_version of (?P<opset>\d+)",
    r"Could not find an implementation for (?P<op>\w+)\(\d+\) node",
)
_WHOSE_DOMAINS = {
    "ai.onnx.contrib": "onnxruntime-extensions, which tokenise texts and decode images: export "
    "the classifier without that step, and give a model of texts as a folder with tokenizer.json",
    "TRT": "TensorRT's plugins: export the model without them",
    "trt.plugins": "TensorRT's plugins: export the model without them",
    "org.pytorch.aten": "PyTorch itself: export the model with torch.onnx.export(dynamo=True) or "
    "a newer opset",
}
_WHOSE_OPERATORS = {
    "Solve": "skl2onnx writes it for a Gaussian process: export another classifier, such as an SVC "
    "in CalibratedClassifierCV",
}
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|[Ff]ailed to allocate memory|[Cc]annot allocate memory|"
    r"out of memory|pthread_create failed"
)
_NO_NEIGHBOUR = re.compile(
    r"its node ArrayFeatureExtractor\b.*index is out of range: Y\[\d+\] \(-1\)"
)


def first_line(error: Exception) -> str:
    """The first line of an error's message; its class if it has none.

    onnxruntime's codes, and places in its source, are left out.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for preamble in _PREAMBLES:
        if found := preamble.match(line):
            line = line[found.end() :]
    if found := _WHILE_RUNNING.match(line):
        name = f" '{found['name']}'" if found["name"] else ""
        line = f"its node {found['op']}{name}: {line[found.end() :]}"
    return _IN_SOURCE.sub("", line).strip()


def remedy_of_rows(why: str) -> str:
    """Return what to do if a graph accepts no row, as a sentence. why: what `first_line` says of
    it.
    """
    if _NO_NEIGHBOUR.match(why):
        return (
            "For a RadiusNeighborsClassifier, skl2onnx gives the index -1 to points outside the "
            "radius, and onnxruntime refuses it: export a KNeighborsClassifier"
        )
    return (
        "Run a row of the training data with onnxruntime.InferenceSession(FILE).run; if that "
        "fails, too, export the model again with a newer converter"
    )


def lacks_memory(error: BaseException) -> bool:
    """Whether a call failed because no memory or thread was left: not a fault of the graph or the
    rows.
    """
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def refusal(error: Exception) -> str:
    """Why onnxruntime cannot open a file, and what to do."""
    message = (str(error).strip().splitlines() or [""])[0]
    if lacks_memory(error):
        return (
            f"onnxruntime has no memory or thread left for it: {first_line(error).rstrip('.')}; "
            f"{raise_limit()}"
        )
    return (
        _too_new(message)
        or _no_operator(message)
        or f"onnxruntime refuses it: {first_line(error).rstrip('.')}. Export the model "
        "again, until onnxruntime.InferenceSession opens the file"
    )


def _too_new(message: str) -> str | None:
    """Say what is needed to run a file that is newer than onnxruntime; None for other faults."""
    for pattern in _TOO_NEW:
        if found := re.search(pattern, message):
            what = "ir_version" if found["what"] == "IR version" else f"opset of {found['what']}"
            return (
                f"its {what} is {found['has']}, and onnxruntime {ort.__version__} takes "
                f"{found['most']} at most: export it with an older one, or install a newer "
                "onnxruntime"
            )
    return None


def _no_operator(message: str) -> str | None:
    """Say what is needed to run a file with an operator that onnxruntime lacks; None for other
    faults.
    """
    for pattern in _NO_OPERATOR:
        if found := re.search(pattern, message):
            break
    else:
        return None
    parts = found.groupdict()
    lacks = f"onnxruntime {ort.__version__} has no operator '{parts['op']}'"
    if parts.get("opset"):
        return (
            f"{lacks} in opset {parts['opset']}: export the model with a newer opset, or with "
            "standard operators of ONNX only"
        )
    if "domain" not in parts:
        return f"{lacks} for the types that the graph gives it: export the model in float32"
    domain = parts["domain"]
    whose = _WHOSE_DOMAINS.get(domain)
    if whose is not None:
        return f"{lacks} of the domain '{domain}'. Its operators are those of {whose}"
    remedy = _WHOSE_OPERATORS.get(
        parts["op"],
        "export the model with standard operators of ONNX only, or do that step before the request",
    )
    return f"{lacks} of the domain '{domain}': {remedy}"
