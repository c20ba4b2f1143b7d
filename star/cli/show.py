"""star show GENOME"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star.cli.arguments import GENOME_HELP, DepthOption, WidthOption, complete_genome
from star.cli.console import console, say


def show(
    genome: Annotated[
        str | None,
        typer.Argument(metavar="GENOME", help=GENOME_HELP, show_default=False, autocompletion=complete_genome),
    ] = None,
    genes: Annotated[bool, typer.Option("--genes", help="Print every gene with its legal values and meaning.")] = False,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=2, max=10_000_000, help="Vocabulary for the costs (default: from the genome file, or 256)."),
    ] = None,
    seq_len: Annotated[int, typer.Option(min=1, max=10**9, help="Context length for the costs, in tokens.")] = 4096,
    d_model: WidthOption = None,
    depth: DepthOption = None,
    diff: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Show how another genome differs.", autocompletion=complete_genome),
    ] = None,
    diagram: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the layers to a .png, .svg or .pdf file.")
    ] = None,
) -> None:
    """Explain a genome: its genes, layers, sharing and costs.

    \b
    Example: star show lfm2-350m --diagram lfm2.png
             star show 21211-31112-21221-32112 --d-model 64
             star show runs/first:knee
             star show runs/first:knee --diff lfm2-350m
             star show --genes
    """
    from star.cli.arguments import choose_genome
    from star.errors import UserError
    from star.report.show import gene_reference, show_genome

    out = console()
    if genes:
        out.print(gene_reference())
    if genome is None:
        if genes:
            return
        raise UserError("star show needs a GENOME (a file, a shipped name, genome text, or RUN:ID), or --genes")
    chosen = choose_genome(genome, d_model, depth)
    vocab_size = vocab_size or chosen.vocab_size or 256
    if diff is not None:
        from star.report.show import show_difference

        if diagram is not None:
            raise UserError("--diff and --diagram exclude each other; give one of them")
        other = choose_genome(diff, d_model, depth)
        for part in show_difference(chosen.genome, other.genome, (chosen.label, other.label), vocab_size, seq_len):
            out.print(part)
        return
    description = chosen.description
    if chosen.origin:
        from star.report.refinement import origin_text

        description = origin_text(*chosen.origin)
    for part in show_genome(chosen.genome, chosen.label, description, vocab_size, seq_len):
        out.print(part)
    if diagram is not None:
        from star.report.genome_diagram import genome_diagram
        from star.report.style import save_one

        say(f"\nwrote {save_one(genome_diagram(chosen.genome, vocab_size, seq_len, chosen.label), diagram)}")
