"""What a search will take here, from steps that were measured; and what a search will use of this machine."""

import re
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
import torch

from star.config import load_config
from star.data import open_corpus
from star.errors import UserError
from star.genome import load_genome
from star.search import forecast as module
from star.search import machine
from star.search.forecast import YEAR, duration, forecast, refuse_beyond_a_year, time_of, training_rate, work


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the star evolves a backbone of operators\n" * 4000)
    return path


@pytest.fixture
def config(text):
    return load_config("smoke", overrides={"data.corpus": str(text), "engine.workers": 2})


def test_time_follows_from_the_rate_and_the_budget(config, monkeypatch):
    monkeypatch.setattr(module, "training_rate", lambda genomes, corpus, recipe, seconds: 1000.0)
    expected = forecast(config)
    candidates = config.candidates + len(config.search.baselines)
    corpus = open_corpus(config.data.corpus)
    assert expected.seconds == pytest.approx(candidates * work(config.training, corpus) / 2000)
    assert str(expected).endswith("(measured 1,000 tokens/s for each of 2 workers)")
    evaluated = min(8192, len(corpus.validation)) * 5 / 3
    assert work(config.training, corpus) == pytest.approx(8192 + evaluated)


def test_a_rate_is_measured_on_real_steps(config):
    corpus = open_corpus(config.data.corpus)
    genomes = [load_genome("transformer++").scaled(d_model=32, depth=2)] * 2
    threads = torch.get_num_threads()
    rate = training_rate(genomes, corpus, config.training, 0.2)
    assert 100 < rate < 1e7
    wide = config.training.replace(batch_size=4096)  # is not tried as it is on a CPU
    assert training_rate(genomes[:1], corpus, wide, 0.1) > 100
    assert forecast(config, 0.2).seconds > 0 and torch.get_num_threads() == threads


def test_without_memory_the_time_is_not_known(config, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "training_rate", fail)
    assert forecast(config) is None
    assert time_of(load_genome("transformer++"), open_corpus(config.data.corpus), config.training) is None


def test_beyond_a_year_only_on_request():
    refuse_beyond_a_year(0.9 * YEAR, "this search", False)
    refuse_beyond_a_year(1e30, "this search", True)
    with pytest.raises(UserError, match=r"this search would take about 2 years .* insist with --yes"):
        refuse_beyond_a_year(2 * YEAR, "this search", False)
    said = [duration(seconds) for seconds in (3.2, 100, 600, 4 * 3600, 3 * 86400, 5 * YEAR)]
    assert said == ["3 s", "100 s", "10 min", "4 h", "3 days", "5 years"]


def test_what_a_search_uses_of_a_gpu(config, monkeypatch):
    h100 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: h100)
    monkeypatch.setattr("star.search.workers.visible_gpus", lambda: ["0"])
    monkeypatch.setattr(machine, "can_capture", lambda device: True)
    first, *widths = machine.describe_use(load_config("gpu-quick"), torch.device("cuda"))
    assert first == "preset gpu-quick: bfloat16, training step captured as a CUDA graph, no compiler"
    assert [re.findall(r"\d+", line)[-2:] for line in widths] == [["8", "64"], ["4", "128"]]


def test_kernels_that_a_search_would_use_are_checked(config, monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda name: "0.6")
    asked = []

    def check(cases, device, seconds):
        asked.extend(sorted(cases))
        return {asked[0]: {"agrees": True, "why": "fla differs from it by 1e-3"}}

    monkeypatch.setattr("star.liv.kernel_check.check", check)
    first, *verdicts = machine.describe_kernels([config], torch.device("cpu"), 7)
    assert first.startswith(f"checking {len(asked)} kernels of fla for at most 7 s") and asked
    assert verdicts[0].endswith("fla, because fla differs from it by 1e-3")
    assert all(line.endswith("our own form, because the check did not end in time") for line in verdicts[1:])


def test_each_genome_is_measured_beside_as_many_as_its_width_allows(config, monkeypatch):
    """Several wide models at a time have crashed a GPU: the narrowest width must not decide for all."""
    h100, measured = SimpleNamespace(multi_processor_count=132), []
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: h100)
    monkeypatch.setattr("star.search.workers.visible_gpus", lambda: ["0"])

    def rate(genomes, corpus, recipe, seconds):
        measured.append((genomes[0].d_model, len(genomes)))
        return 1000.0

    monkeypatch.setattr(module, "training_rate", rate)
    mixed = config.replace({"space.d_models": (64, 128, 256), "space.head_dim": 16, "training.batch_size": 16})
    module._forecast(mixed.replace({"training.seq_len": 128}), 1.0)
    assert dict(measured).items() <= {64: 8, 128: 4, 256: 1}.items() and len(dict(measured)) > 1


def test_a_measurement_that_ends_its_process_leaves_the_time_unknown(config, monkeypatch):
    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, *arguments):
            raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(module, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda *a, **k: Pool())
    assert forecast(config) is None
