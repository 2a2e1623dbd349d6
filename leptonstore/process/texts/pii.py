"""What is personal in a text: e-mail addresses, payment cards, IP addresses, telephone numbers. In linear time, whatever the text is.

Nothing here can be driven into backtracking: patterns are one repeated class of characters each (a maximal run, found in one pass);
what a run means is decided by code whose work is bounded by the run's length, or by a bound for each of its pieces.

    EMAIL   local part (the last 64 characters before "@", RFC 5321), "@", a domain of two labels or more whose last is of letters
    CARD    13 to 19 digits, in one piece or in the groups that cards have, with an issuer's prefix and length, whose last digit is right
            (Luhn, ISO/IEC 7812). ISBNs, timestamps and order numbers fail one of these, all but one in ten of them already the last.
    IP      IPv4 and IPv6 as the standard library reads them, between characters that do not continue them. A number of four parts after
            "version", "v", "section" and the like is none.
    PHONE   what libphonenumber (package `phonenumbers`) holds to be valid: with a "+" anywhere, else in one of `regions`

Where two kinds overlap, the one that stands first in this list wins.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from leptonstore import limits
from leptonstore.errors import MissingExtra

EMAIL, CARD, IP, PHONE = "EMAIL", "CARD", "IP", "PHONE"
KINDS = (EMAIL, CARD, IP, PHONE)


@dataclass(frozen=True)
class Found:
    """text[begin:end] is of this kind. canonical: the same for all ways of writing the same address or number."""

    begin: int
    end: int
    kind: str
    canonical: str


# Each is one class, repeated: the engine never goes back.
_EMAIL_RUN = re.compile(r"[\w.+%'@-]+")
_DIGITS_RUN = re.compile(r"[0-9 -]+")
_IPV4_RUN = re.compile(r"[0-9.]+")
_IPV6_RUN = re.compile(r"[0-9A-Fa-f:.]+")
_PHONE_RUN = re.compile(r"[\d+\uff0b()./ \u00a0\u2010-\u2015-]+")  # digits of any script: libphonenumber reads them
_DIGITS = re.compile(r"[0-9]+")
_ANY_DIGIT = re.compile(r"\d+")
_DOMAIN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")

_LOCAL_MAX, _DOMAIN_MAX, _LABEL_MAX = 64, 253, 63  # RFC 5321, RFC 1035
_IP_MAX = 45  # characters: ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255
_CARD_GROUPS = ((4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4))
_PHONE_DIGITS_MIN, _PHONE_DIGITS_MAX = 7, 17  # E.164 has 15 at most, and a prefix to dial them with
_VERSIONS = ("v", "ver", "version", "versions", "release", "build", "rev", "revision", "firmware", "kernel")
_NO_ADDRESS_AFTER = (*_VERSIONS, "section", "sections", "sec", "chapter", "clause", "figure", "fig", "table", "§")
_NO_PHONE_AFTER = ("isbn", "isbn-10", "isbn-13", "issn", "ean", "upc", "doi", "iban", "imei", "pmid", "arxiv")


def personal(text: str, kinds: Sequence[str], regions: Sequence[str]) -> list[Found]:
    """What is found, in the order of the text; nothing overlaps. Raises MissingExtra (PHONE)."""
    taken: list[Found] = []
    numbers = _ANY_DIGIT.search(text) is not None
    for kind in KINDS:
        if kind in kinds and (numbers or kind == EMAIL):
            found = phones(text, regions) if kind == PHONE else _FINDERS[kind](text)
            taken = _merged(taken, found)
    return taken


def _merged(before: list[Found], new: Iterator[Found]) -> list[Found]:
    """Both in order, without those of `new` that overlap."""
    out: list[Found] = []
    at = 0
    for one in new:
        while at < len(before) and before[at].end <= one.begin:
            out.append(before[at])
            at += 1
        if at == len(before) or before[at].begin >= one.end:
            out.append(one)
    return out + before[at:]


def emails(text: str) -> Iterator[Found]:
    """E-mail addresses."""
    if "@" not in text:
        return
    for run in _EMAIL_RUN.finditer(text):
        pieces = run.group().split("@")
        at = run.start() + len(pieces[0])  # of the "@" after `left`
        free = run.start()  # nothing before belongs to an address already
        for left, right in pairwise(pieces):
            local = left[max(0, len(left) - _LOCAL_MAX, free - (at - len(left))) :].lstrip(".'%-")
            domain = _domain(right[: _DOMAIN_MAX + 1])
            if local and not local.endswith(".") and domain:
                free = at + 1 + len(domain)
                yield Found(at - len(local), free, EMAIL, f"{local}@{domain}".lower())
            at += 1 + len(right)


def _domain(text: str) -> str:
    """The domain that a text begins with; "" where it begins with none."""
    length = next((at for at, one in enumerate(text) if one not in _DOMAIN_CHARACTERS), len(text))
    labels = text[:length].rstrip(".-").split(".")
    good = [1 <= len(label) <= _LABEL_MAX and label[0] != "-" and label[-1] != "-" for label in labels]
    labels = labels[: good.index(False)] if False in good else labels
    while len(labels) > 1 and not (len(labels[-1]) >= 2 and (labels[-1].isalpha() or labels[-1].startswith("xn--"))):
        labels.pop()
    return ".".join(labels) if len(labels) > 1 else ""


def cards(text: str) -> Iterator[Found]:
    """Numbers of payment cards."""
    for run in _DIGITS_RUN.finditer(text):
        groups = list(_DIGITS.finditer(run.group()))
        number = 0
        while number < len(groups):
            used = _card_at(text, run, groups, number)
            if used:
                first, last = groups[number], groups[number + used - 1]
                digits = "".join(group.group() for group in groups[number : number + used])
                yield Found(run.start() + first.start(), run.start() + last.end(), CARD, digits)
            number += used or 1


def _card_at(text: str, run: re.Match[str], groups: list[re.Match[str]], number: int) -> int:
    """How many groups of digits from this one on are a card's; 0: none."""
    for lengths in (*((size,) for size in range(13, 20)), *_CARD_GROUPS):
        part = groups[number : number + len(lengths)]
        if tuple(group.end() - group.start() for group in part) != lengths:
            continue
        begin, end = run.start() + part[0].start(), run.start() + part[-1].end()
        between = {text[run.start() + a.end() : run.start() + b.start()] for a, b in pairwise(part)}
        if len(between) > 1 or not between <= {" ", "-"} or _continues(text, begin, end):
            continue
        digits = "".join(group.group() for group in part)
        if _issued(digits) and _luhn(digits):
            return len(lengths)
    return 0


