"""Makes a long-tailed set of images of at least a thousand classes from fonts.

    python -m benchmarks.sets.glyphs FONTS OUT

A class is a letter, an example is a font family that has it: Latin letters are in hundreds of
families, Han characters in dozens, and letters of rare scripts in a few. So the fonts themselves
make the long tail, not a profile. FONTS is a folder with font files at any depth, such as
/usr/share/fonts, or one into which Debian's packages fonts-* were unpacked with `dpkg -x`. OUT gets
`images/<class>/<family>.png`, 32 × 32 pixels in grey, and the lists train.txt, val.txt and test.txt
that `--data list:…@OUT/images` reads.
"""

import argparse
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SUFFIXES = (".ttf", ".otf", ".ttc")
SIDE, MARGIN = 32, 3
FEWEST = 7
"""The fewest families that must have a letter for it to become a class."""
TEST, VALIDATION, MOST = 3, 1, 300
"""Examples of a class for test and for validation, and the most for training."""
ALIKE = 0.5
"""Two letters are one class if this share of the families that have both draws them alike."""
INK = 12
"""The fewest pixels of a letter; fewer mean an empty glyph."""

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Family:
    """The regular face of a font family, and the letters it has."""

    name: str
    file: Path
    letters: frozenset[str]


def families(folder: Path) -> list[Family]:
    """Return the font families below a folder, one face each, in the order of their names."""
    from fontTools.ttLib import TTFont, TTLibError

    found: dict[str, tuple[int, Path, frozenset[str]]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        try:
            with TTFont(file, fontNumber=0, lazy=True) as font:
                name = font["name"].getDebugName(1) or file.stem
                style = (font["name"].getDebugName(2) or "").lower()
                points = font.getBestCmap() or {}
                letters = frozenset(
                    chr(p) for p in points if unicodedata.category(chr(p))[0] == "L"
                )
        except (TTLibError, OSError, KeyError, AssertionError, ValueError, TypeError):
            continue  # a damaged or exotic file: there are enough others
        rank = 0 if style in {"regular", "book", "roman", "medium"} else 1
        if letters and (name not in found or rank < found[name][0]):
            found[name] = (rank, file, letters)
    return [Family(name, file, letters) for name, (_, file, letters) in sorted(found.items())]


def picture(font: ImageFont.FreeTypeFont, letter: str) -> Picture | None:
    """Draw a letter [SIDE, SIDE] white on black, centred, as large as fits; None if empty."""
    left, top, right, bottom = font.getbbox(letter)
    width, height = int(right - left), int(bottom - top)
    if width < 1 or height < 1 or max(width, height) > 4 * SIDE:
        return None
    large = Image.new("L", (width, height))
    ImageDraw.Draw(large).text((-left, -top), letter, fill=255, font=font)
    scale = (SIDE - 2 * MARGIN) / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.new("L", (SIDE, SIDE))
    image.paste(large.resize(size, Image.Resampling.BILINEAR), tuple((SIDE - n) // 2 for n in size))
    pixels = np.asarray(image)
    return pixels if int((pixels > 64).sum()) >= INK else None


def chosen(all_families: list[Family], classes: int, *, seed: int) -> list[str]:
    """Letters in at least FEWEST families, spread evenly over the logarithm of their number."""
    counts = Counter(letter for family in all_families for letter in family.letters)
    usable = [(n, letter) for letter, n in sorted(counts.items()) if n >= FEWEST]
    if len(usable) <= classes:
        return [letter for _, letter in usable]
    generator = np.random.default_rng(seed)
    size = np.log([n for n, _ in usable])
    # weighted by how empty its part of the logarithmic scale is, or rare letters would dominate
    edges = np.linspace(size.min(), size.max() + 1e-9, 25)
    bins = np.digitize(size, edges)
    crowd = np.bincount(bins)
    weights = 1.0 / crowd[bins]
    rows = generator.choice(len(usable), size=classes, replace=False, p=weights / weights.sum())
    return [usable[row][1] for row in sorted(rows)]


def pictures(all_families: list[Family], letters: list[str]) -> Iterator[tuple[str, str, Picture]]:
    """(family, letter, pixels) of every letter whose picture is unique within its family."""
    wanted = set(letters)
    for family in all_families:
        mine = sorted(wanted & family.letters)
        try:
            font = ImageFont.truetype(str(family.file), 48)
            drawn = {letter: picture(font, letter) for letter in mine}
        except (OSError, ValueError, MemoryError):
            continue
        # a box for "not there" is the same picture for many letters
        seen = Counter(pixels.tobytes() for pixels in drawn.values() if pixels is not None)
        for letter, pixels in drawn.items():
            if pixels is not None and seen[pixels.tobytes()] <= 3:
                yield family.name, letter, pixels


def without_twins(found: dict[str, dict[str, Picture]]) -> dict[str, dict[str, Picture]]:
    """The classes without those that look like a more frequent one, as Greek A like Latin A."""
    by_family: dict[str, dict[bytes, list[str]]] = defaultdict(lambda: defaultdict(list))
    for letter, examples in found.items():
        for family, pixels in examples.items():
            by_family[family][pixels.tobytes()].append(letter)
    same: Counter[tuple[str, str]] = Counter()
    for groups in by_family.values():
        for alike in groups.values():
            ranked = sorted(alike, key=lambda letter: (-len(found[letter]), letter))
            same.update((ranked[0], other) for other in ranked[1:])
    twins = set()
    for (first, second), n in same.items():
        both = len(found[first].keys() & found[second].keys())
        if n > ALIKE * both:
            twins.add(second)
    return {letter: examples for letter, examples in found.items() if letter not in twins}


def write(found: dict[str, dict[str, Picture]], out: Path, *, seed: int) -> dict[str, int]:
    """Write the images and the three lists; returns the number of examples of each split."""
    generator = np.random.default_rng(seed)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    ranked = sorted(found, key=lambda letter: (-len(found[letter]), letter))
    for label, letter in enumerate(ranked):
        name = f"U+{ord(letter):05X}"
        folder = out / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(found[letter])
        order = [names[row] for row in generator.permutation(len(names))]
        for place, family in enumerate(order[: TEST + VALIDATION + MOST]):
            part = "test" if place < TEST else "val" if place < TEST + VALIDATION else "train"
            file = f"{place:04d}.png"
            bytes_of = io.BytesIO()
            Image.fromarray(found[letter][family]).save(bytes_of, "PNG")
            (folder / file).write_bytes(bytes_of.getvalue())
            lists[part].append(f"{name}/{file} {label}")
    for part, lines in lists.items():
        (out / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {part: len(lines) for part, lines in lists.items()}


def main() -> None:
    """Read the fonts, draw the letters, write the set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("fonts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--classes",
        type=int,
        default=1_500,
        help="classes to draw, before those that look alike are joined",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found_families = families(options.fonts)
    letters = chosen(found_families, options.classes, seed=options.seed)
    found: dict[str, dict[str, Picture]] = defaultdict(dict)
    for family, letter, pixels in pictures(found_families, letters):
        found[letter][family] = pixels
    kept = {
        letter: examples
        for letter, examples in without_twins(found).items()
        if len(examples) >= FEWEST
    }
    rows = write(kept, options.out, seed=options.seed)
    counts = sorted((min(MOST, len(e) - TEST - VALIDATION) for e in kept.values()), reverse=True)
    print(
        f"{len(found_families):,} families, {len(kept):,} classes of {counts[0]} … {counts[-1]} "
        f"training examples; {rows}"
    )


if __name__ == "__main__":
    main()
