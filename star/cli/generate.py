"""star generate MODEL"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.arguments import complete_genome, find_candidate, is_run_id, load_candidate
from star.cli.console import write_text

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
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Number of tokens to generate (bytes, by default)."),
    ] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from the k most likely tokens only.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same text.")] = 0,
) -> None:
    """Sample text from an exported model or from a member of a front.

    \b
    Example: star generate mymodel --prompt "def " --tokens 200
             star generate runs/first:best --prompt "def "
    """
    from star.export import load

    loaded = load_candidate(*find_candidate(model)) if is_run_id(model) else load(model)
    write_text(sample(loaded, prompt, tokens, temperature, top_k, seed))


def sample(
    model: LanguageModel, prompt: str, tokens: int, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> bytes:
    """The prompt and its continuation. An empty prompt starts a new document."""
    import torch

    from star.data import ByteTokenizer
    from star.errors import UserError

    tokenizer = model.tokenizer or ByteTokenizer()
    if model.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"this model has a vocabulary of {model.vocab_size}, but its tokenizer ({tokenizer.name}) has "
            f"{tokenizer.vocab_size} tokens; call its generate method with token ids"
        )
    start = torch.tensor([tokenizer.encode(prompt).tolist() or [tokenizer.separator]])
    try:
        model.check_length(start.shape[1] + tokens)
    except ValueError as error:
        raise UserError(f"{error}, such as --tokens {max(1, model.plan.positions - start.shape[1])}") from None
    ids = model.generate(start, tokens, temperature, top_k, seed)[0].tolist()
    if isinstance(tokenizer, ByteTokenizer):
        return bytes(ids).replace(b"\0", b"")
    return tokenizer.decode(ids).encode(errors="surrogateescape")
