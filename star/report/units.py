"""Numbers as text: prefixes, units and durations. Imports no plotting library."""

from __future__ import annotations

import math

from star.assess import Objective
from star.candidate import Candidate, Measured
from star.cost import costs
from star.genome import layout_name
from star.run import Run


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


def heading(objective: Objective) -> str:
    """Name and unit, for the head of a column."""
    return objective.name if objective.unit == objective.name else f"{objective.name} ({objective.unit})"


def format_value(objective: Objective, value: float) -> str:
    """A value with its prefix and without its unit, for tables and ticks."""
    if objective.unit == "bytes":
        return format_bytes(value)
    return format_count(value) if objective.log_scale else f"{value:.3f}"


def format_objective(objective: Objective, candidate: Candidate) -> str:
    """The value of an objective of a candidate, with its error if it has one."""
    measured = candidate.measured.get(objective.name)
    if measured is None:
        return format_value(objective, candidate.values[objective.name])
    return format_measured(objective, measured)


def format_measured(objective: Objective, measured: Measured) -> str:
    """ "2.013 [1.982, 2.044]": 95 % interval from the noise between seeds; "2.007 +- 0.039": standard error of the
    evaluation alone.
    """
    if measured.low is None or measured.high is None:
        return format_value(objective, measured.mean) + ("" if math.isnan(measured.se) else f" +- {measured.se:.3f}")
    half = (measured.high - measured.low) / 2
    digits = max(3, min(6, 1 - math.floor(math.log10(half)))) if half > 0 else 3
    ends = (measured.mean, measured.low, measured.high)
    mean, low, high = (format_value(objective, end) if objective.log_scale else f"{end:.{digits}f}" for end in ends)
    return f"{mean} [{low}, {high}]"


def error_bar(measured: Measured) -> tuple[float, float]:
    """Lengths of the 95 % interval below and above the mean; of the evaluation's error if the noise is not known."""
    if measured.low is None or measured.high is None:
        return (0.0, 0.0) if math.isnan(measured.se) else (1.96 * measured.se, 1.96 * measured.se)
    return measured.mean - measured.low, measured.high - measured.mean


def baseline_name(run: Run, baseline: Candidate) -> str:
    """ "lfm2 layout, 228 K": a baseline has the layout of the genome that it is named after, at another size."""
    size = costs(baseline.genome, run.corpus["vocab_size"]).parameters
    return f"{layout_name(baseline.name or baseline.id)}, {format_count(size)}"


def format_seconds(seconds: float) -> str:
    """95 -> "1 min 35 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
