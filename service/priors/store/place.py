"""Where priors are kept when the user names no store: `--store auto`."""

from pathlib import Path

from platformdirs import user_data_path

AUTO = "auto"
FILE = "priordial.db"
_CHECKOUT = Path(__file__).resolve().parents[3]


def store_url(text: str) -> str:
    """Replace `auto` by the URL of a file; any other URL is returned as it is.

    The file is priordial.db in the current folder where there is one already, or where this
    folder is a clone of the project. Elsewhere it is in the user's data folder.

    >>> store_url("sqlite:///mine.db")
    'sqlite:///mine.db'
    """
    return text if text != AUTO else f"sqlite:///{_default_file()}"


def make_folder(text: str) -> None:
    """Make the user's data folder where `auto` leads there. Raises OSError."""
    if text == AUTO:
        _default_file().parent.mkdir(parents=True, exist_ok=True)


def _default_file() -> Path:
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder was deleted
        return user_data_path("priordial", appauthor=False) / FILE
    if (here / FILE).exists() or (here == _CHECKOUT and (here / "pyproject.toml").exists()):
        return here / FILE
    return user_data_path("priordial", appauthor=False) / FILE
