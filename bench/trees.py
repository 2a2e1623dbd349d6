"""The directory trees that bench.ingest measures, made again byte for byte by anybody with the same packages.

python -m bench.trees DEST                        real files: installed packages, >= 1 GB, about 10,000 files
python -m bench.trees DEST --small 100000         records of 1-4 KB: annotations as JSON, reports as text, sensor rows as CSV
python -m bench.trees DEST --edit 0.01            100 random bytes inserted at a random place in 1% of DEST's files

Everything random is drawn from `--seed`, so that every program that is measured sees the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

BYTES_MIN = 1_000_000_000
FILES_PER_FOLDER_MAX = 2_000
"""torch has 7,000 generated headers of a few lines in one directory; whole, they would be half of all files."""
INSERTED_BYTES = 100
PACKAGES = {
    "opencv-python-headless": ("cv2", "opencv_python_headless.libs"),
    "numpy": ("numpy", "numpy.libs"),
    "sympy": ("sympy",),
    "pyarrow": ("pyarrow",),
    "torch": ("torch",),
}
"""Distribution -> its directories in site-packages, in the order in which they are copied."""
MORE = ("scipy", "scipy.libs", "sklearn", "networkx", "pip", "setuptools", "transformers", "pandas")
"""Copied after those, where installed, until the tree has the bytes that were asked for."""


def build_real(target: Path, bytes_min: int = BYTES_MIN, sites: Sequence[Path] = ()) -> dict[str, int]:
    """Copy installed packages (modes and mtimes too) below `target`, which must not exist; what no site has is fetched by pip.

    Raises SystemExit when all packages together are smaller than `bytes_min`.
    """
    looked = [*sites] or [Path(path) for path in sys.path if path.endswith("site-packages")]
    target.mkdir(parents=True)
    copied = {"files": 0, "bytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        for distribution, names in PACKAGES.items():
            if not any((site / names[0]).is_dir() for site in looked):
                _fetch(distribution, Path(folder))
        looked.append(Path(folder))
        for name in [*(name for names in PACKAGES.values() for name in names), *MORE]:
            if name in MORE and copied["bytes"] >= bytes_min:
                break
            source = next((site / name for site in looked if (site / name).is_dir()), None)
            if source is not None:
                _copy(source, target / name, copied)
    if copied["bytes"] < bytes_min:
        raise SystemExit(f"the packages have only {copied['bytes']} bytes; name another site-packages with --site")
    return copied


def _fetch(distribution: str, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run([*pip, distribution], check=True, stdout=sys.stderr)


def _copy(source: Path, target: Path, copied: dict[str, int]) -> None:
    """One directory and all below it, in sorted order, without compiled Python."""
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True)
        for name in sorted(name for name in names if not name.endswith(".pyc"))[:FILES_PER_FOLDER_MAX]:
            shutil.copy2(Path(folder) / name, place / name, follow_symlinks=False)
            copied["files"] += 1
            copied["bytes"] += (place / name).lstat().st_size


def build_small(target: Path, files: int = 100_000, seed: int = 0) -> dict[str, int]:
    """`files` different records of 1-4 KB, 100 in a directory."""
    rng = random.Random(seed)
    words = _vocabulary(rng)
    total = 0
    for number in range(files):
        folder = target / f"{number // 10_000:02d}" / f"{number // 100 % 100:02d}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        kind = rng.random()
        size = rng.randrange(1_000, 4_000)
        if kind < 0.6:
            name, data = f"{number:06d}.json", _annotation(rng, words, number, size)
        elif kind < 0.85:
            name, data = f"{number:06d}.txt", _report(rng, words, size)
        else:
            name, data = f"{number:06d}.csv", _readings(rng, number, size)
        (folder / name).write_bytes(data)
        total += len(data)
    return {"files": files, "bytes": total}


_STARTS = "b c d f g h k l m n p r s t v w st tr pl sh"
_ENDS = "a e i o u an en or ing er al is"


def _vocabulary(rng: random.Random) -> list[str]:
    """3,000 pronounceable words; used with Zipf's frequencies, as words of a language are."""
    starts, ends = re.findall(r"\w+", _STARTS), re.findall(r"\w+", _ENDS)
    made = {"".join(rng.choice(starts) + rng.choice(ends) for _ in range(rng.randint(1, 4))) for _ in range(6_000)}
    words = sorted(made)
    rng.shuffle(words)
    return words[:3_000]