def _continues(text: str, begin: int, end: int) -> bool:
    """Whether what stands around text[begin:end] makes it a part of something else: a letter, a decimal point, a hyphen and a digit."""
    before, after = text[max(0, begin - 2) : begin], text[end : end + 2]
    if before and (before[-1].isalnum() or before[-1] in "_.,/" or (before[-1] == "-" and before[0].isalnum())):
        return True
    if after and (after[0].isalnum() or after[0] == "_"):
        return True
    return len(after) == 2 and after[0] in ".,-/" and after[1].isdigit()


def _issued(digits: str) -> bool:
    """Whether an issuer has numbers that begin so and are so long."""
    length, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":  # Visa
        return length in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:  # Mastercard
        return length == 16
    if two in (34, 37):  # American Express
        return length == 15
    if 300 <= three <= 305 or two in (36, 38, 39):  # Diners
        return length in (14, 16)
    if four == 6011 or 644 <= three <= 649 or two in (62, 65) or 3528 <= four <= 3589:  # Discover, UnionPay, JCB
        return 16 <= length <= 19
    return (two == 50 or 56 <= two <= 58 or two in (63, 67)) and 16 <= length <= 19  # Maestro


def _luhn(digits: str) -> bool:
    """Whether the check digit is right. Luhn, US patent 2,950,048 (1960)."""
    total = 0
    for at, digit in enumerate(map(int, reversed(digits))):
        total += digit if at % 2 == 0 else (2 * digit - 9 if digit > 4 else 2 * digit)
    return total % 10 == 0


def addresses(text: str) -> Iterator[Found]:
    """IPv4 and IPv6 addresses."""
    yield from _merged(list(_all_ipv6(text)), _all_ipv4(text))


def _all_ipv6(text: str) -> Iterator[Found]:
    if text.count(":") < 2:
        return
    for run in _IPV6_RUN.finditer(text):
        begin, whole = run.start(), run.group().rstrip(".")
        end = begin + len(whole)
        if text[begin - 1 : begin].isalnum():  # "src:fe80::1": up to the colon it is the end of a word
            begin += whole.find(":") + 1
        elif whole.startswith(":") and not whole.startswith("::"):  # "address:2001:db8::1"
            begin += 1
        if text.count(":", begin, end) >= 2 and (found := _ipv6(text, begin, end)):
            yield found


