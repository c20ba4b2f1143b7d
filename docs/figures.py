"""The figures of the documentation, drawn from the package itself.

python docs/figures.py         # writes docs/figures/*.png
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from star.genome import POOL, load_genome
from star.report.genome_diagram import genome_diagram

HERE = Path(__file__).parent / "figures"
SHOWN = [  # class name, what its T is along tokens
    ("SA-1", "attention:\nlow rank, softmax"),
    ("SWA-16", "windowed attention:\nbanded"),
    ("Mamba-2", "recurrence:\nsemi-separable"),
    ("GConv-2", "gated convolution:\nscaled Toeplitz"),
    ("GMemless", "SwiGLU:\ndiagonal"),
]
TOKENS, WIDTH = 48, 32


def operators() -> Figure:
    """|T(x)| along tokens, mean over channels, of one operator of each structure, for the same random input."""
    torch.manual_seed(0)
    x = torch.randn(1, TOKENS, WIDTH, dtype=torch.float64)
    figure = Figure(figsize=(12, 3.1), layout="constrained", dpi=130)
    for axes, (name, text) in zip(figure.subplots(1, len(SHOWN)), SHOWN, strict=True):
        config = next(c for c in POOL if c.name == name).config(WIDTH, 8, 10_000.0)
        liv = config.build()
        liv.reset_parameters(torch.Generator().manual_seed(1))
        T = liv.double().materialize(x).abs().mean(dim=(2, 3))
        axes.imshow(np.log10(T.numpy() + 1e-4 * T.max().item()), cmap="magma")
        axes.set_title(text, fontsize=10)
        axes.set_xlabel("token j (from)")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.axes[0].set_ylabel("token i (to)")
    return figure


def main() -> None:
    """Write every figure."""
    HERE.mkdir(exist_ok=True)
    operators().savefig(HERE / "operators.png")
    genome = load_genome("lfm2-350m", d_model=256, depth=8, head_dim=32)
    genome_diagram(genome, seq_len=4096, name="lfm2 layout, 8 LIVs of width 256").savefig(HERE / "genome.png", dpi=110)
    shared = load_genome("12.1.2.0.0-9-12.1.2.0.0-9-10.0.0.1.2-9-10.0.0.1.2", d_model=64, head_dim=16)
    genome_diagram(shared, seq_len=4096, name="shared weights and shared features").savefig(
        HERE / "sharing.png", dpi=110
    )


if __name__ == "__main__":
    main()
