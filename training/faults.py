"""What can be wrong before or during a run, and the exit code of each."""


class WrongUse(ValueError):
    """The command cannot be meant: an unknown name, flags that contradict each other, a path that is not there."""

    exit_code = 2


class BadData(ValueError):
    """Data that is wrong; the message names the file and the row. No run starts on it."""

    exit_code = 1


class RunFailed(RuntimeError):
    """A run that could not be brought to its end; the message says what happened and what is left."""

    exit_code = 1
