"""A linear input-varying operator (LIV): y = T(x) x.

    y[i, a] = sum_j sum_b  T[i, j, a, b](x) * x[j, b]        i, j tokens; a, b channels     (STAR, eq. 1)

Every operator is written in the two halves of that sentence, and everything else follows from them:

    features, state = liv.featurize(x, state, given)     # the input-varying part
    y, state        = liv.mix(features, x, state, given) # linear in x for fixed features

`mix` itself is three linear maps, W_out . M(features) . W_in: `value` maps x into the value path (W_in, and a short
convolution where the genome asks for one), `core` applies the structured token mixing M, `output` maps back (W_out).

    x [B, T, D]  ->  value [B, T, branches * width]  ->  core  ->  y [B, T, D]

Sharing: `given` are features (and values) that another LIV computed. A LIV built with `given={"k", "v"}` has no weights
and no state for these groups. State: `state=None` computes none (training); else it is a dict of tensors made by
`init_state`, consumed by the call (updated in place where that is cheaper) and never part of the autograd graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Features = dict[str, Tensor]
State = dict[str, Tensor]
Init = Callable[[Tensor, torch.Generator], object]


class Weight(NamedTuple):
    """One parameter tensor: its shape, the feature group that owns it, how it starts and how it is trained.

    `group` is a feature group, or "out" for what belongs to the LIV itself and is never shared.
    `kind`: "matrix" (a dense channel map, [out, in]) or "vector" (norms, filters, gates, biases: per channel or head).
    """

    shape: tuple[int, ...]
    group: str
    init: Init
    kind: str = "vector"


class StateEntry(NamedTuple):
    """One decode-state tensor of shape [B, *shape] (fixed) or [B, *shape with n_columns inserted] (per token).

    `role`: "compute" (activation dtype) or "recurrent" (float32 or wider). `cap`: None for a fixed state, else the most
    columns kept, min(T, cap); `math.inf` for full attention, W - 1 for a window of W. `column_dim`: where columns go.
    """

    shape: tuple[int, ...]
    group: str
    role: str = "compute"
    cap: float | None = None
    column_dim: int = 0

    def columns(self, seq_len: int) -> int:
        return 1 if self.cap is None else int(min(seq_len, self.cap))

    def numbers(self, seq_len: int) -> int:
        """How many numbers one sequence of `seq_len` tokens keeps."""
        return math.prod(self.shape) * self.columns(seq_len)

    def allocate(self, batch: int, max_len: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
        shape = list(self.shape)
        if self.cap is not None:
            shape.insert(self.column_dim, self.columns(max_len))
        if self.role == "recurrent":
            dtype = torch.promote_types(dtype, torch.float32)
        return torch.zeros(batch, *shape, dtype=dtype, device=device)


def normal(std: float) -> Init:
    return lambda w, generator: w.normal_(0.0, std, generator=generator)


def constant(value: float) -> Init:
    return lambda w, generator: w.fill_(value)


def log_uniform(low: float, high: float, then: Callable[[Tensor], Tensor] = lambda w: w) -> Init:
    """exp(U(log low, log high)), mapped by `then`."""
    return lambda w, generator: w.copy_(then(w.uniform_(math.log(low), math.log(high), generator=generator).exp()))


def matrix(out_features: int, in_features: int, group: str) -> Weight:
    """A dense channel map, started at 1/sqrt(fan_in) so that it keeps the variance of its input at any width."""
    return Weight((out_features, in_features), group, normal(in_features**-0.5), "matrix")


def short_filter(channels: int, length: int, group: str) -> Weight:
    """A causal depthwise filter; the last tap multiplies the present token."""
    return Weight((channels, length), group, normal(length**-0.5))


@dataclass(frozen=True)
class LIVConfig:
    """Every number of one operator. Subclasses say what it holds (`weights`, `state`) and what it costs."""

    d_model: int
    branches: int

    def weights(self) -> dict[str, Weight]:
        """All parameter tensors by name, before any sharing."""
        raise NotImplementedError

    def state(self) -> dict[str, StateEntry]:
        """All decode-state tensors by name, before any sharing."""
        raise NotImplementedError

    def mixing_flops(self, seq_len: int) -> float:
        """Forward FLOPs per token of the token mixing (not the channel maps), mean over a causal sequence."""
        raise NotImplementedError

    def decode_mixing_flops(self, seq_len: int) -> float:
        """FLOPs of the token mixing for one more token after `seq_len`."""
        raise NotImplementedError

    def build(self, given: frozenset[str] = frozenset(), tied: Mapping[str, nn.Parameter] | None = None) -> "LIV":
        raise NotImplementedError

    # What follows from those, for any operator.

    def own_weights(self, given: frozenset[str]) -> dict[str, Weight]:
        return {name: w for name, w in self.weights().items() if w.group not in given}

    def own_state(self, given: frozenset[str]) -> dict[str, StateEntry]:
        """A state tensor belongs to whoever computes it; one that needs several groups names them joined by '+'."""
        return {name: s for name, s in self.state().items() if not set(s.group.split("+")) <= given}

    def num_params(self, given: frozenset[str] = frozenset()) -> int:
        return sum(math.prod(w.shape) for w in self.own_weights(given).values())

    def channel_flops(self, given: frozenset[str] = frozenset()) -> int:
        """FLOPs per token of all channel maps and short filters: 2 per weight."""
        return 2 * sum(math.prod(w.shape) for w in self.own_weights(given).values() if len(w.shape) == 2)

    def output_weights(self, width: int) -> dict[str, Weight]:
        """The output map and, for a differential operator, its lambda."""
        weights = {"out": matrix(self.d_model, self.branches * width, "out")}
        if self.branches == 2:
            weights["diff"] = Weight((1,), "out", constant(0.5))
        return weights


class LIV(nn.Module):
    """An operator with its weights. `given` are the feature groups that a provider computes in its place.

    `tied` maps weight names to parameters of another LIV (featurizer sharing: same weights, own input).
    """

    VALUE: str  # the name under which the value path is shared

    def __init__(self, config: LIVConfig, given: frozenset[str] = frozenset(), tied: Mapping[str, nn.Parameter] | None = None):
        super().__init__()
        self.config = config
        self.given = given
        self.tied = frozenset(tied or ())
        for name, weight in config.own_weights(given).items():
            parameter = tied[name] if tied and name in tied else nn.Parameter(torch.empty(weight.shape))
            self.register_parameter(name, parameter)

    # The three parts that a family writes.

    def featurize(self, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Features, State | None]:
        """Everything of T that varies with the input.

        Args: x [B, T, D]; state, or None; given: features of the provider; offset: tokens seen before this call.
        """
        raise NotImplementedError

    def value(self, features: Features, x: Tensor, state: State | None, given: Features, offset: int = 0) -> tuple[Tensor, State | None]:
        """The value path, linear in x: the tensor that `core` mixes over tokens."""
        raise NotImplementedError

    def core(self, features: Features, value: Tensor, state: State | None) -> tuple[Tensor, State | None]:
        """The token mixing M: linear in `value`, [B, T, branches * width] out."""
        raise NotImplementedError

    # What follows from them.

    def output(self, features: Features, y: Tensor) -> Tensor:
        """W_out; a differential operator subtracts its second branch here: W_a y_a - lambda W_b y_b."""
        if self.config.branches == 2:
            a, b = y.chunk(2, dim=-1)
            y = torch.cat([a, -self.diff.to(y.dtype) * b], dim=-1)
        return self.linear(y, "out")

    def mix(self, features: Features, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0) -> tuple[Tensor, State | None]:
        """y = T(features) x: linear in x [B, T, D] for fixed features."""
        value, state = self.value(features, x, state, given or {}, offset)
        y, state = self.core(features, value, state)
        return self.output(features, y), state

    def share(self, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0) -> tuple[Tensor, State | None, Features]:
        """`forward` that also returns the features, value included, for LIVs that share them."""
        features, state = self.featurize(x, state, given or {}, offset)
        value, state = self.value(features, x, state, given or {}, offset)
        y, state = self.core(features, value, state)
        return self.output(features, y), state, {**features, self.VALUE: value}

    def forward(self, x: Tensor, state: State | None = None, given: Features | None = None, offset: int = 0) -> tuple[Tensor, State | None]:
        """x [B, T, D] -> y [B, T, D]. Whole, in chunks or token by token (with `state`) it is the same map."""
        y, state, _ = self.share(x, state, given, offset)
        return y, state

    @torch.no_grad()
    def materialize(self, x: Tensor) -> Tensor:
        """T itself, [T, T, D, D] indexed i, j, a, b, for one sequence x [1, T, D]: the oracle of the laws.

        The features are those of x; `mix` is applied to every basis vector e_(j, b).
        """
        features, _ = self.featurize(x, None, {})
        return self._impulses(features, x.shape[1], x.shape[2], x.dtype, lambda f, e: self.mix(f, e)[0])

    @torch.no_grad()
    def materialize_core(self, x: Tensor) -> Tensor:
        """M alone, [T, T, C, C] on the inner channels: T = W_out . M . W_in. Shows the channel structure."""
        features, _ = self.featurize(x, None, {})
        width = self.value(features, x, None, {})[0].numel() // x.shape[1]
        return self._impulses(features, x.shape[1], width, x.dtype, lambda f, e: self.core(f, self.unflatten_value(e), None)[0])

    def unflatten_value(self, value: Tensor) -> Tensor:
        """[B, T, C] to the shape that `core` takes."""
        return value

    @staticmethod
    def _impulses(features: Features, seq_len: int, width: int, dtype: torch.dtype, apply: Callable[[Features, Tensor], Tensor]) -> Tensor:
        n = seq_len * width
        basis = torch.eye(n, dtype=dtype).view(n, seq_len, width)
        repeated = {name: f.expand(n, *f.shape[1:]) for name, f in features.items()}
        columns = apply(repeated, basis)  # [(j, b), i, a]
        return columns.view(seq_len, width, seq_len, -1).permute(2, 0, 3, 1)

    def init_state(self, batch: int, max_len: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> State:
        """Zeros for every state tensor that this LIV owns."""
        return {name: entry.allocate(batch, max_len, dtype, device) for name, entry in self.config.own_state(self.given).items()}

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Start every weight that this LIV owns; tied ones are started by their owner."""
        for name, weight in self.config.own_weights(self.given).items():
            if name not in self.tied:
                weight.init(getattr(self, name), generator)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x @ W^T with the weight cast to the dtype of the activations (fp32 master weights, no autocast)."""
        return F.linear(x, getattr(self, name).to(x.dtype))

    def filtered(self, x: Tensor, name: str, state: State | None) -> tuple[Tensor, State | None]:
        """The short causal filter `name` of this LIV, if it has one, applied to x [B, T, C]."""
        if not hasattr(self, name):
            return x, state
        y, past = short_convolution(x, getattr(self, name).to(x.dtype), None if state is None else state[name])
        return y, None if state is None else state | {name: past}

    def extra_repr(self) -> str:
        return f"{self.config}" + (f", given={sorted(self.given)}" if self.given else "")


def short_convolution(x: Tensor, weight: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution by shift and add, for filters of a few taps.

    Args: x [B, T, C]; weight [C, k], the last tap on the present token; past [B, k - 1, C], the inputs before x.
    Returns: y [B, T, C] and the last k - 1 inputs [B, k - 1, C].
    """
    length = weight.shape[1]
    x = F.pad(x, (0, 0, length - 1, 0)) if past is None else torch.cat([past.to(x.dtype), x], dim=1)
    seq_len = x.shape[1] - length + 1
    y = x[:, :seq_len] * weight[:, 0]
    for tap in range(1, length):
        y = y + x[:, tap : tap + seq_len] * weight[:, tap]
    return y, x[:, seq_len:].detach()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)
