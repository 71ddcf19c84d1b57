"""The names of a setting as a flag and as a variable, and the error for a wrong one."""

PREFIX = "PRIORDIAL_"


class InvalidSetting(ValueError):
    """A flag or environment variable is unknown or has an invalid value."""

    def __init__(self, message: str) -> None:
        """message: kept on one line; line ends and bytes that are not text become escapes."""
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def flag_of(name: str) -> str:
    """Return the flag of a setting: max_batch_rows → --max-batch-rows."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return the variable of a setting: max_batch_rows → PRIORDIAL_MAX_BATCH_ROWS."""
    return PREFIX + name.upper()
