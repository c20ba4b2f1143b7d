"""Every setting of a run: default, legal range and meaning.

    config = load_config("smoke", overrides={"seed": 1, "search.population": 6})
    config.search.population, config.to_json(), RunConfig.from_json(data)

A preset gives every setting; a TOML file (`[search]` / `population = 6`) and then overrides (dotted keys) change
some. The resolved configuration is stored with the run. Settings marked `resumable` may change when a run is
resumed; all others determine its results.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star.errors import UserError
from star.fields import setting
from star.genome.classes import EXPORTABLE_CLASSES
from star.training.recipe import Recipe


@dataclass(frozen=True)
class DataConfig:
    """The text."""

    corpus: str = setting(
        "python",
        'text to train on: "python" (sources of the standard library and of packages that are always installed), '
        '"stdlib", a text file or folder, or "hf:NAME[:CONFIG]"',
    )
    tokenizer: str = setting(
        "bytes",
        "bytes; bpe:N, trained on the training text; a tokenizer.json; or the name of a tokenizer on the hub",
    )


@dataclass(frozen=True)
class SpaceConfig:
    """The search space."""

    slots: int = setting(6, "LIV slots: the maximum depth of a genome", 1, 512)
    d_models: tuple[int, ...] = setting((64,), "allowed widths of the residual stream", 1)
    head_dim: int = setting(16, "width of an attention or recurrence head", 2)
    classes: tuple[int, ...] = setting(
        (),
        "allowed operator classes by number, 0 for an empty slot; none given: the paper's 17; exportable: 0,24,41,64 "
        "without sharing, of which any genome is a Nemotron-H of transformers",
        0,
    )
    level: str = setting(
        "backbone",
        "what evolves. backbone: LIVs from the fixed pool; operator: the operators too",
        choices=("backbone", "operator"),
    )
    evolved: int = setting(4, "operators in each genome, at level operator", 1, 64)
    sharing: bool = setting(True, "LIVs may share featurizer weights and computed features")
    norms: tuple[int, ...] = setting((1,), "allowed normalisation schemes", 1)
    residuals: tuple[int, ...] = setting((1,), "allowed residual schemes", 1)


@dataclass(frozen=True)
class SearchConfig:
    """Algorithm, variation, surrogate and rungs."""

    algorithm: str = setting("nsga2", "search algorithm: a file in star/search/algorithms")
    population: int = setting(8, "genomes in the initial population", 2, 100_000)
    parents: int = setting(32, "size of the parent archive; 0: the population size", 0, 100_000)
    generations: int = setting(9, "generations, including the initial population", 1, resumable=True)
    offspring: int = setting(4, "genomes trained per generation after the first; 0: the population size", 0)
    asynchronous: bool = setting(
        False, "propose a new genome whenever a worker is free: no idle workers, but not repeatable"
    )
    rungs: tuple[float, ...] = setting(
        (),
        "fractions of the training budget after which only the best continue (use schedule wsd); none: all are "
        "trained fully",
        1e-3,
        0.999,
    )
    promote: float = setting(0.5, "fraction of the candidates at a rung that continue", 0.01, 1)
    region: str = setting(
        "",
        "range of sizes in which the search looks, such as parameters=1e5:3e5; 0.5x:1.5x: times the smallest and the "
        "largest baseline. None given: all sizes",
    )
    horizon: float = setting(
        0.0,
        "rank by the quality predicted for so many times the training budget (bpb_horizon instead of bpb); 0: as "
        "measured",
        0,
        1000,
    )
    ladder: str = setting(
        "", "what the horizon is learned from: a run with a ladder, or a ladder file. None given: the shipped one"
    )
    screen: int = setting(
        32, "offspring proposed for each one trained; the surrogate chooses among them. 1: no surrogate", 1, 1000
    )
    tournament: int = setting(2, "tournament size for parent selection, by rank, then crowding distance", 1)
    crossover: str = setting(
        "kpoint",
        "kpoint: cut by position, as in the paper; aligned: cut where the parents' LIVs correspond",
        choices=("kpoint", "aligned"),
    )
    crossover_probability: float = setting(0.9, "probability that two parents exchange genes", 0, 1)
    crossover_points: int = setting(2, "cut points of the k-point crossover", 1)
    crossover_inside: bool = setting(False, "also cut inside a LIV, not only between LIVs")
    operator_generations: int = setting(
        0,
        "first generations in which only operators mutate (level operator); later only backbones do. 0: both always",
        0,
    )
    mutation_probability: float = setting(0.1, "probability that a gene is resampled from its legal values", 0, 1)
    link_probability: float = setting(0.2, "probability that two LIVs of one class are linked to share", 0, 1)
    insert_probability: float = setting(0.1, "probability that a LIV is inserted", 0, 1)
    delete_probability: float = setting(0.1, "probability that a LIV is deleted", 0, 1)
    swap_probability: float = setting(0.1, "probability that two LIVs are exchanged", 0, 1)
    repair: bool = setting(True, "repair invalid offspring; otherwise they are discarded")
    seeds: tuple[str, ...] = setting(
        (), "genomes (names, files or text) to include in the initial population, scaled to the space"
    )
    baselines: tuple[str, ...] = setting(
        ("transformer++", "lfm2-350m"),
        "genomes trained under the same recipe for comparison, scaled to the space; they do not evolve",
    )


@dataclass(frozen=True)
class ObjectivesConfig:
    """What is minimised, and bounds."""

    names: tuple[str, ...] = setting(
        ("bpb", "parameters", "cache"), "what to minimise: names of star/assess/objectives, or module:NAME"
    )
    cache_tokens: int = setting(4096, "context length at which the cache is measured, in tokens", 1)
    max_parameters: int = setting(0, "upper bound on parameters, checked before training; 0: none", 0)
    max_cache: int = setting(0, "upper bound on the cache in bytes, checked before training; 0: none", 0)
    max_flops: int = setting(0, "upper bound on training FLOPs per token, checked before training; 0: none", 0)
    max_mad: float = setting(
        0.0, "upper bound on the mean error on synthetic tasks, checked after training; 0: none", 0, 1
    )
    mad_tokens: int = setting(
        200_000, "training tokens for each synthetic task, if an objective or bound needs them", 1
    )
    max_mqar: float = setting(
        0.0, "upper bound on the error on associative recall, checked after training; 0: none", 0, 1
    )
    max_needle: float = setting(0.0, "upper bound on the error on needles, checked after training; 0: none", 0, 1)
    max_parity: float = setting(0.0, "upper bound on the error on parity, checked after training; 0: none", 0, 1)
    max_s5: float = setting(
        0.0, "upper bound on the error on the word problem of S5, checked after training; 0: none", 0, 1
    )
    max_copying: float = setting(0.0, "upper bound on the error on copying, checked after training; 0: none", 0, 1)
    max_extrapolation: float = setting(
        0.0, "upper bound on the bits per byte lost at 8 times the context, checked after training; 0: none", 0
    )
    skill_tokens: int = setting(
        200_000,
        "training tokens for each of mqar, needle, parity, s5 and copying, if an objective or bound needs it",
        1,
    )


@dataclass(frozen=True)
class EngineConfig:
    """Where and how candidates are trained."""

    kind: str = setting("pool", "where candidates are trained", choices=("pool", "inprocess", "ray"), resumable=True)
    address: str = setting(
        "", 'Ray cluster: "auto" or HOST:PORT; empty: RAY_ADDRESS, else one on this machine', resumable=True
    )
    workers: int = setting(0, "worker processes; 0: as many as CPU cores or GPUs allow", 0, 4096, resumable=True)
    workers_per_gpu: int = setting(0, "worker processes that share a GPU; 0: two", 0, 64, resumable=True)
    side_by_side: int = setting(
        0,
        "candidates that a worker trains side by side on a GPU; 0: as many as fill it, by width and batch",
        0,
        64,
        resumable=True,
    )
    threads: int = setting(1, "CPU threads of each worker; results depend on it in the last digits", 1, 1024)
    timeout: float = setting(600.0, "time limit of a candidate in seconds; 0: none", 0, resumable=True)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. Section `training` is `star.training.Recipe`; its seed is derived per candidate."""

    preset: str = setting("laptop", "the preset that gave the other settings")
    seed: int = setting(0, "random seed", 0, 2**63 - 1)
    evaluation: str = setting("training", "how a candidate is measured: a module of star/assess/evaluations")
    keep: str = setting("front", "whose weights are kept", choices=("front", "all", "none"), resumable=True)
    journal: str = setting(
        "wal", 'SQLite journal; "delete" on a network file system', choices=("wal", "delete"), resumable=True
    )
    data: DataConfig = field(default_factory=DataConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    training: Recipe = field(default_factory=Recipe)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self):
        for key, setting_, value in _settings(self):
            _check(key, setting_, value)
        rungs = self.search.rungs
        if list(rungs) != sorted(set(rungs)):
            raise UserError(f"search.rungs is {', '.join(map(str, rungs))}; it must rise, such as 0.125,0.5")

    @property
    def offspring(self) -> int:
        """Genomes trained per generation after the first."""
        return self.search.offspring or self.search.population

    @property
    def parents(self) -> int:
        """Size of the parent archive."""
        return self.search.parents or self.search.population

    @property
    def candidates(self) -> int:
        """Genomes that the search proposes, without baselines."""
        return self.search.population + (self.search.generations - 1) * self.offspring

    def replace(self, changes: Mapping[str, Any]) -> "RunConfig":
        """With some settings changed, by dotted key. Values may be text, as typed on a command line."""
        flat = {key: value for key, _, value in _settings(self)}
        for key, value in changes.items():
            if key not in flat:
                raise UserError(f"there is no setting {key!r}{_nearest(key, flat)}")
            flat[key] = value
        return _build(flat)

    def located(self) -> "RunConfig":
        """With absolute paths of text and tokenizer, if they are files: a run may be resumed from any directory."""
        changes = {}
        for key, place, names in (
            ("data.corpus", self.data.corpus, ("python", "stdlib")),
            ("data.tokenizer", self.data.tokenizer, ("bytes",)),
            ("search.ladder", self.search.ladder, ("",)),
        ):
            if ":" not in place and place not in names and Path(place).exists():
                changes[key] = str(Path(place).resolve())
        return self.replace(changes) if changes else self

    def to_json(self) -> dict:
        """JSON-able, for `from_json`."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: dict) -> "RunConfig":
        """The inverse of `to_json`; settings that are missing have their default."""
        return RunConfig().replace(_flatten(data))


# The paper's search (STAR, section 5 and appendix): 5,000 steps of 64 x 4,096 tokens, k-point crossover, and nothing of
# ours.
PAPER: dict[str, Any] = {
    "space.slots": 24,
    "space.d_models": (768,),
    "space.head_dim": 64,
    "search.population": 16,
    "search.generations": 18,
    "search.baselines": ("transformer++", "striped-mamba"),
    "search.parents": 0,
    "search.offspring": 0,
    "search.screen": 1,
    "search.rungs": (),
    "search.crossover": "kpoint",
    "search.link_probability": 0.0,
    "search.insert_probability": 0.0,
    "search.delete_probability": 0.0,
    "search.swap_probability": 0.0,
    "training.tokens": 1_310_720_000,
    "training.batch_size": 64,
    "training.seq_len": 4096,
    "training.learning_rate": 8e-4,
    "training.base_width": 768,
    "training.betas": (0.9, 0.95),
    "training.schedule": "cosine",
    "training.warmup": 0.1,  # 500 steps
    "training.eval_tokens": 16_777_216,
    "engine.timeout": 172_800.0,
}

# What `space.classes=exportable` stands for.
EXPORTABLE: dict[str, Any] = {
    "space.classes": EXPORTABLE_CLASSES,
    "space.sharing": False,
    "space.norms": (1,),
    "space.residuals": (1,),
    "space.level": "backbone",
}

# What each preset changes in the defaults above, which are the laptop's.
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "training.tokens": 65_536,
        "search.region": "parameters=0.5x:1.5x",
        "search.horizon": 10.0,
    },
    "smoke": {
        "data.corpus": "stdlib",
        "space.slots": 4,
        "space.d_models": (32,),
        "space.head_dim": 8,
        "search.population": 4,
        "search.generations": 3,
        "search.baselines": ("transformer++",),
        "training.tokens": 8_192,
        "training.seq_len": 64,
        "training.eval_tokens": 8_192,
    },
    # The GPU presets are sized by rates measured on one H100: see star/search/workers.py and docs/howto/gpus.md.
    "gpu-quick": {
        "space.slots": 8,
        "space.d_models": (64, 128),
        "space.head_dim": 16,
        "search.population": 32,
        "search.offspring": 32,
        "search.generations": 7,
        "search.baselines": ("transformer++", "striped-mamba", "lfm2-350m"),
        "training.tokens": 10_000_000,
        "training.batch_size": 16,
        "training.eval_tokens": 262_144,
    },
    "gpu": {
        "space.slots": 16,
        "space.d_models": (256, 512),
        "space.head_dim": 64,
        "search.population": 16,
        "search.offspring": 8,
        "search.generations": 15,
        "search.baselines": ("transformer++", "striped-mamba", "lfm2-350m"),
        "training.tokens": 20_000_000,
        "training.batch_size": 32,
        "training.seq_len": 512,
        "training.learning_rate": 1e-3,
        "training.base_width": 256,
        "training.betas": (0.9, 0.95),
        "training.eval_tokens": 1_048_576,
        "engine.timeout": 3600.0,
    },
    "two-stage": {
        "training.tokens": 65_536,
        "space.level": "operator",
        "search.generations": 13,
        "search.operator_generations": 6,
    },
    "paper": PAPER,
    "paper-quality": PAPER | {"objectives.names": ("bpb",)},
    "paper-size": PAPER | {"objectives.names": ("bpb", "parameters")},
    "paper-cache": PAPER | {"objectives.names": ("bpb", "cache")},
}


def load_config(
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    base: RunConfig | None = None,
) -> RunConfig:
    """Preset (default: `default_preset`; or `base`, such as a stored configuration), then a TOML file, then dotted
    overrides.

    Raises UserError naming the key, its value and what is legal, for an unknown key the nearest legal one.
    """
    changes = read_toml(file) if file is not None else {}
    changes |= dict(overrides or {})
    if changes.get("space.classes") == "exportable":
        changes |= EXPORTABLE
    preset = changes.pop("preset", None) if preset is None else preset
    if preset is None and base is not None:
        return base.replace(changes)
    preset = preset or default_preset(changes.get("training.device", "auto"))
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}{_nearest(preset, PRESETS)}; presets are {', '.join(PRESETS)}")
    return RunConfig().replace({"preset": preset} | PRESETS[preset] | changes)


def default_preset(device: str = "auto") -> str:
    """The preset for this machine: for the GPU if there is one, unless the device is to be a CPU."""
    import torch

    return "gpu-quick" if device != "cpu" and torch.cuda.is_available() else "laptop"


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, by dotted key."""
    try:
        return _flatten(tomllib.loads(Path(path).read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML ({error})") from None


def describe() -> list[dict[str, Any]]:
    """Every setting as a row (key, default, legal, doc, resumable), for help texts and documentation."""
    rows = []
    for key, f, value in _settings(RunConfig()):
        low, high, choices = (f.metadata.get(name) for name in ("low", "high", "choices"))
        bounds = [f"at least {low:g}"] if low is not None and math.isfinite(low) else []
        bounds += [f"at most {high:g}"] if high is not None and math.isfinite(high) else []
        doc, resumable = f.metadata.get("doc", ""), f.metadata.get("resumable", False)
        legal = ", ".join(choices or bounds)
        rows.append({"key": key, "default": value, "legal": legal, "doc": doc, "resumable": resumable})
    return rows


def diff(a: RunConfig, b: RunConfig, resumable: bool = False) -> list[tuple[str, Any, Any]]:
    """Settings in which two configurations differ, as (key, value in a, value in b); resumable ones on request."""
    skip = {"preset", "data.corpus"}  # a label; and a place: the text itself is compared by its fingerprint
    pairs = zip(_settings(a), _settings(b), strict=True)
    return [
        (key, x, y)
        for (key, f, x), (_, _, y) in pairs
        if x != y and key not in skip and (resumable or not f.metadata.get("resumable"))
    ]


def _settings(config: RunConfig) -> list[tuple[str, dataclasses.Field, Any]]:
    """(dotted key, field, value) of every setting but the recipe's seed, which nobody sets."""
    rows = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            rows += [(f"{f.name}.{g.name}", g, getattr(value, g.name)) for g in dataclasses.fields(value)]
        else:
            rows.append((f.name, f, value))
    return [row for row in rows if row[0] != "training.seed"]


def _build(flat: Mapping[str, Any]) -> RunConfig:
    """The configuration with these values, each converted to the type its field declares."""
    sections: dict[str, Any] = {}
    top: dict[str, Any] = {}
    for f in dataclasses.fields(RunConfig):
        section = f.type
        if dataclasses.is_dataclass(section):
            kinds = typing.get_type_hints(section)
            names = [g.name for g in dataclasses.fields(section) if f"{f.name}.{g.name}" in flat]
            values = {n: _convert(f"{f.name}.{n}", flat[f"{f.name}.{n}"], kinds[n]) for n in names}
            sections[f.name] = typing.cast(type, section)(**values)
        else:
            top[f.name] = _convert(f.name, flat[f.name], typing.get_type_hints(RunConfig)[f.name])
    return RunConfig(**top, **sections)


def _convert(key: str, value: Any, kind: Any) -> Any:
    """A TOML, JSON or command-line value as `kind`. Raises UserError if it is none."""
    if isinstance(kind, types.UnionType):
        return None if value in (None, "none") else _convert(key, value, kind.__args__[0])
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            value = [value]
        return tuple(_convert(key, part, item) for part in value)
    if isinstance(value, str) and kind in (int, float) and not value.isascii():
        raise UserError(f"{key} is {value!r}; it must be {_KINDS[kind]} in the digits 0 to 9")
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[str(value).lower()]
        if kind is int:
            return _whole(value)
        if kind is float and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
    except (ValueError, KeyError, OverflowError):
        pass
    raise UserError(f"{key} is {value!r}; it must be {_KINDS[kind]}")


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(value) if isinstance(value, str) else int(str(value))
    except ValueError:
        number = float(value)  # 1e6 is a whole number too
        if isinstance(value, bool) or number != int(number):
            raise ValueError from None
        return int(number)


_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def _check(key: str, f: dataclasses.Field, value: Any) -> None:
    rules = f.metadata
    if not rules:
        return
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"{key} is {value!r}; it must be one of {', '.join(rules['choices'])}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not rules["low"] <= number <= rules["high"]:
            legal = (
                f"from {rules['low']:g} to {rules['high']:g}"
                if rules["high"] < math.inf
                else f"at least {rules['low']:g}"
            )
            raise UserError(f"{key} is {number:g}; it must be {legal}")


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": leaf for name, leaf in _flatten(value).items()}
        else:
            flat[key] = value
    flat.pop("training.seed", None)
    return flat


def _nearest(key: str, legal: Iterable[str]) -> str:
    """A hint for a misspelt key: the nearest legal one, by its whole name or by its last part."""
    leaves = {name.rsplit(".", 1)[-1]: name for name in legal}
    near = difflib.get_close_matches(key, list(leaves.values()), n=1)
    near += [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1)]
    return f"; did you mean {near[0]!r}?" if near else ""
