"""Puts the shipped models into the wheel, and a README whose links work on a package index.

Everything else is in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODELS = ("digits/2", "fashion/2", "fashion-la/2")
"""The versions that `priordial demo` serves outside of a clone; others in models/ are a user's."""
FILES = ("model.json", "model.onnx", "report.json")


class BuildWithModels(build_py):
    """Copies the shipped models beside the package `priordial`. An editable install has none."""

    def run(self) -> None:
        """Copy the packages, then the models."""
        super().run()
        if not self.editable_mode:
            for source, target in self._models():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:  # noqa: FBT001, FBT002
        """Every file that the build writes."""
        outputs: list[str] = super().get_outputs(include_bytecode)
        return outputs + [str(target) for _, target in self._models()]

    def _models(self) -> list[tuple[Path, Path]]:
        root = Path(self.build_lib) / "priordial" / "demo_models"
        return [
            (Path("models", folder, name), root / folder / name)
            for folder in MODELS
            for name in FILES
        ]


REPOSITORY = "https://github.com/priordial/priordial"


def with_whole_addresses(markdown: str) -> str:
    """Replace links and pictures of the repository by addresses that work anywhere.

    Links with a scheme and links to a section of the same page stay.
    """

    def whole(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        view = "raw" if picture else "blob"
        return f"{picture}[{words}]({REPOSITORY}/{view}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", whole, markdown)


setup(
    cmdclass={"build_py": BuildWithModels},
    long_description=with_whole_addresses(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
