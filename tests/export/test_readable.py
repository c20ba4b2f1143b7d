"""The readable model.py is the model: in float64 to rounding, for every operator and every kind of sharing."""

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import star
from star.export.readable import exported_name, has_template, is_readable, readable_source, unreadable
from star.genome import POOL, Gene, Genome, OperatorSpace, Space, load_genome, parse_text
from star.liv import FAMILIES

VOCAB, LENGTH = 37, 70
WIDE = Genome((Gene(1),), d_model=96, head_dim=4)  # a width that suits every row of the pool


def readable(model: star.LanguageModel, genome: Genome) -> tuple[torch.nn.Module, str]:
    """The model of the page that is written for this one, with its weights, and the page."""
    text = readable_source(model.plan, model.vocab_size, model.tie_embeddings, genome)
    page = types.ModuleType("page")
    sys.modules["page"] = page  # a dataclass asks for its module
    page.__file__ = "model.py"
    exec(compile(text, "page", "exec"), page.__dict__)
    theirs = page.LanguageModel().to(model.embedding.dtype)
    weights = {exported_name(name): p for name, p in model.named_parameters()}
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in weights.items()}
    theirs.load_state_dict(weights, strict=False)
    return theirs.eval(), text


def built(genome: Genome, dtype: torch.dtype = torch.float64) -> star.LanguageModel:
    """With noise on all weights, so that none is what its initial value hides."""
    model = star.build(genome, VOCAB, seed=1).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


def check(genome: Genome) -> str:
    """Logits of a prompt and of what continues it, of padded prompts, and all gradients."""
    ours = built(genome)
    theirs, text = readable(ours, genome)
    prompt, lengths = tokens(2, LENGTH), torch.tensor([LENGTH - 29, LENGTH])

    def same(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(b.abs().max()))

    with torch.no_grad():
        for padding in ({}, {"lengths": lengths}):
            (b, theirs_state), (a, ours_state) = theirs(prompt, **padding), ours(prompt, **padding)
            if padding:
                same(b[0, 29:], a[0, 29:])
                same(b[0, 29:], theirs(prompt[:1, 29:])[0][0])  # what it gives alone
            same(b[1], a[1])
            for n in (1, 20, 1):
                more = tokens(2, n)
                (b, theirs_state), (a, ours_state) = theirs(more, theirs_state), ours(more, ours_state)
                same(b, a)
    logits, _ = theirs(prompt)
    F.cross_entropy(logits.flatten(0, 1), prompt.flatten()).backward()
    ours.loss(prompt, prompt).backward()
    gradients = {exported_name(name): p.grad for name, p in ours.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-9 * largest)
    assert max(map(len, text.splitlines())) <= 120 and not any(line != line.rstrip() for line in text.splitlines())
    return text


# Rows without a template yet: an export of these is linked from the library (see test_export.py).
LINKED = {"KDA", "MLA", "MLA-NoPE"}
READABLE = [number for number, row in enumerate(POOL, 1) if has_template(row.config(96, 4, 1e4))]


def test_which_rows_have_no_readable_page():
    assert {row.name for number, row in enumerate(POOL, 1) if number not in READABLE} == LINKED
    genome = Genome((Gene(1), Gene(73)), WIDE.d_model, WIDE.head_dim)
    assert unreadable(star.genome.resolve(genome)) == [POOL[72].name] and not is_readable(star.genome.resolve(genome))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_the_pool(family):
    rows = [number for number in READABLE if POOL[number - 1].operator.family == family]
    check(Genome(tuple(map(Gene, rows)), WIDE.d_model, WIDE.head_dim))


