"""MkDocs hook: pages of the reference are generated from the code when the site is built.

A line `<!-- generated: NAME -->` in a page is replaced by the text that the function NAME of this file returns.
"""

import re

import click
import typer

from star.cli import app
from star.config import PRESETS, describe
from star.cost import costs
from star.genome import POOL, gene_table, list_genomes, load_genome


def on_page_markdown(markdown: str, **_: object) -> str:
    """Called by MkDocs for every page."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATED[match[1]](), markdown)


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def commands() -> str:
    """Every verb with its help, arguments and options."""
    group = typer.main.get_command(app)
    context, parts = click.Context(group, info_name="star"), []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        text = (command.help or "").replace("\b", "").strip()
        summary, _, rest = text.partition("\n\n")
        parts.append(f"## star {name}\n\n{' '.join(summary.split())}\n")
        if rest.strip():
            parts.append(
                "```text\n" + "\n".join(line.rstrip() for line in rest.splitlines() if line.strip()) + "\n```\n"
            )
        rows = []
        for parameter in command.params:
            if parameter.name == "help" or getattr(parameter, "hidden", False):
                continue
            names = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
            shown = ", ".join(f"`{opt}`" for opt in names) or f"`{parameter.metavar or parameter.name.upper()}`"
            default = parameter.default if names and parameter.default not in (None, False, (), []) else None
            default = "" if default is None or callable(default) else f"`{default}`"
            rows.append((shown, " ".join((getattr(parameter, "help", "") or "").split()), default))
        parts.append(table(("argument or option", "meaning", "default"), rows) + "\n")
    return "\n".join(parts)


def settings() -> str:
    """Every setting of a run."""
    rows = []
    for row in describe():
        value = row["default"]
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        rows.append((f"`{row['key']}`", f"`{shown}`" if shown != "" else "", row["legal"], row["doc"]))
    return table(("setting", "default", "legal", "meaning"), rows)


def presets() -> str:
    """What each preset changes."""
    parts = []
    for name, changes in PRESETS.items():
        rows = [(f"`{key}`", f"`{value}`") for key, value in changes.items()]
        parts.append(f"### {name}\n\n{table(('setting', 'value'), rows)}\n")
    return "\n".join(parts)


def genes() -> str:
    """The gene table."""
    rows = [(row["level"], row["gene"], row["values"], row["meaning"]) for row in gene_table()]
    return table(("level", "gene", "values", "meaning"), rows)


def classes() -> str:
    """The pool of operator classes."""
    rows = []
    for number, row in enumerate(POOL, start=1):
        operator = row.operator
        groups = ", ".join(f"{name} {'.'.join(map(str, genes))}" for name, genes in operator.features)
        integers = ".".join(map(str, operator.genes))
        rows.append(
            (number, row.name, operator.family, f"`{integers}`", groups, "yes" if operator.differential else "")
        )
    return table(("class", "name", "family", "operator genome", "feature groups", "differential"), rows)


def genomes() -> str:
    """The genomes that come with the package."""
    rows = []
    for name in list_genomes():
        genome = load_genome(name)
        found = costs(genome, vocab_size=65_536, seq_len=4096)
        size = f"{found.backbone_parameters / 1e6:,.1f} M"
        rows.append((f"`{name}`", genome.depth, genome.d_model, size, f"{found.cache_bytes / 2**20:,.1f} MiB"))
    return table(("name", "LIVs", "width", "parameters without embedding", "cache at 4,096 tokens"), rows)


GENERATED = {f.__name__: f for f in (commands, settings, presets, genes, classes, genomes)}
