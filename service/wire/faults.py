"""Errors in what a client sends. `service/api/edge/errors.py` maps each to a status."""


class Malformed(ValueError):
    """Bytes that do not conform to their content type."""


class InvalidInput(ValueError):
    """Well-formed input that the model cannot score."""


class InvalidImage(ValueError):
    """Bytes that are not a readable image."""


class InvalidParameter(ValueError):
    """A parameter with an invalid value."""


class TooLarge(ValueError):
    """Input that would need more memory or time than one request may have."""


class UnsupportedBody(ValueError):
    """A body in a form that the service does not read here, or lacks the library for."""
