"""Adaptive gradient accumulation: as many micro-batches per step as the noise of the gradient asks for.

    N = max(ceil(alpha sigma^2 / eps^2), 1)

sigma^2 is the variance of the gradient of one micro-batch (the trace of its covariance), so that the mean of N of them
has a standard error of eps / sqrt(alpha). With eps = theta |G| ("relative", |G| the norm of the true gradient) this is
the norm test (arXiv 2402.11215), and sigma^2 / |G|^2 in micro-batches is the gradient noise scale (arXiv 1812.06162).
Early in training the gradient is large and its noise does not matter: small steps in quick succession learn more from
the same tokens.

Both are estimated from the gradients g_1 ... g_K of micro-batches that a step needs anyway. With s = mean |g_k|^2 and m
= |mean g_k|^2

    sigma^2 = (s - m) K / (K - 1)        |G|^2 = (K m - s) / (K - 1)

are unbiased. Single estimates are noisy, and |G|^2 may come out negative; so both are averaged over time, separately,
before one is divided by the other.
"""

import math

from star.training.recipe import Recipe

EVERY = 8  # steps between two estimates
LEAST = 4  # micro-batches in a step that estimates: with two, |G|^2 is negative one time in six
MEMORY = 0.9  # decay of the averages per estimate
QUIET = 50  # steps between two changes of N
MARGIN = 1.25  # how far the wanted N must be beyond the point between two powers of two
SKIP = 0.02  # share of the tokens before the first change


def estimate(mean_square: float, square_of_mean: float, k: int) -> tuple[float, float]:
    """(sigma^2 of one gradient, |G|^2) from s = mean |g|^2 and m = |mean g|^2 of k gradients; unbiased."""
    return (mean_square - square_of_mean) * k / (k - 1), (k * square_of_mean - mean_square) / (k - 1)


class Accumulation:
    """How many micro-batches the next step takes: `recipe.accumulate`, or what the noise asks for.

    N is a power of two times the least, changes by one doubling at a time, and never falls: the noise scale rises as
    the loss falls (arXiv 2505.23971), and what looks like a fall is mostly the noise of the estimate.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.n = 1 if recipe.adaptive else recipe.accumulate
        self.variance, self.signal, self.weight = 0.0, 0.0, 0.0  # running averages, and the weight they have gathered
        self.changed = 0  # the step of the last change

    def due(self, step: int) -> bool:
        """Whether this step estimates the noise."""
        return self.recipe.adaptive and step % EVERY == EVERY - 1

    def size(self, step: int) -> int:
        """Micro-batches of this step."""
        return max(self.n, LEAST) if self.due(step) else self.n

    @property
    def wanted(self) -> float:
        """N by the formula, from the averages so far, before it is rounded and bounded; 1 while nothing is known."""
        if self.variance <= 0 or (self.signal <= 0 and self.recipe.precision_of == "relative"):
            return 1.0 if self.variance <= 0 else math.inf
        square = self.recipe.precision**2 * (self.signal if self.recipe.precision_of == "relative" else self.weight)
        return max(float(math.ceil(self.recipe.confidence * self.variance / square)), 1.0)

    def observe(
        self, step: int, progress: float, mean_square: float, square_of_mean: float, k: int, share: float = 1.0
    ) -> None:
        """Take in one estimate, and decide. progress: share of the tokens so far; share: of a micro-batch that each
        gradient is of.
        """
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
