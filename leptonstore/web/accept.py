"""Which of some media types an Accept header asks for (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence


def chosen(accept: str, offers: Sequence[str]) -> str | None:
    """The offer that is wanted most, the first of them where it makes no difference; None when none of them is wanted.

    A header that is empty takes anything. `offers` are in lower case, without parameters.
    """
    best, best_quality = None, 0.0
    for part in accept.split(",") if accept.strip() else ["*/*"]:
        kind, _, parameters = part.strip().lower().partition(";")
        named, quality = _offer(kind.strip(), offers), _quality(parameters)
        if named is not None and quality > best_quality:
            best, best_quality = named, quality
    return best


def _offer(kind: str, offers: Sequence[str]) -> str | None:
    if kind == "*/*":
        return offers[0]
    if kind.endswith("/*"):
        return next((offer for offer in offers if offer.startswith(kind[:-1])), None)
    return kind if kind in offers else None


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
