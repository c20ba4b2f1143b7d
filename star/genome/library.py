"""Genomes by name, file or text: the ways to write the GENOME argument of every command."""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path

from star.errors import UserError
from star.genome.codec import NamedGenome, looks_like_text, parse_text, read_file
from star.genome.genome import Genome


def genome_folder() -> Path:
    """The folder of the shipped genomes: `genomes/` of a checkout, or the same files in an installed package."""
    installed = Path(str(resources.files("star"))) / "genomes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "genomes"


def list_genomes() -> list[str]:
    """Names of the genomes that come with the package."""
    return sorted(path.stem for path in genome_folder().glob("*.json"))


def layout_name(name: str) -> str:
    """What to call a named genome at another size: "lfm2-350m" -> "lfm2 layout"."""
    return re.sub(r"-[\d.]+[kmb]$", "", name, flags=re.IGNORECASE) + " layout"


def find_genome(source: str | Path) -> NamedGenome:
    """A genome by shipped name, path of a JSON file, or text such as `21211-31112`. Raises UserError."""
    text = str(source)
    if text in list_genomes():
        return read_file(genome_folder() / f"{text}.json")
    if looks_like_text(text):
        return NamedGenome(Genome(parse_text(text)), text)
    path = Path(text)
    if path.suffix == ".json" or path.exists():
        return read_file(path)
    near = difflib.get_close_matches(text, list_genomes(), n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(
        f"'{text}' is not a known genome, file or genome string; {hint}available: {', '.join(list_genomes())}"
    )


def load_genome(
    source: str | Path, d_model: int | None = None, depth: int | None = None, head_dim: int | None = None
) -> Genome:
    """The genome of `find_genome`, optionally at another width or depth (see `Genome.scaled`)."""
    genome = find_genome(source).genome
    return genome if d_model is depth is head_dim is None else genome.scaled(d_model, depth, head_dim)
