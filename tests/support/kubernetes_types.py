"""JSON Schemas of KServe's kinds, read from the models of its Python package without importing it.

The generated classes of `kserve` and `kubernetes` name each field's type in `openapi_types` and its
name on the wire in `attribute_map`. Unknown fields are refused.
"""

import ast
import re
from pathlib import Path
from typing import Any

import jsonschema

KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "float": "number",
    "datetime": "string",
}


CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)


def _fields(text: str, name: str) -> dict[str, str]:
    """Name on the wire → type, of one generated class in the text of its module."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            tables = {
                target.id: ast.literal_eval(each.value)
                for each in node.body
                if isinstance(each, ast.Assign | ast.AnnAssign) and each.value is not None
                for target in ([each.target] if isinstance(each, ast.AnnAssign) else each.targets)
                if isinstance(target, ast.Name) and target.id in ("openapi_types", "attribute_map")
            }
            return {
                tables["attribute_map"][field]: kind
                for field, kind in tables["openapi_types"].items()
            }
    raise LookupError(name)


def validators(folder: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """A validator for each kind of KServe that the deployment uses.

    Of the thousand classes only those are parsed that the kinds lead to.
    """
    texts = {}
    for file in sorted(folder.rglob("models/*.py")):
        text = file.read_text(encoding="utf-8")
        texts |= dict.fromkeys(CLASS.findall(text), text)
    definitions: dict[str, dict[str, Any]] = {}
    needed = list(KINDS.values())

    def of(kind: str) -> dict[str, Any]:
        if listed := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
            return {"type": "array", "items": of(listed[1])}
        if mapped := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
            return {"type": "object", "additionalProperties": of(mapped[1])}
        if kind in texts:
            needed.append(kind)
            return {"$ref": f"#/$defs/{kind}"}
        return {"type": PLAIN[kind]} if kind in PLAIN else {}

    while needed:
        name = needed.pop()
        if name not in definitions:
            definitions[name] = {}
            definitions[name] |= {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    field: of(kind) for field, kind in _fields(texts[name], name).items()
                },
            }
    return {
        kind: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})
        for kind, name in KINDS.items()
    }
