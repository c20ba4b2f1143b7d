"""Collects the definitions that a model needs from the modules of STAR into one self-contained Python file.

    text = link([("star.export.standalone", "load")], {"star.export.architecture": source})

Starting from the roots, the linker follows every name that a definition uses to where it is defined. Definitions that
are reached are copied with their comments and docstrings; the others, and imports of STAR, are left out. If two modules
define the same name, the name of the module is added as a prefix.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from star.errors import RunFailed

PACKAGE = "star"
Key = tuple[str, str]  # module, name


@dataclass
class Module:
    """The source of a module: its definitions, and where its other names come from."""

    name: str
    lines: list[str]
    docstring: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)  # in order; one statement may define several names
    ours: dict[str, Key] = field(default_factory=dict)  # names imported from modules of STAR
    external: dict[str, str] = field(default_factory=dict)  # other imported names -> the import statement
    other: list[int] = field(default_factory=list)  # lines of top-level statements of any other kind


def link(roots: Iterable[Key], sources: Mapping[str, str] | None = None) -> str:
    """The source of the root definitions and of all definitions that they need.

    sources: source text of modules that are not on disk. Raises RunFailed for source that cannot be linked.
    """
    linker, roots = Linker(sources or {}), list(roots)
    for root in roots:
        linker.reach(root)
    order: dict[str, None] = {}
    for module, _ in roots:
        linker.order(module, order)
    text = linker.text(order)
    for node in ast.walk(ast.parse(text)):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        for name in imported:
            if name.split(".")[0] == PACKAGE:  # the linker follows only imports at the top of a module
                raise RunFailed(f"export: {name} is imported inside a function; import it at the top of its module")
    return text


class Linker:
    """Follows names through modules and collects the definitions that are reached."""

    def __init__(self, sources: Mapping[str, str]):
        self.sources = sources
        self.modules: dict[str, Module] = {}
        self.reached: dict[str, set[str]] = {}  # module -> names
        self.needs: dict[str, dict[str, None]] = {}  # module -> modules that its reached definitions use, in order
        self.imports: dict[str, str] = {}  # bound name -> import statement

    def module(self, name: str) -> Module:
        """The parsed module; each is read once."""
        if name not in self.modules:
            self.modules[name] = parse(name, self.sources[name] if name in self.sources else read_source(name))
        return self.modules[name]

    def find(self, key: Key) -> Key:
        """The module and name of a definition, followed through modules that only re-export it."""
        module = self.module(key[0])
        if key[1] in module.definitions:
            return key
        if key[1] in module.ours:
            return self.find(module.ours[key[1]])
        raise RunFailed(f"export: module {key[0]} does not define {key[1]}")

    def reach(self, key: Key) -> None:
        """Add a definition and everything that it uses."""
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
                statements = self.imports.setdefault(used, module.external[used]), module.external[used]
                if statements[0] != statements[1]:
                    raise RunFailed(f"export: {used} is imported in two ways: '{statements[0]}' and '{statements[1]}'")

    def order(self, name: str, done: dict[str, None]) -> None:
        """Add to `done` the module `name`, after all modules that it needs."""
        for needed in self.needs.get(name, {}):
            if needed != name and needed not in done:
                self.order(needed, done)
        done.setdefault(name)

    def text(self, order: Iterable[str]) -> str:
        """The imports, then the reached definitions module by module."""
        names = self.final_names()
        parts = [import_block(self.imports.values())]
        for module in (self.modules[name] for name in order):
            if module.other:
                where = f"{module.name}, line {module.other[0]}"
                raise RunFailed(f"export: {where}: only imports, definitions and assignments can be exported")
            statements = dict.fromkeys(s for name, s in module.definitions.items() if name in self.reached[module.name])
            used = {node.id for statement in statements for node in global_names(statement)} | self.reached[module.name]
            ours = used & (module.definitions.keys() | module.ours.keys())
            final = {name: names[self.find((module.name, name))] for name in ours}
            renamed = {name: new for name, new in final.items() if new != name}
            parts += [heading(module), *arrange(module, list(statements), renamed)]
        return "\n".join(parts) + "\n"

    def final_names(self) -> dict[Key, str]:
        """The name of every definition in the file; equal names are prefixed by their modules."""
        keys = [(module, name) for module, names in self.reached.items() for name in names]
        counts = Counter({*self.imports, *dir(builtins)}) + Counter(name for _, name in keys)
        return {key: key[1] if counts[key[1]] == 1 else qualified(*key) for key in keys}


def read_source(name: str) -> str:
    """The text of an importable module. Raises RunFailed if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RunFailed(f"export: the source of module {name} was not found")
    return Path(spec.origin).read_text(encoding="utf-8")


