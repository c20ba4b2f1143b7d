"""Arguments and options that several verbs share, and the genome that an argument names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from star.errors import UserError

if TYPE_CHECKING:
    from star.genome import Genome
    from star.model import LanguageModel
    from star.run import Candidate, Run

GENOME_HELP = "A genome file, a shipped name, text such as 21211-31112, or RUN:ID (RUN:best, RUN:knee: of the front)."
# Written out, because help and completion must not wait for torch; a test compares them with the code.
PRESETS = ("smoke", "laptop", "gpu-quick", "gpu", "two-stage", "paper", "paper-quality", "paper-size", "paper-cache")
ALGORITHMS = ("nsga2", "ga", "firefly", "aging", "random")
ENGINES = ("pool", "inprocess", "ray")


PRESET_HELP = f"{', '.join(PRESETS)} (default: laptop; gpu-quick where there is CUDA)."


def named(names: tuple[str, ...], default: str) -> str:
    """The names for a help text."""
    return ", ".join(f"{name} (default)" if name == default else name for name in names)


def complete_genome(incomplete: str) -> list[str]:
    """Shipped names that begin with this text, or ids of RUN:ID."""
    from star.errors import UserError
    from star.genome import list_genomes

    path, colon, id = incomplete.rpartition(":")
    if not colon:
        return [name for name in list_genomes() if name.startswith(incomplete)]
    from star.run import Run

    try:
        ids = ["best", "knee", *(c.id for c in Run(path).front())]
    except UserError:
        return []
    return [f"{path}:{name}" for name in ids if name.startswith(id)]


GenomeArgument = Annotated[str, typer.Argument(metavar="GENOME", help=GENOME_HELP, autocompletion=complete_genome)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")]
WidthOption = Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this width.")]
DepthOption = Annotated[int | None, typer.Option(min=1, help="Scale a shipped genome or file to this many LIVs.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Start even if it would take more than a year by the measured rate.")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Candidates trained at the same time (default: as in the run).")
]
MovedOption = Annotated[
    str | None, typer.Option("--data", metavar="PATH", help="Where the text of the run is now, if it was moved.")
]
TOKENIZER_HELP = "Tokens: bytes, bpe:N (trained on the text), a tokenizer.json, or the name of one on the hub."
DATA_HELP = 'Text to train on: "python", "stdlib", a text file or folder, or hf:NAME[:CONFIG][@COLUMN].'


@dataclass(frozen=True)
class Chosen:
    """A genome, with the run and candidate that it comes from, if any."""

    genome: Genome
    name: str = ""
    scaled: bool = False
    description: str = ""
    vocab_size: int | None = None
    origin: tuple[Run, Candidate] | None = None

    @property
    def label(self) -> str:
        """Its name; of a shipped genome at another size the name of the layout, without a size."""
        from star.genome import layout_name

        return layout_name(self.name) if self.scaled and self.name else self.name

    @property
    def source(self) -> dict[str, str]:
        """Run, id and text of the candidate, as an export records them; empty without one."""
        if not self.origin:
            return {}
        run, candidate = self.origin
        text = {"corpus": run.corpus["name"], "fingerprint": run.corpus["fingerprint"]}
        return {"run": str(run.path), "id": candidate.id} | text

    @property
    def training(self) -> dict[str, Any] | None:
        """Recipe and learning curve of the candidate, as an export records them; None without one."""
        if not self.origin:
            return None
        run, candidate = self.origin
        return {"recipe": asdict(candidate.recipe or run.config.training), "curve": run.curve(candidate.id)}

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics and objectives of the candidate; empty without one.

        NAME is the mean of NAME_seeds trainings, NAME_se, NAME_low and NAME_high its error (`star.candidate.Measured`);
        val_loss is the loss of the stored weights.
        """
        if not self.origin:
            return {}
        candidate = self.origin[1]
        found = {**candidate.metrics, **(candidate.objectives or {})}
        for name, m in candidate.measured.items():
            found |= {f"{name}_seeds": m.n, f"{name}_se": m.se, f"{name}_low": m.low, f"{name}_high": m.high}
        return found


def numbers(option: str, text: str, what: str) -> tuple[float, ...]:
    """The numbers of a text such as "3,10". Raises UserError naming the option; what: what to write, an example."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} {text!r}: write {what}") from None


def choose_genome(source: str, d_model: int | None = None, depth: int | None = None) -> Chosen:
    """The genome that `source` names, scaled if a width or depth is given.

    Raises UserError if it is unknown or malformed, or if the genome of a run is to be scaled.
    """
    from star.genome import find_genome

    if is_run_id(source):
        if d_model or depth:
            raise UserError(f"{source}: --d-model and --depth scale shipped genomes and files, not a genome of a run")
        run, candidate = find_candidate(source)
        name, vocab_size = f"{run.path}:{candidate.id}", run.corpus["vocab_size"]
        return Chosen(candidate.genome, name, vocab_size=vocab_size, origin=(run, candidate))
    found = find_genome(source)
    genome = found.genome if d_model is depth is None else found.genome.scaled(d_model, depth)
    return Chosen(genome, found.name, genome != found.genome, found.description, found.vocab_size)


def is_run_id(source: str) -> bool:
    """Whether the text is RUN:ID and not a file."""
    return ":" in source and not Path(source).exists()


def find_candidate(source: str) -> tuple[Run, Candidate]:
    """The run and the candidate of RUN:ID, with fresh losses if it has any.

    ID may be the beginning of an id, or "best" or "knee".
    """
    from star.run import Run

    path, _, id = source.rpartition(":")
    if not path or not id:
        raise UserError(f"'{source}' must be RUN:ID, such as runs/first:knee; star front RUN lists ids")
    run = Run(path)
    return run, run.as_measured(run.candidate(id))


def load_candidate(run: Run, candidate: Candidate) -> LanguageModel:
    """The trained model of a candidate. Raises UserError if its weights were not kept."""
    from star.export import load_weights
    from star.model import build

    path = run.weights(candidate.id)
    if path is None:
        kept = f"this run keeps the weights of: {run.config.keep}"
        why = kept if candidate.status == "ok" else f"it ended as '{candidate.status}'"
        raise UserError(
            f"{run.path}:{candidate.id} has no saved weights ({why}); choose a member of the front (star front "
            f"{run.path}), or train it: star train {run.path}:{candidate.id}"
        )
    model = build(candidate.trained_genome, vocab_size=run.corpus["vocab_size"])
    load_weights(model, path)
    model.tokenizer = run.tokenizer
    return model.eval()
