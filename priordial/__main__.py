"""The `priordial` command: one front for the service's verbs and for training."""

import sys
from collections.abc import Callable, Sequence

from service.commands.messages import reason_of
from service.contract.extras import VERSION, missing_extra
from service.contract.resources import CLOSED, flushed, open_standard_streams

GROUPS = {
    "serve a model": {
        "serve": "serve the models of a repository",
        "demo": "serve the shipped models, to try Priordial without a model of your own",
        "import": "publish an ONNX classifier that was trained elsewhere",
        "export": "write the adjusted model as one plain ONNX file",
        "check": "check settings, keys, store, models and priors without serving",
        "doctor": "show what works on this machine, and why the rest does not",
    },
    "operate a service": {
        "key": "make an API key",
        "priors": "inspect stored priors, roll back, export, import, migrate",
    },
    "train a model, score files": {
        "train": "train, calibrate, compare and publish; the same as the command `training`",
        "score": "answer files of unlabelled rows, as the service would",
    },
    "set up a shell": {
        "completion": "print a script that completes verbs and flags in bash, zsh or fish",
    },
}
"""The verbs with their one-line help, by group."""

TRAINING = ("train", "score")
"""The verbs of the training package; all others belong to the service."""
VERBS = [verb for group in GROUPS.values() for verb in group]
DEMO_HELP = """usage: priordial demo [flags of priordial serve]

Serve the models that come with the package, on http://127.0.0.1:8000 unless --port says otherwise:
  fashion     clothing, trained with cross-entropy on a long tail; answers /predict
  fashion-la  the same data, trained with the logit-adjusted loss
  digits      handwritten digits on a long tail

Open that address for the console, or fetch a picture and ask about it:
  curl -s -o shirt.png 127.0.0.1:8000/models/fashion/samples/7.png
  curl -s -F image=@shirt.png '127.0.0.1:8000/predict?top_k=2'"""
USAGE = "usage: priordial VERB …, priordial VERB --help, priordial --version"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: 0 done, 1 failed, 2 wrong use."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    serves = given[:1] in (["serve"], ["demo"])
    if not open_standard_streams() and not serves:
        _print(f"priordial: {CLOSED}", to_stderr=True)
        return 1
    status = 1
    try:
        status = _run(given, alone=arguments is None)
        sys.stdout.flush()  # a closed pipe raises here, not while the interpreter exits
    except KeyboardInterrupt:  # while a verb was imported; later, each has its own answer to it
        _print("priordial: stopped", to_stderr=True)
    except BrokenPipeError:  # `priordial doctor | head`
        flushed()
        status = 1
    except OSError as error:
        if serves:
            raise
        flushed()
        _print(f"priordial: {reason_of(error, place='standard output')}", to_stderr=True)
        status = 1
    except ModuleNotFoundError as error:
        advice = missing_extra(error, first="training" if given[0] in TRAINING else "serve")
        if advice is None:
            raise
        _print(f"priordial: {advice}", to_stderr=True)
    return status


def help_text() -> str:
    """Return the help: the verbs in groups, a line each."""
    lines = [USAGE, "", "Serve any ONNX classifier and change its class prior while it runs."]
    for group, verbs in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {verb:<10} {text}" for verb, text in verbs.items())]
    return "\n".join(lines)


def _run(given: list[str], *, alone: bool) -> int:
    if not given or given[0] in ("-h", "--help"):
        _print(help_text(), to_stderr=not given)
        return 0 if given else 2
    if given in (["--version"], ["completion", "--version"]):
        _print(f"priordial {VERSION}")
        return 0
    if given[0] not in VERBS:
        _print(_unknown(given[0]), to_stderr=True)
        return 2
    return _run_verb(given, alone=alone)


def _run_verb(given: list[str], *, alone: bool) -> int:
    if given[0] == "completion":
        return _completion(given[1:])
    if given[0] in TRAINING:
        from training.__main__ import run

        if given[0] == "train":
            return run(given[1:], prog="priordial train", alone=alone)
        return run(given, prog="priordial", alone=alone)
    from service.__main__ import main as serve

    if given[0] == "demo":
        return _demo(given[1:], serve)
    if given[0] == "import" and any(a.split("=")[0] == "--validation" for a in given):
        from priordial.validation import import_and_calibrate

        return import_and_calibrate(given)
    return serve(given, prog="priordial")


def _demo(flags: list[str], serve: Callable[..., int]) -> int:
    from priordial import demo

    if "-h" in flags or "--help" in flags:
        _print(DEMO_HELP)
        return 0
    try:
        arguments = demo.arguments(flags)
    except FileNotFoundError as error:
        _print(f"priordial: {error}", to_stderr=True)
        return 1
    return serve(arguments, prog="priordial")


def _completion(given: list[str]) -> int:
    from priordial.completion import SHELLS, script, subcommands
    from service.__main__ import make_parser as service_parser
    from training.commands.cli import make_parser as training_parser

    if len(given) != 1 or given[0] not in SHELLS:
        _print(f"usage: priordial completion {'|'.join(SHELLS)}", to_stderr=True)
        return 2
    training = training_parser("priordial train")
    of_service = subcommands(service_parser("priordial"))
    parsers = of_service | {
        "demo": of_service["serve"],
        "train": training,
        "score": subcommands(training)["score"],
    }
    _print(script(given[0], parsers))
    return 0


def _unknown(verb: str) -> str:
    if verb.startswith("-"):
        hint = f"to serve, write: priordial serve {verb} …"
        return f"{USAGE}\npriordial: '{verb}' came before a verb; {hint}"
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(VERBS)}"
    return f"{USAGE}\npriordial: no verb '{verb}'; {hint}"


def _print(text: str, *, to_stderr: bool = False) -> None:
    print(text, file=sys.stderr if to_stderr else sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
