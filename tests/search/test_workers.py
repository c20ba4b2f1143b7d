"""How many candidates share a device: what the formula says, and that it is followed where workers are made."""

import sys

import numpy as np
import pytest

from star.config import load_config
from star.search.jobs import costs_of
from star.search.spaces import make_space
from star.search.workers import (
    CONTEXT,
    EFFICIENCY,
    LIV_SECONDS,
    MEMORY_SHARE,
    MOST_PER_GPU,
    Gpu,
    Step,
    largest_step,
    make_engine,
    step_of,
    workers_on_gpu,
    workers_per_gpu,
)

GPU = Gpu(memory=80 * 2**30, flops=1e15)


def step(computing: float = 1.0, n_livs: int = 6, memory: int = 2**20) -> Step:
    """A step that computes for so many times as long as it takes to start."""
    return Step(computing * n_livs * LIV_SECONDS * GPU.flops * EFFICIENCY, memory, n_livs)


@pytest.mark.parametrize(
    ("computing", "workers"), [(2.0, 1), (1.0, 1), (0.51, 1), (0.49, 2), (0.24, 4), (1e-4, MOST_PER_GPU)]
)
def test_workers_fill_the_time_in_which_one_leaves_the_gpu_idle(computing, workers):
    assert workers_per_gpu(step(computing), GPU, 64) == workers


def test_workers_fit_memory_and_cores():
    tiny = step(1e-4)
    assert workers_per_gpu(tiny, GPU, 3) == 3
    third = step(1e-4, memory=int(MEMORY_SHARE * GPU.memory / 3.5) - CONTEXT)
    assert workers_per_gpu(third, GPU, 64) == 3
    assert workers_per_gpu(step(1e-4, memory=2 * GPU.memory), GPU, 64) == 1, (
        "it may still fit: the estimate is an upper one"
    )


@pytest.mark.parametrize("preset", ["smoke", "laptop", "gpu"])
def test_the_largest_step_bounds_that_of_every_genome(preset):
    config = load_config(preset)
    space, most = make_space(config), largest_step(config)
    for row in space.sample(np.random.default_rng(0), 20):
        genome = space.decode(row)
        costs = costs_of(genome, vocab_size=256, seq_len=config.training.seq_len)
        own = step_of(costs, config.training, genome.d_model, len(genome.backbone), 256)
        assert own.flops <= most.flops and own.memory <= most.memory and own.n_livs <= most.n_livs


def test_automatic_workers_where_there_are_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr("star.search.workers.visible_gpu", lambda: GPU)
    monkeypatch.setattr(sys.modules[make_engine.__module__], "visible_gpus", lambda: ["0", "1"])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    config = load_config("laptop", overrides={"engine.kind": "pool", "search.population": 64})
    engine = make_engine(config, "jobs:job", tmp_path)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in engine._slots] == ["0", "1"] * 4, "four cores for each"
    engine.close()
    assert workers_on_gpu(config, 2, 1000) == MOST_PER_GPU and workers_on_gpu(load_config("paper"), 2, 1000) == 1
    assert workers_on_gpu(config.replace({"engine.workers_per_gpu": 3}), 2, 8) == 3
    assert workers_on_gpu(config, 0, 8) == 1
