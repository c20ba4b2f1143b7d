"""The synthetic tasks: every answer follows from the tokens before it, and models learn what their operators allow."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from star.assess import synthetic_tasks as assessed
from star.assess.constraints import measured_bounds, measured_violations, tasks_tokens
from star.assess.objectives import load_objectives
from star.assess.synthetic_tasks import accuracy, measure, train_task
from star.config import load_config
from star.data import open_corpus
from star.data.synthetic import IGNORE, TASKS
from star.errors import UserError
from star.genome import Genome, to_json
from star.genome.codec import parse_text
from star.turns import finish

CPU = torch.device("cpu")
NAMES = ["recall", "fuzzy recall", "noisy recall", "copying", "compression", "memorisation"]


def genome(text: str, d_model: int = 32) -> Genome:
    return Genome(parse_text(text), d_model=d_model, head_dim=8)


def draw(name: str, n: int = 64, seed: int = 0, **changes):
    task = TASKS[name].replace(**changes)
    inputs, targets = task.batch(n, np.random.default_rng(seed))
    return task, inputs.numpy(), targets.numpy()


def test_there_are_six():
    assert list(TASKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_seeded_and_within_the_vocabulary(name):
    task, inputs, targets = draw(name)
    assert inputs.shape == targets.shape == (64, task.length) and inputs.dtype == targets.dtype == np.int64
    assert inputs.min() >= 0 and inputs.max() < task.vocab_size
    asked = targets[targets != IGNORE]
    assert len(asked) >= 64 and asked.min() >= 0 and asked.max() < task.vocab_size
    assert (inputs == draw(name)[1]).all() and (targets == draw(name)[2]).all()
    assert (inputs != draw(name, seed=1)[1]).any()


def test_recall_by_looking_it_up():
    for name in ("recall", "noisy recall"):
        task, inputs, targets = draw(name, 200)
        for x, y in zip(inputs, targets, strict=True):
            known: dict[int, int] = {}
            for t in range(0, task.length - 1, 2):
                if x[t] >= 2 * task.symbols:
                    assert name == "noisy recall" and y[t] == IGNORE and x[t + 1] >= 2 * task.symbols
                    continue
                assert y[t] == known.get(x[t], IGNORE)
                known[x[t]] = x[t + 1]
            assert (y[1::2] == IGNORE).all()


def test_noise_has_the_share_that_was_asked_for():
    for share in (0.0, 0.2, 0.6):
        task, inputs, _ = draw("noisy recall", 2000, noise=share)
        assert (inputs >= 2 * task.symbols).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("motif", [1, 2, 4])
def test_fuzzy_recall_by_looking_it_up(motif):
    """The reader knows only that keys and values have different vocabularies and that pairs repeat exactly."""
    task, inputs, targets = draw("fuzzy recall", 200, motif=motif)
    lengths = set()
    for x, y in zip(inputs, targets, strict=True):
        known: dict[int, tuple] = {}  # by first token of the key
        expected = np.full(task.length, IGNORE)
        at = 0
        while at < task.length and x[at] != task.marker:
            end = at
            while x[end] < task.symbols:
                end += 1
            stop = end
            while stop < task.length and task.symbols <= x[stop] < 2 * task.symbols:
                stop += 1
            key, value = tuple(x[at:end]), tuple(x[end:stop])
            lengths |= {len(key), len(value)}
            if key[0] in known:
                assert known[key[0]] == (key, value)
                expected[end - 1 : stop - 1] = value
            known[key[0]] = (key, value)
            at = stop
        assert (y == expected).all()
    assert lengths == set(range(1, motif + 1))


def test_copying_gives_the_items_in_their_order():
    task, inputs, targets = draw("copying", 200)
    for x, y in zip(inputs, targets, strict=True):
        room = task.length - task.items
        assert (x[room:] == task.marker).all() and (y[:room] == IGNORE).all()
        assert (x[:room][x[:room] < task.symbols] == y[room:]).all()
    assert (np.diff([(x < task.symbols).argmax() for x in inputs]) != 0).any()  # at other places every time


def test_compression_asks_for_everything_but_the_marker():
    task, inputs, targets = draw("compression")
    assert (targets[:, :-1] == inputs[:, :-1]).all()
    assert (inputs[:, -1] == task.marker).all() and (targets[:, -1] == IGNORE).all()


def test_facts_are_the_same_in_every_sequence_and_seed():
    facts: dict[int, int] = {}
    for seed in (0, 1):
        _, inputs, targets = draw("memorisation", 500, seed)
        for key, value in zip(inputs[:, 0::2].ravel(), targets[:, 1::2].ravel(), strict=True):
            assert facts.setdefault(int(key), int(value)) == value
    _, inputs, targets = draw("memorisation", 500, mapping=1)
    others = zip(inputs[:, 0::2].ravel(), targets[:, 1::2].ravel(), strict=True)
    assert any(facts.get(int(key), value) != value for key, value in others)


@pytest.mark.parametrize(
    "changes, message",
    [({"length": 3}, "at least 4"), ({"noise": 1.0}, "from 0 to 0.9"), ({"symbols": 1}, "at least 2")],
)
def test_bad_settings_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        TASKS["recall"].replace(**changes)
    with pytest.raises(UserError, match="with 20 items it must be at least 41"):
        TASKS["copying"].replace(items=20)


# ---- models on tasks


@pytest.mark.parametrize("name", NAMES)
def test_guessing_scores_at_chance(name):
    task, inputs, targets = draw(name, 3000)
    low = 0 if name in ("copying", "compression") else task.symbols
    guesses = low + torch.randint(task.symbols, inputs.shape, generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(guesses, task.vocab_size).float()
    assert accuracy(logits, torch.from_numpy(targets)) == pytest.approx(task.chance, rel=0.2)
    logits = torch.nn.functional.one_hot(torch.from_numpy(np.maximum(targets, 0)), task.vocab_size).float()
    assert accuracy(logits, torch.from_numpy(targets)) == 1.0


def test_recall_needs_to_see_other_tokens():
    """A memoryless model can only guess; attention over filtered features finds the pairs."""
    task = TASKS["recall"].replace(length=16, symbols=4)
    blind = finish(train_task(genome("9-9"), task, 60_000, 0, CPU))
    seeing = finish(train_task(genome("2-9"), task, 60_000, 0, CPU))
    assert blind < 0.4 and seeing > 0.9


def test_each_task_is_learnt_by_something():
    easy = {
        "fuzzy recall": {"length": 16, "symbols": 2},
        "noisy recall": {"length": 16, "symbols": 2},
        "copying": {"length": 8, "items": 1, "symbols": 4},
        "compression": {"length": 4, "symbols": 4},
        "memorisation": {"length": 8, "symbols": 16},
    }
    for name, changes in easy.items():
        task = TASKS[name].replace(**changes)
        score = finish(train_task(genome("2-9"), task, 40_000, 0, CPU))
        assert score > min(0.95, task.chance + 0.3), (name, score)


def test_a_measurement_is_repeatable_and_stops_at_its_deadline(monkeypatch):
    few = {name: TASKS[name] for name in ("compression", "memorisation")}
    before = torch.get_rng_state()
    first, second = (measure(genome("7-9", 16), 3000, seed=3, tasks=few) for _ in range(2))
    assert first == second and set(first) == {*few, "mean"}
    assert first["mean"] == pytest.approx((first["compression"] + first["memorisation"]) / 2)
    assert torch.equal(before, torch.get_rng_state())
    assert measure(genome("7-9", 16), 3000, tasks=few, deadline=0.0) is None


def test_wide_genomes_are_scaled_down(monkeypatch):
    seen = []

    def train_task(genome, *_):
        seen.append(genome.d_model)
        yield
        return 0.5

    monkeypatch.setattr(assessed, "train_task", train_task)
    for width, expected in ((16, 16), (64, 64), (512, 64)):
        measure(genome("1-9", width), 100)
        assert set(seen[-6:]) == {expected}


# ---- as an objective or a constraint


def test_bounds_that_need_training():
    def objectives(**overrides):
        return load_config(overrides={f"objectives.{name}": value for name, value in overrides.items()}).objectives

    bounded = objectives(max_mad=0.5, max_parameters=100)
    assert measured_bounds(bounded) == {"mad": 0.5}
    assert measured_violations({"mad": 0.75}, bounded) == {"mad": 0.5}
    assert measured_violations({"mad": 0.4}, bounded)["mad"] < 0
    assert measured_violations({}, bounded) == {"mad": 0.0} == measured_violations({"mad": None}, bounded)
    assert tasks_tokens(bounded) == 200_000
    assert tasks_tokens(objectives(names=("mad", "cache"), mad_tokens=5)) == 5
    assert tasks_tokens(objectives()) is None and measured_violations({"mad": 1.0}, objectives()) == {}


def test_the_objective_reads_the_metric():
    (mad,) = load_objectives(["mad"])
    assert not mad.cheap and mad.measure({"mad": 0.25}) == 0.25 and mad.scaled(0.25) == 0.25
    assert np.isnan(mad.measure({}))


def test_a_job_measures_the_tasks_only_when_asked_and_once_for_all_rungs(tmp_path, monkeypatch):
    from star.assess.evaluations import tabular, training
    from star.training import Recipe

    (tmp_path / "text.txt").write_text("the star evolves " * 2000)
    corpus = open_corpus(tmp_path / "text.txt", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(training, "_corpus", lambda spec, tokenizer: corpus)
    monkeypatch.setattr(assessed, "TASKS", {})
    calls = []
    scores = {"recall": 0.5, "mean": 0.25}

    def measuring(genome, tokens, *args, **options):
        calls.append(tokens)
        yield
        return scores

    def late(*args, **options):
        yield

    monkeypatch.setattr(assessed, "measuring", measuring)
    recipe = asdict(Recipe(tokens=512, batch_size=2, seq_len=16, eval_tokens=64, device="cpu"))
    job = {
        "id": "a",
        "attempt": 0,
        "seed": 1,
        "genome": to_json(genome("9", 16)),
        "costs": {},
        "corpus": "",
        "fingerprint": corpus.fingerprint,
        "recipe": recipe,
        "threads": torch.get_num_threads(),
        "timeout": None,
        "directory": str(tmp_path / "a"),
        "keep_weights": False,
    }
    assert "mad" not in finish(training.assess(job, print))["metrics"] and not calls
    metrics = finish(training.assess(job | {"tasks": 77}, print))["metrics"]
    assert metrics["mad"] == 0.75 and metrics["task recall"] == 0.5 and calls == [77]
    for number, stop in enumerate((256, None)):
        checkpoint = str(tmp_path / "a" / "checkpoint-0.safetensors")
        rung = {"tasks": 77, "rung": number, "stop_tokens": stop, "checkpoint": checkpoint}
        assert finish(training.assess(job | rung, print))["metrics"]["mad"] == 0.75
    assert calls == [77, 77] and json.loads(Path(tmp_path / "a" / "result.json").read_text())["metrics"]["mad"] == 0.75
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["result.json"]
    monkeypatch.setattr(assessed, "measuring", late)
    assert finish(training.assess(job | {"tasks": 77}, print))["status"] == "timeout"
    assert 0 <= tabular.assess({"id": "ab", "costs": {}, "tasks": 5}, print)["metrics"]["mad"] < 1
