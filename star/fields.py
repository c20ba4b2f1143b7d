"""A setting: a dataclass field with documentation and legal values."""

import math
from dataclasses import field


def setting(
    default, doc: str, low: float = -math.inf, high: float = math.inf, choices: tuple = (), resumable: bool = False
):
    """A field of a frozen dataclass. low, high: bounds of numbers, both legal; resumable: may change when a run is
    resumed.
    """
    return field(
        default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices, "resumable": resumable}
    )
