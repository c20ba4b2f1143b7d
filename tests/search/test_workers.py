"""How many candidates share a GPU: what was measured, and that it is followed where workers are made."""

import sys
from types import SimpleNamespace

import pytest

from star.config import load_config
from star.search.workers import MOST_SIDE_BY_SIDE, company, early_workers, make_engine, side_by_side

H100 = 132


@pytest.mark.parametrize(
    ("width", "tokens", "models"),
    [(64, 2 * 128, 16), (64, 16 * 128, 8), (128, 16 * 128, 4), (128, 32 * 512, 1), (256, 2 * 128, 1), (512, 32, 1)],
)
def test_small_models_share_a_gpu(width, tokens, models):
    assert side_by_side(width, tokens, H100) == models <= MOST_SIDE_BY_SIDE
    assert side_by_side(width, tokens, 16) <= models


def job(config, width: int = 64, alone: bool = False, **recipe):
    defaults = {"device": "auto", "batch_size": config.training.batch_size, "seq_len": config.training.seq_len}
    return {"alone": alone, "genome": {"d_model": width}, "recipe": defaults | recipe}


def test_a_lost_candidate_is_repeated_alone():
    config = load_config("laptop")
    allowed = company(config, H100)
    assert allowed(job(config)) == 16 and allowed(job(config, alone=True)) == 1
    assert allowed(job(config, device="cpu")) == 1 and allowed(job(config, width=512)) == 1
    assert company(config.replace({"engine.side_by_side": 3}), H100)(job(config)) == 3


@pytest.fixture
def gpus(monkeypatch):
    properties = SimpleNamespace(multi_processor_count=H100)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: properties)
    monkeypatch.setattr(sys.modules[make_engine.__module__], "visible_gpus", lambda: ["0", "1"])


def test_automatic_workers_where_there_are_gpus(tmp_path, gpus):
    config = load_config("laptop", overrides={"engine.kind": "pool", "search.population": 64})
    engine = make_engine(config, "jobs:job", tmp_path)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in engine._workers] == ["0", "1"] * 2
    assert engine.slots == 4 * 16
    engine.close()
    engine = make_engine(config.replace({"space.d_models": 512, "space.head_dim": 64}), "jobs:job", tmp_path)
    assert len(engine._workers) == engine.slots == 4
    engine.close()
    few = config.replace({"search.population": 8, "search.offspring": 4})  # one worker holds a whole generation
    engine = make_engine(few, "jobs:job", tmp_path)
    assert len(engine._workers) == 1
    engine.close()


def test_workers_of_gpus_start_early(tmp_path, gpus):
    config = load_config("laptop", overrides={"engine.kind": "pool", "search.population": 64})
    workers = early_workers(config, "jobs:job")
    engine = make_engine(config, "jobs:job", tmp_path, started=workers)
    assert engine._workers == workers and all(worker.pool.active for worker in workers)
    assert [worker.environment["CUDA_VISIBLE_DEVICES"] for worker in workers] == ["0", "1"] * 2
    engine.close()
    assert not any(worker.pool for worker in workers)


def test_workers_of_a_cpu_do_not(monkeypatch):
    monkeypatch.setattr(sys.modules[make_engine.__module__], "visible_gpus", list)
    assert early_workers(load_config("laptop"), "jobs:job") == []
