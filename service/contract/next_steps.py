"""Says what to do after a model was published or a key was made, as commands that can be pasted."""

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """The command `priordial`, in the form in which it can be run from here."""
    if shutil.which("priordial"):
        return "priordial"
    return f"{shlex.quote(sys.executable)} -m priordial"


def to_serve(folder: Path) -> str:
    """Two lines for the user: how a running service loads a published folder, and how to
    start one.
    """
    models, model = folder.parent.parent, folder.parent.name
    return (
        f"next     load it: curl -X POST 127.0.0.1:8000/v2/repository/models/{model}/load\n"
        f"         or start a service: {program()} serve --models {shlex.quote(str(models))}\n"
    )


def to_use_keys(keys: Path) -> str:
    """A line for the user: how to start a service with a list of keys."""
    return f"next     {program()} serve --keys {shlex.quote(str(keys))}\n"
