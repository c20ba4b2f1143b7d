"""Every fast form against its definition, at many lengths and gate strengths; error messages for illegal genes."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from star.errors import UserError
from star.genome import Gene, Genome, gene_table
from star.genome.classes import FEATURIZERS, POOL, operator, random_operator
from star.liv import FAMILIES, FeatureGenes, memoryless
from star.liv.attention import banded_attention, causal_mask, softmax_attention
from star.liv.convolution import modal_convolution, modal_kernel, modal_step
from star.liv.delta import delta_parallel, delta_reference
from star.liv.elementwise import scan_parallel, scan_reference
from star.liv.functional import carried, carried_by_matrix, rms_norm, short_convolution
from star.liv.ssd import ssd_parallel, ssd_reference
from star.liv.vector_gate import vector_gate_parallel, vector_gate_reference

LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 129, 300)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return F.normalize(x, dim=-1)


def recurrence_inputs(
    kind, seq_len, strength, dtype=torch.float64, heads=4, groups=2, state=5, width=3, correlated=0.0
):
    """Arguments of a parallel form: keys and values of unit size, log decays of about -strength."""
    keys = heads if kind != "ssd" else groups
    c, b = randn(2, seq_len, keys, state, seed=1), randn(2, seq_len, keys, state, seed=2)
    b = b * (1 - correlated) + correlated * randn(2, 1, keys, state, seed=6)
    v = randn(2, seq_len, heads, width, seed=3)
    gate = randn(2, seq_len, heads, *([state] if kind in ("vector", "channel delta") else []), seed=4).abs() * strength
    g = -gate.clamp(max=5.0 if kind == "vector" else 20.0)
    memory = randn(2, heads, state, width, seed=5)
    inputs = [c, b, v, g, memory]
    if "delta" in kind:
        inputs = [c, unit(b), v, g, torch.sigmoid(randn(2, seq_len, heads, seed=7)), memory]
    return [t.to(dtype) for t in inputs]


FORMS = {
    "ssd": (ssd_parallel, ssd_reference),
    "vector": (vector_gate_parallel, vector_gate_reference),
    "delta": (delta_parallel, delta_reference),
    "channel delta": (delta_parallel, delta_reference),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("seq_len", LENGTHS)
def test_parallel_form_is_the_token_loop(kind, seq_len):
    """Outputs, last state and all gradients, with and without an earlier state."""
    parallel, reference = FORMS[kind]
    for strength in (0.02, 3.0):
        inputs = [t.requires_grad_() for t in recurrence_inputs(kind, seq_len, strength)]
        for n in (len(inputs), len(inputs) - 1):
            (y, memory), (y_, memory_) = parallel(*inputs[:n]), reference(*inputs[:n])
            assert torch.allclose(y, y_, atol=1e-11) and torch.allclose(memory, memory_, atol=1e-11)
            gradients, gradients_ = (
                torch.autograd.grad((a.sin().sum() + m.cos().sum()), inputs[:n])
                for a, m in ((y, memory), (y_, memory_))
            )
            for a, b in zip(gradients, gradients_):
                assert torch.allclose(a, b, atol=1e-9)
        without, none = parallel(*inputs, False)
        assert torch.allclose(without, parallel(*inputs)[0], atol=1e-12) and none is None
        for a, b in zip(
            torch.autograd.grad(without.sum(), inputs), torch.autograd.grad(parallel(*inputs)[0].sum(), inputs)
        ):
            assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_states_between_chunks_are_those_of_the_matrix_of_decays(n):
    """The loop of the CPU and the matrix of the GPU, with one decay per head and with one per state channel."""
    for n_decays in (1, 4):
        inputs = [-randn(2, 3, n, n_decays, 1).abs(), randn(2, 3, n, 4, 5, seed=1), randn(2, 3, 4, 5, seed=2)]
        inputs = [t.detach().requires_grad_() for t in inputs]
        loop, matrix = carried(*inputs), carried_by_matrix(*inputs)
        assert torch.allclose(loop, matrix)
        for a, b in zip(torch.autograd.grad(loop.sin().sum(), inputs), torch.autograd.grad(matrix.sin().sum(), inputs)):
            assert torch.allclose(a, b)


@pytest.mark.parametrize("kind", ["ssd", "delta"])
def test_without_decay_is_decay_zero(kind):
    parallel, reference = FORMS[kind]
    inputs = recurrence_inputs(kind, 150, 0.0)
    without = [None if i == 3 else t for i, t in enumerate(inputs)]
    assert torch.allclose(parallel(*without)[0], parallel(*inputs)[0]) and torch.allclose(
        reference(*without)[0], parallel(*inputs)[0]
    )


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_scan_is_the_token_loop(seq_len):
    for strength in (0.01, 16.0):
        u, memory = randn(2, seq_len, 6).requires_grad_(), randn(2, 6, seed=2).requires_grad_()
        g = (-randn(2, seq_len, 6, seed=3).abs() * strength).clamp(min=-16.0).requires_grad_()
        for inputs in ((u, g), (u, g, memory)):
            (h, last), (h_, last_) = scan_parallel(*inputs), scan_reference(*inputs)
            assert torch.allclose(h, h_, atol=1e-12) and torch.allclose(last, last_, atol=1e-12)
            for a, b in zip(torch.autograd.grad(h.sin().sum(), inputs), torch.autograd.grad(h_.sin().sum(), inputs)):
                assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("seq_len", LENGTHS)
def test_modal_convolution_is_its_filter(seq_len):
    """Against one long causal convolution with K_t, and against the token loop from the last state."""
    u, poles = randn(2, seq_len, 3), [randn(3, 4, seed=s) for s in (1, 2, 3, 4)]
    y, state = modal_convolution(u, *poles)
    kernel = modal_kernel(*poles, seq_len)
    expected = torch.stack(
        [torch.einsum("bjw,wj->bw", u[:, : t + 1].flip(1), kernel[:, : t + 1]) for t in range(seq_len)], dim=1
    )
    assert torch.allclose(y, expected, atol=1e-11)
    more = randn(2, 70, 3, seed=5)
    together = modal_convolution(torch.cat([u, more], dim=1), *poles)[0][:, seq_len:]
    assert torch.allclose(modal_convolution(more, *poles, past=state)[0], together, atol=1e-11)
    for t in range(5):
        y, state = modal_step(more[:, t : t + 1], *poles, state)
        assert torch.allclose(y, together[:, t : t + 1], atol=1e-11)


@pytest.mark.parametrize(
    "seq_len, past, window", [(33, 0, 16), (33, 15, 16), (100, 7, 16), (17, 3, 16), (64, 0, 32), (5, 3, 2), (40, 0, 1)]
)
def test_banded_attention_is_the_dense_mask(seq_len, past, window):
    q = randn(2, 6, seq_len, 8).requires_grad_()
    k, v = (
        randn(2, 2, past + seq_len, 8, seed=1).requires_grad_(),
        randn(2, 2, past + seq_len, 8, seed=2).requires_grad_(),
    )
    mask = causal_mask(seq_len, past + seq_len, window, q.device)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    for y in (banded_attention(q, k, v, window), softmax_attention(q, k, v, window)):
        assert torch.allclose(y, expected, atol=1e-13)
        for a, b in zip(
            torch.autograd.grad(y.sin().sum(), (q, k, v)),
            torch.autograd.grad(expected.sin().sum(), (q, k, v), retain_graph=True),
        ):
            assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("seq_len, past, window", [(1, 0, None), (1, 20, 8), (17, 0, None), (9, 20, 8), (70, 11, 8)])
def test_a_sink_is_one_more_logit_with_value_zero(seq_len, past, window):
    """Every form against a softmax with one more column, output and gradients."""
    q, k, v = randn(2, 4, seq_len, 6), randn(2, 2, past + seq_len, 6, seed=1), randn(2, 2, past + seq_len, 6, seed=2)
    inputs = [t.requires_grad_() for t in (q, k, v, randn(4, seed=3))]
    mask = causal_mask(seq_len, past + seq_len, window, q.device)
    scores = (q @ k.repeat_interleave(2, 1).mT / 6**0.5).masked_fill(~mask, -torch.inf)
    scores = torch.cat([scores, inputs[3][:, None, None].expand(2, 4, seq_len, 1)], -1)
    expected = scores.softmax(-1)[..., :-1] @ v.repeat_interleave(2, 1)
    y = softmax_attention(q, k, v, window, inputs[3])
    assert torch.allclose(y, expected, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(t.square().sum(), inputs) for t in (y, expected)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-11)


def test_short_convolution_is_a_depthwise_convolution():
    for length, seq_len in itertools.product((1, 2, 3, 7), (1, 2, 5, 20)):
        x, w, past = (
            randn(2, seq_len, 4).requires_grad_(),
            randn(4, length, seed=1).requires_grad_(),
            randn(2, length - 1, 4, seed=2),
        )
        for before in (None, past):
            padded = F.pad(x, (0, 0, length - 1, 0)) if before is None else torch.cat([before, x], dim=1)
            expected = F.conv1d(padded.transpose(1, 2), w[:, None], groups=4).transpose(1, 2)
            y, kept = short_convolution(x, w, before)
            assert torch.allclose(y, expected) and torch.equal(kept, padded[:, seq_len:])
            for a, b in zip(
                torch.autograd.grad(y.sin().sum(), (x, w)), torch.autograd.grad(expected.sin().sum(), (x, w))
            ):
                assert torch.allclose(a, b)
    assert torch.autograd.gradgradcheck(
        lambda x, w: short_convolution(x, w)[0], (randn(1, 5, 2).requires_grad_(), randn(2, 3, seed=1).requires_grad_())
    )


def test_rms_norm_is_that_of_torch():
    x = randn(2, 5, 3, 8).requires_grad_()
    for shape in ((8,), (3, 8)):
        w = randn(*shape, seed=1).requires_grad_()
        y, expected = rms_norm(x, w, 1e-5), F.rms_norm(x, (8,), None, 1e-5) * w
        assert torch.allclose(y, expected)
        for a, b in zip(torch.autograd.grad(y.sin().sum(), (x, w)), torch.autograd.grad(expected.sin().sum(), (x, w))):
            assert torch.allclose(a, b)


# Numerics, in float32 against a float64 token loop


def float32_error(kind, **options):
    """Largest error of the float32 parallel form, and whether all its gradients are finite."""
    parallel, reference = FORMS[kind]
    inputs = recurrence_inputs(kind, 256, **options)
    exact, _ = reference(*inputs)
    single = [t.float().requires_grad_() for t in inputs]
    y, _ = parallel(*single)
    finite = all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), single))
    return ((y.double() - exact).abs().max() / exact.abs().max()).item(), finite


@pytest.mark.parametrize(
    "kind, strength, bound",
    [("ssd", 0.1, 1e-6), ("ssd", 1e4, 1e-5), ("vector", 0.1, 2e-6), ("vector", 1e4, 5e-6), ("delta", 0.1, 1e-6)]
    + [("channel delta", strength, bound) for strength, bound in ((0.1, 1e-6), (5.0, 2e-5), (1e4, 1e-6))],
)
def test_float32_error_of_weak_and_of_extreme_gates(kind, strength, bound):
    error, finite = float32_error(kind, strength=strength)
    assert finite and error < bound


def test_decays_of_equal_channels_are_one_decay_per_head():
    """Halved chunks against one product of matrices, at lengths around both chunks."""
    for seq_len in (31, 33, 65):
        c, b, v, g, beta, memory = recurrence_inputs("delta", seq_len, 1.0)
        per_channel = delta_parallel(c, b, v, g[..., None].expand(*g.shape, b.shape[-1]), beta, memory)
        for ours, expected in zip(per_channel, delta_parallel(c, b, v, g, beta, memory), strict=True):
            assert torch.allclose(ours, expected, atol=1e-12)


def test_no_decay_between_channels_has_a_positive_exponent():
    """A channel that forgets everything beside one that forgets nothing: float32 stays exact."""
    c, b, v, g, beta, memory = recurrence_inputs("channel delta", 128, 0.0)
    g = torch.where(torch.arange(g.shape[-1]) == 0, -20.0, g)
    exact, _ = delta_reference(c, b, v, g, beta, memory)
    single, _ = delta_parallel(*(t.float() for t in (c, b, v, g, beta, memory)))
    assert (single - exact).abs().max() < 2e-6 * exact.abs().max()


@pytest.mark.parametrize("correlated", [0.9, 0.99])
def test_delta_rule_stays_exact_for_correlated_keys(correlated):
    """Nearly equal keys, for which inverting the triangular matrix by repeated squaring overflows."""
    error, finite = float32_error("delta", strength=0.0, correlated=correlated, state=32, width=16)
    assert finite and error < 1e-5
    inputs = [
        t.requires_grad_() for t in recurrence_inputs("delta", 256, 0.05, correlated=correlated, state=32, width=16)
    ]
    single = [t.detach().float().requires_grad_() for t in inputs]
    exact = torch.autograd.grad(delta_reference(*inputs)[0].sin().sum(), inputs)
    for gradient, expected in zip(torch.autograd.grad(delta_parallel(*single)[0].sin().sum(), single), exact):
        assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


# Genes


def test_illegal_value_names_the_gene_and_what_is_legal():
    with pytest.raises(
        UserError, match=r"nonlinearity gene 1 does not go with featurizer 1 \(attention\).*legal is 2 \(softmax\)"
    ):
        operator("12113", q=(1, 2, 1, 1), k=(1, 2, 1, 1), v=(1, 2, 1, 1))
    with pytest.raises(UserError, match="repeat gene 5 of feature group 'k'"):
        operator("12123", q=(1, 2, 1, 1), k=(1, 2, 1, 5), v=(1, 2, 1, 5))
    with pytest.raises(UserError, match="feature group 'c' of recurrence is missing"):
        operator("54111", b=(1, 2, 16, 1), v=(1, 2, 1, 1))


@pytest.mark.parametrize(
    "genes, features, first, second, legal",
    [
        (
            "12123",
            dict(q=(1, 2, 1, 1), k=(1, 2, 1, 4), v=(1, 2, 1, 2)),
            "k.repeat = 4",
            "v.repeat = 2",
            "v.repeat 4 with this k.repeat, or k.repeat 2",
        ),
        (
            "54111",
            dict(b=(1, 2, 16, 1), c=(1, 2, 8, 1), v=(1, 2, 1, 1), decay=(1, 3, 1, 1)),
            "b.expansion = 16",
            "c.expansion = 8",
            "c.expansion 16",
        ),
        (
            "52111",
            dict(b=(1, 2, 16, 1), c=(1, 2, 16, 1), v=(1, 2, 1, 1), decay=(1, 3, 1, 1)),
            "token = 2",
            "decay = present",
            "token 4 with this decay",
        ),
        (
            "54111",
            dict(b=(1, 2, 16, 1), c=(1, 2, 16, 1), v=(1, 2, 1, 1), decay=(1, 3, 0, 1)),
            "decay.channel = 3",
            "decay.expansion = 0",
            "decay.expansion 1 with this decay.channel, or decay.channel 2",
        ),
        (
            "12123",
            dict(q=(1, 2, 1, 1), k=(1, 2, 1, 1), v=(1, 2, 1, 1), latent=(1, 2, 4, 2), norm=(1, 1, 1, 1)),
            "latent = present",
            "norm = present",
            "norm absent",
        ),
        (
            "12123",
            dict(q=(1, 2, 1, 1), k=(1, 2, 1, 1), v=(1, 2, 1, 1), latent=(1, 2, 4, 1)),
            "latent = present",
            "nope = absent",
            "nope present",
        ),
        (
            "91142",
            dict(gate=(1, 2, 24, 1), value=(1, 2, 32, 1)),
            "gate.expansion = 24",
            "value.expansion = 32",
            "value.expansion 24",
        ),
    ],
)
def test_conflict_names_both_genes_and_what_is_legal(genes, features, first, second, legal):
    with pytest.raises(UserError) as caught:
        operator(genes, **features)
    message = str(caught.value)
    assert first in message and second in message and legal in message and "\n" not in message


def test_width_that_does_not_fit_is_one_sentence():
    for c, width in ((3, 64), (5, 96), (42, 96)):
        with pytest.raises(UserError, match=f"class {POOL[c - 1].name}.*width .* is no multiple of head width 64"):
            Genome((Gene(c),), width).pool[c - 1].config(width, 64, 1e4)


def test_a_latent_wider_than_the_model_is_one_sentence():
    row = next(c for c in POOL if c.name == "MLA")
    with pytest.raises(
        UserError, match=r"class MLA: attention: the latent has 256 channels .* model with 192; choose a"
    ):
        row.config(192, 64, 1e4)


def test_random_operators_are_legal_varied_and_seeded():
    operators = [random_operator(np.random.default_rng(seed)) for seed in range(300)]
    assert operators == [random_operator(np.random.default_rng(seed)) for seed in range(300)]
    assert {o.family for o in operators} == set(FAMILIES) and len(set(operators)) > 200
    for o in operators:
        FAMILIES[o.family].validate(o)
        assert FEATURIZERS[o.genes.featurizer] == o.family
        assert FAMILIES[o.family].mend(o, None) is o  # a legal operator draws no random numbers


def test_mend_makes_any_draw_legal_and_changes_as_little_as_it_can():
    rng = np.random.default_rng(0)
    for seed in range(200):
        o = random_operator(np.random.default_rng(seed))
        family = FAMILIES[o.family]
        group, spec = list(family.groups.items())[int(rng.integers(len(family.groups)))]
        row = FeatureGenes(
            *(values[int(rng.integers(len(values)))] for values in (spec.values(g) for g in FeatureGenes._fields))
        )
        mended = family.mend(o.with_gene(group, row), rng)
        family.validate(mended)


def test_gene_table_has_every_family_gene_and_why_not():
    rows = gene_table()
    assert all(set(row) == {"level", "gene", "values", "meaning"} for row in rows)
    for family in FAMILIES.values():
        genes = {row["gene"] for row in rows if row["level"] == f"featurizer ({family.name})"}
        assert set(family.groups) <= genes
        rules = [row for row in rows if row["level"] == f"rule ({family.name})"]
        assert len(rules) == len(family.rules)
    mixings = [row for row in rows if row["level"] == "mixing"]
    assert len(mixings) == 4 * 3 and all(row["meaning"] for row in mixings)


def test_pool_ids_of_the_paper_and_of_shipped_genomes_stay():
    names = [c.name for c in POOL]
    assert names[:17] == [
        *"SA-1 SA-2 SA-3 SA-4 Rec-1 Rec-2 GConv-1 GConv-2 GMemless".split(),
        *(f"{n}-Diff" for n in names[:8]),
    ]
    assert names[17:24] == "GQA-2-QKN GQA-3-QKN GQA-4-QKN SwiGLU-4 SwiGLU-4.5 SwiGLU-5.25 ReLU2-4".split()
    assert len(set(names)) == len(names) and len({c.operator for c in POOL}) == len(POOL)


@pytest.mark.parametrize("name", ["GMemless", "GELU-4-bias", "ReLU2-3"])
def test_inner_width_is_filled_up_on_a_gpu(name, monkeypatch):
    """Filled up with zeros, the operator is the same; here on a CPU, at an inner width that is no multiple of eight."""
    config = next(row for row in POOL if row.name == name).config(19, 1, 10_000.0)
    assert config.width % memoryless.ALIGNMENT
    results = []
    for devices in (set(), {"cpu"}):
        monkeypatch.setattr(memoryless, "ALIGNED_DEVICES", devices)
        liv = config.build()
        liv.reset_parameters(torch.Generator().manual_seed(0))
        x = torch.randn(2, 5, 19, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y, _ = liv(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in liv.parameters())])
        assert liv.share(x)[2]["value_map"].shape[-1] % memoryless.ALIGNMENT == (0 if devices else config.width % 8)
    for plain, filled in zip(*results, strict=True):
        torch.testing.assert_close(filled, plain)
