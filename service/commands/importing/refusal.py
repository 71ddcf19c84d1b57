"""The one error of an import: what came, what was expected, what to do."""


class ImportRefused(ValueError):
    """A file or a flag that no model can be made of; the message says why and what to do."""
