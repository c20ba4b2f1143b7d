"""The laws that every operator obeys. One test per law, on every class of the pool and on random legal operators.

    T itself        The output equals the materialized operator T(x) times x, plus c(x) where the maps have biases.
                    For fixed features the output is linear in x.
                    It is causal: no output and no gradient depends on a later token.
    Structure       Token mixing has the structure that its gene names: diagonal, softmax of low rank, low rank, scaled
                    Toeplitz or semi-separable.
                    Channel mixing has the structure that its gene names: diagonal, dense or one matrix per head.
                    A differential operator is the difference of two branches.
    One map         A whole sequence, chunks and single tokens give the same output.
                    An operator that takes features from a provider decodes as it trains.
                    Counted parameters and state bytes are those of the module.
    Numbers         Gradients equal finite differences.
                    Extreme gates and long constant inputs give finite outputs and gradients.
                    bfloat16 and float32 stay near float64; gradients in bfloat16 do so for each of many inputs.

A new class is tested as soon as it is registered: no test here names one. All in float64, except the laws on rounding.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from star.errors import UserError
from star.genome.classes import POOL, attention, random_operator, recurrence
from star.liv import FAMILIES, Operator
from star.liv.base import LIV

N_RANDOM = 24
BFLOAT16_ERROR, FLOAT32_ERROR = 2e-2, 2e-5  # root mean square and largest, relative to the output
BFLOAT16_GRADIENT_ERROR = 0.1  # of the whole gradient of any one input, relative to its length
HEAD_DIM, WIDTHS = 4, (8, 12, 16, 32)


# No search draws these genes, and no class of the pool has them together.
UNDRAWN = {
    "latent-alone": attention("12223", latent=2, unrotated=1, sink=True, gate=True),
    "latent-Diff": replace(attention("12123", latent=1, shared_key=True), differential=True),
    "KDA-repeat": recurrence("54111", 4, filtered=False, decay="vector", delta=2, repeat=2),
}


def cases() -> list:
    rng = np.random.default_rng(0)
    rows = (
        [(c.name, c.operator) for c in POOL]
        + list(UNDRAWN.items())
        + [(f"random-{i}", random_operator(rng)) for i in range(N_RANDOM)]
    )
    return [pytest.param(operator, id=name) for name, operator in rows]


pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
every_operator = pytest.mark.parametrize("operator", cases())
differential_operators = pytest.mark.parametrize("operator", [case for case in cases() if case.values[0].differential])


def config_of(operator: Operator, widths=WIDTHS):
    """The operator at the smallest width that it fits."""
    family = FAMILIES[operator.family]
    family.validate(operator)
    for d_model in widths:
        try:
            return family.configure(operator, d_model, HEAD_DIM, 10_000.0)
        except UserError:
            continue
    raise AssertionError(f"{operator} fits none of the widths {widths}")


def build(operator: Operator, dtype=torch.float64, seed=0, given=frozenset(), widths=WIDTHS) -> LIV:
    liv = config_of(operator, widths).build(given)
    generator = torch.Generator().manual_seed(seed)
    liv.reset_parameters(generator)
    if operator.has("bias"):  # they start at 0
        with torch.no_grad():
            for name, parameter in liv.named_parameters():
                if name.endswith("_bias"):
                    parameter.normal_(generator=generator)
    return liv.to(dtype)


def tokens(liv: LIV, seq_len: int, batch=1, dtype=torch.float64, seed=1) -> torch.Tensor:
    return torch.randn(batch, seq_len, liv.config.d_model, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def bias_of(liv: LIV, features: dict, x: torch.Tensor) -> torch.Tensor:
    """c(x) of y = T(x) x + c(x)."""
    return liv.mix(features, torch.zeros_like(x))[0]


def window_of(operator: Operator) -> int:
    return operator.window or 0


def length_for(operator: Operator) -> int:
    """A length longer than every chunk, window and filter of the operator, and no multiple of any."""
    return 151 if window_of(operator) <= 64 else window_of(operator) + 37


def in_pieces(liv: LIV, x: torch.Tensor, pieces, given=None, provider=None) -> torch.Tensor:
    """The outputs of `liv` for x in pieces, with the state carried over; `provider` computes the shared features."""
    batch, seq_len, _ = x.shape
    state = liv.init_state(batch, seq_len, x.dtype)
    source = provider.init_state(batch, seq_len, x.dtype) if provider else None
    out, offset = [], 0
    for n in pieces:
        piece, features = x[:, offset : offset + n], {}
        if provider:
            _, source, features = provider.share(piece, source, offset=offset)
        y, state = liv(piece, state, features, offset)
        out.append(y)
        offset += n
    assert offset == seq_len
    return torch.cat(out, dim=1)


def error(y: torch.Tensor, exact: torch.Tensor) -> float:
    return ((y.double() - exact).abs().max() / exact.abs().max()).item()


# T itself


@every_operator
def test_output_is_the_materialized_operator_times_the_input(operator):
    liv = build(operator)
    x = tokens(liv, 7)
    T = liv.materialize(x)
    y, _ = liv(x)
    bias = bias_of(liv, liv.featurize(x)[0], x)
    assert error(torch.einsum("ijab,jb->ia", T, x[0])[None] + bias, y) < 1e-12
    assert operator.has("bias") == bool(bias.abs().max() > 0)


@every_operator
def test_mix_is_linear_for_fixed_features(operator):
    liv = build(operator)
    x, u, v = (tokens(liv, 19, seed=s) for s in (1, 2, 3))
    features, _ = liv.featurize(x)
    together = liv.mix(features, 2 * u - 3 * v)[0] - 2 * bias_of(liv, features, x)  # 2 - 3 biases, less one
    assert error(2 * liv.mix(features, u)[0] - 3 * liv.mix(features, v)[0], together) < 1e-12
    assert error(liv.mix(features, x)[0], liv(x)[0]) < 1e-12


@every_operator
def test_is_causal_exactly(operator):
    liv = build(operator)
    T = liv.materialize(tokens(liv, 7))
    future = torch.triu_indices(7, 7, 1)
    assert (T[future[0], future[1]] == 0).all()
    # The features that T is made of must not look ahead either.
    x = tokens(liv, 140).requires_grad_()
    y, _ = liv(x)
    for t in (1, 16, 65, 139):
        (gradient,) = torch.autograd.grad(y[:, :t].square().sum(), x, retain_graph=True)
        assert (gradient[:, t:] == 0).all() and gradient[:, :t].abs().max() > 0


# Structure, on M of T = W_out . M . W_in


@every_operator
def test_token_mixing_is_what_the_genome_names(operator):
    law = {
        (1, False): is_diagonal,
        (2, True): is_softmax_of_low_rank,
        (2, False): is_low_rank_under_the_causal_mask,
        (3, False): is_scaled_toeplitz,
        (4, False): is_semi_separable,
    }[operator.genes.token, operator.genes.nonlinearity == 2]
    law(operator, build(operator, widths=(HEAD_DIM, *WIDTHS)))  # few heads, because the state may be large


def of_one_channel(liv: LIV, x: torch.Tensor, features: dict) -> torch.Tensor:
    """M from the first inner channel to the first, [T, T], for given features."""
    with torch.no_grad():
        width = liv.value(features, liv.project(x, None, liv.maps)[0][liv.VALUE], None, {}, 0)[0].numel() // x.shape[1]
        M = liv.impulses(features, x, width, lambda f, e: liv.core(f, liv.unflatten_value(e), None)[0], slice(0, 1))
    return M[:, :, 0, 0]


def features_of(liv: LIV, x: torch.Tensor) -> dict:
    with torch.no_grad():
        return liv.featurize(x)[0]


def rank(block: torch.Tensor) -> int:
    sizes = torch.linalg.svdvals(block)
    return int((sizes > 1e-11 * sizes[0]).sum())


def ages(seq_len: int) -> torch.Tensor:
    """i - j, [T, T]."""
    return torch.arange(seq_len)[:, None] - torch.arange(seq_len)


def is_diagonal(operator, liv):
    M = liv.materialize_core(tokens(liv, 6))
    assert (M[ages(6) != 0] == 0).all() and (M[ages(6) == 0] != 0).any()


def is_softmax_of_low_rank(operator, liv):
    """Rows are weights that sum to 1 (less with a sink), and 0 beyond the window; the scores have the rank of q."""
    seq_len = 40
    x = tokens(liv, seq_len)
    features = features_of(liv, x)
    M = of_one_channel(liv, x, features)
    window = min(window_of(operator) or seq_len, seq_len)
    one = torch.allclose(M.sum(1), torch.ones(seq_len, dtype=M.dtype))
    assert (M >= 0).all() and ((M.sum(1) < 1).all() if operator.has("sink") else one)
    assert ((M > 0) == ((ages(seq_len) >= 0) & (ages(seq_len) < window))).all()
    # A block in which every query sees every key. The logarithm has one rank more, for the row constants of softmax.
    half = window // 2
    assert rank(M[20 : 20 + half, 20 - half + 1 : 21].log()) <= features["q"].shape[-1] + 1 < half


def is_low_rank_under_the_causal_mask(operator, liv):
    size = liv.config.state_size
    x = tokens(liv, 2 * size + 6)
    features = dense_keys(features_of(liv, x), operator)
    M = of_one_channel(liv, x, features)
    scores = features["c"][0, :, 0] @ features["b"][0, :, 0].T
    skip = liv.skip[0] if operator.has("skip") else 0.0
    assert rank(scores) == size and torch.allclose(M, scores.tril() + skip * torch.eye(len(M), dtype=M.dtype))


def is_semi_separable(operator, liv):
    """Every block below the diagonal has rank N, the state size."""
    size = liv.config.state_size if operator.family == "recurrence" else 1
    x = tokens(liv, 2 * size + 6)
    M = of_one_channel(liv, x, dense_keys(features_of(liv, x), operator))
    assert (M[ages(len(M)) < 0] == 0).all()
    for split in (size + 1, size + 3, size + 5):
        assert rank(M[split:, :split]) == size


def dense_keys(features: dict, operator: Operator) -> dict:
    """The features with b and c of full rank (a narrow model has less), and decays that keep every token visible."""
    generator = torch.Generator().manual_seed(2)
    features = dict(features)
    for name in "bc":
        key = torch.randn(features[name].shape, dtype=features[name].dtype, generator=generator)
        features[name] = torch.nn.functional.normalize(key, dim=-1) if operator.has("beta") else key
    for name in ("decay", "beta"):
        if name in features:
            features[name] = features[name] / features[name].abs().max() / features[name].shape[1]
    return features


def is_scaled_toeplitz(operator, liv):
    """M_ij = C_i K_(i-j) B_j: then M_(i+1,j+1) / M_ij = (C_(i+1) / C_i) (B_(j+1) / B_j) has rank one, whatever K."""
    x = tokens(liv, 12)
    M = of_one_channel(liv, x, features_of(liv, x))
    length = 12 if operator.has("poles") else operator.feature("kernel").expansion
    assert ((M != 0) == ((ages(12) >= 0) & (ages(12) < length))).all()
    ratio = M[1:, 1:] / M[:-1, :-1]  # [11, 11], a number where M has one
    left, right = ratio[:-1, :-1] * ratio[1:, 1:], ratio[:-1, 1:] * ratio[1:, :-1]
    inside = ((ages(11) >= 1) & (ages(11) <= length - 2))[:-1, :-1]
    assert torch.allclose(left[inside], right[inside], rtol=1e-7) and (inside.any() or length == 2)


@every_operator
def test_channel_mixing_is_what_the_genome_names(operator):
    liv = build(operator)
    x = tokens(liv, 5)
    M = liv.materialize_core(x)
    n_out, n_in = M.shape[2:]
    if operator.genes.channel == 2:  # dense: in T, by the maps around a diagonal M
        T = liv.materialize(x)
        assert (T[range(5), range(5)] != 0).all() and rank(T[0, 0]) == liv.config.d_model
    if operator.genes.channel == 3:  # grouped: one matrix of scores for all channels of a head
        repeat = n_out // n_in
        heads = M.view(5, 5, n_out // HEAD_DIM, HEAD_DIM, n_in // HEAD_DIM, HEAD_DIM)
        if operator.has("gate"):  # a factor of every query and channel
            heads = heads / features_of(liv, x)["gate"].view(5, 1, -1, HEAD_DIM, 1, 1)
        scores = heads[:, :, :, 0, :, 0]  # [T, T, query head, key head]
        expected = torch.einsum("ijhg,pq->ijhpgq", scores, torch.eye(HEAD_DIM, dtype=M.dtype))
        assert torch.allclose(heads, expected, atol=1e-15)
        head, key_head = torch.nonzero(scores.abs().sum((0, 1)), as_tuple=True)
        assert (head // repeat == key_head).all() and len(head) == n_out // HEAD_DIM
    else:
        assert n_out == n_in and (M[:, :, ~torch.eye(n_in, dtype=bool)] == 0).all()


@differential_operators
def test_differential_operator_is_the_difference_of_two(operator):
    liv = build(operator)
    x = tokens(liv, 6)
    M = liv.materialize_core(x)
    (a_out, b_out), (a_in, b_in) = (torch.arange(n).chunk(2) for n in M.shape[2:])
    assert (M[:, :, a_out][..., b_in] == 0).all() and (M[:, :, b_out][..., a_in] == 0).all()
    T = liv.materialize(x)
    with torch.no_grad():
        liv.diff.zero_()
        first = liv.materialize(x)
        liv.diff.fill_(2.0)
        assert error(liv.materialize(x), first + 4 * (T - first)) < 1e-12 and error(T, first) > 1e-3


# One map, three ways


@every_operator
def test_whole_equals_chunks_equals_token_by_token(operator):
    liv = build(operator)
    seq_len = length_for(operator)
    x = tokens(liv, seq_len, batch=2)
    with torch.no_grad():
        whole, _ = liv(x)
        rest = seq_len - 144
        assert error(in_pieces(liv, x, (3, 0, 62, 1, 1, 64, 13, rest)), whole) < 1e-11
        assert error(in_pieces(liv, x, (seq_len,)), whole) < 1e-12  # a prefill: the same, and a state
        if seq_len < 400:
            assert error(in_pieces(liv, x[:, :40], (1,) * 40), whole[:, :40]) < 1e-11
            assert error(in_pieces(liv, x, (seq_len - 9,) + (1,) * 9), whole) < 1e-11
            assert error(liv(x[1:])[0], whole[1:]) < 1e-12  # batch 1
        assert liv(x[:, :0])[0].shape == (2, 0, liv.config.d_model)


@every_operator
def test_consumer_of_shared_features_decodes_as_it_trains(operator):
    """For every strategy: a whole sequence equals pieces, and the consumer has no weights for the shared groups."""
    family, config = FAMILIES[operator.family], config_of(operator)
    provider = build(operator)
    x = tokens(provider, 37, batch=2)
    for strategy in range(2, family.n_strategies + 1):
        if family.share_signature(operator, strategy) is None:
            continue
        given = family.shared_groups(operator, strategy)
        consumer = build(operator, seed=5, given=given)
        with torch.no_grad():
            _, _, features = provider.share(x)
            whole, _ = consumer(x, None, features)
            assert error(in_pieces(consumer, x, (3, 0, 17, 1, 1, 15), provider=provider), whole) < 1e-11
        assert not {w.group for w in config.own_weights(given).values()} & given
        assert sum(p.numel() for p in consumer.parameters()) == config.num_params(given) < config.num_params()


@every_operator
def test_parameters_and_state_bytes_are_exact(operator):
    config = config_of(operator)
    for given in (frozenset(), FAMILIES[operator.family].shared_groups(operator, 4)):
        liv = config.build(given)
        assert sum(p.numel() for p in liv.parameters()) == config.num_params(given)
        state = liv.init_state(1, 40, torch.bfloat16)
        entries = config.own_state(given)
        assert set(state) == set(entries)
        for name, entry in entries.items():
            assert state[name].numel() == entry.numbers(40)
            assert state[name].dtype == (torch.float32 if entry.role == "recurrent" else torch.bfloat16)


# Gradients and rounding


@every_operator
def test_gradients(operator):
    liv = build(operator)
    x = tokens(liv, 19).requires_grad_()
    names, weights = zip(*liv.named_parameters())

    def output(x, *weights):
        return torch.func.functional_call(liv, dict(zip(names, weights)), (x,))[0]

    assert gradcheck(output, (x, *weights), fast_mode=True)


@every_operator
def test_extreme_gates_and_long_constant_inputs_stay_finite(operator):
    liv = build(operator, torch.float32)
    vectors = [
        n
        for n, w in liv.config.weights().items()
        if w.kind == "vector" and n.endswith(("bias", "rate", "angle", "sink"))
    ]
    settings = [{}] + [{name: value} for name in vectors for value in (-30.0, 30.0)]
    inputs = [tokens(liv, 130, dtype=torch.float32) * size for size in (0.0, 1.0, 100.0)] + [
        torch.ones(1, 1500, liv.config.d_model)
    ]
    for setting in settings:
        extreme = copy.deepcopy(liv)
        for name, value in setting.items():
            torch.nn.init.constant_(getattr(extreme, name), value)
        for x in inputs if not setting else inputs[2:3]:
            x = x.clone().requires_grad_()
            y, _ = extreme(x)
            y.square().mean().backward()
            assert y.isfinite().all() and x.grad.isfinite().all(), (setting, x.shape)
            assert all(p.grad is None or p.grad.isfinite().all() for p in extreme.parameters()), setting


@every_operator
def test_bfloat16_stays_near_float64(operator):
    """Master weights in float32, activations in bfloat16, gates and states in float32."""
    liv = build(operator, torch.float32)
    x = tokens(liv, 100, batch=2, dtype=torch.bfloat16)
    with torch.no_grad():
        exact, _ = copy.deepcopy(liv).double()(x.double())
        y, _ = liv(x)
        assert y.dtype == torch.bfloat16
        decoded = in_pieces(liv, x, (90, *(1,) * 10))
        rms = exact.square().mean().sqrt()
        for result in (y, decoded):
            assert ((result.double() - exact).square().mean().sqrt() / rms).item() < BFLOAT16_ERROR
        single, _ = liv(x.float())
        assert error(single, exact) < FLOAT32_ERROR


@pytest.mark.parametrize("row", [pytest.param(c, id=c.name) for c in POOL])
def test_bfloat16_gradients_stay_near_float64(row):
    """For each of 20 inputs, 4 for each of 5 draws of weights: rare inputs must not be magnified.

    At widths as in use: with few channels, rounding errors do not average out.
    """
    width = 96 if "GQA-3" in row.name else 64
    for seed in range(5):
        liv = row.config(width, 8 if width == 64 else 16, 1e4).build()
        liv.reset_parameters(torch.Generator().manual_seed(seed))
        x, dy = (tokens(liv, 24, batch=4, dtype=torch.bfloat16, seed=2 * seed + n) for n in (0, 1))
        (exact, weights_exact), (ours, weights) = (
            gradients(copy.deepcopy(liv).to(weights), x.to(dtype), dy.to(dtype))
            for weights, dtype in ((torch.float64, torch.float64), (torch.float32, torch.bfloat16))
        )
        for a, b in (*zip(ours, exact), (weights, weights_exact)):
            assert ((a - b).norm() / b.norm()).item() < BFLOAT16_GRADIENT_ERROR, seed


def gradients(liv: LIV, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x, and of all weights in one vector."""
    x.requires_grad_()
    y, _ = liv(x)
    y.backward(dy)
    return x.grad.double(), torch.cat([p.grad.flatten() for p in liv.parameters()]).double()
