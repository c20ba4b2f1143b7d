"""The model card and the example of an exported folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from star.cost import costs
from star.export.readable import environment
from star.model import LanguageModel


def model_card(
    model: LanguageModel, config: Mapping[str, Any], training: Mapping[str, Any] | None, stock: str = ""
) -> str:
    """The text of README.md. config: of the export; training: recipe and learning curve, if they are known.

    stock: the class of transformers that the folder is a checkpoint of.
    """
    plan, source = model.plan, config["source"]
    operators = Counter(layer.name for layer in plan.layers)
    state = costs(model.genome, model.vocab_size, 4096).cache_bytes_exact if model.genome is not None else 0
    data = "Unknown." if config["trained"] else "None."
    if "corpus" in source:
        data = f"`{source['corpus']}`, fingerprint `{source.get('fingerprint', 'unknown')}`."
    recipe = {name: value for name, value in ((training or {}).get("recipe") or {}).items() if value is not None}
    rows = [f"`{name}` {_text(value)}" for name, value in recipe.items()]
    return (
        environment()
        .get_template("README.md.jinja")
        .render(
            config,
            stock=stock,
            plan=plan,
            name=_plain(config["name"]) or f"Genome {config['genome_id']}",
            version=config["star"],
            parameters=f"{sum(p.numel() for p in model.parameters()):,}",
            operators=", ".join(f"{n} x {name}" for name, n in operators.items()),
            state_bytes=f"{state:,.0f}",
            data=data,
            recipe=", ".join(rows) or "Unknown.",
            metrics={name: _text(value) for name, value in config["metrics"].items()},
        )
    )


def example_source(config: Mapping[str, Any]) -> str:
    """The text of example.py."""
    return environment().get_template("example.jinja").render(config)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _plain(str(value))


def _plain(text: str) -> str:
    """One line without table marks, so that a name cannot change the page."""
    return "".join(c for c in text if c.isprintable() and c not in "|<>`")
