"""A training step is a program: recorded once and replayed, it does what it does when it is called step by step.

On a GPU the program is a CUDA graph. Here `recording.record` takes its place: see there for what it has in common.
"""

import math
import re

import numpy as np
import pytest
import torch
from recording import record

import star.training.trainer as trainer
from star.data import open_corpus
from star.genome import POOL, Genome
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, background_compile, train
from star.training.muon import Muon
from star.training.program import CAPTURES, Program
from star.training.trainer import TrainingRun, training
from star.turns import finish, take_turns

CPU = torch.device("cpu")
RECIPE = Recipe(tokens=2048, batch_size=4, seq_len=16, eval_interval=0.25, eval_tokens=512, device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(["star", "and", "evolves", "a", "backbone"], 8000)))
    return open_corpus(path, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def captured(monkeypatch):
    """Programs on a CPU are recorded and replayed; the list of the replays. A failed recording is an error."""
    monkeypatch.setattr("warnings.filters", [("error", re.compile("no CUDA graph"), Warning, None, 0)])
    replays = []

    def capture(function):
        replay, result = record(function)

        def counted():
            replays.append(function)
            replay()

        return counted, result

    monkeypatch.setitem(CAPTURES, "cpu", capture)
    return replays


def model(backbone: str = "1-9-7-9", width: int = 16, seed: int = 0):
    return build(Genome(parse_text(backbone), d_model=width, head_dim=8), seed=seed)


def weights(net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def losses(result) -> list[tuple]:
    return [(point["tokens"], point["train_loss"], point["val_loss"]) for point in result.curve]


def trained(corpus, recipe: Recipe, backbone: str = "1-9-7-9", width: int = 16, **more):
    net = model(backbone, width)
    result = train(net, corpus, recipe, **more)
    return weights(net), losses(result), result.val_loss_se, result.steps


def same(a, b) -> bool:
    return torch.equal(a[0], b[0]) and a[1:] == b[1:]


# ---- programs


def test_a_program_is_captured_after_its_warm_up_and_then_replayed(captured):
    counter, calls = torch.zeros(()), []

    def function():
        calls.append(1)
        counter.add_(1)
        return (counter * 2,)

    program = Program(function, CPU, warmup=2)
    assert [program()[0].item() for _ in range(6)] == [2, 4, 6, 8, 10, 12]
    assert len(calls) == 3 and len(captured) == 4  # two eager calls, one capture, four replays
    eager = Program(function, CPU, captures=False)
    assert [eager()[0].item() for _ in range(5)] == [14, 16, 18, 20, 22] and len(calls) == 8


def test_the_stand_in_shows_what_a_graph_would_get_wrong(captured):
    numbers, total = iter(range(10)), torch.zeros(())

    def baked():
        return (total.add_(next(numbers)).clone(),)  # a Python number: the replay repeats the captured one

    program = Program(baked, CPU, warmup=1)
    assert [program()[0].item() for _ in range(4)] == [0, 1, 2, 3]  # and not 0, 1, 3, 6
    with pytest.raises(UserWarning, match="waits for the device"):
        Program(lambda: (torch.tensor(total.item()),), CPU, warmup=0)()


def test_without_memory_for_the_capture_it_is_called_as_it_is(monkeypatch):
    def capture(function):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(CAPTURES, "cpu", capture)
    program = Program(lambda: (torch.ones(()),), CPU)
    assert sum(program()[0].item() for _ in range(6)) == 6


def test_another_error_in_the_capture_is_raised(captured):
    def broken():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Program(broken, CPU, warmup=0)()


def test_a_capture_that_the_driver_refuses_costs_speed_only(monkeypatch):
    def capture(function):
        raise RuntimeError("CUDA error: operation not supported")

    monkeypatch.setitem(CAPTURES, "cpu", capture)
    program = Program(lambda: (torch.ones(()),), CPU)
    with pytest.warns(UserWarning, match="no CUDA graph, so training is several times slower: .* not supported"):
        assert sum(program()[0].item() for _ in range(6)) == 6


# ---- training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon"},
        {"schedule": "cosine", "floor": 0.1, "warmup": 0.3, "clip": 0.0},
        {"schedule": "wsd", "layer_decay": 0.5, "base_width": 8},
        {"accumulate": 3},  # 10 steps of 3 micro-batches, and one of 2
        {"accumulate": 2, "optimizer": "muon", "layer_decay": 0.7},
        {"adaptive": True, "precision": 0.2, "tokens": 8192},
        {"sparsify": 0.5, "tokens": 16_384, "seq_len": 64},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_replayed_training_is_stepwise_training(corpus, monkeypatch, request, changes):
    recipe = RECIPE.replace(**changes)
    expected = trained(corpus, recipe)
    captured = request.getfixturevalue("captured")
    assert same(trained(corpus, recipe), expected)
    assert len(captured) > 0.6 * expected[3]
    # The device is given only a few micro-batches at a time.
    monkeypatch.setattr(trainer, "AHEAD", 5)
    assert same(trained(corpus, recipe.replace(accumulate_max=5)), trained(corpus, recipe.replace(accumulate_max=5)))
    captured.clear()
    assert same(trained(corpus, recipe.replace(compile="off")), expected) and not captured


@pytest.mark.parametrize("row", POOL, ids=lambda row: row.name)
def test_every_class_is_a_program(corpus, captured, row):
    backbone = f"{POOL.index(row) + 1}-9"
    recipe = RECIPE.replace(tokens=512, seq_len=32, eval_tokens=128)
    replayed = trained(corpus, recipe, backbone, 192)
    assert captured
    assert same(replayed, trained(corpus, recipe.replace(compile="off"), backbone, 192))


def test_shared_weights_and_features_are_a_program(corpus, captured):
    backbone = "21211-11111-21211-11111"
    replayed = trained(corpus, RECIPE, backbone)
    assert captured and same(replayed, trained(corpus, RECIPE.replace(compile="off"), backbone))


def test_a_replayed_run_resumes(corpus, captured, tmp_path):
    recipe, path = RECIPE.replace(accumulate=2), tmp_path / "train.safetensors"
    expected = trained(corpus, recipe)
    first = model()
    stopped = train(first, corpus, recipe, checkpoint=path, stop_tokens=1100)
    assert stopped.tokens < 2048
    second = model(seed=1)
    resumed = train(second, corpus, recipe, checkpoint=path)
    assert torch.equal(weights(second), expected[0]) and losses(resumed) == expected[1]


def test_the_learning_rate_of_a_replay_is_that_of_its_step(corpus, captured):
    run = TrainingRun(model(), corpus, RECIPE.replace(optimizer="muon", layer_decay=0.5), CPU)
    for step in range(RECIPE.micro_batches):
        run.advance()
        factors = run.optimizer.rates / run.optimizer.peaks
        progress = (step + 0.5) / RECIPE.micro_batches
        wanted = progress / 0.05 if progress < 0.05 else 1 - (progress - 0.05) / 0.95
        assert factors.tolist() == pytest.approx([wanted] * len(factors))
    assert any(isinstance(part, Muon) for part in run.optimizer.parts)


def test_a_loss_that_is_not_finite_is_noticed_at_the_next_evaluation(corpus, captured):
    recipe = RECIPE.replace(learning_rate=1e6, clip=0.0, warmup=0.0)
    result = train(model(), corpus, recipe)
    assert result.status == "diverged" and result.tokens < recipe.tokens
    assert result.curve[-1]["tokens"] % 512 == 0


def test_several_trainings_take_turns(corpus, captured):
    """Models that one process trains side by side get what each gets alone."""
    backbones = ("1-9", "7-9", "2-9-5")
    alone = [trained(corpus, RECIPE, backbone) for backbone in backbones]
    nets = [model(backbone) for backbone in backbones]
    turns, works = [], [training(net, corpus, RECIPE) for net in nets]

    def noted(n):
        while True:
            turns.append(n)
            try:
                next(works[n])
            except StopIteration as end:
                return end.value
            yield

    results = take_turns([noted(n) for n in range(3)])
    assert turns[:9] == [0, 1, 2] * 3
    for n, net in enumerate(nets):
        assert torch.equal(weights(net), alone[n][0]) and losses(results[n]) == alone[n][1]


def test_finish_returns_the_result():
    def steps():
        yield
        yield
        return 3

    assert finish(steps()) == 3


def test_memory_that_runs_out_in_a_replayed_run_is_found_again(corpus, captured):
    """The first step halves the micro-batch; the smaller step is captured and replayed."""
    net, failures = model(), []
    loss = net.loss

    def small(tokens, targets, reduction="mean"):
        if net.training and len(tokens) > 2:
            failures.append(len(tokens))
            raise torch.OutOfMemoryError("no memory")
        return loss(tokens, targets, reduction)

    net.loss = small
    result = train(net, corpus, RECIPE)
    assert result.status == "ok" and failures == [4] and captured
    assert math.isclose(result.val_loss, trained(corpus, RECIPE)[1][-1][2], rel_tol=1e-3)


# ---- compiled in the background


@pytest.fixture
def compiles(monkeypatch):
    """Compilation for a CPU, at once."""
    monkeypatch.setattr(background_compile, "DEVICES", ("cpu",))
    monkeypatch.setattr(trainer, "SETTLED_SECONDS", 0.0)


def test_a_long_training_has_its_blocks_compiled_by_another_process(corpus, compiles, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    recipe = RECIPE.replace(tokens=10**9)
    runs = [TrainingRun(model("9-1-9"), corpus, recipe, CPU) for _ in range(2)]
    for run in runs:
        run.advance()
    first = runs[0]
    first.consider_compiling()
    process = first.compilation.process
    assert process.wait(120) == 0 and list(tmp_path.rglob("*"))
    first.consider_compiling()
    assert all(block.forward.func.__name__ == "_compiled_forward" for block in first.model.blocks)
    assert first.programs == {}
    for _ in range(2):
        losses_ = [run.advance().item() for run in runs]
    assert losses_[0] == pytest.approx(losses_[1], rel=1e-4)
    first.consider_compiling()  # nothing more
    assert first.compilation.process is process


def test_a_short_training_is_not_compiled_and_a_failed_compilation_changes_nothing(corpus, compiles, monkeypatch):
    run = TrainingRun(model(), corpus, RECIPE, CPU)
    run.advance()
    run.consider_compiling()
    assert run.compilation is None
    monkeypatch.setattr(background_compile, "GAIN", 1e9)
    monkeypatch.setattr(background_compile.sys, "executable", "false")
    run.consider_compiling()
    assert run.compilation.process.wait(10) != 0
    run.consider_compiling()
    assert run.model.blocks[0].forward.__name__ == "forward"


def test_a_compilation_ends_with_its_training(corpus, compiles, monkeypatch):
    monkeypatch.setattr(trainer, "PROGRESS_SECONDS", 0.0)
    steps = training(model(), corpus, RECIPE.replace(tokens=10**9))
    started = []
    monkeypatch.setattr(
        trainer, "Compilation", lambda *a: started.append(background_compile.Compilation(*a)) or started[0]
    )
    while not started:
        next(steps)
    steps.close()
    assert started[0].process.poll() is not None
