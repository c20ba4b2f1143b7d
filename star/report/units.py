"""Numbers as text: prefixes, units and durations. Imports no plotting library."""

from __future__ import annotations

import math

from star.assess import Objective


def format_count(value: float) -> str:
    """12_345 -> "12.3 K": three significant digits and a decimal prefix."""
    return _scaled(value, 1000, ("", " K", " M", " G", " T", " P"))


def format_bytes(value: float) -> str:
    """12_345 -> "12.1 KiB": three significant digits and a binary prefix."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= 0.9995 * base and power < len(units) - 1:
        value, power = value / base, power + 1
    digits = 0 if power == 0 and value == int(value) else max(0, 2 - int(math.log10(max(abs(value), 1))))
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + units[power]


def plural(count: int, noun: str) -> str:
    """1, "LIV" -> "1 LIV"; 4, "LIV" -> "4 LIVs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def display_unit(objective: Objective) -> str:
    """The unit that is shown. Every tokenizer here is bytes, so a token is a byte."""
    return objective.unit.replace("/token", "/byte") if objective.unit.startswith("nats") else objective.unit


def heading(objective: Objective) -> str:
    """Name and unit, for the head of a column."""
    unit = display_unit(objective)
    return objective.name if unit == objective.name else f"{objective.name} ({unit})"


def format_value(objective: Objective, value: float) -> str:
    """A value with its prefix and without its unit, for tables and ticks."""
    if objective.unit == "bytes":
        return format_bytes(value)
    return format_count(value) if objective.log_scale else f"{value:.3f}"


def format_seconds(seconds: float) -> str:
    """95 -> "1 min 35 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
