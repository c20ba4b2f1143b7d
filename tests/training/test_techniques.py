"""Optimizers and training techniques match their formulas, change nothing when off, and resume bit-identically."""

import json
import math
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from star.data import Batches, open_corpus, validation_blocks
from star.errors import UserError
from star.genome import Genome, from_json
from star.genome.codec import parse_text
from star.model import build
from star.training import Recipe, evaluate, learning_rate_factor, open_logger, train
from star.training.accumulation import LEAST, QUIET, Accumulation, estimate
from star.training.compile import compile_blocks
from star.training.muon import Muon, orthogonal_part
from star.training.optim import build_optimizer, layer_factor
from star.training.trainer import TrainingRun

RECIPE = Recipe(tokens=2048, batch_size=4, seq_len=16, eval_interval=0.25, eval_tokens=512, device="cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = ["star", "and", "evolves", "a", "backbone"]
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 8000)))
    return path


@pytest.fixture(scope="module")
def corpus(text, tmp_path_factory):
    return open_corpus(text, cache_dir=tmp_path_factory.mktemp("cache"))


def model(width: int = 16, backbone: str = "1-9-7-9", seed: int = 0):
    return build(Genome(parse_text(backbone), d_model=width, head_dim=8), seed=seed)


def losses(result):
    return [(point["tokens"], point["train_loss"], point["val_loss"]) for point in result.curve]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same_curve(result, expected, key: str = "val_loss", rtol: float = 1e-3) -> None:
    """The learning curves agree up to `rtol`."""
    np.testing.assert_allclose([p[key] for p in result.curve], [p[key] for p in expected.curve], rtol=rtol)


def run_of(model, corpus, recipe: Recipe) -> TrainingRun:
    return TrainingRun(model, corpus, recipe, torch.device("cpu"))


# ---- Muon


@pytest.mark.parametrize("shape", [(5, 16, 16), (3, 24, 8), (2, 8, 40)])
def test_orthogonal_part_has_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    together = orthogonal_part(matrices)
    for matrix, result in zip(matrices, together, strict=True):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(result)
        assert values[s > 0.1 * s[0]].min() > 0.6 and values.max() < 1.3
        assert torch.sum(result * (u @ vt)) / (result.norm() * (u @ vt).norm()) > 0.95  # the same directions
        torch.testing.assert_close(orthogonal_part(matrix[None])[0], result)


