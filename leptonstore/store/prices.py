"""What keeping bytes costs, by tier: a table that people edit (TOML), and the arithmetic.

[[price]]
url = "s3://"              # a tier whose URL begins like this; the longest match counts
gib_month = 0.023          # currency units for a GiB and month
put_1000 = 0.005           # for 1,000 writing requests; optional
get_1000 = 0.0004          # for 1,000 reading requests; optional
egress_gib = 0.09          # for a GiB that is read; optional
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields

from leptonstore import limits
from leptonstore.errors import BadInput

# List prices of the first tier of the providers' cheapest large region in November 2026 are for the user to fill in; these are
# the ones that were public when this was written, and a starting point.
DEFAULT_TABLE = """\
# Currency units: US dollars. Edit this to what you pay. The longest `url` that a tier's URL begins with counts.

[[price]]
url = ""                # directories and volumes of this machine
gib_month = 0.08        # a share of what an SSD costs over its life

[[price]]
url = "s3://"
gib_month = 0.023
put_1000 = 0.005
get_1000 = 0.0004
egress_gib = 0.09

[[price]]
url = "gs://"
gib_month = 0.020
put_1000 = 0.005
get_1000 = 0.0004
egress_gib = 0.12

[[price]]
url = "az://"
gib_month = 0.018
put_1000 = 0.0065
get_1000 = 0.0005
egress_gib = 0.087
"""


@dataclass(frozen=True)
class Price:
    """Currency units for one kind of tier."""

    url: str
    gib_month: float
    put_1000: float = 0.0
    get_1000: float = 0.0
    egress_gib: float = 0.0


def parse_prices(text: str, what: str) -> list[Price]:
    """A table; `what` names it in errors. Raises BadInput."""
    try:
        entries = tomllib.loads(text)["price"]
        known = {field.name for field in fields(Price)}
        prices = []
        for number, entry in enumerate(entries, 1):
            unknown = set(entry) - known
            if unknown:
                raise ValueError(f"price {number} has {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
            for name, value in entry.items():
                wanted = (
                    isinstance(value, str) if name == "url" else isinstance(value, int | float) and 0 <= value < 1e9
                )
                if not wanted or isinstance(value, bool):
                    raise ValueError(f"price {number}: {name} is {value!r}")
            prices.append(Price(**entry))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"price table {what} is malformed: {error}; `lepton tier prices` prints one to begin with"
        ) from None
    return prices


def price_of(prices: list[Price], url: str) -> Price | None:
    """The price whose `url` fits best, None when none fits."""
    fitting = [price for price in prices if url.startswith(price.url)]
    return max(fitting, key=lambda price: len(price.url), default=None)


def month(price: Price | None, stored: int) -> float | None:
    """What `stored` bytes cost in a month, None when there is no price."""
    return None if price is None else price.gib_month * stored / limits.GIB
