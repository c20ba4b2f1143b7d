"""star import FILE"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from star.cli.arguments import OverwriteOption
from star.cli.console import say


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="config.json of transformers, or a folder with one.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Genome file to write (default: NAME.json, of the folder)."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Bring the architecture of a public model to a genome file with the same number of parameters.

    Known are Llama, Mistral, Qwen3, OLMo 2, LFM2, Mamba-2 and Nemotron-H. The weights stay where they are.

    \b
    Example: star import checkpoint/config.json --out mine.json
             star show mine.json
    """
    from star.cost import costs
    from star.errors import UserError
    from star.genome import to_json
    from star.genome.codec import read_object
    from star.genome.stock_config import genome_of_config

    path = file / "config.json" if file.is_dir() else file
    found = genome_of_config(read_object(path), str(path))
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    out = out or Path(f"{name}.json")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; give another file with --out, or --overwrite to replace it")
    data = to_json(found.genome, name=name, description=found.description, vocab_size=found.vocab_size)
    out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    parameters = costs(found.genome, vocab_size=found.vocab_size or 256).parameters
    say(f"wrote {out}: {found.genome.depth} LIVs of width {found.genome.d_model}, {parameters:,} parameters")
    say(found.description)
