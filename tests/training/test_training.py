"""Training: it learns, repeats and resumes bit-identically, and detects when things go wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import star
from star.data import open_corpus
from star.errors import UserError
from star.genome import load_genome
from star.training import Recipe, evaluate, learning_rate_factor, train, trainer
from star.training.checkpoint import saved_step
from star.training.optim import build_optimizer
from star.training.result import divergence

SMALL = Recipe(
    tokens=16_000, batch_size=4, seq_len=16, learning_rate=1e-2, eval_tokens=2048, eval_interval=0.25, device="cpu"
)


class Model(nn.Module):
    """A language model that sees three tokens: enough for text in which two tokens decide the third."""

    vocab_size = 256

    def __init__(self, seed: int = 0, width: int = 32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.compute_dtype = None
        self.embedding = nn.Parameter(torch.randn(256, width, generator=generator))
        self.mix = nn.Parameter(torch.randn(width, 3 * width, generator=generator) / (3 * width) ** 0.5)
        self.norm = nn.Parameter(torch.ones(width))
        self.head = nn.Parameter(torch.randn(256, width, generator=generator) / width**0.5)

    def loss(self, tokens, targets, reduction="mean"):
        x = F.embedding(tokens, self.embedding).to(self.compute_dtype or torch.float32)  # [B, T, D]
        x = torch.cat([F.pad(x, (0, 0, shift, 0))[:, : x.shape[1]] for shift in range(3)], dim=-1)  # [B, T, 3 D]
        x = F.rms_norm(F.silu(F.linear(x, self.mix.to(x.dtype))), self.norm.shape, self.norm.to(x.dtype))
        logits = F.linear(x, self.head.to(x.dtype)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return loss if reduction == "mean" else loss.view(targets.shape)

    def parameter_groups(self):
        kinds = {"embedding": "embedding", "mix": "hidden", "norm": "vector", "head": "head"}
        return [
            {"kind": kind, "layer": None, "names": [name], "params": [getattr(self, name)], "fan_in": 1}
            for name, kind in kinds.items()
        ]


class After(Model):
    """`Model`; after n training steps its loss becomes `happen(loss)`."""

    def __init__(self, n: int, happen):
        super().__init__()
        self.left, self.happen = n, happen

    def loss(self, tokens, targets, reduction="mean"):
        self.left -= self.training
        loss = super().loss(tokens, targets, reduction)
        return self.happen(loss) if self.left < 0 else loss


def stop(loss):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text in which two letters decide the next, nine times in ten: easy, but not for a bigram model."""
    rng = np.random.default_rng(0)
    third = rng.permuted(np.tile(np.arange(8), (8, 1)), axis=1)  # third[a, b] follows a, b
    letters = [0, 1]
    for random, noise in zip(rng.integers(0, 8, 60_000), rng.random(60_000) < 0.1, strict=True):
        letters.append(int(random if noise else third[letters[-2], letters[-1]]))
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_bytes(bytes(97 + letter for letter in letters))
    return path


@pytest.fixture(scope="module")
def corpus(text, tmp_path_factory):
    return open_corpus(text, cache_dir=tmp_path_factory.mktemp("cache"))


def losses(result):
    return [(point["train_loss"], point["val_loss"]) for point in result.curve]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# ---- it learns, and reports


def test_it_learns_more_than_bigrams(corpus):
    result = train(Model(), corpus, SMALL.replace(tokens=64_000))
    assert result.status == "ok" and result.reason == ""
    entropy = -(0.9 + 0.1 / 8) * math.log(0.9 + 0.1 / 8) - 7 * 0.1 / 8 * math.log(0.1 / 8)
    assert corpus.baselines()["bigram"] > entropy + 0.5
    assert entropy - 0.03 < result.val_loss < entropy + 0.1
    assert result.curve[0]["val_loss"] > result.val_loss == result.curve[-1]["val_loss"]
    assert [point["tokens"] for point in result.curve] == [16_000, 32_000, 48_000, 64_000]
    assert result.tokens == 64_000 and result.tokens_per_second > 64_000 / result.seconds > 0
    json.dumps(asdict(result), allow_nan=False)


def test_the_budget_is_whole_batches_and_the_curve_ends_with_it(corpus):
    for interval, n in ((1.0, 1), (0.3, 4), (0.01, 16)):
        result = train(Model(), corpus, SMALL.replace(tokens=1000, eval_interval=interval, eval_tokens=64))
        assert result.tokens == 1024 and result.curve[-1]["step"] == 16 and len(result.curve) == n


def test_train_loss_is_the_mean_since_the_last_point(corpus):
    class Countdown(Model):
        calls = 0

        def loss(self, tokens, targets, reduction="mean"):
            self.calls += self.training
            return super().loss(tokens, targets, reduction) * 0 + self.calls

    result = train(Countdown(), corpus, SMALL.replace(tokens=8 * 64, eval_interval=0.5))
    assert [point["train_loss"] for point in result.curve] == [2.5, 6.5]


