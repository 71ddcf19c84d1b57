"""`python -m service`: serve, and the other verbs."""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

from service.commands.messages import reason_of
from service.contract.resources import CLOSED, flushed, open_standard_streams
from service.process.allowance import too_little_memory
from service.process.exit_codes import FAILED
from service.server.startup import prepare_process

PROVIDERS = """providers:
  auto      CUDA where it works, else the CPU; logged once
  cpu       the processors of this machine
  cuda      an NVIDIA GPU (extra gpu or cuda); the start fails where it does not work
"""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    """Run one verb. Returns the exit status, one of service.process.exit_codes.

    prog: the command's name in its help and its errors.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["serve"]:
        prepare_process()  # before the imports below, which take a second
        too_little = too_little_memory()
        if too_little is not None:
            return _failed(prog, too_little)
    elif not open_standard_streams():
        return _failed(prog, CLOSED)
    from service.contract.extras import missing_extra

    try:
        status = _run(given, prog)
        sys.stdout.flush()  # what cannot be written raises here, not while the interpreter exits
    except ModuleNotFoundError as error:
        advice = missing_extra(error, first="serve")
        if advice is None:
            raise
        return _failed(prog, advice)
    except BrokenPipeError:  # `python -m service doctor | head`
        flushed()
        return FAILED
    except OSError as error:
        if given[:1] == ["serve"]:
            raise
        flushed()
        return _failed(prog, reason_of(error, place="standard output"))
    return status


def _failed(prog: str, reason: str) -> int:
    print(f"{prog}: {reason}", file=sys.stderr)  # noqa: T201 - output of a command
    return FAILED


def make_parser(prog: str) -> "argparse.ArgumentParser":
    """Make the parser of every verb. prog: the command's name."""
    import argparse

    from service.commands import export_flags, key, prior_flags
    from service.commands.importing import flags as import_flags
    from service.contract.extras import VERSION
    from service.contract.nearest import did_you_mean
    from service.settings import add_flags

    class Parser(argparse.ArgumentParser):
        """A verb's parser. It refuses shortened flags: a new flag could make them ambiguous."""

        def __init__(self, **more: Any) -> None:
            super().__init__(**more, allow_abbrev=False)
            self.add_argument("--version", action="version", version=f"priordial {VERSION}")

        def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
            """Refuse an unknown flag here, where the flags of the verb are known."""
            found, unknown = super().parse_known_args(args, namespace)
            if unknown:
                known = re.findall(r"^  (--[a-z0-9-]+)", self.format_help(), re.MULTILINE)
                near = did_you_mean(unknown[0].split("=")[0], known)
                self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
            return found, unknown

    parser = Parser(prog=prog, description="Serve classifiers with adjustable class priors.")
    verbs = parser.add_subparsers(
        dest="verb",
        required=True,
        metavar="VERB",
        parser_class=Parser,
    )
    serving = verbs.add_parser(
        "serve",
        help="serve the models of a repository",
        epilog=PROVIDERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(serving)
    import_flags.add_flags(
        verbs.add_parser("import", help="publish an ONNX classifier that was trained elsewhere")
    )
    export_flags.add_flags(
        verbs.add_parser("export", help="write the adjusted model as one plain ONNX file")
    )
    prior_flags.add_verbs(verbs)
    key.add_verb(verbs)
    add_flags(
        verbs.add_parser("check", help="check settings, keys, store, models and priors; no serving")
    )
    add_flags(verbs.add_parser("doctor", help="show what works on this machine, and why not"))
    return parser


def _run(given: Sequence[str], prog: str) -> int:
    import argparse

    from service.settings import InvalidSetting, read_settings, read_store

    parser = make_parser(prog)
    if given and given[0].startswith("-") and given[0] not in ("-h", "--help", "--version"):
        parser.error(f"'{given[0]}' came before a verb; to serve, write: {prog} serve {given[0]} …")
    values = vars(parser.parse_args(given))
    verb = values["verb"]
    try:
        if verb in ("priors", "export"):
            store = read_store(values.get("store"), os.environ)
        elif verb not in ("import", "key"):
            settings = read_settings(values, os.environ)
    except InvalidSetting as error:
        parser.error(str(error))
    if verb == "key":
        from service.commands import key

        return key.run(values)
    if verb == "priors":
        from service.commands import priors

        return priors.run(values, os.environ, store=store)
    if verb == "export":
        from service.commands import export

        return export.run(argparse.Namespace(**values), store=store)
    if verb == "import":
        from service.commands.importing.importer import run

        return run(argparse.Namespace(**values))
    if verb == "serve":
        from service.server.serve import serve

        return serve(settings)
    from service.commands import check, doctor

    return check.run(settings) if verb == "check" else doctor.run(settings)


if __name__ == "__main__":
    sys.exit(main())
