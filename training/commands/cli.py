"""Implements the `training` command: verbs, flags and exit codes.

Results go to stdout, everything else to stderr.
"""

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from service.contract.extras import VERSION
from service.contract.next_steps import to_serve
from service.contract.resources import flushed
from training.commands import calibrate, evidence, score
from training.commands import compare as comparing
from training.commands import fit as fitting
from training.commands.flags import add_data_flags, add_image_flags, add_seed_flag, recipe_of
from training.faults import Fault, WrongUse, say, short
from training.loop.interrupt import forget_signals

Verb = Callable[[argparse.Namespace], dict[str, Any]]


def main(arguments: Sequence[str] | None = None, *, prog: str = "training") -> int:
    """Run one verb; return the exit code: 0 done, 1 failed, 2 wrong use.

    arguments: by default those of the process. prog: the command's name in help and errors.
    """
    parser = make_parser(prog)
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    options.command = f"{prog} {shlex.join(given)}"
    verb: Verb = options.run
    try:
        if options.records:
            _check_words(given)
        result = verb(options)
    except KeyboardInterrupt:
        return _report(f"stopped{options.stopped}", 1)
    except Fault as error:
        return _report(str(error), error.exit_code)
    except (MemoryError, OSError, SystemExit) as error:
        return _report(_from_outside(error), Fault.exit_code)
    finally:
        forget_signals()
    try:
        if result:
            _print(result, options)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `training … --json | head`
        flushed()
        return 1
    except OSError as error:
        flushed()
        return _report(f"the result cannot be printed: {error.strerror}", 1)
    return 0


def _check_words(given: Sequence[str]) -> None:
    """Raise WrongUse for a word that is not UTF-8, which Python holds in surrogates."""
    for word in given:
        if any("\ud800" <= character <= "\udfff" for character in word):
            shown = word.encode(errors="replace").decode()
            raise WrongUse(f"'{shown}' is not UTF-8 text, so no report can hold it; give UTF-8")


def _from_outside(error: BaseException) -> str:
    """Say what the operating system refused and for which file, or where a user's own network
    failed.
    """
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}"
    return f"stopped before the end by {short(error)}"


def _report(message: str, code: int) -> int:
    say(message)
    return code


def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print(json.dumps(result, ensure_ascii=not unicode, allow_nan=False))  # noqa: T201 - the result
        return
    from training.commands.tables import table

    print(table(result), file=sys.stderr)  # noqa: T201 - a line for the user
    folder = result.get("published", result["bundle"] if options.publishes else None)
    if folder is not None:
        print(to_serve(Path(folder)), end="", file=sys.stderr)  # noqa: T201 - a line for the user
        print(folder)  # noqa: T201 - for scripts


def make_parser(prog: str) -> argparse.ArgumentParser:
    """Make the parser with all verbs. prog: the command's name in help and errors."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train, calibrate and publish classifiers for long-tailed data.",
    )
    _add_version(parser)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_verb = functools.partial(_verb, verbs)
    fitting.add_verb(add_verb)
    evidence.add_verbs(add_verb)
    calibrate.add_verb(add_verb)
    score.add_verb(add_verb)
    comparing.add_verb(add_verb)
    _add_data(add_verb)
    return parser


def _verb(verbs: Any, name: str, text: str, run: Verb) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    parser.set_defaults(run=run, publishes=False, records=False, stopped="")
    _add_version(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"priordial {VERSION}")


def _add_data(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    parser = add_verb("data", "Describe the contents of a data specification.", _data)
    add_seed_flag(parser)
    add_data_flags(parser, required=True)
    add_image_flags(parser)


def _data(options: argparse.Namespace) -> dict[str, Any]:
    from training.commands.data import describe

    return describe(recipe_of(options))