def _sentence(rng: random.Random, words: list[str], count: int) -> str:
    chosen = (words[int(len(words) ** rng.random()) - 1] for _ in range(count))
    return " ".join(chosen).capitalize() + "."


def _annotation(rng: random.Random, words: list[str], number: int, size: int) -> bytes:
    """An image's labels, as annotation tools write them."""
    record = {
        "image_id": number,
        "file_name": f"camera_{rng.randrange(24):02d}/2026-{rng.randrange(1, 13):02d}/{rng.getrandbits(64):016x}.jpg",
        "width": 1920,
        "height": 1080,
        "captured_at": f"2026-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T{rng.randrange(24):02d}:00:00Z",
        "caption": _sentence(rng, words, rng.randint(8, 30)),
        "objects": [],
    }
    boxes: list[dict[str, object]] = []
    length = len(json.dumps(record))
    while length < size - 150:
        box = {
            "category": words[int(80 ** rng.random()) - 1],
            "bbox": [
                round(rng.uniform(0, 1920), 2),
                round(rng.uniform(0, 1080), 2),
                rng.randrange(400),
                rng.randrange(400),
            ],
            "score": round(rng.betavariate(8, 2), 4),
            "occluded": rng.random() < 0.2,
        }
        boxes.append(box)
        length += len(json.dumps(box)) + 2
    record["objects"] = boxes
    return json.dumps(record).encode().ljust(1_000)


def _report(rng: random.Random, words: list[str], size: int) -> bytes:
    lines: list[str] = []
    length = 0
    while length < size - 80:
        lines.append(_sentence(rng, words, rng.randint(6, 14)))
        length += len(lines[-1]) + 1
    return ("\n".join(lines) + "\n").encode().ljust(1_000)


def _readings(rng: random.Random, number: int, size: int) -> bytes:
    """A random walk of three values by the second."""
    rows = ["time,temperature,pressure,humidity"]
    temperature, pressure, humidity = rng.uniform(-5, 30), rng.uniform(980, 1030), rng.uniform(20, 90)
    length = len(rows[0])
    while length < size - 40:
        temperature, pressure = temperature + rng.gauss(0, 0.1), pressure + rng.gauss(0, 0.05)
        humidity += rng.gauss(0, 0.2)
        rows.append(f"{1_780_000_000 + number * 60 + len(rows)},{temperature:.2f},{pressure:.2f},{humidity:.1f}")
        length += len(rows[-1]) + 1
    return ("\n".join(rows) + "\n").encode().ljust(1_000)


def files_of(tree: Path) -> Iterator[Path]:
    """Its regular files, in one order everywhere."""
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path


def edit(tree: Path, share: float = 0.01, seed: int = 0) -> list[Path]:
    """Insert 100 random bytes at a random place in `share` of the files (one at least), in place; which they were."""
    rng = random.Random(seed)
    paths = list(files_of(tree))
    chosen = sorted(rng.sample(paths, max(1, round(len(paths) * share))))
    for path in chosen:
        data = path.read_bytes()
        place = rng.randint(0, len(data))
        path.write_bytes(b"".join((data[:place], rng.randbytes(INSERTED_BYTES), data[place:])))
    return chosen


def main() -> None:
    """Build or edit one tree; print what was done as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.trees", description=__doc__)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--bytes", type=int, default=BYTES_MIN, help="at least so many (default 1e9)")
    parser.add_argument(
        "--site", type=Path, action="append", default=[], help="a site-packages to copy from; repeatable"
    )
    parser.add_argument("--small", type=int, metavar="N", help="instead: N records of 1-4 KB")
    parser.add_argument("--edit", type=float, metavar="SHARE", help="instead: edit so many of DEST's files in place")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.edit is not None:
        print(json.dumps({"edited": len(edit(given.dest, given.edit, given.seed))}))
    elif given.small is not None:
        print(json.dumps(build_small(given.dest, given.small, given.seed)))
    else:
        print(json.dumps(build_real(given.dest, given.bytes, given.site)))


if __name__ == "__main__":
    main()
