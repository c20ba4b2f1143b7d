"""One self-contained Python file out of the definitions, spread over modules of STAR, that a model needs.

    text = link([("star.export.standalone", "load")], {"star.export.architecture": source})

Starting from the roots, every definition that another one names is followed to where it is defined; what is not reached
is left out, imports of STAR vanish, and the rest is copied as it was written, comments and docstrings included. Two
definitions of one name in different modules are told apart by the name of the module.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from star.errors import RunFailed

PACKAGE = "star"
Key = tuple[str, str]  # module, name


@dataclass
class Module:
    """A module as source: its definitions, and where its other names come from."""

    name: str
    lines: list[str]
    docstring: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)  # in order; one statement may define several names
    ours: dict[str, Key] = field(default_factory=dict)  # names imported from modules of STAR
    external: dict[str, str] = field(default_factory=dict)  # other imported names -> the import statement
    other: list[int] = field(default_factory=list)  # lines of top-level statements of any other kind


def link(roots: Iterable[Key], sources: Mapping[str, str] | None = None) -> str:
    """The source of the root definitions and of all that they need, in that order where nothing forbids it.

    sources: text of modules that are not on the disk. Raises RunFailed for source that cannot be linked.
    """
    linker, roots = Linker(sources or {}), list(roots)
    for root in roots:
        linker.reach(root)
    order: dict[str, None] = {}
    for module, _ in roots:
        linker.order(module, order)
    text = linker.text(order)
    for node in ast.walk(ast.parse(text)):
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        ):
            if name.split(".")[0] == PACKAGE:  # inside a function, where this linker does not follow it
                raise RunFailed(f"export: {name} is imported inside a function; import it at the top of its module")
    return text


class Linker:
    """Follows names from the roots through modules and collects their definitions."""

    def __init__(self, sources: Mapping[str, str]):
        self.sources = sources
        self.modules: dict[str, Module] = {}
        self.reached: dict[str, set[str]] = {}  # module -> names
        self.needs: dict[str, dict[str, None]] = {}  # module -> modules that its reached definitions name, in order
        self.imports: dict[str, str] = {}  # bound name -> import statement

    def module(self, name: str) -> Module:
        """The parsed module, read once."""
        if name not in self.modules:
            self.modules[name] = parse(name, self.sources[name] if name in self.sources else read_source(name))
        return self.modules[name]

    def find(self, key: Key) -> Key:
        """Where a name is defined, through any modules that only pass it on."""
        module = self.module(key[0])
        if key[1] in module.definitions:
            return key
        if key[1] in module.ours:
            return self.find(module.ours[key[1]])
        raise RunFailed(f"export: module {key[0]} does not define {key[1]}")

    def reach(self, key: Key) -> None:
        """Add a definition and everything that it names."""
        where, name = self.find(key)
        reached = self.reached.setdefault(where, set())
        if name in reached:
            return
        module = self.module(where)
        statement = module.definitions[name]
        reached.update(defined_names(statement))
        for used in dict.fromkeys(node.id for node in global_names(statement)):
            if used in module.definitions or used in module.ours:
                self.needs.setdefault(where, {})[self.find((where, used))[0]] = None
                self.reach((where, used))
            elif used in module.external:
                if self.imports.setdefault(used, module.external[used]) != module.external[used]:
                    raise RunFailed(
                        f"export: {used} is imported in two ways, as '{self.imports[used]}' and as "
                        f"'{module.external[used]}'"
                    )

    def order(self, name: str, done: dict[str, None]) -> None:
        """Add to `done` the modules that module `name` needs, those that others need first, and then `name`."""
        for needed in self.needs.get(name, {}):
            if needed != name and needed not in done:
                self.order(needed, done)
        done.setdefault(name)

    def text(self, order: Iterable[str]) -> str:
        """Imports, then module by module what was reached."""
        names = self.final_names()
        parts = [import_block(self.imports.values())]
        for module in (self.modules[name] for name in order):
            if module.other:
                raise RunFailed(
                    f"export: {module.name}, line {module.other[0]}: only imports, definitions and assignments can "
                    "be exported"
                )
            statements = dict.fromkeys(s for name, s in module.definitions.items() if name in self.reached[module.name])
            used = {node.id for statement in statements for node in global_names(statement)} | self.reached[module.name]
            renamed = {
                name: final
                for name in used
                if (name in module.definitions or name in module.ours)
                and (final := names[self.find((module.name, name))]) != name
            }
            parts += [heading(module), *arrange(module, list(statements), renamed)]
        return "\n".join(parts) + "\n"

    def final_names(self) -> dict[Key, str]:
        """The name of every definition in the file: its own, prefixed by its module where two are equal."""
        counts: dict[str, int] = dict.fromkeys([*self.imports, *dir(builtins)], 1)
        keys = [(module, name) for module, names in self.reached.items() for name in names]
        for _, name in keys:
            counts[name] = counts.get(name, 0) + 1
        return {key: key[1] if counts[key[1]] == 1 else qualified(*key) for key in keys}


def read_source(name: str) -> str:
    """The text of an importable module. Raises RunFailed if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RunFailed(f"export: the source of {name} is not there")
    return Path(spec.origin).read_text(encoding="utf-8")


