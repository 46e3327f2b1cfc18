"""Confidence intervals."""

import math

Z95 = 1.959963984540054  # normal quantile of 97.5 %


def wilson(correct: float, total: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `correct` in `total` independent answers (Wilson 1927, J. Am. Stat. Assoc. 22:209).

    Shares from 0 to 1; (0, 1) where nothing was asked.
    """
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, Z95 * Z95
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)
