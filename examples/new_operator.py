"""A new operator from outside the package: a gated causal mean, y_i = W_out (sigmoid(W_g x_i) * mean_(j <= i) W_v x_j).

    python examples/new_operator.py [--steps 100]

Its T is T_ij = W_out diag(sigmoid(W_g x_i)) W_v / i for j <= i: semi-separable of rank one, with one sum as its state.
The operator is defined in under 40 lines; genome, costs, decoding and training then work as for any other.
"""

import argparse
from dataclasses import dataclass

import torch
from einops import einsum

import star
from star.genome import POOL, Gene, Genome, PoolClass, operator, register_family
from star.liv.base import LIV, LIVConfig, StateEntry, matrix
from star.liv.genes import Family, GroupSpec


@dataclass(frozen=True)
class MeanConfig(LIVConfig):
    def weights(self):
        inner = self.branches * self.d_model
        maps = {"gate": matrix(inner, self.d_model, "gate"), "value_map": matrix(inner, self.d_model, "value")}
        return maps | self.output_weights(self.d_model)

    def state(self):
        return {"total": StateEntry((self.branches * self.d_model,), "value", role="recurrent")}

    def mixing_flops(self, seq_len):
        return 3 * self.branches * self.d_model  # add, divide, multiply

    decode_mixing_flops = mixing_flops

    def build(self, given=frozenset(), tied=None):
        return Mean(self, given, tied)


class Mean(LIV):
    MAPS, VALUE = ("gate", "value_map"), "value_map"

    def features_of(self, h, state, given, offset):
        n = torch.arange(1, h["gate"].shape[1] + 1, device=h["gate"].device) + offset
        return {"gate": torch.sigmoid(h["gate"]) / n[:, None]}, state  # the i of token i is part of the feature

    def value(self, features, h, state, given, offset):
        return h, state

    def core(self, features, value, state):
        total = value.cumsum(dim=1)
        if state is not None:
            total = total + state["total"][:, None].to(total.dtype)
            state = {"total": total[:, -1].to(state["total"].dtype)}
        return features["gate"] * total, state


FAMILY = Family(
    name="mean",
    equation="T_ij = W_out diag(sigmoid(g_i)) W_v / i for j <= i",
    token=(4,),
    nonlinearity=(1,),
    channel=(1,),
    groups={"gate": GroupSpec("the gate"), "value": GroupSpec("the value path")},
    shareable=(),  # nothing that other LIVs may take
    configure=lambda operator, d_model, head_dim, rope_theta: MeanConfig(d_model, operator.branches),
)
register_family(11, FAMILY)
ROW = (1, 2, 1, 1)  # token, channel, expansion, repeat of each feature group
GATED_MEAN = PoolClass("GatedMean", operator((11, 4, 1, 1, 1), gate=ROW, value=ROW))


def main(steps: int = 100) -> dict[str, float]:
    """Train a backbone of it, check it against its own T; returns the losses and the errors."""
    pool = (*POOL, GATED_MEAN)
    genome = Genome((Gene(len(pool)), Gene(9)) * 2, d_model=64, head_dim=16, pool=pool)  # 9 is the paper's SwiGLU
    costs = star.costs(genome, vocab_size=256)
    print(f"{genome.class_names}: {costs.parameters:,} parameters, cache {costs.cache_bytes:,} bytes at any length")

    model = star.build(genome, vocab_size=256, seed=0)
    text = torch.frombuffer(bytearray(open(torch.__file__, "rb").read()), dtype=torch.uint8).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        start = torch.randint(len(text) - 129, (8,), generator=torch.Generator().manual_seed(step))
        block = torch.stack([text[s : s + 129] for s in start])
        loss = model.loss(block[:, :-1], block[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} nats/byte after {steps} steps")

    liv = model.blocks[0].liv.double()
    x = torch.randn(1, 12, 64, dtype=torch.float64)
    with torch.no_grad():
        T, (y, _) = liv.materialize(x), liv(x)  # T [i, j, a, b]
        error = (einsum(T, x[0], "i j a b, j b -> i a") - y[0]).abs().max().item()
        future = T[0, 1:].abs().max().item()
        half, state = liv(x[:, :7], liv.init_state(1, 12, torch.float64))
        rest, _ = liv(x[:, 7:], state, offset=7)
        pieces = (torch.cat([half, rest], dim=1) - y).abs().max().item()
    print(f"|T(x) x - y| = {error:.1e}; weight of the future in T: {future}; in two pieces: {pieces:.1e}")
    return {"first": losses[0], "last": losses[-1], "error": error, "future": future, "pieces": pieces}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    main(parser.parse_args().steps)
