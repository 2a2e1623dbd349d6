"""How far values usually are from their median, told so that some that are far away do not count (Iglewicz and Hoaglin, How to Detect and
Handle Outliers, 1993, chapter 3; Hampel 1974)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of normal data: standard deviation / median absolute deviation, and standard deviation / mean absolute deviation.
MAD_TO_STD, MEAN_TO_STD = 1.4826, 1.2533


def robust_spread(away: NDArray[np.float64]) -> float:
    """What the standard deviation would be of normal data with these distances from their median, of which there is one at least.

    By their median; by their mean where that is 0, as more than half of the values are equal.
    """
    return MAD_TO_STD * float(np.median(away)) or MEAN_TO_STD * float(np.mean(away))
