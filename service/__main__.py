"""`python -m service`: serve, and the other verbs."""

import argparse
import os
import sys
from collections.abc import Sequence

from service.contract.extras import missing_extra
from service.settings import InvalidSetting, Settings, add_flags, read_settings

PROVIDERS = """providers:
  auto      CUDA where it works, else the CPU; logged once
  cpu       the processors of this machine
  cuda      an NVIDIA GPU (extra gpu or cuda); the start fails where it does not work
"""


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    """Run one verb. Returns 0 done, 1 failed, 2 wrong use.

    prog: the command's name in its help and its errors.
    """
    try:
        return _run(arguments, prog)
    except ModuleNotFoundError as error:
        advice = missing_extra(error, first="serve")
        if advice is None:
            raise
        print(f"{prog}: {advice}", file=sys.stderr)  # noqa: T201 - a command speaks
        return 1


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    from service.commands import priors as prior_commands
    from service.commands.importing import flags as import_flags

    parser = argparse.ArgumentParser(
        prog=prog, description="Serve classifiers with adjustable class priors."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
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
    prior_commands.add_verbs(verbs)
    add_flags(verbs.add_parser("doctor", help="say what works on this machine, and why not"))
    given = vars(parser.parse_args(arguments))
    if given["verb"] in prior_commands.VERBS:
        return prior_commands.run(given, os.environ, default_store=Settings().store)
    verb = given.pop("verb")
    if verb == "import":
        from service.commands.importing.importer import run

        return run(argparse.Namespace(**given))
    try:
        settings = read_settings(given, os.environ)
    except InvalidSetting as error:
        parser.error(str(error))
    if verb == "doctor":
        from service.commands import doctor

        return doctor.run(settings)
    from service.server.serve import serve

    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