# Rows of every family; each shares in every way.
SHARED = {"attention": (2, 11), "recurrence": (5, 69), "convolution": (8, 47), "elementwise": (42,)}
SHARED |= {"memoryless": (21, 23)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_to_share(family):
    for row in SHARED[family]:
        genes = [Gene(1)]
        for strategy in range(2, FAMILIES[family].n_strategies + 1):
            gene = Gene(row, len(genes), 2, len(genes), strategy)  # weights too
            try:
                star.genome.resolve(Genome((gene, gene), WIDE.d_model, WIDE.head_dim))
            except star.UserError:  # the row lacks what is to be shared
                continue
            genes += [gene, gene]
        assert len(genes) > 2
        check(Genome(tuple(genes), WIDE.d_model, WIDE.head_dim))


def test_a_state_space_takes_the_decay_of_a_delta_rule():
    check(Genome(parse_text("69.0.0.1.3-1-40.0.0.1.3"), 32, 8))


def spaces() -> list[Space]:
    fits = [n for n in READABLE if Genome((Gene(n),), d_model=32, head_dim=8).fits]
    sizes = {"n_slots": 8, "d_models": (32,), "head_dim": 8, "norms": (1, 2, 3, 4), "residuals": (1, 2)}
    return [Space(classes=(0, *fits), **sizes), OperatorSpace(classes=(0,), **sizes)]


@pytest.mark.parametrize("space", spaces(), ids=["classes", "operators"])
def test_random_genomes(space, pytestconfig):
    number = 6 if pytestconfig.getoption("genomes") <= 300 else pytestconfig.getoption("genomes") // 2
    for row in space.sample(np.random.default_rng(0), number):
        genome = space.decode(row)
        assert is_readable(star.genome.resolve(genome))
        check(genome)


def test_a_layout_with_learned_positions_biases_and_a_head_of_its_own():
    check(load_genome("gpt-2", d_model=64, depth=4, head_dim=16))
    check(load_genome("mistral-7b", d_model=64, depth=4, head_dim=16))


def test_the_page_is_short_and_has_only_what_is_used():
    """About 150 lines, and 60 to 100 for each kind of operator."""
    for text, kinds in (("1", 1), ("1-9-5-8-47-42", 6), ("lfm2-350m", 3)):
        genome = load_genome(text) if text[0] == "l" else Genome(parse_text(text), WIDE.d_model, WIDE.head_dim)
        page = readable_source(star.genome.resolve(genome), VOCAB, True, genome)
        assert len(page.splitlines()) < 160 + 80 * kinds
    attention = readable_source(star.genome.resolve(WIDE), VOCAB, True, WIDE)
    for word in ("vmap", "checkpoint", "window", "provider", "reads_input", "chunks", "sink", "self.gate", "json"):
        assert word not in attention


ONE_OF_EACH = "2-29-5-38-39-8-47-42-9"


def test_compiled_for_fixed_and_changing_shapes(pytestconfig):
    """With `--genomes` above 300 one of each kind, which takes a minute. A second length makes a program dynamic."""
    every = pytestconfig.getoption("genomes") > 300
    for row in ONE_OF_EACH.split("-") if every else ("29",):
        genome = Genome(parse_text(row), WIDE.d_model, WIDE.head_dim)
        theirs, _ = readable(built(genome), genome)
        for dynamic in (None, True) if every else (None,):
            torch._dynamo.reset()
            compiled = torch.compile(theirs, dynamic=dynamic, backend="eager", fullgraph=True)
            with torch.no_grad():
                for length in (70, 41):
                    sequence = tokens(2, length)
                    first, state = compiled(sequence[:, :30])
                    second, _ = compiled(sequence[:, 30:], state)
                    torch.testing.assert_close(torch.cat([first, second], 1), theirs(sequence)[0], rtol=0, atol=1e-9)


def test_generation_is_that_of_the_library():
    genome = Genome(parse_text(ONE_OF_EACH), WIDE.d_model, WIDE.head_dim)
    ours = built(genome, torch.float32)
    theirs, _ = readable(ours, genome)
    prompt, lengths = tokens(2, 20), torch.tensor([7, 20])
    for options in ({"temperature": 0.0}, {"temperature": 0.7, "top_k": 5, "seed": 3}, {"lengths": lengths}):
        assert torch.equal(theirs.generate(prompt, 12, **options), ours.generate(prompt, 12, **options))


def test_a_state_may_be_continued_twice():
    genome = Genome(parse_text(ONE_OF_EACH), WIDE.d_model, WIDE.head_dim)
    theirs, _ = readable(built(genome), genome)
    with torch.no_grad():
        _, state = theirs(tokens(2, 33))
        first = theirs(tokens(2, 5), state)[0]
        theirs(tokens(2, 9), state)
        assert torch.equal(first, theirs(tokens(2, 5), state)[0])
        assert not any(t.requires_grad for memory in theirs(tokens(2, 4))[1].blocks for t in memory.values())


def test_activations_in_bfloat16_keep_states_in_float32():
    genome = Genome(parse_text(ONE_OF_EACH), WIDE.d_model, WIDE.head_dim)
    ours = built(genome, torch.float32)
    theirs, _ = readable(ours, genome)
    with torch.no_grad():
        expected = ours(tokens(2, 40))[0]
        logits, state = theirs.to(torch.bfloat16)(tokens(2, 40))
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() / expected.norm() < 0.1
    assert state.blocks[2]["past"].dtype == torch.float32
