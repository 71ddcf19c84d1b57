"""Lists what the user of an image can write in it beside its volume and temporary folders.

The exit status is 1 if there is anything.

docker run --rm -i --entrypoint python priordial-service:0.1.0 - < deploy/writable.py
"""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

NOT_OF_THE_IMAGE = ("proc", "sys", "dev", "run/secrets")
TEMPORARY = ("tmp", "var/tmp", "run/lock")
VOLUME = ("data",)
"""The place of stored priors, as the image declares it."""


def writable(root: Path, *, uid: int, groups: set[int]) -> Iterator[Path]:
    """Yield the files and folders below root that this user may write; do not follow links."""
    left = {root / each for each in (*NOT_OF_THE_IMAGE, *TEMPORARY, *VOLUME)}
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = [each for each in folders if folder / each not in left]
        for path in (folder, *(folder / each for each in files)):
            found = path.lstat()
            if not stat.S_ISLNK(found.st_mode) and _may_write(found, uid, groups):
                yield path


def _may_write(found: os.stat_result, uid: int, groups: set[int]) -> bool:
    if found.st_uid == uid:
        return True  # the owner may change the mode
    if found.st_gid in groups:
        return bool(found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IWOTH)


def main() -> int:
    """Search the whole file system for what the current user may write; return the exit status."""
    if os.getuid() == 0:
        sys.stdout.write("the user is root, who can write everything\n")
        return 1
    found = list(writable(Path("/"), uid=os.getuid(), groups={os.getgid(), *os.getgroups()}))
    sys.stdout.writelines(f"{path}\n" for path in found)
    sys.stdout.write(
        f"{len(found)} paths can be written beside the volume and the temporary folders\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
