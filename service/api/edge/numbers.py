"""Number types for the queries and paths of FastAPI's routes, as strict as the scoring routes.

Pydantic by itself also accepts 1_0, 1.0 and blanks as a whole number, and nan as a decimal one.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

from service.wire.digits import decimal_number, whole_number


def _whole(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    number = whole_number(text.removeprefix("-"), below=2**63)
    if number is None:
        raise ValueError(f"got {text[:40]!r}; expected a whole number of at most 18 digits")
    return -number if text.startswith("-") else number


def _decimal(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    number = decimal_number(text)
    if number is None:
        raise ValueError(f"got {text[:40]!r}; expected a number")
    return number


Whole = Annotated[int, BeforeValidator(_whole)]
Decimal = Annotated[float, BeforeValidator(_decimal)]
