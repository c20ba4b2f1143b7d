"""Sequences of different lengths in one batch, padded on the left: each gives what it gives alone."""

import pytest
import torch

import star
from star.genome import POOL, Gene, Genome, load_genome

VOCAB = 37
LENGTHS = (3, 21, 14, 1)


def padded(sequences: list[torch.Tensor], fill: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    rows = [torch.cat([torch.full((longest - len(s),), fill), s]) for s in sequences]
    return torch.stack(rows), torch.tensor([len(s) for s in sequences])


def check(model: star.LanguageModel) -> None:
    """Logits of the prompt, then of tokens one by one and in a chunk, which continue the states."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(model.vocab_size, (n,), generator=generator) for n in LENGTHS]
    more = torch.randint(model.vocab_size, (len(prompts), 9), generator=generator)
    with torch.no_grad():
        tokens, lengths = padded(prompts)
        logits, state = model(tokens, lengths=lengths)
        parts = [logits[:, -1:]]
        for piece in (more[:, :1], more[:, 1:2], more[:, 2:]):
            logits_, state = model(piece, state)
            parts.append(logits_)
        together = torch.cat(parts, 1)
        for row, prompt in enumerate(prompts):
            alone, _ = model(torch.cat([prompt, more[row]])[None])
            torch.testing.assert_close(logits[row, -len(prompt) :], alone[0, : len(prompt)], rtol=0, atol=1e-9)
            torch.testing.assert_close(together[row], alone[0, len(prompt) - 1 :], rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", range(1, len(POOL) + 1), ids=[row.name for row in POOL])
def test_a_padded_sequence_is_the_sequence_alone(number):
    for width, head in ((16, 4), (24, 4), (32, 8), (64, 8), (128, 8), (256, 8)):
        genome = Genome((Gene(number), Gene(1), Gene(number)), d_model=width, head_dim=head)
        try:
            model = star.build(genome, VOCAB, seed=1)
        except star.UserError:
            continue
        return check(model.double())
    raise AssertionError("fits no width")


def test_shared_features_and_learned_positions():
    strategies = ("1.0.0.1.4-1.0.0.1.4", "5.0.0.1.8-5.0.0.1.8", "7.0.0.1.8-7.0.0.1.8", "8.0.0.1.8-8.0.0.1.8")
    for text in strategies:
        check(star.build(Genome(star.genome.parse_text(text), d_model=64, head_dim=16), VOCAB).double())
    check(star.build(load_genome("gpt-2", d_model=64, depth=4, head_dim=16), VOCAB).double())


def test_generation_from_prompts_of_different_lengths():
    model = star.build(load_genome("lfm2-350m", d_model=64, depth=6, head_dim=16), VOCAB).double()
    prompts = [torch.arange(n) % VOCAB for n in LENGTHS]
    tokens, lengths = padded(prompts)
    both = model.generate(tokens, 12, temperature=0.0, lengths=lengths)
    for row, prompt in enumerate(prompts):
        assert torch.equal(both[row, -12:], model.generate(prompt[None], 12, temperature=0.0)[0, -12:])


@pytest.mark.parametrize("lengths", [[0, 3], [3, 5], [3], [[3, 3]], [1.5, 2.0]], ids=str)
def test_lengths_that_do_not_fit_are_one_sentence(lengths):
    model = star.build(Genome((Gene(1),), d_model=16, head_dim=4), VOCAB)
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="give 2 integers from 1 to 4, one a sequence"):
        model(tokens, lengths=torch.tensor(lengths))
    _, state = model(tokens)
    with pytest.raises(ValueError, match="has seen some already"):
        model(tokens, state, lengths=torch.tensor([4, 4]))