def parse(name: str, text: str) -> Module:
    """Definitions and imports of a module."""
    tree = ast.parse(text)
    module = Module(name, text.splitlines(), ast.get_docstring(tree) or "")
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and (source := statement.module or "").split(".")[0] == PACKAGE:
            module.ours |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            for alias in statement.names:
                one = (
                    ast.Import([alias])
                    if isinstance(statement, ast.Import)
                    else ast.ImportFrom(statement.module, [alias], 0)
                )
                module.external[alias.asname or alias.name.split(".")[0]] = ast.unparse(one)
        elif names := defined_names(statement):
            module.definitions |= dict.fromkeys(names, statement)
        elif not (is_docstring(statement) or is_type_checking(statement)):
            module.other.append(statement.lineno)
    return module


def is_docstring(statement: ast.stmt) -> bool:
    """Whether a statement is a string."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def is_type_checking(statement: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return (
        isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    )


def defined_names(statement: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AnnAssign)
        else []
    )
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def global_names(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Uses of names that are not local to a function, comprehension or class body."""
    if isinstance(node, ast.Name):
        if node.id not in local:
            yield node
        return
    inner = local
    if isinstance(node, ast.ClassDef):
        body = local | bound_names(node.body)  # seen by the statements of the body, not by its functions
        for child in ast.iter_child_nodes(node):
            yield from global_names(
                child, body if child in node.body and not isinstance(child, ast.FunctionDef) else local
            )
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        # Decorators, defaults and annotations belong to the scope outside.
        inside: list[ast.AST] = [*node.body] if isinstance(node.body, list) else [node.body]
        inner = (
            local
            | bound_names(inside)
            | {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        )
        for child in ast.iter_child_nodes(node):
            yield from global_names(child, inner if child in inside else local)
        return
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        inner = local | bound_names([generator.target for generator in node.generators])
    for child in ast.iter_child_nodes(node):
        yield from global_names(child, inner)


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that these statements assign, nested functions apart."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.Lambda):
            names |= bound_names(ast.iter_child_nodes(node))
    return names


def qualified(module: str, name: str) -> str:
    """CHUNK of star.liv.recurrence -> RECURRENCE_CHUNK, step -> recurrence_step, Mixer -> RecurrenceMixer."""
    last = module.rsplit(".", 1)[-1]
    if name.isupper():
        return f"{last.upper()}_{name}"
    if name[0].isupper():
        return f"{last.title().replace('_', '')}{name}"
    return f"_{last}{name}" if name.startswith("_") else f"{last}_{name}"


def arrange(module: Module, statements: list[ast.stmt], renamed: Mapping[str, str]) -> Iterator[str]:
    """Statements as text, one below the other for assignments and with two blank lines around definitions."""
    for before, statement in zip([None, *statements], statements, strict=False):
        assignments = isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(
            before, ast.Assign | ast.AnnAssign | None
        )
        yield ("" if assignments else "\n\n") + copy(module, statement, renamed)


def copy(module: Module, statement: ast.stmt, renamed: Mapping[str, str]) -> str:
    """The lines of a statement, the comment right above it included, with some global names changed."""
    first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])
    while first > 1 and module.lines[first - 2].startswith("#"):
        first -= 1
    lines = module.lines[first - 1 : statement.end_lineno]
    uses = [node for node in global_names(statement) if node.id in renamed]
    for node in sorted(uses, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        line = lines[node.lineno - first].encode()  # columns count bytes
        start, end = node.col_offset, node.col_offset + len(node.id.encode())
        if line[start:end] != node.id.encode():
            raise RunFailed(
                f"export: {module.name}, line {node.lineno}: {node.id} stands where it cannot be renamed; name it "
                "differently"
            )
        lines[node.lineno - first] = (line[:start] + renamed[node.id].encode() + line[end:]).decode()
    name = getattr(statement, "name", "")
    if name in renamed:
        at = statement.lineno - first
        lines[at] = re.sub(rf"\b(class|def) {name}\b", rf"\1 {renamed[name]}", lines[at], count=1)
    return "\n".join(lines)


def heading(module: Module) -> str:
    """The docstring of a module as a comment under a rule."""
    title = "/".join(module.name.split("."))
    comment = "".join(f"# {line}".rstrip() + "\n" for line in module.docstring.splitlines())
    return f"\n\n# {'-' * (75 - len(title))} {title}\n{comment}".rstrip("\n")


def import_block(statements: Iterable[str]) -> str:
    """Imports, names of one module on one line: the standard library's, then others."""
    plain = sorted(s for s in set(statements) if s.startswith("import "))
    names: dict[str, set[str]] = {}
    for statement in set(statements) - set(plain):
        source, name = statement.removeprefix("from ").split(" import ")
        names.setdefault(source, set()).add(name)
    lines = plain + [f"from {source} import {', '.join(sorted(names[source]))}" for source in sorted(names)]
    torch = [line for line in lines if line.split()[1].split(".")[0] in ("torch", "safetensors", "einops", "numpy")]
    return "\n".join([line for line in lines if line not in torch] + [""] + torch)
