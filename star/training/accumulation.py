"""Adaptive gradient accumulation: the number of micro-batches per step follows the noise of the gradient.

    N = max(ceil(alpha sigma^2 / eps^2), 1)

sigma^2 is the variance of the gradient of one micro-batch (the trace of its covariance), so the mean of N gradients has
a standard error of eps / sqrt(alpha). With eps = theta |G| ("relative", |G| the norm of the true gradient) this is the
norm test (arXiv 2402.11215), and sigma^2 / |G|^2 in micro-batches is the gradient noise scale (arXiv 1812.06162). Early
in training the gradient is large compared with its noise: many small steps learn more from the same tokens.

Both quantities are estimated from the gradients g_1 ... g_K of micro-batches that a step needs anyway. With
s = mean |g_k|^2 and m = |mean g_k|^2, these estimates are unbiased:

    sigma^2 = (s - m) K / (K - 1)        |G|^2 = (K m - s) / (K - 1)

Single estimates are noisy, and |G|^2 can come out negative. Therefore each is averaged over time before one is divided
by the other.
"""

import math

from star.training.recipe import Recipe

EVERY = 8  # steps between two estimates
LEAST = 4  # micro-batches in a step that estimates: with two, |G|^2 is negative in one of six estimates
MEMORY = 0.9  # decay of the averages per estimate
QUIET = 50  # steps between two changes of N
MARGIN = 1.25  # factor by which the wanted N must exceed the geometric mean of N and 2 N
SKIP = 0.02  # share of the tokens before the first change


def estimate(mean_square: float, square_of_mean: float, k: int) -> tuple[float, float]:
    """(sigma^2 of one gradient, |G|^2) from s = mean |g|^2 and m = |mean g|^2 of k gradients; unbiased."""
    return (mean_square - square_of_mean) * k / (k - 1), (k * square_of_mean - mean_square) / (k - 1)


class Accumulation:
    """The number of micro-batches of the next step: `recipe.accumulate`, or adapted to the noise.

    The adapted N starts at 1, doubles one step at a time, and never falls: the noise scale rises as the loss falls
    (arXiv 2505.23971), and an apparent fall is mostly the noise of the estimate.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.n = 1 if recipe.adaptive else recipe.accumulate
        self.variance, self.signal = 0.0, 0.0  # running averages of sigma^2 and |G|^2
        self.weight = 0.0  # the sum of their weights, below 1 at first
        self.changed = 0  # the step of the last change

    def due(self, step: int) -> bool:
        """Whether this step estimates the noise."""
        return self.recipe.adaptive and step % EVERY == EVERY - 1

    def size(self, step: int) -> int:
        """Micro-batches of this step."""
        return max(self.n, LEAST) if self.due(step) else self.n

    @property
    def wanted(self) -> float:
        """N by the formula, from the averages so far, before it is rounded and bounded; 1 before any estimate."""
        if self.variance <= 0:
            return 1.0
        scale = self.signal if self.recipe.precision_of == "relative" else self.weight
        if scale <= 0:
            return math.inf
        square = self.recipe.precision**2 * scale
        return max(float(math.ceil(self.recipe.confidence * self.variance / square)), 1.0)

    def observe(
        self, step: int, progress: float, mean_square: float, square_of_mean: float, k: int, share: float = 1.0
    ) -> None:
        """Add an estimate and decide on N. progress: share of the tokens so far; share: micro-batches per gradient."""
        if not (math.isfinite(mean_square) and math.isfinite(square_of_mean)):
            return
        variance, signal = estimate(mean_square, square_of_mean, k)
        self.variance = MEMORY * self.variance + (1 - MEMORY) * variance * share
        self.signal = MEMORY * self.signal + (1 - MEMORY) * signal
        self.weight = MEMORY * self.weight + (1 - MEMORY)
        if progress >= SKIP and step - self.changed >= QUIET and 2 * self.n <= self.recipe.accumulate_max:
            if self.wanted > MARGIN * math.sqrt(2) * self.n:
                self.n, self.changed = 2 * self.n, step

    def state(self) -> dict:
        """JSON-able state for `load`."""
        return {name: getattr(self, name) for name in ("n", "variance", "signal", "weight", "changed")}

    def load(self, state: dict) -> None:
        """Restore a `state`."""
        for name, value in state.items():
            setattr(self, name, value)
