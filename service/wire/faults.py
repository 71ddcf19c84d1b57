"""The faults of what a client sends; `service/api/edge/errors.py` gives each its status."""


class Malformed(ValueError):
    """Bytes that are not what their content type says."""


class InvalidInput(ValueError):
    """Well-formed input that the model cannot take."""


class InvalidImage(ValueError):
    """Bytes that are not an image that can be read."""


class InvalidParameter(ValueError):
    """A parameter with a wrong value."""


class TooLarge(ValueError):
    """Input that would need more memory or time than one request may have."""


class UnsupportedBody(ValueError):
    """A body in a form that the service does not read here, or lacks the library for."""
