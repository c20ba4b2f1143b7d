"""Structured attention sparsification (SAS): during training, attention heads get windows and useless ones are dropped.

    sparsifier = Sparsifier(model, tau=0.02, head_floor=0.03, total_tokens=recipe.tokens)
    if sparsifier.due(tokens):                          # before an optimizer step
        sparsifier.update(model, inputs, targets, tokens)
    ...
    sparsifier.finish()                                 # after the last step
    genome = sparsifier.edited_genome()                 # fits the trained weights unchanged, with a smaller cache

The evidence is the score S_ij = |A_ij| |dL/dA_ij| of `star.training.attention_scores`, by head and distance, averaged
over updates. A head gets the smallest legal window that cuts off at most the share tau of its score. A head whose score
is below `head_floor` times the mean of its layer is faded out. Phases, in fractions of the tokens: dense until `START`;
then tau and floor grow from 0 on the cubic of Zhu & Gupta (arXiv 1710.01878); from `FREEZE` on nothing changes and the
model recovers. It then has the windows of its edited genome: one for all heads of a LIV and for all LIVs that share
with it.

The right tau depends on how diffuse attention is, because S adds magnitudes that would partly cancel. Measured with 160
thousand parameters after 0.1 to 0.5 million bytes of source text (three attention LIVs, context 256): no window at
tau = 0.02; at tau = 0.5, a cache smaller by three quarters and a lower loss.

A model without attention is not changed. Without a sparsifier the forward does not use this module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from star.cost import costs
from star.errors import UserError
from star.genome import Genome
from star.genome.edit import edited_genome, together
from star.model import LanguageModel
from star.training.attention_scores import (
    N_BUCKETS,
    WINDOWS,
    HeadLimits,
    attention_livs,
    larger,
    sample_scores,
    smaller,
)

OBSERVE, START, FREEZE = 0.1, 0.15, 0.6  # fractions of the tokens: first score; first limit; last change
UPDATES = 20  # scores from OBSERVE to FREEZE, at most
DECAY = 0.8  # of the running means, per update
FADE = 4  # updates below the floor after which a head is dropped


@dataclass
class HeadScores:
    """Scores and limits of the heads of one LIV.

    share: of a head's score by distance bucket, float64 [H, N_BUCKETS]. A bucket that a window has cut off keeps its
    share, so that all windows together cut off at most tau. strength [H]: a head's score relative to the mean of the
    layer's heads that are not dropped. windows: current, None for all keys. faded: updates that a head has been below
    the floor; at FADE it is dropped permanently.
    """

    share: Tensor | None
    strength: Tensor | None
    windows: list[int | None]
    faded: list[int]

    @property
    def gains(self) -> list[float]:
        """Factor of the output of each head."""
        return [1 - faded / FADE for faded in self.faded]

    @property
    def window(self) -> int | None:
        """The smallest window that is enough for every head; None for all keys."""
        return larger(window for window, lives in zip(self.windows, self.lives, strict=True) if lives)

    @property
    def lives(self) -> list[bool]:
        """Which heads are not dropped."""
        return [faded < FADE for faded in self.faded]

    @property
    def dropped(self) -> list[int]:
        """Numbers of the dropped heads."""
        return [head for head, lives in enumerate(self.lives) if not lives]

    def observe(self, score: Tensor) -> None:
        """Add one measured score [H, N_BUCKETS]."""
        score = score.cpu()
        total = score.sum(1)
        living = total[torch.tensor(self.lives)]
        if not torch.isfinite(total).all() or not living.sum() > 0:
            return  # a diverged step is no evidence
        strength = total / living.mean()
        self.strength = strength if self.strength is None else DECAY * self.strength + (1 - DECAY) * strength
        if self.share is None:
            self.share = fractions(score)
            return
        is_open = torch.tensor([[w is None or n <= WINDOWS.index(w) for n in range(N_BUCKETS)] for w in self.windows])
        left = (self.share * is_open).sum(1, keepdim=True)
        new = fractions(score * is_open) * left
        self.share = torch.where(is_open, DECAY * self.share + (1 - DECAY) * new, self.share)

    def tighten(self, tau: float, floor: float, seq_len: int) -> None:
        """Shorten windows and lower gains as far as the scores allow. A window as long as the context stays None."""
        if self.share is None or self.strength is None:
            return
        # [H, len(WINDOWS)]: the share that each legal window cuts off
        outside = self.share.flip(1).cumsum(1).flip(1)[:, 1:]
        for head, row in enumerate(outside.tolist()):
            enough = next((w for w, cut in zip(WINDOWS, row, strict=True) if cut <= tau and w < seq_len), None)
            self.windows[head] = smaller(self.windows[head], enough)
            if self.faded[head] < FADE:
                self.faded[head] = self.faded[head] + 1 if self.strength[head] < floor else 0


def fractions(score: Tensor) -> Tensor:
    """Each row divided by its sum; zeros for a row of zeros."""
    return score / score.sum(1, keepdim=True).clamp_min(1e-300)


def over_processes(score: Tensor) -> Tensor:
    """Sum over all processes of a distributed run, in place, so that all set the same limits."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(score)
    return score


