"""`python -m service`: serve, and the other verbs."""

import argparse
import os
import sys
from collections.abc import Sequence

from service.commands import priors as prior_commands
from service.commands.importing import flags as import_flags
from service.settings import InvalidSetting, Settings, add_flags, read_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit 0 done, 2 wrong use, 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m service", description="Serve classifiers with adjustable class priors."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_flags(verbs.add_parser("serve", help="serve the models of a repository"))
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
