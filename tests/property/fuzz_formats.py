"""The parsers of stored bytes, fed by atheris (libFuzzer) for as long as one likes; the targets are those of format_targets.py.

    pip install atheris                                             (CPython on Linux and macOS; no part of any extra)
    python tests/property/fuzz_formats.py --seeds corpus                writes the specimens as first inputs, and ends
    python tests/property/fuzz_formats.py corpus -max_total_time=3600 -rss_limit_mb=2048 -timeout=10
    python tests/property/fuzz_formats.py crash-0123abcd                runs one input again

The first byte of an input selects the target, its highest bit whether lengths and checks are made to fit. An exception that is no
LeptonError, over 2 GiB of memory, or an input that takes over 10 s is a finding: libFuzzer writes it to a file. Turn each into a
test in tests/property/test_format_fuzz.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

REPAIR = 0x80


def one_input(data: bytes) -> None:
    """Select a target and run it."""
    from format_targets import TARGETS, run_typed

    if not data:
        return
    target = list(TARGETS.values())[(data[0] & ~REPAIR) % len(TARGETS)]
    body = data[1:]
    run_typed(lambda: target.run(target.repair(body) if data[0] & REPAIR else body))


def write_seeds(folder: Path) -> int:
    """Every specimen, with and without repair; how many."""
    from format_targets import TARGETS

    folder.mkdir(parents=True, exist_ok=True)
    inputs = [
        bytes([number | repair]) + specimen
        for number, target in enumerate(TARGETS.values())
        for specimen in target.specimens
        for repair in (0, REPAIR)
    ]
    for number, data in enumerate(inputs):
        (folder / f"seed-{number:03d}").write_bytes(data)
    return len(inputs)


def main() -> None:
    """Give the command line to libFuzzer."""
    if sys.argv[1:2] == ["--seeds"] and len(sys.argv) == 3:
        print(f"{write_seeds(Path(sys.argv[2]))} inputs in {sys.argv[2]}")
        return
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("atheris is not installed: pip install atheris")
    with atheris.instrument_imports(include=["leptonstore", "format_targets"]):
        import format_targets  # noqa: F401
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