def test_muon_agrees_with_torch():
    """At the base width, square matrices get the steps of torch.optim.Muon, which orthogonalises in bfloat16."""
    generator = torch.Generator().manual_seed(1)
    ours = [nn.Parameter(torch.randn(32, 32, generator=generator)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    reference = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **options)
    optimizer = Muon(ours, base_width=32, **options)
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(32, 32, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        reference.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert (p - q).norm() < 0.02 * (q - s).norm()


@pytest.mark.parametrize("out, into", [(1, 1), (4, 1), (2, 3)])
def test_a_muon_step_changes_activations_equally_at_any_width(out, into):
    changes = []
    for width in (32, 64, 128):
        weight = nn.Parameter(torch.zeros(out * width, into * width))
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1, base_width=64).step()
        # Aligned with the step, as in training
        x = weight.grad.mT @ torch.randn(out * width, generator=torch.Generator().manual_seed(1))
        x = x / x.square().mean().sqrt()
        changes.append((weight @ x).square().mean().sqrt().item())
    assert max(changes) < 1.15 * min(changes)


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    net = model()
    optimizer = build_optimizer(net, RECIPE.replace(optimizer="muon"))
    adamw, muon = optimizer.parts

    def ids(groups) -> set[int]:
        return {id(p) for group in groups for p in group["params"]}

    hidden = ids(group for group in net.parameter_groups() if group["kind"] == "hidden")
    assert ids(muon.param_groups) == hidden
    assert ids(adamw.param_groups) == {id(p) for p in net.parameters()} - hidden


def test_muon_learns(corpus):
    adamw, muon = (train(model(), corpus, RECIPE.replace(tokens=16_384, optimizer=name)) for name in ("adamw", "muon"))
    assert muon.status == "ok" and muon.val_loss < adamw.val_loss + 0.05


# ---- learning rates at other widths


def activations(width: int, recipe: Recipe, corpus, steps: int) -> dict[str, float]:
    """By how much some steps change the output of each block and the logits (root mean square)."""
    net = build(Genome(parse_text("1-9-7-9"), d_model=width, head_dim=16), seed=0)
    run = run_of(net, corpus, recipe)
    before, _ = (part[:4] for part in run.sample)

    def measure() -> dict[str, torch.Tensor]:
        seen = {}
        hooks = [
            b.register_forward_hook(lambda _, args, out, i=i: seen.update({f"block {i}": out[0] - args[0]}))
            for i, b in enumerate(net.blocks)
        ]
        with torch.no_grad():
            seen["logits"] = net.logits(net.hidden(before, None)[0])
        for hook in hooks:
            hook.remove()
        return seen

    first = measure()
    for _ in range(steps):
        run.advance()
    return {name: (value - first[name]).square().mean().sqrt().item() for name, value in measure().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_coordinate_check(corpus, optimizer):
    """The test of muP: five steps change every activation about equally at widths 64 and 256."""
    recipe = RECIPE.replace(optimizer=optimizer, tokens=64 * 40, learning_rate=4e-3, warmup=0.0)
    narrow, wide = (activations(width, recipe, corpus, 5) for width in (64, 256))
    ratios = {name: wide[name] / narrow[name] for name in narrow}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios
    if optimizer == "adamw":  # without the scaling, wide models change much more
        plain = activations(256, recipe.replace(base_width=0), corpus, 5)
        assert max(plain[name] / narrow[name] for name in narrow) > 2


def test_the_base_width_decides_the_rates():
    def peaks(width, **changes):
        groups = build_optimizer(model(width), RECIPE.replace(learning_rate=1e-2, **changes)).param_groups
        rates = {group["kind"]: (group["peak"], group["weight_decay"]) for group in groups}
        return {kind: rates[kind] for kind in ("hidden", "embedding")}

    assert peaks(64) == {"hidden": (1e-2, 0.1), "embedding": (1e-2, 0.1)}
    assert peaks(128) == {"hidden": (pytest.approx(5e-3), pytest.approx(0.2)), "embedding": (1e-2, 0.1)}
    assert peaks(128, base_width=0)["hidden"] == (1e-2, 0.1)
    assert peaks(128, optimizer="muon")["hidden"] == (1e-2, 0.1)


# ---- layer-wise cosine


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_layer_wise_cosine_is_its_formula(corpus, gamma):
    """eta_l(t) = eta_base gamma^(l/L) (1 + cos(pi t/T)) / 2 for LIV l = 1 ... L."""

    def base(layer: int | None) -> float:
        return 1e-2 * (1.0 if layer is None else gamma ** ((layer + 1) / 4))

    recipe = RECIPE.replace(layer_decay=gamma, schedule="cosine", warmup=0.0, base_width=16, learning_rate=1e-2)
    net = model()
    run = run_of(net, corpus, recipe)
    total = recipe.micro_batches
    owner = {id(p): group["layer"] for group in net.parameter_groups() for p in group["params"]}
    for step in range(total):
        run.advance()
        factor = (1 + math.cos(math.pi * (step + 0.5) / total)) / 2
        seen = set()
        for group in run.optimizer.param_groups:
            for layer in {owner[id(p)] for p in group["params"]}:
                seen.add(layer)
                scale = group["peak"] / base(layer)
                assert group["lr"] == pytest.approx(base(layer) * scale * factor, rel=1e-9)
                assert layer is None or scale == pytest.approx(1.0)
        assert seen == {None, 0, 1, 2, 3}
    assert [layer_factor(0.5, layer, 4) for layer in (None, 0, 3)] == [1.0, 0.5**0.25, 0.5]


# ---- adaptive accumulation


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_noise_estimate_is_unbiased(k):
    rng = np.random.default_rng(k)
    mean, sd, n = rng.normal(size=12), rng.uniform(0.5, 2.0, 12), 20_000
    gradients = mean + sd * rng.normal(size=(n, k, 12))
    found = np.array([estimate((g * g).sum(1).mean(), (g.mean(0) ** 2).sum(), k) for g in gradients])
    error = found.std(axis=0) / math.sqrt(n)
    assert np.all(np.abs(found.mean(axis=0) - [(sd**2).sum(), (mean**2).sum()]) < 4 * error)


def feed(
    accumulation: Accumulation, variance: float, signal: float, steps: int, start: int = 0, progress: float = 0.5
) -> list[int]:
    """N over steps that all measure this noise, with K = 4."""
    sizes = []
    for step in range(start, start + steps):
        if accumulation.due(step):
            accumulation.observe(step, progress, variance + signal, signal + variance / 4, 4)
        sizes.append(accumulation.n)
    return sizes


def test_the_control_law():
    recipe = RECIPE.replace(adaptive=True, accumulate=4, accumulate_max=16, precision=0.5, confidence=2.0)
    accumulation = Accumulation(recipe)
    assert accumulation.n == 1 and accumulation.wanted == 1.0
    sizes = feed(accumulation, variance=3.0, signal=2.0, steps=400)
    # N = ceil(alpha sigma^2 / eps^2), eps = theta |G|
    assert accumulation.wanted == 12.0 == math.ceil(2.0 * 3.0 / (0.25 * 2.0))
    assert sizes[-1] == 8  # 12 is less than 1.25 x 8 sqrt 2, where it would change to 16
    changes = [step for step in range(1, 400) if sizes[step] != sizes[step - 1]]
    assert len(changes) == 3 and np.diff(changes).min() >= QUIET  # 1, 2, 4, 8: one doubling at a time
    assert feed(accumulation, 30.0, 2.0, 400, 400)[-1] == 16  # clamped
    assert feed(accumulation, 1e-3, 2.0, 400, 800)[-1] == 16 and accumulation.wanted == 1.0  # never falls
    assert feed(Accumulation(recipe), 300.0, 2.0, 400, progress=0.01)[-1] == 1  # not in the first two percent
    absolute = Accumulation(recipe.replace(precision_of="absolute"))
    feed(absolute, 3.0, 2.0, 400)
    assert absolute.wanted == 24.0 == math.ceil(2.0 * 3.0 / 0.25)
    absolute.observe(0, 0.5, math.nan, 1.0, 4)
    assert absolute.wanted == 24.0  # values that are not finite are ignored
    assert Accumulation(RECIPE.replace(accumulate=3)).n == 3
    noise = Accumulation(recipe)
    noise.observe(7, 0.5, 1.0, 0.1, 4)  # |G|^2 came out negative
    assert noise.wanted == math.inf


def test_estimates_agree_with_single_gradients(corpus):
    """A step that estimates, compared with separate gradients; the gradient that it leaves is their mean."""
    recipe = RECIPE.replace(adaptive=True, clip=0.0)
    net, reference = model(), model()
    run = run_of(net, corpus, recipe)
    run.load()
    _, mean_square, square_of_mean = run.gradients(LEAST, estimates=True)
    batches = Batches(corpus.train, 4, 16, 0)
    groups = [group for group in reference.parameter_groups() if group["kind"] in ("hidden", "vector")]
    watched = [p for group in groups for p in group["params"]]
    each = []
    for k in range(LEAST):
        reference.zero_grad()
        reference.loss(*batches[k]).backward()
        each.append([p.grad.clone() for p in reference.parameters()])
    index = {id(p): i for i, p in enumerate(reference.parameters())}
    flat = torch.stack([torch.cat([g[index[id(p)]].flatten() for p in watched]) for g in each]).double()
    assert mean_square.item() == pytest.approx(flat.square().sum(1).mean().item(), rel=1e-5)
    assert square_of_mean.item() == pytest.approx(flat.mean(0).square().sum().item(), rel=1e-5)
    for param, gradients in zip(net.parameters(), zip(*each, strict=True), strict=True):
        torch.testing.assert_close(param.grad, torch.stack(gradients).mean(0), rtol=1e-5, atol=1e-7)


def test_accumulated_micro_batches_are_one_batch(corpus):
    whole, pieces = model(), model()
    a = train(whole, corpus, RECIPE.replace(batch_size=4, tokens=1024))
    b = train(pieces, corpus, RECIPE.replace(batch_size=1, accumulate=4, tokens=1024))
    assert a.steps == b.steps == 16 and [p["tokens"] for p in a.curve] == [p["tokens"] for p in b.curve]
    same_curve(b, a, "train_loss", rtol=1e-4)
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=0, atol=2e-3)


def test_averages_keep_their_half_life_in_tokens():
    recipe = RECIPE.replace(optimizer="muon", betas=(0.9, 0.98), momentum=0.95, learning_rate=1e-2)
    optimizer = build_optimizer(model(), recipe)
    adamw, muon = (part.param_groups[0] for part in optimizer.parts)
    for batch in (0.25, 1.0, 4.0):
        optimizer.set(0.5, batch)
        assert [math.log(beta) / batch for beta in adamw["betas"]] == pytest.approx([math.log(0.9), math.log(0.98)])
        assert math.log(muon["momentum"]) / batch == pytest.approx(math.log(0.95))
        for group in (adamw, muon):
            rate = group["peak"] * 0.5
            assert group["lr"] == pytest.approx(rate * min(1, batch**0.5))  # not above the tuned rate
            assert group["lr"] * group["weight_decay"] == pytest.approx(rate * group["decay"] * batch)  # per token


def test_adaptive_training_counts_tokens(corpus):
    recipe = RECIPE.replace(adaptive=True, accumulate=4, accumulate_max=8, batch_size=1, tokens=16_000, precision=0.3)
    result = train(model(), corpus, recipe)
    assert result.tokens == 16_000 and result.steps < 1000
    assert [round(p["tokens"] / 16_000, 1) for p in result.curve] == [0.2, 0.5, 0.8, 1.0] or len(result.curve) == 4
    few, many = (train(model(), corpus, recipe.replace(precision=eps)) for eps in (0.1, 10.0))
    assert few.steps < many.steps < 1000  # precise gradients need larger batches


# ---- together


TECHNIQUES = {
    "plain": {},
    "muon": {"optimizer": "muon", "layer_decay": 0.5, "schedule": "cosine"},
    "adaptive": {"adaptive": True, "batch_size": 1, "accumulate": 4, "precision": 0.3},
    "sparsified": {"sparsify": 0.3, "sparsify_heads": 0.5, "seq_len": 64, "batch_size": 1},
    "all": {
        "sparsify": 0.3,
        "seq_len": 64,
        "optimizer": "muon",
        "layer_decay": 2.0,
        "adaptive": True,
        "batch_size": 1,
        "accumulate": 4,
        "precision": 0.3,
    },
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_resumes_bit_identically(corpus, tmp_path, name):
    recipe = RECIPE.replace(**({"tokens": 6400} | TECHNIQUES[name]))
    whole = model()
    expected = train(whole, corpus, recipe)
    path = tmp_path / "train.safetensors"
    for stop in (1700, 3200, 5001):
        train(model(), corpus, recipe, checkpoint=path, stop_tokens=stop)
    resumed = model(seed=5)
    result = train(resumed, corpus, recipe, checkpoint=path)
    assert losses(result) == losses(expected) and result.steps == expected.steps
    assert torch.equal(weights(resumed), weights(whole))
    assert result.sparsity == expected.sparsity
    if recipe.sparsify:
        assert result.sparsity["cache_saved"] > 0 and from_json(result.sparsity["genome"]) != whole.genome


def test_the_edited_genome_is_the_sparsified_model(corpus):
    """With the edited genome, the weights have the loss that training measured."""
    recipe = RECIPE.replace(**TECHNIQUES["sparsified"] | {"sparsify_heads": 0.0, "tokens": 6400})
    trained = model()
    result = train(trained, corpus, recipe)
    plain = build(from_json(result.sparsity["genome"]))
    plain.load_state_dict(trained.state_dict())
    sample = validation_blocks(corpus.validation, recipe.seq_len, recipe.eval_tokens)
    assert evaluate(plain, *sample)[0] == pytest.approx(result.val_loss, abs=1e-6)
    dense = build(trained.genome)
    dense.load_state_dict(trained.state_dict())
    assert evaluate(dense, *sample)[0] != pytest.approx(result.val_loss, abs=1e-6)


def test_techniques_that_are_off_change_nothing(corpus):
    """Compared with the simplest training loop."""
    recipe = RECIPE.replace(base_width=16)
    net, plain = model(), model()
    train(net, corpus, recipe)
    params = [{"params": [], "weight_decay": decay} for decay in (0.1, 0.0)]
    for group in plain.parameter_groups():
        for param in group["params"]:
            rate, decay = recipe.learning_rate * group.get("scale", 1.0), 0.0 if group["kind"] == "vector" else 0.1
            params.append({"params": [param], "weight_decay": decay, "lr": rate, "peak": rate})
    optimizer = torch.optim.AdamW(params[2:], betas=recipe.betas, fused=True)
    batches = Batches(corpus.train, 4, 16, 0)
    for step in range(32):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor("linear", step + 0.5, 32, recipe.warmup)
        plain.loss(*batches[step]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(net), weights(plain))


# ---- memory


class Small(nn.Module):
    """A model on a device with memory for `most` sequences at a time."""

    def __init__(self, net, most: int):
        super().__init__()
        self.net, self.most, self.calls = net, most, []

    def loss(self, tokens, targets, reduction="mean"):
        if self.training:
            self.calls.append(len(tokens))
            if len(tokens) > self.most:
                raise torch.OutOfMemoryError("no memory")
        return self.net.loss(tokens, targets, reduction)

    def parameter_groups(self):
        return self.net.parameter_groups()


def test_out_of_memory_halves_the_micro_batch_once(corpus, tmp_path):
    expected = train(model(), corpus, RECIPE)
    small = Small(model(), 2)
    result = train(small, corpus, RECIPE, checkpoint=tmp_path / "train.safetensors")
    assert small.calls[:3] == [4, 2, 2] and set(small.calls[3:]) == {2} and result.steps == expected.steps
    same_curve(result, expected)
    for most, batch_size in ((1, 4), (0, 1)):
        hopeless = Small(model(), most)
        with pytest.raises(torch.OutOfMemoryError) as error:
            train(hopeless, corpus, RECIPE.replace(batch_size=batch_size))
        assert f"micro-batches of {batch_size} x 16 tokens, halved once" in error.value.__notes__[0]
        assert hopeless.calls == ([4, 2] if most else [1])


# ---- several processes

DISTRIBUTED = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {folder!r})
from test_techniques import RECIPE, TECHNIQUES, model, open_corpus, train, losses, weights
from star.training.distributed import rank
net = model()
result = train(net, open_corpus({text!r}, {cache!r}), RECIPE.replace(**json.loads({changes!r})),
    checkpoint={checkpoint!r}, stop_tokens={stop})
row = [losses(result), result.steps, weights(net).double().norm().item()]
open({rows!r} + __import__("os").environ["RANK"], "w").write(json.dumps(row))
"""


def launch(
    text, tmp_path, changes: dict, stop: int | None = None, checkpoint: Path | None = None, torchrun: bool = False
) -> list:
    """Results of two processes, by rank. Without `torchrun` they are started directly, which is faster."""
    code = tmp_path / "worker.py"
    code.write_text(
        DISTRIBUTED.format(
            folder=str(Path(__file__).parent),
            text=str(text),
            cache=str(tmp_path),
            changes=json.dumps(changes),
            stop=stop,
            checkpoint=checkpoint and str(checkpoint),
            rows=str(tmp_path / "row"),
        )
    )
    if torchrun:
        torchrun_options = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        commands = [([sys.executable, *torchrun_options, str(code)], {})]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        ranks = [place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        commands = [([sys.executable, str(code)], variables) for variables in ranks]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=environment | more, **pipes) for command, more in commands]
    try:
        for process in processes:
            _, err = process.communicate(timeout=400)
            assert process.returncode == 0, err[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((tmp_path / f"row{rank}").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "all"])
def test_two_processes_train_like_one(text, corpus, tmp_path, name):
    changes = TECHNIQUES[name] | {"tokens": 3200}
    if name == "all":
        changes = changes | {"batch_size": 2, "accumulate": 2}  # one sequence of every micro-batch per process
    net = model()
    alone = train(net, corpus, RECIPE.replace(**changes))
    checkpoint = tmp_path / "train.safetensors"
    if name == "plain":
        launch(text, tmp_path, changes, 1600, checkpoint)  # then they resume
    first, second = launch(text, tmp_path, changes, None, checkpoint, torchrun=name == "all")
    assert first == second  # the same losses and weights in both
    assert first[1] == alone.steps
    np.testing.assert_allclose(np.array(first[0]), np.array(losses(alone)), rtol=2e-3)


def test_batches_that_cannot_be_shared_are_one_sentence(corpus, monkeypatch):
    monkeypatch.setattr("star.training.trainer.world_size", lambda: 3)
    message = "batch_size is 4, which 3 processes cannot share equally; make it a multiple of 3"
    with pytest.raises(UserError, match=message):
        run_of(model(), corpus, RECIPE)
    with pytest.raises(UserError, match="accumulate_max is 2; it must be at least accumulate, 4"):
        RECIPE.replace(adaptive=True, accumulate=4, accumulate_max=2)


def test_a_checkpoint_of_another_genome_is_refused(corpus, tmp_path):
    path = tmp_path / "train.safetensors"
    train(model(), corpus, RECIPE, checkpoint=path, stop_tokens=512)
    with pytest.raises(UserError, match="of another run: its genome is "):
        train(model(backbone="1-9-7-8"), corpus, RECIPE, checkpoint=path)


def test_settings_are_bounded():
    bad = {"precision": 0.0, "layer_decay": 0.0, "sparsify": 0.95, "momentum": 1.0, "accumulate": 0}
    for name, value in bad.items():
        with pytest.raises(UserError, match=f"recipe's {name} is"):
            RECIPE.replace(**{name: value})


# ---- execution


def test_training_with_compiled_blocks(corpus, monkeypatch):
    """The setting compiles the blocks; compiled blocks are tested in test_blocks.py."""
    compiled = []

    def compile_eagerly(net):
        compiled.append(net)
        return compile_blocks(net, backend="eager")

    monkeypatch.setattr("star.training.trainer.compile_blocks", compile_eagerly)
    expected = train(model(), corpus, RECIPE.replace(tokens=512))
    result = train(model(), corpus, RECIPE.replace(tokens=512, compile="blocks"))
    assert len(compiled) == 1
    same_curve(result, expected, rtol=1e-4)
    old_name = train(model(), corpus, RECIPE.replace(tokens=512, compile="graph"))  # of a run of an earlier version
    assert losses(old_name) == losses(expected)


def test_activations_are_recomputed_only_when_halving_was_not_enough(corpus, tmp_path, monkeypatch):
    """On a device with memory for one sequence, or for two without their activations."""
    original, calls = TrainingRun.gradients, []

    def gradients(self, n, estimates):
        calls.append((self.parts, self.recomputes))
        if not self.recomputes:
            raise torch.OutOfMemoryError("no memory")
        return original(self, n, estimates)

    expected = train(model(), corpus, RECIPE)
    monkeypatch.setattr(TrainingRun, "gradients", gradients)
    path = tmp_path / "train.safetensors"
    first = model()
    train(first, corpus, RECIPE, checkpoint=path, stop_tokens=1024)
    assert calls[:4] == [(1, False), (2, False), (2, True), (2, True)]
    calls.clear()
    result = train(model(), corpus, RECIPE, checkpoint=path)
    assert set(calls) == {(2, True)}  # the checkpoint remembers it
    same_curve(result, expected)


# ---- loggers


def test_logging_to_wandb(corpus, monkeypatch):
    logged, ended = [], []

    class WandbRun:
        def define_metric(self, *args, **options):
            pass

        def log(self, data):
            logged.append(data)

        def finish(self):
            ended.append(True)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: WandbRun()))
    monkeypatch.setattr(sys.modules["star.training.trainer"], "PROGRESS_SECONDS", 0.0)
    logger = open_logger("wandb:star", RECIPE)
    result = train(model(), corpus, RECIPE, on_progress=logger)
    logger.finish(result)
    curve = [data["curve/val_loss"] for data in logged if "curve/val_loss" in data]
    assert ended and curve == [point["val_loss"] for point in result.curve]
    steps = [data for data in logged if "train/loss" in data]
    assert len(steps) == result.steps
    assert {"train/learning_rate", "train/tokens_per_second", "tokens"} <= steps[-1].keys()


def test_logging_to_tensorboard(monkeypatch):
    scalars = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == "logs/a"

        def add_text(self, name, text):
            assert "learning_rate: 0.004" in text

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

        def close(self):
            scalars.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    logger = open_logger("tensorboard:logs/a", RECIPE)
    logger({"tokens": 64, "loss": 2.0, "val_loss": None, "learning_rate": 1e-3, "tokens_per_second": 9.0})
    logger.close()
    assert scalars == [
        ("train/loss", 2.0, 64),
        ("train/learning_rate", 1e-3, 64),
        ("train/tokens_per_second", 9.0, 64),
        "closed",
    ]


def test_loggers_that_are_missing_are_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = r"logging to wandb needs a package that is not installed .*pip install 'star\[wandb\]'"
    with pytest.raises(UserError, match=message):
        open_logger("wandb:star", RECIPE)
    for spec in ("mlflow:x", "wandb", "tensorboard:"):
        with pytest.raises(UserError, match=f"cannot log to '{spec}'; write tensorboard:FOLDER or wandb:PROJECT"):
            open_logger(spec, RECIPE)
