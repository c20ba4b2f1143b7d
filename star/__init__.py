"""STAR: evolve language-model architectures, and take each point of the Pareto front away as a PyTorch module."""

import importlib

__version__ = "0.4.0"

# Imported when first used: `star --help` must not wait for torch.
_HOME = {
    "Costs": "star.cost",
    "costs": "star.cost",
    "RunFailed": "star.errors",
    "UserError": "star.errors",
    "Genome": "star.genome",
    "list_genomes": "star.genome",
    "load_genome": "star.genome",
    "LanguageModel": "star.model",
    "build": "star.model",
    "Run": "star.run",
    "load": "star.export",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'star' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
