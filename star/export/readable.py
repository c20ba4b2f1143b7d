"""A plan as one page of PyTorch: only what its operators use, written by the templates beside this file.

    text = readable_source(plan, vocab_size, tie_embeddings, genome)

There is one template per family of operators. Two LIVs with the same options are one class, whose sizes are arguments.
The templates are code of their own, not copies of the library; tests compare both for every row of the pool and for
random genomes. `exported_name` maps parameters of `star.model.LanguageModel` to those of the page.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import star
from star.genome import NORMS, Genome, Layer, Plan
from star.liv import LIVConfig
from star.liv.attention import AttentionConfig
from star.liv.convolution import ConvolutionConfig
from star.liv.elementwise import ElementwiseConfig
from star.liv.memoryless import MemorylessConfig
from star.liv.recurrence import RecurrenceConfig

# Weights of operators that are plain parameters of their class; the others are those of a module in it.
PLAIN = {"sink", "diff", "skip", "dt_bias", "log_rate", "angle", "residue_real", "residue_imag", "rate", "gain"}
BIASES = {"input_bias": "input_gate.bias", "decay_bias": "decay_gate.bias"}


@dataclass
class OperatorClass:
    """What the template of one class is given. options: of the family; sizes: those that its constructor takes."""

    template: str
    name: str
    options: dict[str, Any]
    sizes: dict[str, int]  # of one LIV; not part of the class
    needs: set[str] = field(default_factory=set)  # functions of functions.jinja

    @property
    def key(self) -> str:
        """Equal for LIVs that are one class."""
        return f"{self.template} {self.options}"

    @property
    def arguments(self) -> list[str]:
        """Of its constructor."""
        return self.options["arguments"]


def exported_name(name: str) -> str:
    """The name in a readable file of a parameter of `LanguageModel`: blocks.0.liv.q -> blocks.0.operator.q.weight."""
    *path, last = name.replace(".liv.", ".operator.").split(".")
    if last in PLAIN:
        new = last
    elif last in BIASES:
        new = BIASES[last]
    else:
        new = f"{last.removesuffix('_bias')}.{'bias' if last.endswith('_bias') else 'weight'}"
    return ".".join([*path, new])


def is_readable(plan: Plan) -> bool:
    """Whether there is a template for every operator."""
    return not unreadable(plan)


def unreadable(plan: Plan) -> list[str]:
    """The operators without a template: Kimi delta attention, latent attention, and those from outside the package."""
    return list(dict.fromkeys(layer.name for layer in plan.layers if not has_template(layer.config)))


def has_template(config: LIVConfig) -> bool:
    """Whether there is a template for an operator of these sizes."""
    if isinstance(config, RecurrenceConfig):
        return config.decay != "rates" and not config.decay_rank and not config.gate_rank
    return type(config) in FAMILIES


def readable_source(plan: Plan, vocab_size: int, tied: bool, genome: Genome, subwords: bool = False) -> str:
    """The source of model.py. subwords: tokens are those of a tokenizer.json, not bytes."""
    described = [FAMILIES[type(layer.config)](layer, *provided(plan, layer)) for layer in plan.layers]
    names = class_names(described)
    env, needs = environment(), set().union(*(op.needs for op in described))
    blind = not all(layer.reads_input for layer in plan.layers) and plan.block.norm != 3
    blocks = []
    for layer, op in zip(plan.layers, described):
        places = {"index": layer.index, "provider": layer.provider}
        sizes = [
            str(places[name]) if name == "index" else f"{name}={(places | op.sizes)[name]}" for name in op.arguments
        ]
        reads = ", reads_input=False" if blind and not layer.reads_input else ""
        blocks.append(f"Block({names[op.key]}({', '.join(sizes)}){reads})")
    classes = {op.key: op for op in described}
    facts = {
        "needs": {name: name in needs for name in NEEDS} | {"blind": blind},
    }
    operators = [
        env.get_template(f"{op.template}.jinja").render(facts, op=op.options | {"name": names[key]})
        for key, op in classes.items()
    ]
    n_livs = f"{len(plan.layers)} {'operator' if len(plan.layers) == 1 else 'operators'} of width {plan.d_model}"
    operators = [text.rstrip() + "\n" for text in operators]
    functions = env.get_template("functions.jinja").render(facts)
    return env.get_template("model.jinja").render(
        facts,
        functions=functions,
        uses_functional="F." in "".join([functions, *operators]),
        plan=plan,
        genome=genome,
        genome_text=textwrap.fill(f"Genome {genome.id}: {genome.text}", 118),
        livs=n_livs,
        version=star.__version__,
        vocab_size=vocab_size,
        head_dim=genome.head_dim,
        rope_theta=genome.rope_theta,
        rotary=tuple(sorted({op.options["rotary"] for op in described if op.options.get("rope")})),
        tokens="those of tokenizer.json" if subwords else "bytes",
        subwords=subwords,
        tied=tied,
        table="\n".join(table(plan, [names[op.key] for op in described])),
        scheme=NORMS[plan.block.norm].partition(": ")[2] or NORMS[plan.block.norm],
        norm="nn.LayerNorm(D_MODEL, eps=EPS)" if plan.block.norm == 4 else "nn.RMSNorm(D_MODEL, eps=EPS)",
        operators=operators,
        blocks=blocks,
        ties=list(ties(plan)),
    )


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )


def class_names(described: list[OperatorClass]) -> dict[str, str]:
    """A name for each class; the second one of a name has a 2 at the end."""
    names: dict[str, str] = {}
    for op in described:
        if op.key not in names:
            n = sum(name.rstrip("0123456789") == op.name for name in names.values())
            names[op.key] = op.name if n == 0 else f"{op.name}{n + 1}"
    return names


def table(plan: Plan, names: list[str]) -> Iterator[str]:
    """A line for each class: the operators of the pool that it is, and the blocks where."""
    for name in dict.fromkeys(names):
        layers = [layer for layer, other in zip(plan.layers, names) if other == name]
        rows = ", ".join(dict.fromkeys(layer.name for layer in layers))
        where = ", ".join(str(layer.index) for layer in layers)
        yield textwrap.fill(f"{name} ({rows}): blocks {where}", 110, initial_indent="    ", subsequent_indent=" " * 8)


def ties(plan: Plan) -> Iterator[str]:
    """Calls of `LanguageModel.share`, one for each pair of user and owner."""
    for layer in plan.layers:
        used: dict[int, dict[str, None]] = {}
        for name, weight in layer.config.own_weights(layer.given).items():
            if weight.group in layer.weights_from:
                attribute = exported_name(name).removesuffix(".weight").removesuffix(".bias")
                used.setdefault(layer.weights_from[weight.group], {})[attribute] = None
        for owner, attributes in used.items():
            yield f"self.share({owner}, {layer.index}, {', '.join(f'{chr(34)}{a}{chr(34)}' for a in attributes)})"


def provided(plan: Plan, layer: Layer) -> tuple[frozenset[str], bool]:
    """The feature groups that others take from a layer, and whether they read its state too."""
    groups: frozenset[str] = frozenset()
    for other in plan.layers:
        if other.provider == layer.index:
            groups |= other.given
    return groups, joint(layer.config, groups)


def joint(config: LIVConfig, given: frozenset[str]) -> bool:
    """Whether these groups fix the state of the operator, which its owner then keeps alone."""
    entries = [entry for entry in config.state().values() if "+" in entry.group]
    return bool(entries) and all(set(entry.group.split("+")) <= given for entry in entries)


def common(layer: Layer, provides: dict[str, str], groups: str, remembers: bool) -> dict[str, Any]:
    """Options of every family. groups: those that may have a filter; remembers: whether it has a state of its own."""
    config = layer.config
    filters = getattr(config, "filters", ())
    filters = [g for g in groups if g in filters and g not in layer.given]
    return {
        "given": sorted(layer.given),
        "provides": provides,
        "filters": filters,
        "remembers": remembers or bool(filters),
        "differential": config.branches == 2,
        "biased": config.biased,
        "own": [g for g in groups if g not in layer.given],
        "joint": joint(config, layer.given),
    }


def detail(layer: Layer, notes: list[str]) -> str:
    """The second paragraph of a docstring: what is special."""
    notes = [*notes, "two branches, subtracted"] if layer.config.branches == 2 else notes
    notes = [*notes, f"{', '.join(sorted(layer.given))} from another block"] if layer.given else notes
    if not notes:
        return ""
    indent = "    "
    text = textwrap.fill(f"{'; '.join(notes)}.", 116, initial_indent=indent, subsequent_indent=indent)
    return f"\n\n{text[:4]}{text[4].upper()}{text[5:]}\n{indent}"


def attention(layer: Layer, groups: frozenset[str], _: bool) -> OperatorClass:
    """Softmax attention."""
    config = layer.config
    assert isinstance(config, AttentionConfig)
    own_kv = [g for g in "kv" if g not in layer.given]
    options = common(layer, {g: g for g in "kv" if g in groups}, "qkv", bool(own_kv)) | {
        "own_kv": own_kv,
        "qk_norm": config.qk_norm,
        "normed": [g for g in "qk" if config.qk_norm and g not in layer.given],
        "gated": config.gated,
        "sink": config.sink,
        "window": config.window is not None,
        "rope": config.rope_theta is not None,
        "rotary": config.rotary or config.head_dim,
        "grouped": config.n_kv_heads != config.n_heads,
    }
    notes = ["in a window"] if config.window else []
    notes += ["without positions"] if config.rope_theta is None else []
    notes += [f"{config.rotary} channels rotated"] if options["rope"] and config.rotary else []
    notes += [f"{' and '.join(options['filters'])} filtered"] if options["filters"] else []
    notes += ["output gated"] if config.gated else []
    name = (
        "Differential" * (config.branches == 2) + "Window" * bool(config.window) + "Gated" * config.gated + "Attention"
    )
    sizes = {"heads": config.branches * config.n_heads}
    sizes |= {"kv_heads": config.branches * config.n_kv_heads} if own_kv else {}
    sizes |= {} if config.window is None else {"window": config.window}
    needs = {"attention", "heads"} | ({"rope"} if options["rope"] else set()) | ({"cache"} if own_kv else set())
    needs |= {"partial_rope"} if options["rope"] and config.rotary else set()
    needs |= ({"window"} if config.window else set()) | ({"sink", "wide"} if config.sink else set())
    options["detail"] = detail(layer, notes)
    return finish("attention", name, options, sizes, needs)


ACTIVATIONS = {
    "none": "{}",
    "relu": "F.relu({})",
    "swish": "F.silu({})",
    "gelu": 'F.gelu({}, approximate="tanh")',
    "normal_cdf": "torch.sigmoid((8 / torch.pi) ** 0.5 * ({0} + 0.044715 * {0}**3))",
}
GATED = {"none": "Bilinear", "relu": "ReGLU", "swish": "SwiGLU", "gelu": "GEGLU", "normal_cdf": "NormalGLU"}
UNGATED = {"none": "Square", "relu": "SquaredReLU", "swish": "SwishMLP", "gelu": "GeluMLP", "normal_cdf": "GELU"}


def memoryless(layer: Layer, groups: frozenset[str], _: bool) -> OperatorClass:
    """Gate times value, token by token."""
    config = layer.config
    assert isinstance(config, MemorylessConfig)
    name = (GATED if config.gated else UNGATED)[config.nonlinearity]
    product = f"{ACTIVATIONS[config.nonlinearity].format('gate' if config.gated else 'value')} * value"
    if not config.gated and config.nonlinearity == "relu":
        product = "F.relu(value).square()"
    elif not config.gated and config.nonlinearity == "normal_cdf":
        product = 'F.gelu(value, approximate="tanh")'
    provides = {
        shared: var
        for group, shared, var in (("gate", "gate", "gate"), ("value", "value_map", "value"))
        if group in groups
    }
    options = common(layer, provides, "", False) | {
        "own_gate": config.gated and "gate" not in layer.given,
        "own_value": "value" not in layer.given,
        "gated": config.gated,
        "product": product,
    }
    options |= {"title": name, "detail": detail(layer, [])}
    return finish("memoryless", name, options, {"width": config.branches * config.width}, set())


def convolution(layer: Layer, groups: frozenset[str], shares_past: bool) -> OperatorClass:
    """Gated convolutions."""
    config = layer.config
    assert isinstance(config, ConvolutionConfig)
    provides = {g: g for g in "bch" if g in groups} | ({"past": "past"} if shares_past else {})
    if "poles" in groups:
        provides |= {"log_rate": "log_rate", "angle": "angle"}
    own = not joint(config, layer.given)
    options = common(layer, provides, "bch", own) | {
        "shares_past": shares_past,
        "implicit": config.implicit,
        "width": "D_MODEL" if config.branches == 1 else f"{config.branches} * D_MODEL",
    }
    notes = ["K as long as the sequence, a sum of modes"] if config.implicit else []
    options["detail"] = detail(layer, notes)
    name = "Differential" * (config.branches == 2) + ("LongConvolution" if config.implicit else "GatedConvolution")
    needs = {"modal", "wide"} if config.implicit else {"filters"}
    return finish("convolution", name, options, {"length": config.length}, needs)


def elementwise(layer: Layer, groups: frozenset[str], shares_past: bool) -> OperatorClass:
    """RG-LRU."""
    config = layer.config
    assert isinstance(config, ElementwiseConfig)
    provides = {g: g for g in ("b", "c", "v", "decay") if g in groups} | ({"past": "past"} if shares_past else {})
    options = common(layer, provides, "cv", not joint(config, layer.given))
    filters = ["v"] if config.filtered and "v" not in layer.given else []
    options |= {
        "filters": filters,
        "remembers": options["remembers"] or bool(filters),
        "shares_past": shares_past,
        "width": "D_MODEL" if config.branches == 1 else f"{config.branches} * D_MODEL",
        "activated": ACTIVATIONS[config.nonlinearity].format("self.c(x)"),
        "detail": detail(layer, []),
    }
    name = "Differential" * (config.branches == 2) + "RGLRU"
    needs = {"recur", "wide"} | (set() if {"b", "decay"} <= layer.given else {"head_gate"})
    sizes = {"heads": config.branches * config.n_heads}
    return finish("elementwise", name, options, sizes, needs)


def recurrence(layer: Layer, groups: frozenset[str], shares_past: bool) -> OperatorClass:
    """Recurrences with a matrix state."""
    config = layer.config
    assert isinstance(config, RecurrenceConfig)
    is_joint = joint(config, layer.given)
    provides: dict[str, str] = {g: g for g in ("b", "c", "v", "decay", "beta") if g in groups}
    if "decay" in groups and config.decay == "scalar":
        provides["dt"] = "dt"  # a consumer without the delta rule needs it
    provides |= {"past": "past"} if shares_past else {}
    scan, inputs, equation = "linear_attention", "c, b, v", "Linear attention: S <- S + b v^T, y = S^T c"
    name = "LinearAttention"
    if config.delta:
        scan, inputs = "delta_rule", f"c, b, v, {'None' if config.decay == 'none' else 'decay'}, beta"
        name = "DeltaRule" if config.decay == "none" else "GatedDeltaRule"
        equation = "Delta rule: S <- a (I - beta b b^T) S + beta b v^T, y = S^T c"
    elif config.decay == "scalar":
        scan, inputs, name = "state_space", "c, b, v * dt[..., None].to(v.dtype), decay", "StateSpace"
        equation = "State space of Mamba-2: S <- exp(-rate dt) S + dt b v^T, y = S^T c"
    elif config.decay == "vector":
        scan, inputs, name = "gated_linear_attention", "c, b, v, decay", "GatedLinearAttention"
        equation = "Gated linear attention: S <- diag(a) S + b v^T, y = S^T c"
    needs = {scan, "heads", "wide", "chunks"}
    needs |= {"linear_attention": set(), "delta_rule": {"decays"}, "state_space": {"decays", "recur"}}.get(
        scan, {"recur"}
    )
    own_decay = config.decay != "none" and "decay" not in layer.given
    norm = config.norm
    if norm == "groups" and config.branches * config.n_groups > 1:
        norm = "blocks"
    options = common(layer, provides, "bcv", not is_joint) | {
        "shares_past": shares_past,
        "decay": config.decay,
        "own_decay": own_decay,
        "delta": bool(config.delta),
        "own_beta": bool(config.delta) and "beta" not in layer.given,
        "strength": "" if config.delta == 1.0 else f"{config.delta:g} * ",
        "eps": "EPS" if config.norm_eps == 1e-5 else repr(config.norm_eps),
        "skip": config.skip,
        "gated": config.gated,
        "norm": norm,
        "swish": config.nonlinearity == "swish",
        "scaled": bool(config.delta) or config.decay != "scalar",
        "grouped": config.n_groups < config.n_heads,
        "repeats": scan in ("delta_rule", "gated_linear_attention") and config.n_groups < config.n_heads,
        "scan": scan,
        "scan_inputs": inputs,
        "equation": equation,
    }
    if config.norm and config.norm_eps != 1e-5:
        norm_note = "norm that divides by no less than the usual size of one value times one score"
    else:
        norm_note = "norm"
    notes = [note for there, note in ((config.skip, "skip"), (config.gated, "gate"), (config.norm, norm_note)) if there]
    options["detail"] = detail(layer, notes)
    has_keys = not {"b", "c"} <= layer.given
    options["uses_state_size"] = has_keys or (config.decay == "vector" and own_decay)
    sizes = {"heads": config.heads}
    sizes |= {"groups": config.branches * config.n_groups} if has_keys or norm == "blocks" else {}
    sizes |= {"state_size": config.state_size} if options["uses_state_size"] else {}
    needs |= {"block_norm"} if norm == "blocks" else set()
    return finish("recurrence", "Differential" * (config.branches == 2) + name, options, sizes, needs)


def finish(template: str, name: str, options: dict, sizes: dict[str, int], needs: set[str]) -> OperatorClass:
    """The class with the names of its constructor's arguments, and what its options need."""
    needs = needs | ({"filters"} if options["filters"] else set())
    needs |= {"shared"} if options["given"] or options["provides"] else set()
    places = ["index"] if options["remembers"] or options["provides"] else []
    places += ["provider"] if options["given"] else []
    return OperatorClass(template, name, options | {"arguments": [*places, *sizes]}, sizes, needs)


NEEDS = (
    "filters",
    "wide",
    "attention",
    "rope",
    "partial_rope",
    "cache",
    "window",
    "sink",
    "recur",
    "head_gate",
    "modal",
    "chunks",
    "decays",
    "linear_attention",
    "state_space",
    "gated_linear_attention",
    "delta_rule",
    "block_norm",
    "heads",
    "shared",
)
FAMILIES: dict[type[LIVConfig], Callable[[Layer, frozenset[str], bool], OperatorClass]] = {
    AttentionConfig: attention,
    MemorylessConfig: memoryless,
    ConvolutionConfig: convolution,
    ElementwiseConfig: elementwise,
    RecurrenceConfig: recurrence,
}
