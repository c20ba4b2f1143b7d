"""Scaled backbones: whole copies with the sharing of the original, exact costs, and clear error messages."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import star
from star.errors import UserError
from star.genome import Genome, Space, parse_text, resolve
from star.genome.scale import WAYS, Scale, parse_scale, scaled

SPACE = Space(8, (32, 64), head_dim=8, norms=(1, 2, 3), residuals=(1, 2))
VOCAB = 31


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(3))
def test_random_backbones_scale_to_exact_copies_that_build_and_run(way, seed):
    rng = np.random.default_rng(seed)
    for row in SPACE.sample(rng, 12):
        genome, depth = SPACE.decode(row), int(rng.integers(2, 4))
        assert scaled(genome, 1, 1, way) == genome
        deep = scaled(genome, depth, 1, way)
        assert deep.depth == depth * genome.depth  # often more than the space has slots
        one, many = star.costs(genome, VOCAB), star.costs(deep, VOCAB)
        for name in ("backbone_parameters", "cache_bytes", "cache_bytes_exact"):
            assert getattr(many, name) == depth * getattr(one, name), (genome.text, name)
        assert scaled(deep, 2, 1, way) == scaled(genome, 2 * depth, 1, way)
        wide = scaled(deep, 1, 2, way)
        assert (
            wide == scaled(genome, depth, 2, way)
            and wide.d_model == 2 * genome.d_model
            and wide.head_dim == genome.head_dim
        )
        model = star.build(wide, VOCAB)
        assert star.costs(wide, VOCAB).parameters == sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            logits, _ = model(torch.zeros(1, 9, dtype=torch.int64))
        assert logits.shape == (1, 9, VOCAB) and logits.isfinite().all()


@pytest.mark.parametrize("way", WAYS)
def test_partners_stay_within_their_copy(way):
    genome = Genome(parse_text("11200-90000-10013-11200-10013"), 64, 16)
    plan, deep = resolve(genome), resolve(scaled(genome, 2, 1, way))
    n = len(plan.layers)
    place = (lambda i, copy: i + copy * n) if way == "stack" else (lambda i, copy: 2 * i + copy)
    for layer in plan.layers:
        for copy in range(2):
            other = deep.layers[place(layer.index, copy)]
            assert other.name == layer.name and other.given == layer.given and other.provides == layer.provides
            assert other.provider == (None if layer.provider is None else place(layer.provider, copy))
            assert other.weights_from == {group: place(owner, copy) for group, owner in layer.weights_from.items()}


def test_the_paper_s_1b_shape():
    genome = parse_scale("2x-depth,8/3x-width").apply(star.load_genome("transformer++"))
    assert (genome.depth, genome.d_model) == (48, 2048)
    assert star.costs(genome).backbone_parameters == 1_207_910_400


def test_a_scale_is_read_as_written():
    assert parse_scale("2x-depth,2x-width") == Scale(2, Fraction(2), "stack")
    assert parse_scale("1.5x-width") == Scale(1, Fraction(3, 2), "stack")
    assert parse_scale("stretch, 3x-depth") == Scale(3, Fraction(1), "stretch")


@pytest.mark.parametrize(
    "text, message",
    [
        ("2x", "'2x' is no part of a scale"),
        ("", "'' is no part of a scale"),
        ("2x-depth,3x-depth", "depth is given twice"),
        ("1.5x-depth", "depth is multiplied by 3/2; whole copies only"),
        ("0x-depth", "0x-depth makes 0 LIVs of 2"),
        ("513x-depth", "513x-depth makes 1026 LIVs of 2; legal is 1 to 1024"),
        ("1/0x-width", "divides by zero"),
        ("0x-width", "0x-width makes a width of 0 of 64"),
        ("1.01x-width", "makes a width of 64.64 of 64; legal is a whole number"),
        (
            "5/4x-width",
            "makes a width of 80: class SA-3: attention: width 80 is no multiple of head width 16 x repeat 4",
        ),
        ("stack,stretch", "way is given twice"),
    ],
)
def test_a_wrong_scale_is_one_sentence(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_scale(text).apply(Genome(parse_text("3-9"), 64, 16))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="'sideways'; it must be stack or stretch"):
        scaled(Genome(parse_text("3-9"), 64, 16), way="sideways")
