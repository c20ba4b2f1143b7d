"""How long a training or a search will take on this machine, by training steps that are measured for a few seconds.

forecast(config).seconds            # about; the candidates that a search will find may be slower or faster
"""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from star.config import RunConfig
from star.data import Corpus, open_corpus
from star.engine.processes import named_shared_memory
from star.errors import UserError, is_out_of_memory
from star.genome import Genome
from star.model import build
from star.search.spaces import make_space
from star.search.workers import Parallel, job_of_width
from star.training.device import memory_of_others, resolve_device
from star.training.program import WARMUP, on_own_stream
from star.training.recipe import Recipe
from star.training.trainable import Trainable
from star.training.trainer import TrainingRun

SAMPLE = 4  # genomes of a space that are measured
PATIENCE = 2.5  # no further genome is measured after so many times the seconds that were asked for
CPU_TOKENS = 2048  # of a micro-batch that is measured on a CPU
YEAR = 365 * 24 * 3600.0


@dataclass(frozen=True)
class Forecast:
    """tokens_per_second: of one CPU worker or one GPU, all models that train side by side together; seconds: in all."""

    tokens_per_second: float
    workers: int
    side_by_side: int
    seconds: float
    others: int = 0  # bytes of the GPU that other processes hold

    def __str__(self) -> str:
        models = f", up to {self.side_by_side} models side by side" if self.side_by_side > 1 else ""
        each = "one worker" if self.workers == 1 else f"each of {self.workers} workers"
        rate = f"{self.tokens_per_second:,.0f} tokens/s for {each}{models}"
        shared = f"; other processes hold {self.others / 2**30:.1f} GiB of the GPU" if self.others else ""
        return f"expected time: about {duration(self.seconds)} (measured {rate}{shared})"


def forecast(config: RunConfig, seconds: float = 2.0) -> Forecast | None:
    """What a new search will take. Measures random genomes of its space for about `seconds`, after they are built.

    None if memory runs out for all of them. On CUDA this happens in another process, because this one should not take
    memory of a GPU; None also if that process dies.
    """
    if resolve_device(config.training.device).type == "cuda":
        spawn = multiprocessing.get_context("spawn")
        with contextlib.suppress(BrokenProcessPool), named_shared_memory(), ProcessPoolExecutor(1, spawn) as pool:
            return pool.submit(_forecast, config, seconds).result()
        return None
    return _forecast(config, seconds)


def _forecast(config: RunConfig, seconds: float) -> Forecast | None:
    device = resolve_device(config.training.device)
    plan = Parallel.of(config)
    workers = len(plan.gpus) or plan.workers  # workers of a GPU share its rate
    space = make_space(config)
    genomes = [space.decode(row) for row in space.sample(np.random.default_rng(0), SAMPLE)]
    corpus = open_corpus(config.data.corpus, tokenizer=config.data.tokenizer)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.engine.threads)
    rates, started = list[float](), time.monotonic()
    try:
        for genome in genomes:
            together = plan.company(job_of_width(config, genome.d_model)) if plan.company else 1
            try:
                rates.append(training_rate([genome] * together, corpus, config.training, seconds / SAMPLE))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if time.monotonic() - started > PATIENCE * seconds:
                break
    finally:
        torch.set_num_threads(threads)
    if not rates:
        return None
    rate = statistics.harmonic_mean(rates)
    candidates = config.candidates + len(config.search.baselines)
    time_left = candidates * work(config.training, corpus) / (rate * workers)
    others = memory_of_others(device) if device.type == "cuda" else 0
    return Forecast(rate, workers, plan.side_by_side, time_left, others)


def time_of(genome: Genome, corpus: Corpus, recipe: Recipe, seconds: float = 1.0) -> float | None:
    """Seconds of one training in this process, by its rate over about `seconds`; None if memory runs out."""
    try:
        return work(recipe, corpus) / training_rate([genome], corpus, recipe, seconds)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def work(recipe: Recipe, corpus: Corpus) -> float:
    """A training with its evaluations, in tokens of training: a forward pass is a third of a step."""
    evaluated = min(recipe.eval_tokens, len(corpus.validation)) / recipe.eval_interval
    return recipe.micro_batches * recipe.micro_batch + evaluated / 3


def training_rate(genomes: Sequence[Genome], corpus: Corpus, recipe: Recipe, seconds: float) -> float:
    """Tokens per second of these models together, trained side by side in this process for about `seconds`."""
    device = resolve_device(recipe.device)
    endless = recipe.replace(tokens=2**50)
    if device.type == "cpu":  # whose rate hardly depends on the batch, but the time of a step does
        endless = endless.replace(batch_size=min(recipe.batch_size, max(1, CPU_TOKENS // recipe.seq_len)))

    def steps(genome: Genome) -> Generator[None, None, None]:
        model = build(genome, corpus.vocab_size)
        run = TrainingRun(cast(Trainable, model), corpus, endless, device)
        while True:
            run.advance()
            yield

    works = [on_own_stream(steps(genome), device) for genome in genomes]
    for _ in range(WARMUP + 1 if device.type == "cuda" else 1):
        for one in works:
            next(one)
    started, rounds = _now(device), 0
    while rounds < 1 or time.monotonic() - started < seconds:
        for one in works:
            next(one)
        rounds += 1
    rate = rounds * len(works) * endless.accumulate * endless.micro_batch / (_now(device) - started)
    for one in works:
        one.close()
    return rate


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def refuse_beyond_a_year(seconds: float, what: str, yes: bool) -> None:
    """Raises UserError for a training that would take longer than a year, unless the user insists."""
    if seconds > YEAR and not yes:
        raise UserError(
            f"{what} would take about {duration(seconds)} on this machine by the measured rate: lower training.tokens, "
            "or insist with --yes"
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h, 2.0 days, 1.2e+03 years."""
    for size, unit in ((YEAR, "years"), (86400.0, "days"), (3600.0, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(1.0, seconds):.0f} s"
