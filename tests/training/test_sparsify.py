"""Sparsification of attention: scores equal dense autograd, limits are exact, and the edited genome is the model."""

import copy
import functools
import json

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import star
from star.errors import UserError
from star.genome import Genome, parse_text, resolve
from star.liv.attention import softmax_attention
from star.training.attention_scores import (
    FULL,
    N_BUCKETS,
    WINDOWS,
    HeadLimits,
    attention_livs,
    head_mask,
    sample_scores,
    scores,
)
from star.training.sparsify import FADE, FREEZE, START, UPDATES, HeadScores, Sparsifier

CPU = torch.device("cpu")
TEXTS = {
    "multi-head": "1-9",
    "grouped-query": "3-9-4",
    "filtered": "2-9",
    "windowed": "29-9-34",
    "differential": "10-9-12",
    "one key head": "28-25",
    "keys and values shared": "1.0.0.1.4-9-1.0.0.1.4",
    "keys shared": "10.0.0.1.2-9-10.0.0.1.2",
    "weights shared": "1.1.2.0.0-9-1.1.2.0.0",
}


def model_of(text: str, seed: int = 0, d_model: int = 32, head_dim: int = 8) -> torch.nn.Module:
    return star.build(Genome(parse_text(text), d_model=d_model, head_dim=head_dim), vocab_size=17, seed=seed)


