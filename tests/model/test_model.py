"""The built model: one forward three ways, exact costs and real sharing, on a thousand random genomes."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import star
from star.cli.generate import sample
from star.errors import UserError
from star.genome import Gene, Genome, Space, from_json, load_genome, parse_text, repair, resolve, to_json
from star.model import language_model

SPACE = Space(8, (32, 64), head_dim=8, norms=(1, 2, 3, 4), residuals=(1, 2))
VOCAB = 61


def genome(text: str) -> Genome:
    return Genome(parse_text(text), 64, 16)


@pytest.mark.parametrize("seed", range(10))
def test_random_genomes_build_run_and_cost_what_the_module_has(seed):
    rng = np.random.default_rng(seed)
    raw = np.stack([rng.choice(v, size=100) for v in SPACE.values], axis=1)
    for row in SPACE.repair(raw, rng)[0]:
        g = SPACE.decode(row)
        assert repair(g, rng) == (g, False) and g.canonical().backbone == g.backbone
        assert (SPACE.encode(g) == row).all()
        assert from_json(to_json(g)) == g and parse_text(g.text) == g.backbone
        model = star.build(g, VOCAB, seed=seed).eval()
        costs = star.costs(g, VOCAB, seq_len=37)
        assert costs.parameters == sum(p.numel() for p in model.parameters())
        in_livs = {p for block in model.blocks for p in block.liv.parameters()}
        assert costs.backbone_parameters == sum(p.numel() for p in in_livs)
        state = model.init_state(2, 37, dtype=torch.bfloat16)
        assert 2 * costs.cache_bytes_exact == state.nbytes
        assert costs.cache_bytes <= costs.cache_bytes_exact
        with torch.no_grad():
            logits, _ = model(torch.zeros(1, 5, dtype=torch.int64))
        assert logits.shape == (1, 5, VOCAB) and logits.isfinite().all()


@pytest.mark.parametrize("seed", range(4))
def test_whole_in_chunks_and_token_by_token_agree(seed):
    rng = np.random.default_rng(100 + seed)
    tokens = torch.randint(VOCAB, (2, 75), generator=torch.Generator().manual_seed(seed))
    for row in SPACE.sample(rng, 6):
        model = star.build(SPACE.decode(row), VOCAB, seed=seed).double()
        with torch.no_grad():
            whole, _ = model(tokens)
            state, parts = None, []
            for n in (1, 2, 64, 0, 1, 1, 6):
                start = sum(p.shape[1] for p in parts)
                logits, state = model(tokens[:, start : start + n], state)
                parts.append(logits)
        assert state.length == 75
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


def shares(text: str) -> star.LanguageModel:
    return star.build(genome(text), VOCAB, seed=3).double()


def test_shared_weights_are_one_parameter_trained_by_both():
    model = shares("11200-90000-11200")
    first, last = model.blocks[0].liv, model.blocks[2].liv
    assert first.q is last.q and first.out is not last.out
    tokens = torch.randint(VOCAB, (1, 9))
    model.loss(tokens, tokens).backward()
    both = first.q.grad.clone()
    model.zero_grad()
    # Cut the second use out of the graph: the gradient of the shared weight changes.
    last.q = torch.nn.Parameter(last.q.detach().clone())
    model.loss(tokens, tokens).backward()
    assert not torch.allclose(first.q.grad, both)
    torch.testing.assert_close(first.q.grad + last.q.grad, both)


def test_a_consumer_attends_to_the_keys_and_values_of_its_provider():
    model = shares("10014-90000-10014")
    consumer = model.blocks[2].liv
    assert not hasattr(consumer, "k") and not hasattr(consumer, "v")
    calls = {}
    for index in (0, 2):
        liv = model.blocks[index].liv
        liv.core = lambda f, v, s, index=index, core=liv.core: calls.update({index: (f["k"], v)}) or core(f, v, s)
    with torch.no_grad():
        model(torch.randint(VOCAB, (1, 9)))
    assert calls[2][0] is calls[0][0] and calls[2][1] is calls[0][1]


def test_the_cache_of_a_consumer_is_counted_and_allocated_once():
    alone, shared = star.costs(genome("10000-10000")), star.costs(genome("10014-10014"))
    assert shared.cache_bytes * 2 == alone.cache_bytes and shared.cache_bytes_exact * 2 == alone.cache_bytes_exact
    assert alone.parameters - shared.parameters == 2 * 64 * 64


def test_published_cache_and_size():
    """Figures of the STAR paper: 805 MB, 151 MB, 84.9 M and 1,207.9 M."""
    attention = lambda n, d: Genome(tuple(Gene(1) for _ in range(n)), d)  # noqa: E731
    pairs = lambda n, d: Genome(tuple(Gene(c) for _ in range(n) for c in (1, 9)), d)  # noqa: E731
    assert star.costs(attention(24, 2048)).cache_bytes == 805_306_368
    assert star.costs(attention(12, 768)).cache_bytes == 150_994_944
    assert star.costs(pairs(12, 768)).backbone_parameters == 84_934_656
    assert star.costs(pairs(24, 2048)).backbone_parameters == 1_207_910_400


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("350m", 354_483_968), ("700m", 742_489_344), ("1.2b", 1_170_340_608), ("2.6b", 2_569_272_320)],
)
def test_lfm2_parameters_to_the_last_digit(name, parameters):
    assert star.costs(f"lfm2-{name}", vocab_size=65_536).parameters == parameters


def test_same_seed_same_weights():
    a, b, c = (star.build("1-9-7", VOCAB, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["embedding"], c["embedding"])


def test_parameter_groups_hold_every_parameter_once():
    model = star.build(genome("11214-90000-11214-50000-80000"), VOCAB)
    groups = model.parameter_groups()
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    named = dict(model.named_parameters(remove_duplicate=False))
    assert all(named[name] is p for group in groups for name, p in zip(group["names"], group["params"]))
    assert all(p.dim() == 2 and p.shape[1] == g["fan_in"] for g in groups if g["kind"] == "hidden" for p in g["params"])


def test_every_weight_gets_a_gradient():
    for row in SPACE.sample(np.random.default_rng(5), 10):
        model = star.build(SPACE.decode(row), VOCAB, seed=0)
        tokens = torch.randint(VOCAB, (2, 70))
        model.loss(tokens, tokens).backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing, (model.genome.text, missing)


def test_bfloat16_activations_keep_float32_masters_and_recurrent_states():
    model = star.build(genome("10000-50000-80000-90000"), VOCAB, seed=0).eval()
    tokens = torch.randint(VOCAB, (2, 40))
    with torch.no_grad():
        exact, _ = model(tokens)
        model.compute_dtype = torch.bfloat16
        rounded, state = model(tokens)
    assert rounded.dtype == torch.bfloat16 and model.embedding.dtype == torch.float32
    assert state.layers[1]["memory"].dtype == torch.float32 and state.layers[0]["k"].dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("text", ["1-9-5-9", "11214-90000-11214-70000-90000"])  # and with shared weights and features
def test_matrices_are_cast_together(text, monkeypatch):
    casts = []

    def counted(*arguments):
        casts.append(len(arguments[0]))
        return original(*arguments)

    original = language_model.cast_together
    monkeypatch.setattr(language_model, "cast_together", counted)
    tokens, results = torch.randint(VOCAB, (2, 20)), []
    for together in (True, False):
        model = star.build(genome(text), VOCAB, seed=0)
        model.compute_dtype = torch.bfloat16
        if not together:
            monkeypatch.setattr(model, "copies", lambda dtype: contextlib.nullcontext())
        loss = model.loss(tokens, tokens)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    matrices = {id(weight) for block in model.blocks for _, weight in block.liv.matrices()}
    assert casts == [len(matrices)] * 2, "once forward and once backward"
    assert not any(block.liv.copies for block in model.blocks)
    shared = text.startswith("11")  # the gradients of a matrix that is used twice are added in bfloat16
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=4e-3 * b.abs().max().item() if shared else 0)


def test_generation_is_seeded_and_greedy_at_zero_temperature():
    model = star.build(genome("1-9-7-9-5"), VOCAB, seed=0).eval()
    prompt = torch.randint(VOCAB, (2, 4))
    a, b, c = (model.generate(prompt, 20, temperature=1.0, seed=s) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (2, 24)
    greedy = model.generate(prompt, 20, temperature=0)
    with torch.no_grad():
        logits, _ = model(greedy[:, :-1])
    assert torch.equal(logits.argmax(-1)[:, 3:], greedy[:, 4:])


def test_a_state_of_another_model_or_batch_is_refused():
    model, other = star.build(genome("1-9"), VOCAB), star.build(genome("1-9-9"), VOCAB)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="3 layers and the model 2"):
        model(tokens, other.init_state(2, 8))
    with pytest.raises(ValueError, match="batch 1 and the tokens have batch 2"):
        model(tokens, model.init_state(1, 8))


def test_a_state_of_another_shape_or_dtype_is_refused():
    model, other = star.build(genome("1-9"), VOCAB), star.build(genome("5-9"), VOCAB)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="layer 0 keeps"):
        model(tokens, other.init_state(2, 8))
    with pytest.raises(ValueError, match=r"holds torch.bfloat16 and layer 0 computes it in torch.float32"):
        model(tokens, model.init_state(2, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="the state is on meta and layer 0 on cpu"):
        model(tokens, model.init_state(2, 8, device=torch.device("meta")))
    wider = star.build(Genome(parse_text("1-9"), 128, 16), VOCAB)
    with pytest.raises(ValueError, match=r"layer 0 keeps k of \[4, 16\] and the state of \[8, 16\]"):
        model(tokens, wider.init_state(2, 8))


def test_inputs_that_no_model_can_take_are_one_sentence():
    model = star.build(genome("1-9"), VOCAB)
    for tokens, message in (
        (torch.zeros(2, 3), "tokens are torch.float32"),
        (torch.zeros(3, dtype=torch.int64), r"of shape \[3\]"),
        (torch.zeros(2, 3, dtype=torch.int64, device="meta"), "tokens are on meta and the model on cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens)
    liv = model.blocks[0].liv
    with pytest.raises(ValueError, match=r"x has shape \[1, 3, 32\] and this operator takes \[batch, tokens, 64\]"):
        liv(torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="x is on meta and the operator on cpu"):
        liv(torch.zeros(1, 3, 64, device="meta"))


def test_a_state_that_does_not_fit_an_operator_is_one_sentence():
    attention, window, recurrence = (star.build(genome(text), VOCAB).blocks[0].liv for text in ("1", "30", "5"))
    x = torch.zeros(2, 3, 64)
    for liv, state, offset, message in (
        (attention, recurrence.init_state(2, 8), 0, r"this operator keeps \['k', 'v'\] and the state has"),
        (recurrence, recurrence.init_state(1, 8), 0, "the state was made for batch 1 and the tokens have batch 2"),
        (
            recurrence,
            recurrence.init_state(2, 8, torch.bfloat16),
            0,
            "b_filter of the state holds torch.bfloat16 and this operator computes it in torch.float32",
        ),
        (
            recurrence,
            recurrence.init_state(2, 8, device=torch.device("meta")),
            0,
            "the state is on meta and this operator on cpu",
        ),
        (attention, attention.init_state(2, 2), 0, "the state has room for 2 tokens and this call ends at token 3"),
        (attention, attention.init_state(2, 8), 7, "the state has room for 8 tokens and this call ends at token 10"),
        (window, window.init_state(2, 8), 7, "the state has room for 8 tokens and this call ends at token 10"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            liv(x, state, None, offset)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"x is torch\.int64; give floating-point numbers"):
        attention(x.long())
    consumer = shares("10014-90000-10014").blocks[2].liv
    with pytest.raises(ValueError, match="this operator takes k, v from a provider and none are given"):
        consumer(x.double())


def test_a_class_that_does_not_fit_the_width_says_so():
    with pytest.raises(UserError, match="SA-3: attention: width 48 is no multiple of head width 16 x repeat 4"):
        resolve(Genome((Gene(3),), 48, 16))


def test_a_named_genome_builds_at_another_size():
    model = star.build(load_genome("lfm2-350m", d_model=64, depth=6), VOCAB)
    logits, state = model(torch.zeros(1, 4, dtype=torch.int64))
    logits, state = model(torch.zeros(1, 1, dtype=torch.int64), state)
    assert logits.shape == (1, 1, VOCAB) and state.length == 5


def test_learned_positions_and_layer_norm():
    """Whole, chunks and steps agree; costs are exact; beyond the last position is one sentence."""
    layout = star.load_genome("gpt-2", d_model=32, depth=4, head_dim=8)
    model = star.build(replace(layout, positions=24), VOCAB, seed=0).eval()
    assert sum(p.numel() for p in model.parameters()) == star.costs(model.plan, VOCAB).parameters
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = torch.randint(VOCAB, (2, 24))
        whole, state = model(tokens)
        pieces, carried = [], None
        for piece in tokens.split((7, 1, 1, 15), dim=1):
            logits, carried = model(piece, carried)
            pieces.append(logits)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    with pytest.raises(ValueError, match="this model has 24 learned positions and the sequence 25 tokens; give fewer"):
        model(tokens[:, :1], state)
    with pytest.raises(ValueError, match="the sequence 30 tokens"):
        model.generate(tokens[:, :10], 20)
    with pytest.raises(UserError, match="give fewer, such as --tokens 21"):
        sample(star.build(replace(layout, positions=24), 256), "abc", 30)


def test_an_untied_head_is_a_gene_that_an_argument_overrides():
    layout = replace(star.load_genome("1-9", d_model=64, head_dim=16), embedding=2)
    for given, tied in ((None, False), (True, True), (False, False)):
        model = star.build(layout, VOCAB, tie_embeddings=given)
        assert model.tie_embeddings == tied and hasattr(model, "head") != tied
        counted = star.costs(layout, VOCAB, tie_embeddings=given).parameters
        assert sum(p.numel() for p in model.parameters()) == counted


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 0}, {"top_k": -1}, {"temperature": -1.0}, {"temperature": float("nan")}, {"n_tokens": -1}],
    ids=str,
)
def test_sampling_that_means_nothing_is_one_sentence(changes):
    model = star.build(genome("1-9"), VOCAB)
    with pytest.raises(ValueError, match="must be at least 0 and finite, and top_k at least 1"):
        model.generate(torch.zeros(1, 2, dtype=torch.int64), **({"n_tokens": 3} | changes))


def test_prompts_of_every_integer_type_and_the_lowest_temperature():
    model = star.build(genome("1-9"), VOCAB).eval()
    prompt = torch.tensor([[1, 2, 3]])
    expected = model.generate(prompt, 5, temperature=0.0)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        assert torch.equal(model.generate(prompt.to(dtype), 5, temperature=0.0), expected)
        assert model.loss(prompt.to(dtype), prompt.to(dtype)).isfinite()
    assert torch.equal(model.generate(prompt, 5, temperature=1e-320), expected)
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate(prompt[:, :0], 5)
    with pytest.raises(ValueError, match=r"give integer ids of shape \[batch, tokens\]"):
        model.generate(prompt[0], 5)
