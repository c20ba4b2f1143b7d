"""The documentation names only commands, options, pages and figures that exist, and its generated parts are complete.

The site itself is built strictly in continuous integration (.ci/run).
"""

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from star.cli import app
from star.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *(ROOT / "docs").rglob("*.md"),
]
GROUP = typer.main.get_command(app)


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_options_and_links_exist(page):
    text = page.read_text(encoding="utf-8")
    for code in re.findall(r"```(?:bash|text)?\n(.*?)```|`(star [^`]*)`", text, flags=re.S):
        for verb, rest in re.findall(r"(?:^|&& |/)star ([a-z]+)([^\n&#]*)", "\n".join(code)):
            assert verb in GROUP.commands, f"star {verb}"
            known = {opt for p in GROUP.commands[verb].params for opt in [*p.opts, *p.secondary_opts]} | {"--help"}
            assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, f"star {verb}{rest}"
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_generated_parts_are_complete():
    module = hooks()
    markers = {m for page in PAGES for m in re.findall(r"<!-- generated: (\w+) -->", page.read_text(encoding="utf-8"))}
    assert markers == set(module.GENERATED)
    commands = module.commands()
    for verb, command in GROUP.commands.items():
        assert f"## star {verb}\n" in commands
        for parameter in command.params:
            assert parameter.name == "help" or any(
                opt in commands for opt in [*parameter.opts, parameter.metavar or ""]
            )
    settings = module.settings()
    for section in ("search", "space", "training", "engine", "objectives", "data"):
        for name in vars(getattr(RunConfig(), section)):
            assert f"`{section}.{name}`" in settings or (section, name) == ("training", "seed")
    assert module.on_page_markdown("a <!-- generated: genes --> b").count("|") > 100
