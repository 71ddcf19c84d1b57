"""The error of an import. Its message says what was found, what was expected and what to do."""


class ImportRefused(ValueError):
    """A file or a flag from which no model can be made; the message says why and what to do."""
