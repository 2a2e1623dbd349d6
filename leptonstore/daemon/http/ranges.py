"""What a client has and wants of a representation: If-Match, If-None-Match, If-Range and Range (RFC 9110, 13 and 14), as pure functions.

    choose(...) -> Chosen     status 200 (all), 206 (parts), 304 (it has it), 412 (it wants another), 416 (none of its ranges exists)

Entity tags here are strong: a representation's bytes never change under one. A header that is not understood is taken for none, as the
RFC says; so is a Range with more than RANGES_MAX parts. Ranges that overlap or touch are sent as one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from leptonstore.daemon.http.bounds import RANGES_MAX

_TAG = re.compile(r'\s*(?:(W/)?"([\x21\x23-\x7e\x80-\xff]*)")\s*(?:,|$)')
_NUMBER = "[0-9]{1,400}"  # more digits than any position has; Python makes numbers of some thousand
_RANGE = re.compile(rf"[ \t]*(?:({_NUMBER})-({_NUMBER})?|-({_NUMBER}))[ \t]*")


@dataclass(frozen=True)
class Chosen:
    """`parts`: [start, stop) of each part to send; of 200 the whole, of 304, 412 and 416 none."""

    status: int
    parts: tuple[tuple[int, int], ...] = ()


def choose(headers: Mapping[str, str], tag: str, size: int, ranges: bool = True) -> Chosen:
    """What to answer to a GET or HEAD. headers: names in lower case. tag: without quotes. ranges: whether Range is heeded (GET alone)."""
    wanted = headers.get("if-match")
    if wanted is not None and wanted.strip() != "*" and (False, tag) not in _tags(wanted):
        return Chosen(412)
    known = headers.get("if-none-match")
    if known is not None and (known.strip() == "*" or tag in {name for _, name in _tags(known)}):
        return Chosen(304)
    asked = headers.get("range")
    condition = headers.get("if-range")
    if asked is None or not ranges or (condition is not None and _tags(condition) != [(False, tag)]):
        return Chosen(200, ((0, size),))
    parts = parse_ranges(asked, size)
    if parts is None:
        return Chosen(200, ((0, size),))
    return Chosen(206, tuple(parts)) if parts else Chosen(416)


def parse_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """[start, stop) of every part that exists, in the order in which they were asked for; None for a header to be ignored."""
    unit, equals, rest = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    asked = rest.split(",")
    if len(asked) > RANGES_MAX:
        return None
    parts: list[tuple[int, int]] = []
    for text in asked:
        found = _RANGE.fullmatch(text)
        if found is None:
            return None
        first, last, suffix = found.groups()
        if suffix is not None:
            if size == 0 and int(suffix):
                return None  # it exists, but no Content-Range can say so
            part = (size - min(int(suffix), size), size)
        else:
            if last is not None and int(last) < int(first):
                return None
            part = (int(first), size if last is None else min(int(last) + 1, size))
        if part[0] < part[1]:
            parts.append(part)
    return _joined(parts)


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that overlap or touch as one, which stands where the first of them stood."""
    joined: list[tuple[int, int]] = []
    for start, stop in parts:
        at = len(joined)
        for number in range(len(joined) - 1, -1, -1):
            other_start, other_stop = joined[number]
            if start <= other_stop and other_start <= stop:
                start, stop = min(start, other_start), max(stop, other_stop)
                del joined[number]
                at = number
        joined.insert(at, (start, stop))
    return joined


def _tags(header: str) -> list[tuple[bool, str]]:
    """(weak, tag) of each; none at all for a header that is no list of them."""
    tags, at = [], 0
    while at < len(header):
        found = _TAG.match(header, at)
        if found is None:
            return []
        tags.append((found[1] is not None, found[2]))
        at = found.end()
    return tags
