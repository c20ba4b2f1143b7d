"""Costs equal published figures, costs of a population equal those of single genomes, FLOPs equal torch's count."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import star
from star.cost import costs, population_costs
from star.genome import Gene, Genome, Space
from star.genome.classes import POOL

ALL = tuple(range(len(POOL) + 1))
ANY_WIDTH = tuple(
    c for c in ALL if c == 0 or POOL[c - 1].name not in ("GQA-3-QKN",)
)  # three queries to a key need a width of their own
SPACES = [
    Space(24, (64, 128), 16),
    Space(8, (128, 256), 16, classes=ANY_WIDTH, norms=(1, 2, 3, 4), residuals=(1, 2)),
    Space(12, (192,), 16, classes=tuple(c for c in ALL if c == 0 or "-8" not in POOL[c - 1].name), max_groups=2),
    Space(5, (128, 512), 32, classes=(0, 1, 3, 5, 8, 12, 16, 17), max_groups=1),
]


def transformer(width: int, pairs: int) -> Genome:
    return Genome((Gene(1), Gene(9)) * pairs, width)


def test_cache_and_size_of_the_paper():
    """The tables of STAR, section 4."""
    assert costs(Genome((Gene(1),) * 24, 2048), seq_len=4096).cache_bytes == 805_306_368
    assert costs(Genome((Gene(1),) * 12, 768), seq_len=4096).cache_bytes == 150_994_944
    assert costs(transformer(768, 12)).backbone_parameters == 84_934_656
    assert costs(transformer(2048, 24)).backbone_parameters == 1_207_910_400
    # With a tied embedding of 50,304 rows; the design page leaves out the norms (25 of 768), which `parameters` counts.
    assert costs(transformer(768, 12), 50_304).parameters == 123_568_128 + 25 * 768


@pytest.mark.parametrize(
    "name, published",
    [
        ("lfm2-350m", 354_483_968),
        ("lfm2-700m", 742_489_344),
        ("lfm2-1.2b", 1_170_340_608),
        ("lfm2-2.6b", 2_569_272_320),
        ("llama-3.2-1b", 1_235_814_400),
        ("tinyllama-1.1b", 1_100_048_384),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-8b", 8_190_735_360),
        ("olmo-2-1b", 1_484_916_736),
        ("gpt-2", 124_439_808),
    ],
)
def test_published_parameter_counts(name, published):
    named = star.genome.find_genome(name)
    assert costs(named.genome, named.vocab_size).parameters == published
    with torch.device("meta"):
        model = star.LanguageModel(star.genome.resolve(named.genome), named.vocab_size)
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize(
    "name, d, numbers",
    [
        *(("SA-1", 768, 2 * 768), ("GQA-4-QKN", 768, 2 * 192), ("MQA", 768, 2 * 64), ("MLA", 768, 4 * 64 + 32)),
        *((name, 768, 0) for name in ("GConv-1", "Rec-1", "KDA")),
    ],
)
def test_cache_numbers_per_token(name, d, numbers):
    """The growth of the cache, in numbers per token."""
    genome = Genome((Gene([c.name for c in POOL].index(name) + 1),), d)
    slope = costs(genome, seq_len=4096).cache_bytes - costs(genome, seq_len=4095).cache_bytes
    assert slope == 2 * numbers


@pytest.mark.parametrize(
    "name, d, exact",
    [("SWA-2048", 768, 2 * 2 * 768 * 2047), ("GConv-1", 768, 2 * 768 * 2), ("GConv-2", 768, 2 * 8 * 768 * 4)],
)
def test_exact_cache_bytes(name, d, exact):
    genome = Genome((Gene([c.name for c in POOL].index(name) + 1),), d)
    assert costs(genome, seq_len=4096).cache_bytes_exact == exact


@pytest.mark.parametrize("space", SPACES)
def test_population_costs_equal_those_of_every_genome(space):
    X = space.sample(np.random.default_rng(1), 300)
    for options in ({"vocab_size": 256, "seq_len": 4096}, {"vocab_size": 1000, "seq_len": 77, "tie_embeddings": False}):
        together = population_costs(space, X, **options)
        for i, x in enumerate(X):
            one = costs(space.decode(x), **options)
            for name in one.__dataclass_fields__:
                assert getattr(together, name)[i] == getattr(one, name), (name, space.decode(x).text)


@pytest.mark.parametrize("c", [c for c in POOL if c.name != "GQA-3-QKN"], ids=lambda c: c.name)
def test_flops_of_channel_maps_are_what_torch_counts(c):
    """Every matrix product of the model that is not token mixing: the maps of the LIV and the head."""
    genome = Genome((Gene(POOL.index(c) + 1),), 128, 16)
    model = star.build(genome, vocab_size=50)
    batch, seq_len = 2, 32  # as many tokens as make one product of all maps
    with FlopCounterMode(display=False) as counter:
        model.hidden(torch.zeros(batch, seq_len, dtype=torch.int64), None)
        model.logits(torch.zeros(batch, seq_len, 128))
    products = counter.get_flop_counts()["Global"]
    counted = sum(products.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))  # addmm: with a bias
    config = model.plan.layers[0].config
    matrices = {name: w for name, w in config.weights().items() if w.kind == "matrix"}
    blocks = sum(w.flops for name, w in matrices.items() if name.endswith("_gate"))  # block-diagonal: batched products
    filters = sum(w.flops for w in config.weights().values() if w.kind == "vector")
    assert counted == batch * seq_len * (config.channel_flops() - blocks - filters + 2 * 50 * 128)
    assert costs(genome, 50, seq_len).train_flops_per_token == 3 * (
        config.channel_flops() + config.mixing_flops(seq_len) + 2 * 50 * 128
    )