class Sparsifier:
    """Sets windows and gains of the attention heads of `model` while it trains; see the module.

    Args: tau: share of a head's score that its window may cut off; head_floor: heads whose score is below this fraction
        of the mean of their layer are dropped (0: none); total_tokens: of the run; sequences: of the batch, used for an
        update; updates: number of scores from `OBSERVE` to `FREEZE`.
    Raises: UserError for a setting out of bounds.
    """

    def __init__(
        self,
        model: LanguageModel,
        tau: float,
        head_floor: float,
        total_tokens: int,
        sequences: int = 2,
        updates: int = UPDATES,
    ):
        for name, value, high in (("tau", tau, 0.9), ("head_floor", head_floor, 0.5)):
            if not 0 <= value <= high:
                raise UserError(f"sparsification: {name} is {value}; legal is 0 to {high}")
        if total_tokens < 1 or sequences < 1:
            raise UserError(
                f"sparsification: total_tokens is {total_tokens} and sequences {sequences}; both must be at least 1"
            )
        self.model, self.tau, self.head_floor = model, tau, head_floor
        self.total_tokens, self.sequences, self.planned = total_tokens, sequences, max(2, updates)
        self.updates, self.frozen, self.seq_len = 0, False, 0
        self.livs = attention_livs(model)
        n_heads = {layer: liv.config.branches * liv.config.n_heads for layer, liv in self.livs.items()}
        self.layers = {layer: HeadScores(None, None, [None] * n, [0] * n) for layer, n in n_heads.items()}

    def due(self, tokens: int) -> bool:
        """Whether an update is due after `tokens` training tokens."""
        next_update = OBSERVE + self.updates * (FREEZE - OBSERVE) / (self.planned - 1)
        return bool(self.livs) and not self.frozen and tokens >= min(next_update, FREEZE) * self.total_tokens

    def update(self, model: LanguageModel, inputs: Tensor, targets: Tensor, tokens: int) -> None:
        """Score the heads on the first sequences of a batch, int64 [B, T], and set their limits accordingly.

        This costs about a training step on these sequences; weights, gradients and random number generators do not
        change.
        """
        progress = tokens / self.total_tokens
        for layer, score in sample_scores(model, inputs[: self.sequences], targets[: self.sequences]).items():
            self.layers[layer].observe(over_processes(score))
        self.updates, self.seq_len = self.updates + 1, inputs.shape[1]
        if progress >= START:
            ramp = 1 - (1 - min(1.0, (progress - START) / (FREEZE - START))) ** 3
            for heads in self.layers.values():
                heads.tighten(ramp * self.tau, ramp * self.head_floor, self.seq_len)
        if progress >= FREEZE:
            self._settle()
        self._impose()

    def state(self) -> dict:
        """JSON-able state for `load`."""
        layers = {}
        for layer, heads in self.layers.items():
            layers[str(layer)] = {
                "share": None if heads.share is None else heads.share.tolist(),
                "strength": None if heads.strength is None else heads.strength.tolist(),
                "windows": heads.windows,
                "faded": heads.faded,
            }
        return {"updates": self.updates, "frozen": self.frozen, "seq_len": self.seq_len, "layers": layers}

    def load(self, state: dict) -> None:
        """Restore a `state` and set its limits. Raises UserError if it is of a model with other attention heads."""
        shapes = {str(layer): len(heads.windows) for layer, heads in self.layers.items()}
        if {layer: len(saved["windows"]) for layer, saved in state["layers"].items()} != shapes:
            raise UserError(
                "sparsification: the saved state is of a model with other attention heads; remove its checkpoint to "
                "start again"
            )
        self.updates, self.frozen, self.seq_len = state["updates"], state["frozen"], state["seq_len"]
        for layer, saved in state["layers"].items():
            share, strength = (
                None if saved[name] is None else torch.tensor(saved[name], dtype=torch.float64)
                for name in ("share", "strength")
            )
            self.layers[int(layer)] = HeadScores(share, strength, list(saved["windows"]), list(saved["faded"]))
        self._impose()

    @torch.no_grad()
    def finish(self) -> None:
        """Set the weights of dropped heads in the output maps to zero: weights and edited genome are then the model.

        A run that stops before `FREEZE` ends with its present limits, but keeps heads that are not yet dropped.
        """
        if not self.frozen:
            self._settle()
            self._impose()
        for layer, heads in self.layers.items():
            out = self.livs[layer].get_parameter("out")
            out.view(out.shape[0], len(heads.faded), -1)[:, heads.dropped] = 0  # [D, H, d]

    def edited_genome(self) -> Genome:
        """The genome of the model with the windows that its heads need; unchanged if none can be shorter."""
        return edited_genome(self.model.genome, {layer: heads.window for layer, heads in self.layers.items()})

    def summary(self, seq_len: int | None = None) -> dict:
        """JSON-able: windows of all heads and dropped heads by LIV; share of the cache that the edited genome saves.

        seq_len: context length for the comparison of caches; default: the training context.
        """
        seq_len = seq_len or self.seq_len or 1
        now, then = (costs(g, seq_len=seq_len).cache_bytes for g in (self.model.genome, self.edited_genome()))
        layers = [
            {
                "layer": layer,
                "name": self.model.plan.layers[layer].name,
                "windows": heads.windows,
                "dropped": heads.dropped,
            }
            for layer, heads in self.layers.items()
        ]
        saved = 1 - then / now if now else 0.0
        return {"updates": self.updates, "frozen": self.frozen, "layers": layers, "cache_saved": saved}

    def _settle(self) -> None:
        """The last change: heads that are not dropped are kept, and every LIV gets the window of its edited genome."""
        self.frozen = True
        for heads in self.layers.values():
            heads.faded = [faded if faded == FADE else 0 for faded in heads.faded]
        for members in together(self.model.genome):
            sharing = [self.layers[layer] for layer in members if layer in self.layers]
            window = larger(heads.window for heads in sharing)
            for heads in sharing:
                heads.windows = [window] * len(heads.windows)

    def _impose(self) -> None:
        for layer, heads in self.layers.items():
            plain = not any(heads.windows) and not any(heads.faded)
            liv = self.livs[layer]
            liv.attend = None if plain else HeadLimits.make(heads.windows, heads.gains, liv.get_parameter("out").device)