def batch_of(seq_len: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 17, (batch, seq_len + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


class Dense:
    """Textbook attention with an explicit matrix A, so that autograd returns dL/dA."""

    def __init__(self, windows: list[int | None] | None = None):
        self.windows, self.weight, self.output = windows, None, None

    def __call__(self, q, k, v, window):
        n_heads, seq_len, visible = q.shape[1], q.shape[2], k.shape[2]
        k, v = (t.repeat_interleave(n_heads // t.shape[1], 1) for t in (k, v))
        limits = [min(w or FULL, window or FULL) for w in self.windows or [None] * n_heads]
        logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
        rows = []
        for head, limit in enumerate(limits):
            queries = range(visible - seq_len, visible)
            keep = torch.tensor([[0 <= i - j < limit for j in range(visible)] for i in queries])
            rows.append(logits[:, head].masked_fill(~keep, -torch.inf).softmax(-1))
        self.weight = torch.stack(rows, 1)
        self.weight.retain_grad() if self.weight.requires_grad else None
        self.output = torch.einsum("bhij,bhjd->bhid", self.weight, v)
        self.output.retain_grad() if self.output.requires_grad else None
        return self.output


def dense_scores(weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """|A dA| summed by head and distance, element by element."""
    score, result = (weight * grad).abs().sum(0), torch.zeros(weight.shape[1], N_BUCKETS, dtype=torch.float64)
    for i in range(score.shape[1]):
        for j in range(i + 1):
            result[:, sum(i - j >= w for w in WINDOWS)] += score[:, i, j]
    return result


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_scores_equal_dense_autograd(text):
    model, (inputs, targets) = model_of(text).double(), batch_of(70)
    measured = sample_scores(model, inputs, targets)
    livs = attention_livs(model)
    for liv in livs.values():
        liv.attend = Dense()
    model.loss(inputs, targets).backward()
    for layer, liv in livs.items():
        dense = liv.attend
        torch.testing.assert_close(measured[layer], dense_scores(dense.weight, dense.weight.grad), rtol=1e-9, atol=0)
        identity = (dense.weight * dense.weight.grad).sum(-1), (dense.output.grad * dense.output).sum(-1)
        torch.testing.assert_close(*identity, rtol=1e-9, atol=1e-15)
    assert measured.keys() == livs.keys() and all(score.sum() > 0 for score in measured.values())


@pytest.mark.parametrize("windows", [[16, 32, None, 3, 1, 40], [16, 4, 7, 3, 1, 16]])
@pytest.mark.parametrize("block", [1, 7, 40, 128])
def test_scores_do_not_depend_on_the_block_and_respect_windows_and_the_past(block, windows):
    generator = torch.Generator().manual_seed(0)
    q, grad = (torch.randn(2, 6, 40, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    k, v = (torch.randn(2, 3, 59, 8, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    dense = Dense(windows)
    (dense(q, k, v, None) * grad).sum().backward()
    expected = torch.zeros(6, N_BUCKETS, dtype=torch.float64)
    score = (dense.weight * dense.weight.grad).abs().sum(0)
    for i in range(40):
        for j in range(59):
            expected[:, sum(i + 19 - j >= w for w in WINDOWS)] += score[:, i, j]
    measured = scores(q, k, v, grad, torch.tensor([w or FULL for w in windows]), block)
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-300)


def test_recomputed_activations_are_scored_like_kept_ones():
    model, batch = model_of("1-9-1.0.0.1.4-1.0.0.1.4"), batch_of(40)
    kept = sample_scores(model, *batch)
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    recomputed = sample_scores(model, *batch)
    assert all(torch.equal(kept[layer], recomputed[layer]) for layer in kept)


def test_bfloat16_activations_are_scored_in_float32():
    model, batch = model_of("1-9-3"), batch_of(40)
    exact = sample_scores(model, *batch)
    model.compute_dtype = torch.bfloat16
    for layer, score in sample_scores(model, *batch).items():
        assert (score - exact[layer]).abs().sum() < 0.03 * exact[layer].sum()


def test_a_fading_head_keeps_its_full_score():
    model, batch = model_of("1").double(), batch_of(40)
    whole = sample_scores(model, *batch)[0]
    model.blocks[0].liv.attend = HeadLimits.make([None] * 4, [0.0, 1.0, 1.0, 1.0], CPU)
    assert sample_scores(model, *batch)[0][0].sum() > 0.1 * whole[0].sum()


def test_sampling_does_not_change_weights_gradients_limits_and_generators():
    model, batch = model_of("1-9-3"), batch_of(40)
    model.loss(*batch).backward()
    limits = model.blocks[2].liv.attend = HeadLimits.make([16, None, 32, 16], [1.0, 1.0, 0.5, 1.0], CPU)
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
    generator = torch.get_rng_state()
    with torch.no_grad():
        sample_scores(model, *batch)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and torch.equal(p.grad, before[name][1])
    assert model.blocks[0].liv.attend is None and model.blocks[2].liv.attend is limits


WINDOW_SETS = [[16, 16, 16, 16], [16, None, 32, 16], [64, 16, None, None], [None] * 4]


@pytest.mark.parametrize("windows", WINDOW_SETS)
@pytest.mark.parametrize("window", [None, 32])
@pytest.mark.parametrize("kv_heads, past", [(4, 0), (2, 0), (1, 25), (4, 25)])
def test_limited_attention_equals_dense_attention_with_these_limits(windows, window, kv_heads, past):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 70, 8, dtype=torch.float64, generator=generator)
    k, v = (torch.randn(2, kv_heads, 70 + past, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    gains = [1.0, 0.5, 0.0, 1.0]
    factors = torch.tensor(gains)[:, None, None]
    expected = Dense(windows)(q, k, v, window) * factors
    limits = HeadLimits.make(windows, gains, CPU)
    torch.testing.assert_close(limits(q, k, v, window), expected, rtol=1e-9, atol=1e-12)
    if len(set(windows)) > 1:
        torch.testing.assert_close(limits.masked(q, k, v, window) * factors, expected, rtol=1e-9, atol=1e-12)


def test_one_window_for_all_heads_is_bit_identical_to_a_liv_with_it():
    q, k, v = (torch.randn(2, 4, 100, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for window in (16, 64, None):
        limits = HeadLimits.make([window] * 4, [1.0] * 4, CPU)
        assert torch.equal(limits(q, k, v, None), softmax_attention(q, k, v, window))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_new_windows_need_no_recompilation():
    liv = model_of("1").blocks[0].liv
    x = torch.randn(1, 70, 32, generator=torch.Generator().manual_seed(0))
    torch._dynamo.reset()
    compiled = torch.compile(liv, fullgraph=True, dynamic=False, backend="aot_eager")
    for n, windows in enumerate(WINDOW_SETS[1:3]):
        liv.attend = HeadLimits.make(windows, [1.0, 1.0, 1.0, 0.25 * n], CPU)
        with torch._dynamo.config.patch(error_on_recompile=n > 0):
            torch.testing.assert_close(compiled(x)[0], liv(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_layers_are_sampled_uncompiled_and_stay_compiled():
    model, batch = model_of("1-9-3"), batch_of(40)
    model.blocks[2].liv.attend = HeadLimits.make([16, None, 32, 16], [1.0, 1.0, 0.5, 1.0], CPU)
    eager = sample_scores(model, *batch)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    loss = model.loss(*batch)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = sample_scores(model, *batch)
        assert torch.equal(model.loss(*batch), loss)
    assert all(torch.equal(compiled[layer], eager[layer]) for layer in eager)


def test_a_limited_model_decodes_like_its_forward():
    model, (inputs, _) = model_of("1-29-3"), batch_of(50)
    model.blocks[0].liv.attend = HeadLimits.make([16, None, 32, 16], [1.0, 0.5, 0.0, 1.0], CPU)
    model.blocks[2].liv.attend = HeadLimits.make([16] * 4, [1.0] * 4, CPU)
    whole, _ = model(inputs)
    state, parts = None, []
    for part in inputs.split([30, 1, 1, 18], dim=1):
        logits, state = model(part, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


# The rules for windows and heads.


def rows_of(score: list[list[float]]) -> torch.Tensor:
    """Scores [H, N_BUCKETS], with zeros after the given ones."""
    return torch.tensor([row + [0.0] * (N_BUCKETS - len(row)) for row in score], dtype=torch.float64)


def heads_with(score: list[list[float]]) -> HeadScores:
    heads = HeadScores(None, None, [None] * len(score), [0] * len(score))
    heads.observe(rows_of(score))
    return heads


def test_a_window_is_the_smallest_that_cuts_off_at_most_tau():
    score = [[90.0, 6.0, 3.0, 1.0], [1.0, 0.0, 0.0, 99.0], [1.0, 0.0, 0.0, 0.0]]
    for tau, expected in ((0.0, [128, 128, 16]), (0.01, [64, 128, 16]), (0.05, [32, 128, 16]), (0.1, [16, 128, 16])):
        heads = heads_with(score)
        heads.tighten(tau, 0.0, seq_len=1024)
        assert heads.windows == expected
    heads = heads_with(score)
    heads.tighten(0.05, 0.0, seq_len=128)
    assert heads.windows == [32, None, 16]  # a window of the whole context says nothing about longer contexts


def test_tau_bounds_all_updates_together():
    score = [70.0, 20.0, 6.0, 4.0]
    heads = heads_with([score])
    for _ in range(50):
        heads.tighten(0.05, 0.0, seq_len=1024)
        window = heads.windows[0]
        heads.observe(rows_of([[s if w < window else 0.0 for s, w in zip(score, (0, *WINDOWS), strict=False)]]))
    assert heads.windows == [64]
    torch.testing.assert_close(heads.share, rows_of([score]) / 100, rtol=1e-9, atol=0)


def test_buckets_inside_the_window_are_still_averaged():
    heads = heads_with([[60.0, 36.0, 4.0]])
    heads.tighten(0.04, 0.0, seq_len=1024)
    for _ in range(100):
        heads.observe(rows_of([[1.0, 3.0]]))
    torch.testing.assert_close(heads.share, rows_of([[0.24, 0.72, 0.04]]), rtol=1e-6, atol=0)


def test_weak_heads_fade_to_exactly_zero_and_stay_there():
    heads, weak, strong = heads_with([[10.0], [0.1], [10.0]]), [[10.0], [0.1], [10.0]], [[10.0], [1e9], [10.0]]
    gains = []
    for _ in range(FADE + 2):
        heads.tighten(0.0, 0.05, seq_len=64)
        gains.append(heads.gains[1])
        heads.observe(rows_of(weak))
    assert gains == [0.75, 0.5, 0.25, 0.0, 0.0, 0.0] and heads.gains == [1, 0, 1]
    for _ in range(30):
        heads.observe(rows_of(strong))
        heads.tighten(0.0, 0.5, seq_len=64)
    assert heads.gains == [1, 0, 1]  # a dropped head does not count in the mean


def test_a_head_that_recovers_is_kept():
    heads = heads_with([[10.0], [0.1]])
    heads.tighten(0.0, 0.05, seq_len=64)
    for _ in range(10):
        heads.observe(rows_of([[10.0], [10.0]]))
    heads.tighten(0.0, 0.05, seq_len=64)
    assert heads.gains == [1, 1]


def test_a_score_that_is_not_finite_is_ignored():
    heads = heads_with([[3.0, 1.0]])
    heads.observe(torch.full((1, N_BUCKETS), torch.nan, dtype=torch.float64))
    assert heads.share[0, :2].tolist() == [0.75, 0.25]


# The controller in a run.


def run(model, tau=0.3, floor=0.3, steps=60, start=0, sparsifier=None, stop=None, seq_len=70):
    """A deterministic training loop of `steps` batches with a sparsifier, which may be loaded, from step `start`."""
    total = steps * 2 * seq_len
    sparsifier = sparsifier or Sparsifier(model, tau, floor, total)
    updates = []
    for step in range(start, steps if stop is None else stop):
        inputs, targets = batch_of(seq_len, seed=step)
        tokens = step * 2 * seq_len
        if sparsifier.due(tokens):
            sparsifier.update(model, inputs, targets, tokens)
            updates.append(tokens / total)
        model.zero_grad()
        model.loss(inputs, targets).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return sparsifier, updates


@pytest.fixture(scope="module")
def finished():
    """A run of a model in which one head of the first LIV has little effect."""
    model = model_of("1-9-3")
    with torch.no_grad():
        model.blocks[0].liv.out[:, 8:16] *= 0.02
    sparsifier, updates = run(model)
    return model, sparsifier, updates


def test_phases_dense_then_tightened_then_frozen(finished):
    _, sparsifier, updates = finished
    assert 0.1 <= updates[0] < START and FREEZE <= updates[-1] < FREEZE + 0.05 and len(updates) == UPDATES
    assert sparsifier.frozen and not sparsifier.due(sparsifier.total_tokens)
    dense = model_of("1-9-3")
    early, _ = run(dense, stop=int(START * 60))
    assert early.updates > 0 and all(liv.attend is None for liv in attention_livs(dense).values())
    assert all(heads.windows == [None] * 4 for heads in early.layers.values())


def test_tau_and_floor_grow_on_a_cubic(monkeypatch):
    """Compared with the formula on constant scores, halved from bucket to bucket; one head has 7 % of the mean."""
    score = torch.tensor([[0.5**n for n in range(N_BUCKETS)]] * 3, dtype=torch.float64)
    score[1] *= 0.07 / score[1].sum()
    score[0] *= 1 / score[0].sum()
    score[2] *= 1.93 / score[2].sum()
    seen = []

    def constant_scores(model, inputs, targets):
        seen.append(inputs.shape)
        return {0: score.clone()}

    monkeypatch.setattr("star.training.sparsify.sample_scores", constant_scores)
    model = star.build(Genome(parse_text("1"), d_model=24, head_dim=8), vocab_size=17)
    sparsifier, tau, floor, fading = Sparsifier(model, 0.4, 0.1, 1000, sequences=3), 0.4, 0.1, 0
    for tokens in range(0, 1000, 5):
        if not sparsifier.due(tokens):
            continue
        sparsifier.update(model, *batch_of(2000, batch=4), tokens)
        p = (tokens / 1000 - 0.15) / 0.45
        ramp = 1 - (1 - p) ** 3 if p >= 0 else -1
        total = sum(0.5**m for m in range(N_BUCKETS))
        cut = {w: sum(0.5**m for m in range(n + 1, N_BUCKETS)) / total for n, w in enumerate(WINDOWS)}
        fading = min(FADE, fading + 1) if ramp * floor > 0.07 else 0
        if tokens < 600:
            heads = sparsifier.layers[0]
            assert heads.windows[0] == next((w for w in WINDOWS if w < 2000 and cut[w] <= max(ramp, -1) * tau), None)
            assert heads.faded == [0, fading, 0]
    assert heads.windows == [32] * 3 and heads.gains == [1, 0, 1] and set(seen) == {(3, 2000)}


def test_sharing_livs_get_the_largest_window_that_one_of_them_needs():
    model = model_of("1.0.0.1.4-9-1.0.0.1.4-1-1")
    sparsifier = Sparsifier(model, 0.1, 0.1, 1000)
    for layer, windows in {0: [16] * 4, 2: [16, 64, 32, 16], 3: [16, 32, 16, 16], 4: [16, None, 16, 16]}.items():
        sparsifier.layers[layer].windows = windows
    sparsifier.finish()
    settled = {layer: heads.windows for layer, heads in sparsifier.layers.items()}
    assert settled == {0: [64] * 4, 2: [64] * 4, 3: [32] * 4, 4: [None] * 4}
    layers = resolve(sparsifier.edited_genome()).layers
    assert [layer.config.window for layer in layers if layer.index != 1] == [64, 64, 32, None]


def test_before_the_first_limit_training_is_bit_identical_to_a_plain_run():
    plain, observed = model_of("1-9-3"), model_of("1-9-3")
    run(plain, sparsifier=Sparsifier(plain, 0.3, 0.3, 10**9), stop=int(START * 60))
    run(observed, stop=int(START * 60))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), observed.parameters(), strict=True))


def test_the_edited_genome_with_the_same_weights_is_the_sparsified_model(finished):
    model, sparsifier, _ = finished
    trained, batch = copy.deepcopy(model), batch_of(70, batch=8, seed=999)
    summary = sparsifier.summary()
    assert 1 in summary["layers"][0]["dropped"]
    with torch.no_grad():
        before = trained.loss(*batch)
        sparsifier.finish()
        genome = sparsifier.edited_genome()
        edited = star.build(genome, vocab_size=17)
        edited.load_state_dict(model.state_dict())
        assert abs(edited.loss(*batch) - before) <= 1e-6
        assert abs(model_with(model.state_dict(), "1-9-3").loss(*batch) - before) > 1e-5  # the windows have an effect
    assert genome != model.genome
    assert all(layer.config.window for layer in resolve(genome).layers if layer.config.state())
    now, then = (star.costs(g, vocab_size=17, seq_len=70) for g in (model.genome, genome))
    assert then.cache_bytes < now.cache_bytes and then.parameters == now.parameters
    assert summary["cache_saved"] == 1 - then.cache_bytes / now.cache_bytes


def model_with(weights, text):
    model = model_of(text)
    model.load_state_dict(weights)
    return model


def test_a_run_continues_exactly_from_its_state():
    straight, stopped = model_of("1-9-3"), model_of("1-9-3")
    whole, _ = run(straight)
    part, _ = run(stopped, stop=23)
    text = json.dumps(part.state(), allow_nan=False)
    fresh = model_with(stopped.state_dict(), "1-9-3")
    loaded = Sparsifier(fresh, 0.3, 0.3, part.total_tokens)
    loaded.load(json.loads(text))
    assert any(liv.attend for liv in attention_livs(fresh).values())
    run(fresh, start=23, sparsifier=loaded)
    assert loaded.state() == whole.state()
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), fresh.parameters(), strict=True))
    with pytest.raises(UserError, match="other attention heads"):
        Sparsifier(model_of("1"), 0.3, 0.3, 100).load(json.loads(text))


def test_processes_of_a_distributed_run_set_the_same_limits(monkeypatch):
    """Two processes get the limits of one with both batches; here the other process only adds its scores."""
    batches = [batch_of(70, seed=rank) for rank in range(2)]
    pooled = Sparsifier(model_of("1-9-3"), 0.3, 0.3, 1000, sequences=4)
    pooled.update(pooled.model, *(torch.cat(parts) for parts in zip(*batches, strict=True)), 300)
    alone = Sparsifier(model_of("1-9-3"), 0.3, 0.3, 1000)
    others = iter(sample_scores(alone.model, *batches[1]).values())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda score: score.add_(next(others)))
    alone.update(alone.model, *batches[0], 300)
    for layer, heads in pooled.layers.items():
        torch.testing.assert_close(alone.layers[layer].share, heads.share, rtol=1e-5, atol=1e-7)
        assert alone.layers[layer].windows == heads.windows


def test_a_run_that_ends_early_keeps_heads_that_are_not_yet_dropped():
    model = model_of("1-9-1")
    sparsifier = Sparsifier(model, 0.1, 0.1, 1000)
    for layer, heads in sparsifier.layers.items():
        heads.windows, heads.faded = [16, 32, 16, 16 if layer else None], [FADE, 0, 2, FADE]
    sparsifier.finish()
    assert [heads.gains for heads in sparsifier.layers.values()] == [[0, 1, 1, 0]] * 2
    columns = model.blocks[0].liv.out.view(32, 4, 8)
    assert not columns[:, 0].any() and not columns[:, 3].any() and columns[:, 1].any() and columns[:, 2].any()
    # The head that needs all keys is dropped, so it no longer decides the window of its LIV.
    assert [layer["windows"] for layer in sparsifier.summary()["layers"]] == [[32] * 4] * 2


def test_a_model_without_attention_is_not_changed():
    model = model_of("5-9-7")
    sparsifier, updates = run(model, steps=3)
    sparsifier.finish()
    assert not updates and sparsifier.edited_genome() is model.genome and sparsifier.summary()["cache_saved"] == 0.0
    assert sparsifier.state()["layers"] == {}


@pytest.mark.parametrize("setting", [{"tau": -0.1}, {"tau": 0.95}, {"head_floor": 0.6}, {"total_tokens": 0}])
def test_settings_out_of_bounds(setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} is {next(iter(setting.values()))}"):
        Sparsifier(model_of("1"), **({"tau": 0.1, "head_floor": 0.1, "total_tokens": 100} | setting))


def test_head_mask():
    assert head_mask(2, 3, torch.tensor([1, 2, FULL])).int().tolist() == [
        [[0, 1, 0], [0, 0, 1]],
        [[1, 1, 0], [0, 1, 1]],
        [[1, 1, 0], [1, 1, 1]],
    ]


def test_attention_with_sinks_is_left_alone():
    """Its scores have one more logit, which the estimates here do not know."""
    model = star.build(Genome(parse_text("67-9-1-65"), 128, 16), 50)
    assert sorted(attention_livs(model)) == [2, 3]
