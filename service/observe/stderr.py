"""Why a process does not start, for whoever started it."""

import sys


def refuse(reason: str) -> int:
    """Say in one line why there is no service; the exit status."""
    sys.stderr.write(f"priordial: {reason}\n")
    return 1
