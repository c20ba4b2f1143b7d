"""A linear input-varying operator (LIV): y = T(x) x.

    y[i, a] = sum_j sum_b  T[i, j, a, b](x) * x[j, b]        i, j tokens; a, b channels     (STAR, eq. 1)

The output is a linear map of the input whose coefficients depend on the input (plus c(x), what `mix` makes of a zero
input, where the maps have biases). Attention, state-space models, gated convolutions and SwiGLU all have this form. So
every operator has two halves:

    features, state = liv.featurize(x, state, given)     # what T is made of: depends on x
    y, state        = liv.mix(features, x, state, given) # linear in x for fixed features

`mix` is three linear maps, T = W_out . M(features) . W_in: `value` maps x into the value path (W_in, with a short
convolution if the genome has one), `core` mixes tokens (M), `output` maps back (W_out).

    x [B, T, D]  ->  value [B, T, branches * width]  ->  core  ->  y [B, T, D]

Sharing: `given` are features (and values) that another LIV, the provider, has computed. A LIV built with
`given={"k", "v"}` has no weights and no state for these groups.
State: with `state=None` none is kept (training). Otherwise it is a dict of tensors made by `init_state`; a call uses it
up (and may update it in place), and returns the new one. It is never part of the autograd graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from star.liv.functional import kept, short_convolution

Features = dict[str, Tensor]
State = dict[str, Tensor]
Init = Callable[[Tensor, torch.Generator], object]


class Weight(NamedTuple):
    """One parameter tensor.

    group: the feature group that owns it, or "out" for weights that are never shared. init: sets its initial values.
    kind: "matrix" (a dense channel map, [out, in]) or "vector" (norms, filters, gates, biases: per channel or head).
    flops: of one token in this channel map or short filter, 2 per multiply-add.
    of_input: whether a matrix is applied to the input of the operator, unless it is the output map.
    """

    shape: tuple[int, ...]
    group: str
    init: Init
    kind: str = "vector"
    flops: int = 0
    of_input: bool = True


class StateEntry(NamedTuple):
    """One decode-state tensor: [B, *shape] if its size is fixed, else with a dimension of columns, one per token.

    group: the feature groups that own it, joined by "+". role: "compute" (activation dtype) or "recurrent" (float32 or
    wider). cap: None for a fixed size, else the most columns kept: `math.inf` for full attention, W - 1 for a window of
    W. column_dim: where the columns are inserted into `shape`.
    """

    shape: tuple[int, ...]
    group: str
    role: str = "compute"
    cap: float | None = None
    column_dim: int = 0

    def columns(self, seq_len: int) -> int:
        """Columns kept after `seq_len` tokens."""
        if self.cap is None:
            return 1
        return seq_len if self.cap == math.inf else torch.sym_min(seq_len, int(self.cap))

    def numbers(self, seq_len: int) -> int:
        """Numbers kept after one sequence of `seq_len` tokens."""
        return math.prod(self.shape) * self.columns(seq_len)

    def allocate(self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
        """Zeros [B, ...] with room for `max_len` tokens."""
        shape = list(self.shape)
        if self.cap is not None:
            shape.insert(self.column_dim, self.columns(max_len))
        if self.role == "recurrent":
            dtype = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, *shape, dtype=dtype, device=device)


def check_state(
    state: State,
    entries: Mapping[str, StateEntry],
    batch: int,
    n_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    owner: str = "this operator",
) -> None:
    """Raises ValueError if a state does not fit these entries, or has no room for `n_tokens` in total."""
    if state.keys() != entries.keys():
        raise ValueError(
            f"{owner} keeps {sorted(entries)} and the state has {sorted(state)}; use a state that its init_state made"
        )
    for name, entry in entries.items():
        tensor, shape = state[name], list(state[name].shape[1:])
        expected = torch.promote_types(dtype, torch.float32) if entry.role == "recurrent" else dtype
        columns = None if entry.cap is None or len(shape) <= len(entry.shape) else shape.pop(entry.column_dim)
        if shape != list(entry.shape):
            raise ValueError(
                f"{owner} keeps {name} of {list(entry.shape)} and the state of {shape}; use a state that its "
                "init_state made"
            )
        if tensor.shape[0] != batch:
            raise ValueError(
                f"the state was made for batch {tensor.shape[0]} and the tokens have batch {batch}; make a new state"
            )
        if tensor.device != device:
            raise ValueError(f"the state is on {tensor.device} and {owner} on {device}; make a new state")
        if tensor.dtype != expected:
            raise ValueError(
                f"{name} of the state holds {tensor.dtype} and {owner} computes it in {expected}; make a new state"
            )
        if columns is not None and columns < entry.columns(n_tokens):
            raise ValueError(
                f"the state has room for {columns} tokens and this call ends at token {n_tokens}; make one with a "
                "larger max_len"
            )


def normal(std: float) -> Init:
    """Normal, mean 0, with this standard deviation."""
    return lambda w, generator: w.normal_(0.0, std, generator=generator)


def constant(value: float) -> Init:
    """A constant."""
    return lambda w, generator: w.fill_(value)


def inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y."""
    return y + torch.log(-torch.expm1(-y))