def test_progress_is_reported_at_most_twice_a_second(corpus):
    reports = []
    started = time.monotonic()
    train(Model(), corpus, SMALL.replace(tokens=10**9), reports.append, deadline=started + 1.3)
    assert len(reports) == 2
    first, second = reports
    names = "step steps tokens total_tokens loss learning_rate val_loss tokens_per_second eta"
    assert set(first) == set(names.split())
    assert second["step"] > first["step"] and first["loss"] > 0 and first["eta"] > 100
    assert first["tokens"] == 64 * first["step"]


def test_peak_memory_is_measured_for_each_run(corpus):
    class Hungry(Model):
        def loss(self, tokens, targets, reduction="mean"):
            torch.ones(50_000_000)  # 200 MB
            return super().loss(tokens, targets, reduction)

    recipe = SMALL.replace(tokens=640, eval_interval=1.0)
    hungry = train(Hungry(), corpus, recipe).peak_memory
    assert hungry > 300e6  # with torch itself
    if sys.platform.startswith("linux"):
        assert train(Model(), corpus, recipe).peak_memory < hungry - 150e6


# ---- bit-identical


def test_the_same_seed_is_bit_identical(corpus):
    first, second, other = Model(), Model(), Model()
    a, b = train(first, corpus, SMALL), train(second, corpus, SMALL, on_progress=print, deadline=time.monotonic() + 60)
    c = train(other, corpus, SMALL.replace(seed=1))
    assert losses(a) == losses(b) and same_weights(first, second)
    assert losses(a) != losses(c) and not same_weights(first, other)


@pytest.mark.parametrize("n", [70, 125, 126, 240])  # checkpoints are written after 63, 125, 188 and 250 steps
def test_resuming_is_bit_identical(corpus, tmp_path, n):
    whole = Model()
    expected = train(whole, corpus, SMALL)
    path = tmp_path / "train.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(After(n, stop), corpus, SMALL, checkpoint=path)
    resumed = Model(seed=7)  # its start does not matter
    result = train(resumed, corpus, SMALL, checkpoint=path)
    assert losses(result) == losses(expected) and same_weights(resumed, whole)
    assert result.val_loss_se == expected.val_loss_se and result.tokens == expected.tokens
    assert [point["seconds"] for point in result.curve] == sorted(point["seconds"] for point in result.curve)

    started = time.monotonic()  # a finished run is not trained again
    assert losses(train(Model(), corpus, SMALL, checkpoint=path)) == losses(expected)
    assert time.monotonic() - started < 0.5


def test_resuming_after_sigkill_is_bit_identical(corpus, text, tmp_path):
    path = tmp_path / "train.safetensors"
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads({torch.get_num_threads()})
from test_training import Model, SMALL, open_corpus, train
class Slow(Model):
    def loss(self, *args, **options):
        print("step", flush=True)
        return super().loss(*args, **options)
