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


def _fields(file: Path) -> dict[str, dict[str, str]]:
    """Class name → name on the wire → type, of the generated classes in one file."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ClassDef):
            continue
        tables = {
            each.targets[0].id: ast.literal_eval(each.value)
            for each in node.body
            if isinstance(each, ast.Assign)
            and isinstance(each.targets[0], ast.Name)
            and each.targets[0].id in ("openapi_types", "attribute_map")
        }
        if "openapi_types" in tables:
            found[node.name] = {
                tables["attribute_map"][name]: kind
                for name, kind in tables["openapi_types"].items()
            }
    return found


def validators(folder: Path) -> dict[str, jsonschema.Draft202012Validator]:
    """A validator for each kind of KServe that the deployment uses."""
    known: dict[str, dict[str, str]] = {}
    for file in sorted(folder.rglob("models/*.py")):
        known |= _fields(file)

    def of(kind: str) -> dict[str, Any]:
        if listed := re.fullmatch(r"list\[(.*)\]", kind):
            return {"type": "array", "items": of(listed[1])}
        if mapped := re.fullmatch(r"dict\((\w+), (.*)\)", kind):
            return {"type": "object", "additionalProperties": of(mapped[2])}
        if kind in known:
            return {"$ref": f"#/$defs/{kind}"}
        return {"type": PLAIN[kind]} if kind in PLAIN else {}

    definitions = {
        name: {
            "type": "object",
            "additionalProperties": False,
            "properties": {field: of(kind) for field, kind in fields.items()},
        }
        for name, fields in known.items()
    }
    return {
        kind: jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": definitions})
        for kind, name in KINDS.items()
    }
