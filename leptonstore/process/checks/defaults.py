"""Which checks fit a dataset, and in which order they run.

What spoils a row alone comes first: dropped, it is no copy any more that duplicates could leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, MissingExtra, listed
from leptonstore.process.checks.check import Check
from leptonstore.process.registry import OPERATIONS, operation_named

PREFIX = "check."
QUICK = (
    "undecodable",
    "constant",
    "image_size",
    "image_quality",
    "nulls",
    "rules",
    "labels_out_of_range",
    "text_length",
    "text_charset",
    "duplicates",
    "leakage",
    "outliers",
    "class_balance",
)
# These compare or learn, which takes minutes for 10^5 rows the first time, or have an opinion. They run when they are asked for, as does
# what stands in neither list.
THOROUGH = ("near_duplicate_images", "near_duplicate_texts", "label_errors", "text_quality")
# What these find is a fault whatever the task is; what others find is for people to look at (a column may well be null in most rows).
FAULTS = ("undecodable", "constant", "rules", "labels_out_of_range", "duplicates", "leakage")
USUAL = {"text_length": {"robust": 5.0}}  # parameters of checks that have to be given some


@dataclass(frozen=True)
class Choice:
    """checks: those that fit, in order. left_out: why others that there are do not run, by name ("": they run when they are asked for)."""

    checks: tuple[Check, ...]
    left_out: Mapping[str, str]


def names() -> tuple[str, ...]:
    """Of all checks that there are, without "check.", in the order in which they run."""
    there = [name.removeprefix(PREFIX) for name in OPERATIONS if name.startswith(PREFIX)]
    known = [name for name in (*QUICK, *THOROUGH) if name in there]
    return (*known, *sorted(set(there) - set(known)))


def check_named(name: str, parameters: Mapping[str, Any]) -> Check:
    """A check by its name, with or without "check.". Raises BadInput."""
    made = operation_named(PREFIX + name.removeprefix(PREFIX), parameters, "clean")
    assert isinstance(made, Check)
    return made


def fitting_checks(
    ds: Dataset, thorough: bool = False, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> Choice:
    """The checks that fit the columns of `ds`: the quick ones, or all. parameters: of checks, by name.

    A check that was given parameters does not fit only where it has to: then it raises. Raises BadInput.
    """
    given = dict(parameters or {})
    unknown = [name for name in given if name not in names()]
    if unknown:
        raise BadInput(f"there is no check {unknown[0]!r}; there are: {listed(names())}")
    checks: list[Check] = []
    left_out: dict[str, str] = {}
    for name in names():
        try:
            check = check_named(name, given.get(name, USUAL.get(name, {})))
            check.bound(ds, ds.schema).output(ds.schema)
        except (BadInput, MissingExtra) as error:
            if name in given:
                raise
            left_out[name] = str(error)
            continue
        if name not in QUICK and not thorough and name not in given:
            left_out[name] = ""
        else:
            checks.append(check)
    return Choice(tuple(checks), left_out)


def ordered(checks: Iterable[Check]) -> tuple[Check, ...]:
    """In the order in which they run."""
    place = {name: at for at, name in enumerate(names())}
    return tuple(sorted(checks, key=lambda check: place[check.tag]))
