"""star generate MODEL"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import complete_genome, find_candidate, is_run_id, load_candidate
from star.cli.console import say, write_text

if TYPE_CHECKING:
    from star.model import LanguageModel


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Folder that star export or star train wrote, or RUN:ID (RUN:best, RUN:knee: of the front).",
            autocompletion=complete_genome,
        ),
    ],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; several are one batch (default: a new document).")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a prompt per line, with \\n for a line break.")
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Number of tokens to generate (bytes, by default)."),
    ] = 200,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be repeated.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k most likely tokens only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same text.")] = 0,
) -> None:
    """Sample text from an exported model or from a member of a front.

    One prompt is printed as it grows. Several are printed as one JSON object per line: prompt and text.

    \b
    Example: star generate mymodel --prompt "def " --tokens 200 --stop "\\n\\n"
             star generate runs/first:best --prompts prompts.txt
    """
    from star.export import continuations, load

    given = [*(prompt or []), *(read_prompts(prompts) if prompts is not None else [])] or [""]
    stops = [text.replace("\\n", "\n") for text in stop or []]
    loaded = load_candidate(*find_candidate(model)) if is_run_id(model) else load(model)
    pieces = continuations(loaded, given, tokens, temperature, top_k, seed, stops)
    if len(given) == 1:
        write_text(given[0].encode(errors="surrogateescape"), end=b"")
        for (piece,) in pieces:
            write_text(piece, end=b"")
        write_text(b"")
        return
    for text, parts in zip(given, zip(*pieces, strict=True), strict=True):
        say(json.dumps({"prompt": text, "text": b"".join(parts).decode(errors="replace")}, ensure_ascii=False))


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, without empty ones. Raises UserError naming the file."""
    from star.errors import UserError

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); give a text file with a prompt per line") from None
    found = [line.replace("\\n", "\n") for line in lines if line]
    if not found:
        raise UserError(f"{path}: has no prompt; write one per line")
    return found


def sample(
    model: LanguageModel, prompt: str, tokens: int, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> bytes:
    """The prompt and its continuation. An empty prompt starts a new document."""
    from star.export import continuations

    pieces = continuations(model, [prompt], tokens, temperature, top_k, seed)
    return prompt.encode(errors="surrogateescape") + b"".join(piece for (piece,) in pieces)
