"""`priordial demo`: serves the shipped models, which need no checkout and no download."""

from pathlib import Path

DEFAULT_MODEL = "fashion"
_PACKAGE = Path(__file__).resolve().parent


def models() -> Path:
    """Return the folder of the shipped models: in the installed package, or in the clone.

    Raises FileNotFoundError if the package was installed without them.
    """
    for folder in (_PACKAGE / "demo_models", _PACKAGE.parent / "models"):
        if (folder / DEFAULT_MODEL).is_dir():
            return folder
    raise FileNotFoundError("this installation has no models; install it from a wheel")


def arguments(given: list[str]) -> list[str]:
    """Return the arguments of `serve` for a demo. given: further flags, which override them."""
    return ["serve", "--models", str(models()), "--default-model", DEFAULT_MODEL, *given]
