"""The flags of the verbs `priors …`, in their own module so that other verbs do not load the store.

The verbs themselves are in `service.commands.priors` and `service.commands.revisions`.
"""

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from service.priors.names import DEFAULT, MAX_REVISION
from service.wire.digits import whole_number

_ACTIONS = "list|show|diff|rollback|export|import|migrate"


def add_verbs(verbs: Any) -> None:
    """Declare the verbs on the program's parser, the object that add_subparsers returned."""
    priors = verbs.add_parser(
        "priors", help="inspect, roll back, back up or move the priors of a store"
    )
    actions = priors.add_subparsers(dest="action", required=True, metavar=_ACTIONS)
    _add_revisions(actions)
    out = actions.add_parser("export", help="write every revision of every prior, oldest first")
    out.add_argument(
        "--model", metavar="NAME", help="only the priors of this model (default: of all models)"
    )
    out.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file to write (default: standard output)"
    )
    into = actions.add_parser(
        "import", help="add the priors that the store lacks; repeating an import changes nothing"
    )
    into.add_argument("file", help="a file that export wrote, or - for standard input")
    actions.add_parser(
        "migrate", help="create the store's tables, or upgrade them to this version of the program"
    )
    for parser in actions.choices.values():
        parser.add_argument(
            "--store",
            metavar="URL",
            help="where priors are stored: sqlite:///FILE or postgresql://… (default as for serve; "
            "PRIORDIAL_STORE)",
        )


def _add_revisions(actions: Any) -> None:
    """Declare the verbs of `service.commands.revisions`. The caller adds `--store` to each."""
    found = actions.add_parser("list", help="list the priors in use with their newest revision")
    found.add_argument(
        "--model", metavar="NAME", help="only the priors of this model (default: of all models)"
    )
    show = actions.add_parser("show", help="print a revision of a prior and the history before it")
    diff = actions.add_parser("diff", help="compare two revisions of a prior class by class")
    back = actions.add_parser(
        "rollback", help="store a new revision equal to an old one; revision 0: nothing stored"
    )
    for parser in (show, diff, back):
        parser.add_argument(
            "name",
            nargs="?",
            default=DEFAULT,
            metavar="PRIOR",
            help=f"name of the stored prior (default: {DEFAULT})",
        )
        parser.add_argument(
            "--model",
            metavar="NAME",
            help="model of the prior (default: the only one that has priors in the store)",
        )
    show.add_argument(
        "--revision", type=_revision, metavar="N", help="revision to print (default: the newest)"
    )
    diff.add_argument(
        "--old",
        type=_revision,
        metavar="N",
        help="revision to compare with; 0: nothing stored (default: the one before --new)",
    )
    diff.add_argument(
        "--new", type=_revision, metavar="N", help="revision to compare (default: the newest)"
    )
    back.add_argument(
        "--to",
        type=_revision,
        metavar="N",
        help="revision to return to; 0: nothing stored (default: the newest that differs from the "
        "one in force)",
    )
    back.add_argument(
        "--note", default="", metavar="TEXT", help="reason, shown in the history (default: none)"
    )


def _revision(text: str) -> int:
    """The number of a revision that an argument writes. Raises ArgumentTypeError."""
    number = whole_number(text, below=MAX_REVISION + 1)
    if number is None:
        shown = text if len(text) <= 40 else text[:39] + "…"
        raise ArgumentTypeError(f"expected a revision, a whole number of at least 0; got '{shown}'")
    return number
