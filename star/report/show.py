"""A genome explained as text: its genes and their meaning, its layers with their sharing, and its costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from star.cost import costs
from star.export.stock import where
from star.genome import EMBEDDINGS, NORMS, RESIDUALS, Gene, Genome, Layer, gene_table, resolve
from star.liv import FAMILIES, Operator
from star.liv.genes import OPERATOR_GENES
from star.report.sharing import FEATURES, WEIGHTS, Link, layer_cache, layer_parameters, n_lanes, sharing_links
from star.report.units import format_bytes, format_count, plural

CACHE_LENGTHS = (4096, 32_768, 131_072)  # tokens


def show_genome(
    genome: Genome, name: str = "", description: str = "", vocab_size: int = 256, seq_len: int = 4096
) -> Iterator[RenderableType]:
    """What `star show GENOME` prints. vocab_size, seq_len (tokens): for the costs."""
    genome = genome.canonical()
    size = f"{plural(genome.depth, 'LIV')} of width {genome.d_model}"
    yield Text(f"{printable(name) or 'genome'} {genome.id}: {size}", style="bold")
    if description:
        yield Text(printable(description))
    yield Text(genome.text, style="dim", overflow="fold")
    yield Text("\nGenome\n", style="bold")
    yield _numbers(genome)
    yield Text("\nBackbone: the five genes of each LIV and the operator that they encode\n", style="bold")
    yield _backbone(genome, seq_len)
    operators = {layer: genome.operator(gene) for layer, gene in zip(genome.class_names, genome.backbone)}
    for class_name, operator in operators.items():
        yield Text(f"\n{class_name}: {FAMILIES[operator.family].equation}\n", style="bold")
        yield _operator(operator)
    yield Text("\nLayers: the weights that each LIV owns, [out, in] or [channels, taps]\n", style="bold")
    yield _layers(genome)
    yield Text(f"\nCosts with a vocabulary of {vocab_size:,} and a context of {seq_len:,} tokens\n", style="bold")
    yield _costs(genome, vocab_size, seq_len)
    yield Text("\nWhere it can run, besides PyTorch: classes of transformers (star export --format hf)\n", style="bold")
    yield _where(genome)


def show_difference(
    genome: Genome, other: Genome, names: tuple[str, str], vocab_size: int = 256, seq_len: int = 4096
) -> Iterator[RenderableType]:
    """What `star show GENOME --diff OTHER` prints: where two genomes differ, LIV by LIV, and their costs."""
    both = genome.canonical(), other.canonical()
    names = printable(names[0]) or genome.id, printable(names[1]) or other.id
    if both[0] == both[1]:
        yield Text(f"{names[0]} and {names[1]} are the same architecture ({genome.id})", style="bold")
        return
    yield Text(f"{names[0]} ({genome.id}) and {names[1]} ({other.id})", style="bold")
    rows = [(row["gene"], row["meaning"]) for row in gene_table() if row["level"] == "genome"]
    changed = [(gene, meaning) for gene, meaning in rows if getattr(both[0], gene) != getattr(both[1], gene)]
    if changed:
        yield Text("\nGenome\n", style="bold")
        table = _table("gene", *names, "meaning")
        for gene, meaning in changed:
            table.add_row(gene, str(getattr(both[0], gene)), str(getattr(both[1], gene)), meaning)
        yield table
    yield Text("\nLIVs: - only in the first, + only in the second\n", style="bold")
    yield _aligned(both)
    yield Text(f"\nCosts with a vocabulary of {vocab_size:,}\n", style="bold")
    table = _table("cost", *names, "ratio", right=("ratio", *names))
    for (name, form), mine, its in zip(COMPARED, *(_numbers_of(g, vocab_size, seq_len) for g in both), strict=True):
        table.add_row(name.format(seq_len), form(mine), form(its), f"{its / mine:,.2f} x" if mine else "")
    yield table


COMPARED = (
    ("parameters", format_count),
    *((f"cache at {length // 1024} K", format_bytes) for length in CACHE_LENGTHS),
    ("training FLOP/token at {:,} tokens", format_count),
    ("decoding FLOP/token after {:,} tokens", format_count),
)


def _numbers_of(genome: Genome, vocab_size: int, seq_len: int) -> list[float]:
    """The values of `COMPARED`."""
    total = costs(genome, vocab_size, seq_len)
    caches = [costs(genome, vocab_size, length).cache_bytes for length in CACHE_LENGTHS]
    return [total.parameters, *caches, total.train_flops_per_token, total.decode_flops_per_token]


def _aligned(genomes: tuple[Genome, Genome]) -> Table:
    """The LIVs of two genomes in one list, equal ones in one row."""
    rows: list[list[tuple[str, str]]] = []  # class and sharing of each LIV
    keys: list[list[tuple]] = []  # what makes two LIVs equal: sharing by distance, not by number
    for genome in genomes:
        pairs = list(zip(genome.backbone, resolve(genome).layers, strict=True))
        rows.append([(printable(layer.name), sharing_text(genome, gene, layer)) for gene, layer in pairs])
        keys.append([(genome.operator(gene), *_sources(layer)) for gene, layer in pairs])
    table = _table("", "LIV", "LIV", "class", "sharing", right=("LIV",))
    for kind, a, b, c, d in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
        if kind == "equal":
            for n, (name, shared) in enumerate(rows[0][a:b]):
                table.add_row("", str(a + n + 1), str(c + n + 1), name, shared, style="dim")
            continue
        for n, (name, shared) in enumerate(rows[0][a:b], start=a + 1):
            table.add_row("-", str(n), "", name, shared, style="red")
        for n, (name, shared) in enumerate(rows[1][c:d], start=c + 1):
            table.add_row("+", "", str(n), name, shared, style="green")
    return table


def _sources(layer: Layer) -> tuple:
    """What a LIV takes, and how far before it."""
    features = None if layer.provider is None else (layer.index - layer.provider, layer.given)
    return features, frozenset((group, layer.index - owner) for group, owner in layer.weights_from.items())


def gene_reference() -> Table:
    """Every gene, its legal values and its meaning."""
    table = _table("level", "gene", "legal values", "meaning")
    for row in gene_table():
        table.add_row(row["level"], row["gene"], row["values"], row["meaning"])
    return table


def _numbers(genome: Genome) -> Table:
    table = _table("gene", "value", "meaning")
    meanings = {row["gene"]: row["meaning"] for row in gene_table() if row["level"] == "genome"}
    named = {"norm": NORMS, "residual": RESIDUALS, "embedding": EMBEDDINGS}
    for gene in meanings:
        value = getattr(genome, gene)
        table.add_row(gene, str(value), meanings[gene] + (f": {named[gene][value]}" if gene in named else ""))
    table.add_row("rope_theta", f"{genome.rope_theta:g}", "base of the rotary embedding")
    return table


def _backbone(genome: Genome, seq_len: int) -> Table:
    plan = resolve(genome)
    links = sharing_links(plan)
    table = _table("LIV", "genes", "class", "sharing", "", "parameters", "cache", right=("LIV", "parameters", "cache"))
    for gene, layer in zip(genome.backbone, plan.layers):
        cache = layer_cache(layer, seq_len)
        sizes = [format_count(layer_parameters(layer)), format_bytes(cache) if cache else "-"]
        lanes, shared = _lanes(links, layer.index), sharing_text(genome, gene, layer)
        table.add_row(str(layer.index + 1), digits(gene), layer.name, lanes, shared, *sizes)
    return table


def digits(genes: Iterable[int]) -> str:
    """21211, or 1.12.2.0.0 where a gene has two digits."""
    words = [str(gene) for gene in genes]
    return ("" if all(len(word) == 1 for word in words) else ".").join(words)


def sharing_text(genome: Genome, gene: Gene, layer: Layer) -> str:
    """The four sharing genes of one LIV in words; empty if it shares nothing."""
    words = []
    if gene.shares_weights:
        owners = sorted({owner + 1 for owner in layer.weights_from.values()})
        source = f"from LIV {', '.join(map(str, owners))}" if owners else "owner"
        words.append(f"featurizer group {gene.featurizer_group}: {source}")
    if gene.shares_features:
        if layer.provider is None:
            words.append(f"feature group {gene.feature_group}: owner")
        else:
            groups = [g for g in genome.family(gene).groups if g in layer.given]
            words.append(f"feature group {gene.feature_group}: {' + '.join(groups)} from LIV {layer.provider + 1}")
    return "; ".join(words)


def _lanes(links: list[Link], index: int) -> Text:
    """One row of the link diagram: featurizer weights, then features. A link of this LIV reaches the left edge."""
    text = Text()
    for kind, color in ((WEIGHTS, "red"), (FEATURES, "blue")):
        cells = [" "] * (2 * n_lanes(links, kind))
        for link in sorted((link for link in links if link.kind == kind), key=lambda link: link.lane):
            if not link.owner <= index <= link.last:
                continue
            here = 2 * link.lane + 1
            ends = index == link.owner or index in link.consumers
            cells[here] = "╮" if index == link.owner else "╯" if index == link.last else "┤" if ends else "│"
            if ends:
                cells[:here] = [{" ": "─", "│": "┼"}.get(cell, cell) for cell in cells[:here]]
        text.append("".join(cells), style=color)
    return text


def _operator(operator: Operator) -> Table:
    """The operator genome and the featurizer genome of one class."""
    family = FAMILIES[operator.family]
    table = _table("part", "genes", "meaning")
    table.add_row("operator", digits(operator.genes), operator_words(operator))
    for group, row in operator.features:
        spec = family.groups[group]
        expansion = f"; expansion {row.expansion}: {spec.expansion_means}" if len(spec.expansion) > 1 else ""
        repeat = f"; repeat {row.repeat}" if len(spec.repeat) > 1 else ""
        table.add_row(f"feature {group}", digits(row), f"{spec.meaning}{expansion}{repeat}")
    return table


def operator_words(operator: Operator) -> str:
    """The operator genome in words."""
    words = [(gene, meaning[getattr(operator.genes, gene)]) for gene, meaning in OPERATOR_GENES.items()]
    meanings = ", ".join(f"{gene}{' mixing' * (gene in ('token', 'channel'))} {text}" for gene, text in words)
    differential = "; two branches, subtracted" if operator.differential else ""
    return f"featurizer {operator.genes.featurizer} ({operator.family}), {meanings}{differential}"


def _layers(genome: Genome) -> Table:
    table = _table("LIV", "class", "weights", "decode state", right=("LIV",))
    for layer in resolve(genome).layers:
        weights = ", ".join(f"{name} {list(weight.shape)}" for name, weight in layer.weights().items())
        state = ", ".join(
            f"{name} {list(entry.shape)}" + (" per token" if entry.cap is not None else "")
            for name, entry in layer.state().items()
        )
        table.add_row(str(layer.index + 1), layer.name, weights, state or "-")
    return table


def _costs(genome: Genome, vocab_size: int, seq_len: int) -> Table:
    total = costs(genome, vocab_size, seq_len)
    table = _table("cost", "value", "how it is counted", right=("value",))
    rows = (
        ("parameters", f"{total.parameters:,}", "with embedding and norms; shared parameters count once"),
        ("of the backbone", f"{total.backbone_parameters:,}", "LIVs only, as in the STAR paper"),
        ("cache", format_bytes(total.cache_bytes), "2 bytes per number (STAR's convention)"),
        *(
            (f"cache at {length // 1024} K", format_bytes(costs(genome, vocab_size, length).cache_bytes), "as above")
            for length in CACHE_LENGTHS
            if length != seq_len
        ),
        ("cache, allocated", format_bytes(total.cache_bytes_exact), "bfloat16; recurrent states in float32"),
        ("training", f"{format_count(total.train_flops_per_token)}FLOP/token", "forward and backward"),
        ("decoding", f"{format_count(total.decode_flops_per_token)}FLOP/token", f"after {seq_len:,} tokens"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _where(genome: Genome) -> Table:
    table = _table("class", "", "why not")
    for name, reason in where(resolve(genome)):
        table.add_row(name, "no" if reason else "yes", reason)
    return table


def printable(text: str) -> str:
    """The text without control characters, so that a file cannot drive the terminal."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
