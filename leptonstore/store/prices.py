"""What keeping bytes costs, by tier, and what devices cost by the hour: a table that people edit (TOML), and the arithmetic.

[[price]]
url = "s3://"              # a tier whose URL begins like this; the longest match counts
gib_month = 0.023          # currency units for a GiB and month
put_1000 = 0.005           # for 1,000 writing requests; optional
get_1000 = 0.0004          # for 1,000 reading requests; optional
egress_gib = 0.09          # for a GiB that is read; optional

[[device]]
name = "A100"              # a device whose name has these words in it, upper or lower case; the longest match counts
hour = 3.67                # currency units for one device and hour; of "cpu" for a core
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from leptonstore import limits
from leptonstore.errors import BadInput

# List prices of the first tier of the providers' cheapest large region in November 2026 are for the user to fill in; these are
# the ones that were public when this was written, and a starting point.
DEFAULT_TABLE = """\
# Currency units: US dollars. Edit this to what you pay. The longest `url` that a tier's URL begins with counts,
# and of devices the longest `name` whose words stand in the name that the driver gives ("NVIDIA A100-SXM4-80GB").

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

# What a device costs for an hour, rented on demand, as a starting point.

[[device]]
name = "cpu"            # one core
hour = 0.05

[[device]]
name = "mps"            # a share of what such a computer costs over its life
hour = 0.05

[[device]]
name = "T4"
hour = 0.35

[[device]]
name = "L4"
hour = 0.70

[[device]]
name = "A10G"
hour = 1.00

[[device]]
name = "V100"
hour = 3.00

[[device]]
name = "A100"
hour = 3.70

[[device]]
name = "H100"
hour = 7.00
"""


@dataclass(frozen=True)
class Price:
    """Currency units for one kind of tier."""

    url: str
    gib_month: float
    put_1000: float = 0.0
    get_1000: float = 0.0
    egress_gib: float = 0.0


@dataclass(frozen=True)
class DevicePrice:
    """Currency units for an hour of one device; of "cpu", of one core."""

    name: str
    hour: float


def parse_prices(text: str, what: str) -> list[Price]:
    """What tiers cost; `what` names the table in errors. Raises BadInput."""
    return [Price(**entry) for entry in _entries(text, what, "price", Price, required=True)]


def parse_device_prices(text: str, what: str) -> list[DevicePrice]:
    """What devices cost; a table need not say it. `what` names the table in errors. Raises BadInput."""
    return [DevicePrice(**entry) for entry in _entries(text, what, "device", DevicePrice, required=False)]


def _entries(text: str, what: str, kind: str, shape: type[Price | DevicePrice], required: bool) -> list[dict[str, Any]]:
    """The tables `[[kind]]`, each with the fields of `shape`: its first a text, the others amounts."""
    try:
        tables = tomllib.loads(text)
        entries = tables[kind] if required else tables.get(kind, [])
        known = {field.name: field.default is MISSING for field in fields(shape)}
        first = next(iter(known))
        for number, entry in enumerate(entries, 1):
            unknown = set(entry) - set(known)
            if unknown:
                raise ValueError(f"{kind} {number} has {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
            missing = [name for name, needed in known.items() if needed and name not in entry]
            if missing:
                raise ValueError(f"{kind} {number} has no {missing[0]!r}")
            for name, value in entry.items():
                wanted = (
                    isinstance(value, str) if name == first else isinstance(value, int | float) and 0 <= value < 1e9
                )
                if not wanted or isinstance(value, bool):
                    raise ValueError(f"{kind} {number}: {name} is {value!r}")
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"price table {what} is malformed: {error}; `lepton tier prices` prints one to begin with"
        ) from None
    return list(entries)


def price_of(prices: list[Price], url: str) -> Price | None:
    """The price whose `url` fits best, None when none fits."""
    fitting = [price for price in prices if url.startswith(price.url)]
    return max(fitting, key=lambda price: len(price.url), default=None)


def month(price: Price | None, stored: int) -> float | None:
    """What `stored` bytes cost in a month, None when there is no price."""
    return None if price is None else price.gib_month * stored / limits.GIB


def egress(price: Price | None, read: int) -> float:
    """What reading `read` bytes costs, 0 when there is no price."""
    return 0.0 if price is None else price.egress_gib * read / limits.GIB


def device_price_of(prices: Sequence[DevicePrice], device: str) -> DevicePrice | None:
    """The price whose `name` fits the device's best, None when none fits."""
    # Whole words: an L4 is no L40S.
    fitting = [p for p in prices if re.search(rf"(?<!\w){re.escape(p.name)}(?!\w)", device, re.IGNORECASE)]
    return max(fitting, key=lambda price: len(price.name), default=None)
