"""The plan of a model as Python source, which `star.export.standalone` imports in an exported file."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from star.errors import RunFailed
from star.genome import Plan

NAME = "star.export.architecture"


def architecture_source(plan: Plan, vocab_size: int, tie_embeddings: bool) -> str:
    """A module that defines PLAN, VOCAB_SIZE and TIE_EMBEDDINGS. Raises RunFailed for a value that has no literal."""
    classes: dict[str, str] = {}  # name -> module
    text = literal(plan, classes)
    imports = [f"from {module} import {name}" for name, module in classes.items()]
    docstring = '"""The architecture: the layers of this model and what they share."""'
    constants = [f"VOCAB_SIZE = {vocab_size}", f"TIE_EMBEDDINGS = {tie_embeddings}", f"PLAN = {text}"]
    return "\n".join([docstring, *imports, *constants])


def literal(value: Any, classes: dict[str, str], indent: int = 0) -> str:
    """Python source of a configuration value, without fields that have their default.

    Adds the classes that it uses to `classes` (name -> module). Raises RunFailed for a value that has no literal.
    """
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'
    if isinstance(value, frozenset | set):
        return f"frozenset({{{', '.join(sorted(literal(v, classes) for v in value))}}})" if value else "frozenset()"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k, classes)}: {literal(v, classes, indent)}" for k, v in value.items()) + "}"
    if is_dataclass(value) or hasattr(value, "_fields"):
        return _call(value, classes, indent)
    if isinstance(value, tuple | list):
        items = [literal(v, classes, indent + 4) for v in value]
        if any(is_dataclass(v) for v in value):
            inner = "".join(f"\n{' ' * (indent + 4)}{item}," for item in items)
            return f"({inner}\n{' ' * indent})"
        return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"
    raise RunFailed(f"export: a configuration holds {value!r}, a {type(value).__name__}, which has no Python literal")


def _call(value: Any, classes: dict[str, str], indent: int) -> str:
    kind = type(value)
    if classes.setdefault(kind.__name__, kind.__module__) != kind.__module__:
        modules = f"{classes[kind.__name__]} and {kind.__module__}"
        raise RunFailed(f"export: two classes are named {kind.__name__}, in {modules}; rename one of them")
    if is_dataclass(value):
        given = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != _default(f)}
    else:
        given = value._asdict()
    if isinstance(value, Plan):
        lines = "".join(f"\n{' ' * (indent + 4)}{name}={literal(v, classes, indent + 4)}," for name, v in given.items())
        return f"{kind.__name__}({lines}\n{' ' * indent})"
    return f"{kind.__name__}({', '.join(f'{name}={literal(v, classes, indent)}' for name, v in given.items())})"


def _default(f: Field) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default