def parse(name: str, text: str) -> Module:
    """Definitions and imports of a module."""
    tree = ast.parse(text)
    module = Module(name, text.splitlines(), ast.get_docstring(tree) or "")
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and (source := statement.module or "").split(".")[0] == PACKAGE:
            module.ours |= {alias.asname or alias.name: (source, alias.name) for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom | ast.Import):
            source = f"from {statement.module} " if isinstance(statement, ast.ImportFrom) else ""
            for alias in statement.names:
                module.external[alias.asname or alias.name.split(".")[0]] = f"{source}import {ast.unparse(alias)}"
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
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def defined_names(statement: ast.stmt) -> list[str]:
    """Names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def global_names(node: ast.AST, local: frozenset[str] = frozenset()) -> Iterator[ast.Name]:
    """Uses of names that are not local to a function, comprehension or class body."""
    if isinstance(node, ast.Name):
        if node.id not in local:
            yield node
        return
    inner = local
    if isinstance(node, ast.ClassDef):
        body = local | bound_names(node.body)  # visible to the statements of the body, but not to its functions
        for child in ast.iter_child_nodes(node):
            direct = child in node.body and not isinstance(child, ast.FunctionDef)
            yield from global_names(child, body if direct else local)
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        # Decorators, defaults and annotations belong to the enclosing scope.
        inside: list[ast.AST] = [*node.body] if isinstance(node.body, list) else [node.body]
        arguments = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        inner = local | bound_names(inside) | arguments
        for child in ast.iter_child_nodes(node):
            yield from global_names(child, inner if child in inside else local)
        return
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        inner = local | bound_names([generator.target for generator in node.generators])
    for child in ast.iter_child_nodes(node):
        yield from global_names(child, inner)


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Names that these statements assign, without those inside nested functions."""
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
    """Statements as text, with two blank lines around definitions but none between assignments."""
    definition = False
    for statement in statements:
        before, definition = definition, not isinstance(statement, ast.Assign | ast.AnnAssign)
        yield ("\n\n" if before or definition else "") + copy(module, statement, renamed)


def copy(module: Module, statement: ast.stmt, renamed: Mapping[str, str]) -> str:
    """The lines of a statement and the comment right above it, with some global names changed."""
    first = min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", []))])
    while first > 1 and module.lines[first - 2].startswith("#"):
        first -= 1
    lines = module.lines[first - 1 : statement.end_lineno]
    uses = [node for node in global_names(statement) if node.id in renamed]
    for node in sorted(uses, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        line = lines[node.lineno - first].encode()  # columns count bytes
        start, end = node.col_offset, node.col_offset + len(node.id.encode())
        if line[start:end] != node.id.encode():
            where = f"{module.name}, line {node.lineno}"
            raise RunFailed(f"export: {where}: {node.id} cannot be renamed here; give it a name that is unique in STAR")
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
    """Import statements, one per module: the standard library first, then other packages."""
    plain = sorted(s for s in set(statements) if s.startswith("import "))
    names: dict[str, set[str]] = {}
    for statement in set(statements) - set(plain):
        source, name = statement.removeprefix("from ").split(" import ")
        names.setdefault(source, set()).add(name)
    lines = plain + [f"from {source} import {', '.join(sorted(names[source]))}" for source in sorted(names)]
    torch = [line for line in lines if line.split()[1].split(".")[0] in ("torch", "safetensors", "einops", "numpy")]
    return "\n".join([line for line in lines if line not in torch] + [""] + torch)
