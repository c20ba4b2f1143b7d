"""Random genomes of both levels, all classes, widths and blocks: what a space samples builds, runs and costs exactly.

pytest tests/model/test_fuzz.py --genomes 10000          # the default is 300
"""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import star
from star.cost.population import population_costs
from star.errors import UserError
from star.genome import POOL, OperatorSpace, Space, from_json, to_json
from star.genome.repair import repair

VOCAB, LENGTH, PROMPT = 23, 13, 6
WIDTHS = {4: (16, 24, 32), 8: (32, 48, 64)}  # by head width


def spaces() -> list[Space]:
    found = []
    for head_dim, widths in WIDTHS.items():
        classes = [0]
        for number, row in enumerate(POOL, 1):
            try:
                for width in widths:
                    row.config(width, head_dim, 1e4)
            except UserError:
                continue
            classes.append(number)
        blocks = {"norms": (1, 2, 3), "residuals": (1, 2)}
        found += [
            kind(n_slots=5, d_models=widths, head_dim=head_dim, classes=tuple(classes), **blocks)
            for kind in (Space, OperatorSpace)
        ]
    return found


SPACES = spaces()


def check(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.array([[rng.choice(values) for values in space.values]])  # mostly illegal
    row = space.repair(raw, rng)[0][0]
    genome = space.decode(row)
    assert repair(genome, rng) == (genome, False)
    assert from_json(to_json(genome)) == genome
    model = star.build(genome, VOCAB, seed=seed % 1000).double()
    costs = star.costs(genome, VOCAB, LENGTH)
    assert costs.parameters == sum(p.numel() for p in model.parameters())
    assert costs.cache_bytes_exact == model.init_state(1, LENGTH, dtype=torch.bfloat16).nbytes
    if type(space) is Space:
        assert population_costs(space, row[None], VOCAB, LENGTH).parameters[0] == costs.parameters
    tokens = torch.from_numpy(rng.integers(VOCAB, size=(2, LENGTH)))
    with torch.no_grad():
        whole, _ = model(tokens)
        first, state = model(tokens[:, :PROMPT])
        parts = [first]
        for t in range(PROMPT, LENGTH):
            logits, state = model(tokens[:, t : t + 1], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)
    model.loss(tokens, tokens).backward()
    wrong = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not wrong, (genome.text, wrong)


def test_random_genomes_obey_the_laws(pytestconfig):
    number = pytestconfig.getoption("genomes")

    @settings(max_examples=number, deadline=None, derandomize=number <= 300)
    @given(st.sampled_from(SPACES), st.integers(0, 2**32 - 1))
    def run(space: Space, seed: int) -> None:
        check(space, seed)

    run()
