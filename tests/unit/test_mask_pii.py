"""Masking: what is personal goes, what only looks so stays, and no text takes more than so much work for each of its characters."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore.errors import BadInput, SchemaError
from leptonstore.process.operations.mask_pii import MaskPii
from leptonstore.process.registry import operation_named
from leptonstore.process.texts import pii

_REGIONS = ("US", "DE")


def masked(text: str, **parameters: Any) -> str:
    made = MaskPii(**{"regions": _REGIONS} | parameters).apply(pa.record_batch({"text": [text]}))
    found: str = made.columns["text"][0].as_py()
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to john.doe+x@mail.example.co.uk, now", "Write to [EMAIL], now"),
        ("<a@b.io>; mailto:O'Neil@firm.com.", "<[EMAIL]>; mailto:[EMAIL]."),
        (
            "jürgen@münchen.example.de",
            "jürgen@münchen.example.de",
        ),  # no ASCII domain: that is written xn--mnchen-3ya.de
        ("a@b@c.com", "a@[EMAIL]"),
        ("4111 1111 1111 1111 exp 12/26", "[CARD] exp 12/26"),
        ("(4111111111111111)", "([CARD])"),
        ("3782-822463-10005", "[CARD]"),
        ("10.0.0.1:8080 and http://192.168.1.1/x.", "[IP]:8080 and http://[IP]/x."),
        ("fe80::1ff:fe23:4567:890a%eth0 ::ffff:10.0.0.1", "[IP]%eth0 [IP]"),
        ("2001:db8::1: unreachable", "[IP]: unreachable"),
        ("src:fe80::1ff, address:2001:db8::1 and [::ffff:1.2.3.4]:80", "src:[IP], address:[IP] and [[IP]]:80"),
        ("+49 30 123456 or (212) 555-0123", "[PHONE] or [PHONE]"),
        ("tel. 089/1234567, 030 12345678.", "tel. [PHONE], [PHONE]."),
        ("+4930123456789, +12125550123", "[PHONE], [PHONE]"),
        ("＋４９ ３０ １２３４５６ / +٩٦٦ ٥٠ ١٢٣ ٤٥٦٧", "[PHONE] / [PHONE]"),
    ],
)
def test_what_is_personal_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-01-15, 15.01.2024 12:30, 1/2/2023 and 20240115123045",
        "ISBN 978-3-16-148410-0, ISBN 0-306-40615-2 and 0-306-40615-2",
        "version 1.2.3.4, v1.2.3.4, release 10.0.0.1, section 1.2.3.4 and 1.2.3.4.5",
        "$1,234,567.89, 1.234.567,89 EUR, 12345678.90",
        "4111 1111 1111 1112 and 1234 5678 9012 3456",  # a wrong check digit; no issuer
        "user@localhost, @handle, x@1.2, a@b.c",
        "12:30:45, 00:1A:2B:3C:4D:5E, std::cafe, a::b, face::1",
        "pi is 3.14159265358979, lat 52.520008 lon 13.404954",
        "1609459200000 ms, 123-45, pp. 123-145, 2021-22 2022-23",
        "256.1.1.1 and 01.2.3.4",
        "",
        "日本語 – ½ ٣٤٥٦٧٨٩",
    ],
)
def test_what_only_looks_personal_stays(text: str) -> None:
    assert masked(text) == text


def test_findings_count_what_was_masked() -> None:
    texts = ["a@b.com and c@d.org, 10.1.1.1", None, "nothing", "4111111111111111"]
    made = MaskPii().apply(pa.record_batch({"text": texts}))
    assert made.columns["text"].to_pylist() == ["[EMAIL] and [EMAIL], [IP]", None, "nothing", "[CARD]"]
    assert made.findings.select(["row", "check", "detail", "score", "action"]).to_pylist() == [
        {"row": 0, "check": "mask_pii", "detail": "2 e-mail addresses, 1 IP address", "score": 3.0, "action": "fix"},
        {"row": 3, "check": "mask_pii", "detail": "1 card", "score": 1.0, "action": "fix"},
    ]
    only = MaskPii(kinds=["ip"]).apply(pa.record_batch({"text": texts}))
    assert only.columns["text"].to_pylist() == ["a@b.com and c@d.org, [IP]", None, "nothing", "4111111111111111"]


def test_pseudonyms_are_the_same_for_the_same_and_another_for_another_key(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("text", pa.string())])
    made = []
    for number in range(2):
        (tmp_path / f"key{number}").write_bytes(bytes([number]) * 32)
        bound = MaskPii(regions=_REGIONS, key_file=str(tmp_path / f"key{number}")).bound(None, schema)  # type: ignore[arg-type]
        made.append(pickle.loads(pickle.dumps(bound)))  # noqa: S301  (ours)
    batch = pa.record_batch({"text": ["A@b.com +1 212 555 0123", "a@B.com or (212) 555-0123", "x@b.com"]})
    first, second = (one.apply(batch).columns["text"].to_pylist() for one in made)
    labels = [re.findall(r"\[[A-Z]+:[0-9a-f]{12}\]", text) for text in first]
    assert labels[0] == labels[1] and len(labels[0]) == 2 and labels[2][0] != labels[0][0]
    assert first != second
    recipes = [one.recipe() for one in made]
    assert "key" not in recipes[0] and recipes[0]["libraries"]["key"] != recipes[1]["libraries"]["key"]
    assert ("00" * 32) not in repr(recipes[0]) and repr(bytes(32)) not in repr(made[0])


def test_bad_parameters_are_named(tmp_path: Path) -> None:
    for parameters, said in [
        ({"kinds": ["mail"]}, "kinds"),
        ({"regions": ["XX"]}, "regions"),
        ({"region": ["US"]}, "did you mean 'regions'"),
    ]:
        with pytest.raises(BadInput, match=said):
            operation_named("text.mask_pii", parameters)
    (tmp_path / "short").write_bytes(b"x")
    for place in ("short", "none"):
        with pytest.raises(BadInput, match="key_file"):
            MaskPii(key_file=str(tmp_path / place)).bound(None, pa.schema([]))  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="several columns"):
        MaskPii().reads(pa.schema([("a", pa.string()), ("b", pa.string())]))


def test_patterns_cannot_backtrack() -> None:
    """Each is one class of characters, repeated, and nothing after it: there is one way to match, and no match is given up."""
    patterns = [one for one in vars(pii).values() if isinstance(one, re.Pattern)]
    assert len(patterns) >= 5
    for pattern in patterns:
        parsed = list(_parser.parse(pattern.pattern))
        assert len(parsed) == 1 and parsed[0][0] is _constants.MAX_REPEAT
        least, most, body = parsed[0][1]
        assert (least, most) == (1, _constants.MAXREPEAT) and len(body) == 1 and body[0][0] is _constants.IN


_HOSTILE = [
    *["@", "a@", "a@b.", "@a.b", "a.", ".", "-", "a@b.c-", "é@"],
    *["1", "1 ", "1-", "4111 ", "4111 1111 1111 1111 ", "1111111111111111 "],
    *["1.", "1.1.1.1.", ":", "1:", "::1:", "f", "a:b."],
    *["+", "(", "+1 ", "((1)", "+1-", "212 555 ", "(212) 555-0123", "1/", "\u00a0"],
]


def _calls(text: str) -> int:
    """Calls of functions, C's among them, that masking a text takes."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    operation, batch = MaskPii(regions=_REGIONS), pa.record_batch({"text": [text]})
    operation.apply(batch)  # imports and compiled patterns
    sys.setprofile(seen)
    try:
        operation.apply(batch)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("piece", _HOSTILE)
def test_work_grows_with_the_length_of_a_text_alone(piece: str) -> None:
    """Counted, not timed: four times the text is at most about four times the calls, and no character costs more than a bound."""
    short, long = (piece * (length // len(piece)) for length in (1_000, 4_000))
    fewer, more = _calls(short), _calls(long)
    assert more <= 4.6 * fewer + 2_000
    assert more <= 200 * len(long)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*_HOSTILE, "x@y.com", "10.0.0.1", " ", ",", "日本"]), max_size=12).map("".join))
def test_anything_can_be_masked_and_nothing_is_masked_twice(text: str) -> None:
    found = pii.personal(text, pii.KINDS, _REGIONS)
    at = 0
    for one in found:
        assert at <= one.begin < one.end <= len(text)
        at = one.end
    once = masked(text)
    assert pii.personal(once, (pii.EMAIL, pii.CARD), ()) == []
