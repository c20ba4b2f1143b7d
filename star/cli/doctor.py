"""star doctor"""

from __future__ import annotations

from typing import Annotated

import typer

from star.cli.arguments import DATA_HELP, PRESETS
from star.cli.console import say


def doctor(
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="Preset to time; may be repeated (default: smoke and laptop on a CPU, the GPU presets with CUDA).",
            autocompletion=lambda: list(PRESETS),
        ),
    ] = None,
    data: Annotated[str, typer.Option(help=DATA_HELP)] = "python",
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Time to measure for, over all presets.")] = 10.0,
    limit: Annotated[float, typer.Option(min=1, help="Most seconds for the check of fla's kernels.")] = 300.0,
) -> None:
    """Show what this machine has, what a search will use of it, and how long each preset takes here.

    With a GPU and the package fla-core, this also checks fla's kernels against our own forms. Searches use a kernel
    only if it has passed here.

    \b
    Example: star doctor --preset gpu --data my_texts/
             star doctor --seconds 30
    """
    from star.config import load_config
    from star.search.forecast import forecast
    from star.search.machine import describe_kernels, describe_machine, describe_use
    from star.training.device import resolve_device

    device = resolve_device("auto")
    on_gpu = device.type == "cuda"
    names = preset or (["gpu-quick", "gpu"] if on_gpu else ["smoke", "laptop"])
    configs = [load_config(name, overrides={"data.corpus": data}) for name in names]
    for line in describe_machine(device):
        say(line)
    for config in configs:
        for line in describe_use(config, device):
            say(line)
    if on_gpu:
        for line in describe_kernels(configs, device, limit):
            say(line)
    say(f"measuring for about {seconds:.0f} s on {data}")
    for config in configs:
        expected = forecast(config, seconds / len(configs))
        count = config.candidates + len(config.search.baselines)
        budget = f"{count} candidates of {config.training.tokens:,} tokens"
        time = "does not fit into memory" if expected is None else str(expected)
        say(f"preset {config.preset} ({budget}): {time}")