train(Slow(), open_corpus({str(text)!r}, {str(tmp_path)!r}), SMALL, checkpoint={str(path)!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    while not path.exists():
        assert process.stdout.readline() == b"step\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole, resumed = Model(), Model()
    expected, result = train(whole, corpus, SMALL), train(resumed, corpus, SMALL, checkpoint=path)
    assert losses(result) == losses(expected) and same_weights(resumed, whole)


def test_a_training_that_is_stopped_is_saved_at_its_last_step(corpus, tmp_path):
    path = tmp_path / "train.safetensors"
    steps = trainer.training(Model(), corpus, SMALL, checkpoint=path)
    for _ in range(70):
        next(steps)
    steps.close()
    assert saved_step(path) == 70, "the last evaluation was after 63"


def test_a_training_is_saved_by_time(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "train.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(After(10, stop), corpus, SMALL, checkpoint=path)
    assert saved_step(path) == 10, "the first evaluation is after 63"


def test_a_checkpoint_that_does_not_fit_is_one_sentence(corpus, tmp_path):
    path = tmp_path / "train.safetensors"
    train(Model(), corpus, SMALL, checkpoint=path)
    with pytest.raises(UserError, match="of another run: its recipe"):
        train(Model(), corpus, SMALL.replace(learning_rate=1e-3), checkpoint=path)
    with pytest.raises(UserError, match="cannot be read") as error:
        train(Model(width=16), corpus, SMALL, checkpoint=path)
    assert "\n" not in str(error.value)
    os.truncate(path, 1000)
    with pytest.raises(UserError, match=r"train\.safetensors cannot be read"):
        train(Model(), corpus, SMALL, checkpoint=path)
    with pytest.raises(UserError, match="Cannot write the checkpoint"):
        train(Model(), corpus, SMALL, checkpoint="/proc/nowhere/train.safetensors")


# ---- it detects errors


def test_nan_is_detected_at_the_next_evaluation(corpus):
    result = train(After(70, lambda loss: loss * float("nan")), corpus, SMALL)
    assert result.status == "diverged" and "not finite after 8,000 tokens" in result.reason
    assert [point["step"] for point in result.curve] == [63, 125]
    assert result.val_loss is None and result.val_loss_se is None and result.tokens == 8000
    json.dumps(asdict(result), allow_nan=False)


def test_exploding_weights_are_detected(corpus):
    model = Model()
    result = train(model, corpus, SMALL.replace(learning_rate=1e38, clip=0.0))
    assert result.status == "diverged" and len(result.curve) == 1


def test_a_loss_that_rises_above_the_unigram_level_late_is_divergence(corpus):
    class Worse(After):
        def loss(self, *args, **options):
            loss = Model.loss(self, *args, **options)
            self.left -= self.training
            return loss + 10 if self.left < 0 else loss

    result = train(Worse(150, None), corpus, SMALL)
    assert result.status == "diverged" and "past the unigram level" in result.reason
    assert [point["step"] for point in result.curve] == [63, 125, 188]


def test_the_rule_for_divergence():
    def verdict(progress, *val_losses, train_loss=2.0):
        curve = [{"tokens": 10, "train_loss": train_loss, "val_loss": loss} for loss in val_losses]
        return bool(divergence(curve, progress, unigram=3.2))

    assert not verdict(1.0, 4.0, 3.0, 2.5)
    assert not verdict(0.4, 3.0, 9.0)  # early, any finite loss is accepted
    assert verdict(0.6, 3.0, 3.4)  # late, and it rises above the unigram level
    assert not verdict(0.6, 2.5, 3.1)  # rising, but below it
    assert not verdict(1.0, 5.0, 4.0)  # slow, but still falling
    assert not verdict(1.0, 6.135, 6.054)  # slow, and still worse than guessing
    assert verdict(0.1, None) and verdict(0.1, 2.0, train_loss=None)


def test_deadline(corpus):
    started = time.monotonic()
    result = train(Model(), corpus, SMALL.replace(tokens=10**9), deadline=started + 0.3)
    assert time.monotonic() - started < 1.5
    assert result.status == "timeout" and "out of time after" in result.reason
    assert 0 < result.tokens < 10**9 and result.val_loss is None


def test_out_of_memory_notes_what_was_trained(corpus):
    def fail(loss):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError) as error:
        train(After(3, fail), corpus, SMALL)
    assert "parameters on cpu with micro-batches of 4 x 16 tokens, halved once" in error.value.__notes__[0]


def test_bad_input_is_one_sentence(corpus, tmp_path):
    big = Model()
    big.vocab_size = 1000
    short = star.build(replace(load_genome("gpt-2", d_model=16, depth=2, head_dim=8), positions=8), corpus.vocab_size)
    with pytest.raises(UserError, match=f"seq_len is {SMALL.seq_len} and the model has 8 learned positions; set at"):
        train(short, corpus, SMALL)
    with pytest.raises(UserError, match="build the model with vocab_size=256"):
        train(big, corpus, SMALL)
    with pytest.raises(UserError, match="too small for a context of 4000"):
        train(Model(), corpus, SMALL.replace(seq_len=4000))
    with pytest.raises(UserError, match='no device "tpu9"'):
        train(Model(), corpus, SMALL.replace(device="tpu9"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match='This machine has no device "cuda"'):
            train(Model(), corpus, SMALL.replace(device="cuda"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"schedule": "triangle"}, "schedule is 'triangle'; it must be one of linear, wsd, cosine"),
        ({"betas": (0.9, 1.0)}, "betas is .* it must be from 0 to 0.999999"),
        ({"betas": (0.9,)}, "must be two numbers"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup": 1.5}, "from 0 to 0.99"),
        ({"lr": 1.0}, "no setting 'lr'; it has .*learning_rate"),
    ],
)
def test_a_bad_recipe_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        Recipe().replace(**changes)


def test_a_recipe_survives_json():
    recipe = SMALL.replace(betas=(0.8, 0.95))
    assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe


# ---- the parts


@pytest.mark.parametrize(
    "schedule, expected",  # at 0, 5, 10, 40, 55, 80, 90 and 100 % with a warm-up of 10 % and a cooldown of 20 %
    [
        ("linear", [0, 0.5, 1, 2 / 3, 0.5, 2 / 9, 1 / 9, 0]),
        ("cosine", [0, 0.5, *((1 + math.cos(math.pi * n / 18)) / 2 for n in (0, 6, 9, 14, 16, 18))]),
        ("wsd", [0, 0.5, 1, 1, 1, 1, 0.5, 0]),
    ],
)
def test_schedules(schedule, expected):
    moments = [0, 50, 100, 400, 550, 800, 900, 1000]
    factors = [learning_rate_factor(schedule, tokens, 1000, warmup=0.1, cooldown=0.2) for tokens in moments]
    assert factors == pytest.approx(expected)
    with_floor = [learning_rate_factor(schedule, tokens, 1000, 0.1, 0.2, floor=0.1) for tokens in moments]
    assert with_floor[:3] == pytest.approx(expected[:3])
    assert with_floor[2:] == pytest.approx([0.1 + 0.9 * factor for factor in expected[2:]])
    assert learning_rate_factor(schedule, 0, 1000, warmup=0.0) == 1


def test_the_learning_rate_follows_tokens_and_not_steps(corpus):
    """At any batch size the mean rate over a run is the schedule's, and no step has a rate of zero."""
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"].item()))
    for batch_size in (1, 4, 16):
        rates.clear()
        train(Model(), corpus, SMALL.replace(tokens=12_800, batch_size=batch_size, warmup=0.1, eval_interval=1.0))
        assert len(rates) == 12_800 // (16 * batch_size)
        assert np.mean(rates) == pytest.approx(SMALL.learning_rate / 2) and min(rates) > 0
    hook.remove()


def test_optimizer_groups():
    model = Model()
    recipe = SMALL.replace(weight_decay=0.5, embedding_multiplier=3.0, head_multiplier=0.5, vector_multiplier=2.0)
    optimizer = build_optimizer(model, recipe)
    optimizer.set(0.1)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)  # so that there is only decay: p <- p (1 - lr wd)
    optimizer.step()
    rate = 0.1 * recipe.learning_rate * recipe.weight_decay
    for name, multiplier in {"mix": 1, "embedding": 3, "head": 0.5, "norm": 0}.items():
        torch.testing.assert_close(getattr(model, name), before[name] * (1 - rate * multiplier), rtol=1e-6, atol=1e-8)

    for param in model.parameters():
        before[id(param)] = param.detach().clone()
        param.grad = torch.ones_like(param)
    build_optimizer(model, recipe.replace(weight_decay=0.0)).step()  # Adam's first step is the learning rate
    for name, multiplier in {"mix": 1, "embedding": 3, "head": 0.5, "norm": 2}.items():
        param = getattr(model, name)
        step = (before[id(param)] - param.detach()).mean().item()
        assert step == pytest.approx(multiplier * recipe.learning_rate, rel=1e-3)


def test_a_parameter_in_no_group_is_an_error():
    model = Model()
    model.forgotten = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="forgotten"):
        build_optimizer(model, SMALL)