def log_uniform(low: float, high: float, then: Callable[[Tensor], Tensor] = lambda w: w) -> Init:
    """Log-uniform between `low` and `high`, then mapped by `then`."""
    return lambda w, generator: w.copy_(then(w.uniform_(math.log(low), math.log(high), generator=generator).exp()))


def matrix(out_features: int, in_features: int, group: str) -> Weight:
    """A dense channel map, initialised at 1/sqrt(fan_in), so it keeps the variance of its input at any width."""
    shape = (out_features, in_features)
    return Weight(shape, group, normal(in_features**-0.5), "matrix", 2 * math.prod(shape))


def low_rank(name: str, out_features: int, rank: int, in_features: int, group: str) -> dict[str, Weight]:
    """A channel map through `rank` channels, as two matrices."""
    last = matrix(out_features, rank, group)._replace(of_input=False)
    return {f"{name}_low": matrix(rank, in_features, group), f"{name}_high": last}


def short_filter(channels: int, length: int, group: str) -> Weight:
    """A causal depthwise filter; its last tap multiplies the present token."""
    return Weight((channels, length), group, normal(length**-0.5), flops=2 * channels * length)


def biases(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """A bias, 0 at the start, for every matrix of an operator; it belongs to the group of the matrix."""
    maps = {name: weight for name, weight in weights.items() if weight.kind == "matrix"}
    return {f"{name}_bias": Weight(weight.shape[:1], weight.group, constant(0.0)) for name, weight in maps.items()}


@dataclass(frozen=True)
class LIVConfig:
    """The sizes of one operator. A family writes the first five methods: its weights, its state and what it costs."""

    d_model: int
    branches: int
    biased: bool = field(default=False, kw_only=True)  # every map has a bias

    def weights(self) -> dict[str, Weight]:
        """All parameter tensors by name, before any sharing."""
        raise NotImplementedError

    def state(self) -> dict[str, StateEntry]:
        """All decode-state tensors by name, before any sharing."""
        raise NotImplementedError

    def mixing_flops(self, seq_len: int) -> float:
        """Forward FLOPs per token of the token mixing (without channel maps), mean over a causal sequence."""
        raise NotImplementedError

    def decode_mixing_flops(self, seq_len: int) -> float:
        """FLOPs of the token mixing for one more token after `seq_len`."""
        raise NotImplementedError

    def build(self, given: frozenset[str] = frozenset(), tied: Mapping[str, nn.Parameter] | None = None) -> LIV:
        """The operator as a module. given: groups that a provider computes; tied: weights to use from another LIV."""
        raise NotImplementedError

    # The rest holds for any operator.

    def own_weights(self, given: frozenset[str]) -> dict[str, Weight]:
        """The weights of the groups that no provider computes."""
        return {name: w for name, w in self.weights().items() if w.group not in given}

    def reads_input(self, given: frozenset[str]) -> bool:
        """Whether the operator computes anything from its own input; not if its provider gives all of that."""
        own = self.own_weights(given).values()
        return any(w.kind == "matrix" and w.of_input and w.group != "out" for w in own)

    def own_state(self, given: frozenset[str]) -> dict[str, StateEntry]:
        """The state of this LIV: every tensor, except where a provider computes all of its groups."""
        return {name: s for name, s in self.state().items() if not set(s.group.split("+")) <= given}

    def shared_sizes(self, groups: frozenset[str]) -> tuple:
        """Shapes of everything that a consumer of these groups takes, to be equal in both: maps, and joint states.

        Filters and norms are left out: a consumer takes a feature after them, so it needs none itself.
        """
        owned = {name: w.shape for name, w in self.weights().items() if w.group in groups}
        owned |= {f"state {name}": s.shape for name, s in self.state().items() if set(s.group.split("+")) <= groups}
        return tuple(sorted((n, shape) for n, shape in owned.items() if not n.endswith(("_filter", "_norm"))))

    def num_params(self, given: frozenset[str] = frozenset()) -> int:
        """Number of own parameters."""
        return sum(math.prod(w.shape) for w in self.own_weights(given).values())

    def channel_flops(self, given: frozenset[str] = frozenset()) -> int:
        """FLOPs per token of all channel maps and short filters; norms and biases are not counted."""
        return sum(w.flops for w in self.own_weights(given).values())

    def output_weights(self, width: int) -> dict[str, Weight]:
        """The output map and, for a differential operator, its lambda."""
        weights = {"out": matrix(self.d_model, self.branches * width, "out")}
        if self.branches == 2:
            weights["diff"] = Weight((1,), "out", constant(0.5))
        return weights


class LIV(nn.Module):
    """An operator with its weights. A family writes `features_of`, `value` and `core`.

    given: feature groups that a provider computes in its place. tied: {name of a weight: parameter of another LIV}, for
    weights that it uses but does not own (featurizer sharing: same weights, own input).
    """

    MAPS: tuple[str, ...]  # the linear maps of x that a family may have, each with an optional short filter
    diff: nn.Parameter  # lambda of a differential operator
    VALUE: str  # the map that makes the value path, and the name under which the value is shared

    def __init__(
        self, config: LIVConfig, given: frozenset[str] = frozenset(), tied: Mapping[str, nn.Parameter] | None = None
    ):
        super().__init__()
        self.config = config
        self.given = given
        self.tied = frozenset(tied or ())
        self.copies: dict[str, Tensor] = {}  # of matrices, in the dtype of activations, while a model computes its loss
        for name, weight in config.own_weights(given).items():
            parameter = tied[name] if tied and name in tied else nn.Parameter(torch.empty(weight.shape))
            self.register_parameter(name, parameter)
        self.maps = tuple(name for name in self.MAPS if name in self._parameters)

    # A family writes these.

    def features_of(
        self, h: dict[str, Tensor], state: State | None, given: Features, offset: int
    ) -> tuple[Features, State | None]:
        """The features: all of T that depends on the input, and the new state.

        Args: h: the linear maps of x, {name: [B, T, width]}; state: or None; given: features of the provider; offset:
        tokens seen before this call.
        """
        raise NotImplementedError

    def value(
        self, features: Features, h: Tensor | None, state: State | None, given: Features, offset: int
    ) -> tuple[Tensor, State | None]:
        """What `core` mixes over tokens: linear in h, the map `VALUE` of x. h is None if a provider gives the value."""
        raise NotImplementedError

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """The token mixing M: linear in `value`. Returns [B, T, branches * width] and the new state."""
        raise NotImplementedError

    def scale(self, features: Features, y: Tensor) -> Tensor | None:
        """The feature of a norm at the output: 1 / rms of the mixed value y; None if the operator has no such norm."""
        return None

    def tables(self, x: Tensor) -> Features:
        """What depends on the number of tokens of x [B, T, D] alone, from the start of a sequence, under its names in
        `given`: for a compiled operator, which would otherwise compute it again for every element.
        """
        return {}

    def readout(self, features: Features, y: Tensor) -> Tensor:
        """Gate and norm of the mixed value y. Linear in y if features["scale"] is there; otherwise the norm is of y."""
        return y

    # The rest follows.

    def featurize(
        self, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0
    ) -> tuple[Features, State | None]:
        """T as its features, for which `mix` is linear in x, and the new state. Arguments as in `forward`."""
        given = given or {}
        h, new = self.project(x, state, self.maps)
        kept = f"{self.VALUE}_filter"
        if state is not None and kept in state:
            new = (new or {}) | {kept: state[kept]}  # `mix` computes the value path, so its filter has not moved on yet
        features, new = self.features_of(h, new, given, offset)
        if type(self).scale is not LIV.scale:
            value, _ = self.value(features, h.get(self.VALUE), new, given, offset)
            y, _ = self.core(features, value, new)
            scale = self.scale(features, y)
            features = features if scale is None else features | {"scale": scale}
        return features, new

    def mix(
        self, features: Features, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, State | None]:
        """y = T(features) x [B, T, D], linear in x, and the new state."""
        h, state = self.project(x, state, tuple(name for name in self.maps if name == self.VALUE))
        value, state = self.value(features, h.get(self.VALUE), state, given or {}, offset)
        y, state = self.core(features, value, state)
        return self.output(self.readout(features, y)), state

    def share(
        self, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, State | None, Features]:
        """`forward` without checks, which also returns the features and the value, for LIVs that share them."""
        given = given or {}
        h, state = self.project(x, state, self.maps)
        features, state = self.features_of(h, state, given, offset)
        value, state = self.value(features, h.get(self.VALUE), state, given, offset)
        y, state = self.core(features, value, state)
        return self.output(self.readout(features, y)), state, {**features, self.VALUE: value}

    def forward(
        self, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0
    ) -> tuple[Tensor, State | None]:
        """x [B, T, D] -> y [B, T, D] and the new state. A whole sequence, chunks and single tokens give the same y.

        Args: state: of the tokens before x, or None; given: features of the provider; offset: tokens before x.
        Raises: ValueError for an input or a state that does not fit this operator.
        """
        self._check_input(x, state, given, offset)
        y, state, _ = self.share(x, state, given, offset)
        return y, state

    def _check_input(self, x: Tensor, state: State | None, given: Features | None, offset: int) -> None:
        if x.dim() != 3 or x.shape[2] != self.config.d_model:
            raise ValueError(
                f"x has shape {list(x.shape)} and this operator takes [batch, tokens, {self.config.d_model}]"
            )
        if not x.is_floating_point():
            raise ValueError(f"x is {x.dtype}; give floating-point numbers (the weights are cast to their dtype)")
        if x.device != self.out.device:
            raise ValueError(f"x is on {x.device} and the operator on {self.out.device}; move one to the other")
        if self.given and not given:
            raise ValueError(
                f"this operator takes {', '.join(sorted(self.given))} from a provider and none are given; pass the "
                "features that it shares"
            )
        if state is not None:
            check_state(state, self.config.own_state(self.given), x.shape[0], offset + x.shape[1], x.dtype, x.device)

    def output(self, y: Tensor) -> Tensor:
        """W_out y. A differential operator subtracts its second branch here: W_a y_a - lambda W_b y_b."""
        if self.config.branches == 2:
            a, b = y.chunk(2, dim=-1)
            y = torch.cat([a, -self.diff.to(y.dtype) * b], dim=-1)
        return self.linear(y, "out")

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The map `name` of x, with its bias if it has one. Weights are cast to the dtype of x."""
        return F.linear(x, self.weight(name, x.dtype), self.bias(name, x.dtype))

    def mapped(self, h: dict[str, Tensor], name: str) -> Tensor:
        """The map `name` of x, from the linear maps h of x: itself, or the second half of a `low_rank` map."""
        return h[name] if name in h else self.linear(h[f"{name}_low"], f"{name}_high")

    def weight(self, name: str, dtype: torch.dtype) -> Tensor:
        """The weight `name` in this dtype: a copy that was made for all matrices at once, or one made here."""
        copy = self.copies.get(name)
        return getattr(self, name).to(dtype) if copy is None else copy

    def matrices(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of its linear maps, by name."""
        for name in (*self.maps, "out"):
            yield name, getattr(self, name)

    def bias(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """The bias of the map `name`; None without biases."""
        return getattr(self, f"{name}_bias").to(dtype) if self.config.biased else None

    def project(self, x: Tensor, state: State | None, names: tuple[str, ...]) -> tuple[dict[str, Tensor], State | None]:
        """The linear maps `names` of x [B, T, D], each after its short causal filter if it has one.

        Each map is one product: a single product for all maps makes copies, and was slower on a CPU from a thousand
        tokens on.
        """
        h = {}
        for name in names:
            h[name] = self.linear(x, name)
            key = f"{name}_filter"
            if key in self._parameters:
                taps, past = getattr(self, key).to(x.dtype), None if state is None else state[key]
                h[name], past = short_convolution(h[name], taps, past)
                state = None if state is None else state | {key: kept(past)}
        return h, state

    @torch.no_grad()
    def materialize(self, x: Tensor) -> Tensor:
        """T itself, [T, T, D, D] indexed i, j, a, b, for one sequence x [1, T, D]. The tests of the laws use it.

        `mix`, with the features of x and without biases, is applied to every basis vector e_(j, b).
        """
        features, _ = self.featurize(x)
        biases = [weight for name, weight in self.named_parameters() if name.endswith("_bias")]
        values = [bias.clone() for bias in biases]
        try:
            for bias in biases:
                bias.zero_()
            return self.impulses(features, x, x.shape[2], lambda f, e: self.mix(f, e)[0])
        finally:
            for bias, value in zip(biases, values, strict=True):
                bias.copy_(value)

    @torch.no_grad()
    def materialize_core(self, x: Tensor, channels: slice = slice(None)) -> Tensor:
        """M alone of T = W_out . M . W_in, [T, T, C, C] on the inner channels; channels: of the value.

        It shows the structure of the token mixing.
        """
        features, _ = self.featurize(x)
        h, _ = self.project(x, None, self.maps)
        width = self.value(features, h.get(self.VALUE), None, {}, 0)[0].numel() // x.shape[1]

        def mixed(f: Features, e: Tensor) -> Tensor:
            return self.readout(f, self.core(f, self.unflatten_value(e), None)[0])

        return self.impulses(features, x, width, mixed, channels)

    def unflatten_value(self, value: Tensor) -> Tensor:
        """[B, T, C] in the shape that `core` takes."""
        return value

    @staticmethod
    def impulses(
        features: Features,
        x: Tensor,
        width: int,
        apply: Callable[[Features, Tensor], Tensor],
        channels: slice = slice(None),
    ) -> Tensor:
        """`apply` to every basis vector e_(j, b), b in `channels` of `width`: [T, T, C_out, C_in]."""
        if x.shape[0] != 1:
            raise ValueError(f"T is a property of one sequence, and x has batch {x.shape[0]}; give x [1, T, D]")
        seq_len = x.shape[1]
        basis = torch.eye(seq_len * width, dtype=x.dtype, device=x.device)
        basis = rearrange(basis, "(j b) (i a) -> j b i a", j=seq_len, i=seq_len)[:, channels].flatten(0, 1)
        repeated = {name: f.expand(len(basis), *f.shape[1:]) for name, f in features.items()}
        return rearrange(apply(repeated, basis), "(j b) i a -> i j a b", j=seq_len)

    def init_state(
        self, batch: int, max_len: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> State:
        """Zeros for every state tensor that this LIV owns."""
        return {
            name: entry.allocate(batch, max_len, dtype, device)
            for name, entry in self.config.own_state(self.given).items()
        }

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialises every weight that this LIV owns; the owner of a tied weight initialises it."""
        for name, weight in self.config.own_weights(self.given).items():
            if name not in self.tied:
                weight.init(getattr(self, name), generator)

    def extra_repr(self) -> str:
        return f"{self.config}" + (f", given={sorted(self.given)}" if self.given else "")
