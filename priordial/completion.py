"""Makes completion scripts for the command `priordial` in bash, zsh and fish."""

import argparse
import shlex
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")
USE = {
    "bash": "source <(priordial completion bash)",
    "zsh": "source <(priordial completion zsh)",
    "fish": "priordial completion fish | source",
}
"""The command with which each shell loads its script."""


def script(shell: str, parsers: dict[str, argparse.ArgumentParser]) -> str:
    """Return the completion script for one of SHELLS. parsers: the parser of each verb."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return f"# {USE[shell]}\n{write(dict(_words(parsers)))}"


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's own verbs, by name; {} if it has none."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        if isinstance(action.choices, dict):
            found |= action.choices
    return found


def _words(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[tuple[str, list[str]]]:
    """Yield (words typed so far, the verbs and flags that may follow them)."""
    yield "", sorted([*parsers, "--help", "--version"])
    for name, parser in parsers.items():
        below = subcommands(parser)
        yield name, [*sorted(below), *_flags(parser)]
        for verb, one in below.items():
            yield f"{name} {verb}", _flags(one)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    options = (action.option_strings for action in parser._actions)  # noqa: SLF001
    return sorted({flag for flags in options for flag in flags if flag.startswith("--")})


def _longest_first(words: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Return all but the empty command, longest first: `train fit` before `train`."""
    found = sorted(words.items(), key=lambda item: -item[0].count(" "))
    return [(command, known) for command, known in found if command]


def _zsh(words: dict[str, list[str]]) -> str:
    cases = "".join(
        f"    {shlex.quote(command + ' ')}*) known=({shlex.join(found)});;\n"
        for command, found in _longest_first(words)
    )
    return (
        "(( $+functions[compdef] )) || { autoload -U compinit && compinit; }\n"
        "_priordial() {\n"
        '  local typed="${(j: :)words[2,CURRENT-1]} "\n'
        "  local -a known\n"
        '  case "$typed" in\n'
        f"{cases}"
        f"    *) known=({shlex.join(words[''])});;\n"
        "  esac\n"
        "  compadd -- $known || _files\n"
        "}\n"
        "compdef _priordial priordial\n"
    )


def _bash(words: dict[str, list[str]]) -> str:
    cases = "".join(
        f"    {shlex.quote(command + ' ')}*) words={shlex.quote(' '.join(found))};;\n"
        for command, found in _longest_first(words)
    )
    return (
        "_priordial() {\n"
        '  local current="${COMP_WORDS[COMP_CWORD]}" words typed\n'
        '  typed="${COMP_WORDS[*]:1:COMP_CWORD-1} "\n'
        '  case "$typed" in\n'
        f"{cases}"
        f"    *) words={shlex.quote(' '.join(words['']))};;\n"
        "  esac\n"
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))\n'
        "}\n"
        "complete -o default -F _priordial priordial\n"
    )


def _fish(words: dict[str, list[str]]) -> str:
    lines = []
    for command, found in words.items():
        seen = [f"__fish_seen_subcommand_from {verb}" for verb in command.split()]
        condition = "; and ".join(seen) or "__fish_use_subcommand"
        for word in found:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c priordial -n '{condition}' {what}\n")
    return "".join(lines)