def test_gradients_are_clipped(corpus):
    norms = []

    def note(optimizer, *_):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(note)
    train(Model(), corpus, SMALL.replace(tokens=640, clip=0.05))
    clipped, norms[:] = list(norms), []
    train(Model(), corpus, SMALL.replace(tokens=640, clip=0.0))
    hook.remove()
    assert max(clipped) <= 0.05 * 1.001 and min(norms) > 0.06


def test_bfloat16_activations_keep_float32_weights(corpus):
    model = Model()
    result = train(model, corpus, SMALL.replace(dtype="bfloat16"))
    assert model.compute_dtype == torch.bfloat16
    assert all(param.dtype == torch.float32 for param in model.parameters())
    assert result.val_loss == pytest.approx(train(Model(), corpus, SMALL).val_loss, abs=0.05)


def test_the_standard_error_matches_its_definition():
    """The standard deviation of the means of many samples is the standard error computed from one sample."""

    class Given(nn.Module):
        def loss(self, tokens, targets, reduction):
            return tokens.double()

    rng = np.random.default_rng(0)
    block_means = rng.normal(200, 30, size=(500, 64, 1))  # 500 samples of 64 blocks that differ by 30
    samples = torch.from_numpy((block_means + rng.normal(0, 10, size=(500, 64, 8))).astype(np.int64))
    means, errors = np.array([evaluate(Given(), sample, sample) for sample in samples]).T
    assert means[0] == pytest.approx(samples[0].double().mean().item())
    assert errors.mean() == pytest.approx(means.std(), rel=0.1)
    assert errors.mean() == pytest.approx(math.sqrt(30**2 + 10**2 / 8) / 8, rel=0.03)


def test_evaluation_in_parts_equals_evaluation_at_once(corpus, monkeypatch):
    torch.manual_seed(0)
    inputs, targets = torch.randint(256, (50, 16)), torch.randint(256, (50, 16))
    whole = evaluate(Model(), inputs, targets)
    monkeypatch.setattr("star.training.evaluation.TOKENS_AT_ONCE", 7 * 16)
    assert evaluate(Model(), inputs, targets) == pytest.approx(whole, rel=1e-6)