def _all_ipv4(text: str) -> Iterator[Found]:
    if text.count(".") < 3:
        return
    for run in _IPV4_RUN.finditer(text):
        whole = run.group().rstrip(".")
        if 7 <= len(whole) <= 15 and (found := _ipv4(text, run.start(), run.start() + len(whole))):
            yield found


def _ipv4(text: str, begin: int, end: int) -> Found | None:
    try:
        address = ipaddress.IPv4Address(text[begin:end])
    except ValueError:
        return None
    before = text[begin - 1 : begin]
    if before.isalnum() or before in ("_", "-", ".") or text[end : end + 1].isalnum():
        return None
    if _word_before(text, begin) in _NO_ADDRESS_AFTER:
        return None
    return Found(begin, end, IP, str(address))


def _word_before(text: str, begin: int) -> str:
    """In lower case; "" where none stands near."""
    words = text[max(0, begin - limits.PII_CONTEXT_CHARS) : begin].replace(".", " ").split()
    return words[-1].lower().strip("(:=,#") if words else ""


def _ipv6(text: str, begin: int, end: int) -> Found | None:
    while end > begin and text[end - 1] == ":" and text[end - 2 : end] != "::":
        end -= 1  # "fe80::1: unreachable"
    if end - begin > _IP_MAX or text[begin - 1 : begin] == "_":
        return None
    if text[end : end + 1].isalnum() or text[end : end + 1] == "_":
        return None
    try:
        address = ipaddress.IPv6Address(text[begin:end])
    except ValueError:
        return None
    # "a::b" is a name of C++ or Rust, "face::1" stands in a block that is nobody's: two groups at least, one of them of three digits.
    groups = [group for group in text[begin:end].split(":") if group]
    if len(groups) < 2 or max(map(len, groups)) < 3 or (address.is_reserved and address.ipv4_mapped is None):
        return None
    return Found(begin, end, IP, str(address))


def phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    """Telephone numbers: international ones, and those that are valid in one of the regions (ISO 3166: "US", "DE"). Raises MissingExtra."""
    library = phone_library()
    for run in _PHONE_RUN.finditer(text):
        if len(run.group()) < _PHONE_DIGITS_MIN or sum(map(str.isdigit, run.group())) < _PHONE_DIGITS_MIN:
            continue
        yield from _phones_in(library, text, run, regions)


def _phones_in(library: Any, text: str, run: re.Match[str], regions: Sequence[str]) -> Iterator[Found]:
    """Of a run. A long one is looked at in overlapping pieces, each of which costs no more than a bound."""
    begin, done = run.start(), run.start()
    while begin < run.end():
        end = min(run.end(), begin + limits.PII_PHONE_CHARS_MAX)
        again = run.end() if end == run.end() else end - limits.PII_PHONE_CHARS_MAX // 4
        shift = max(0, begin - 1)
        around = text[shift : end + 1]  # with a character on each side: a number that goes on with a letter is none
        found = []
        for order, region in enumerate(regions or [None]):
            for match in library.PhoneNumberMatcher(around, region, max_tries=limits.PII_PHONE_TRIES):
                name = library.format_number(match.number, library.PhoneNumberFormat.E164)
                found.append((shift + match.start, order, shift + match.end, name))
        for first, _, last, name in sorted(found):
            cut = last == end < run.end() and first >= again
            if first >= done and not cut and not _continues(text, first, last) and not _is_code(text, first, last):
                done = last
                yield Found(first, last, PHONE, name)
        begin = max(again, done) if end < run.end() else end


def _is_code(text: str, begin: int, end: int) -> bool:
    """Whether it is an ISBN (three hyphens, and the check digit is right), or follows the name of a kind of codes."""
    if _word_before(text, begin) in _NO_PHONE_AFTER:
        return True
    parts = text[begin:end].split("-")
    digits = "".join(parts)
    if len(parts) != 4 or not digits.isdecimal() or len(digits) != 10:
        return False
    return sum(weight * int(digit) for weight, digit in zip(range(10, 0, -1), digits, strict=True)) % 11 == 0


def phone_library() -> Any:
    """Raises MissingExtra."""
    try:
        import phonenumbers
    except ImportError as error:
        raise MissingExtra("finding telephone numbers", "text", "phonenumbers") from error
    return phonenumbers


_FINDERS: dict[str, Callable[[str], Iterator[Found]]] = {EMAIL: emails, CARD: cards, IP: addresses}
