"""Rungs: a training that stops and goes on is the training that never stopped, to the bit."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from star.assess.evaluations import tabular, training
from star.data import open_corpus, validation_blocks
from star.engine.worker import run_side_by_side
from star.genome import Genome, from_json, to_json
from star.genome.codec import parse_text
from star.model import build
from star.training import CheckpointError, Recipe, train
from star.training.evaluation import evaluate
from star.turns import finish

RECIPE = Recipe(
    tokens=2048, batch_size=4, seq_len=16, eval_interval=0.25, eval_tokens=512, schedule="wsd", device="cpu"
)
# 32 steps, evaluations after 8, 16, 24 and 32: attention with shared weights and tensors, recurrence, convolution and
# the like
TEXTS = ["1-9-1", "21200-90000-21200", "21212-90000-21212", "50000-90000-60000", "7-8-9", "10-11-5"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    path = folder / "words.txt"
    words = ["star", "and", "evolves", "a", "backbone"]
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 8000)))
    return open_corpus(path, cache_dir=folder)


def genome(text: str) -> Genome:
    return Genome(parse_text(text), d_model=16, head_dim=8)


def losses(result):
    return [(point["tokens"], point["train_loss"], point["val_loss"]) for point in result.curve]


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def forget_random_state():
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stops", [(512, 1536), (700, 1100, 1101)], ids=["at evaluations", "between them"])
def test_stopping_changes_nothing(corpus, tmp_path, text, stops):
    whole = build(genome(text), seed=1)
    expected = train(whole, corpus, RECIPE)
    path = tmp_path / "train.safetensors"
    for stop in stops:
        forget_random_state()
        result = train(build(genome(text), seed=1), corpus, RECIPE, checkpoint=path, stop_tokens=stop)
        assert result.status == "ok" and stop <= result.tokens < stop + 64
        assert result.curve[-1]["tokens"] == result.tokens and result.val_loss == result.curve[-1]["val_loss"]
        again = train(build(genome(text), seed=1), corpus, RECIPE, checkpoint=path, stop_tokens=stop)
        assert losses(again) == losses(result)  # stopped where it already was: only judged once more
        afresh = train(build(genome(text), seed=1), corpus, RECIPE, stop_tokens=stop)
        assert losses(afresh) == losses(result) and afresh.val_loss_se == result.val_loss_se  # without its checkpoint
    forget_random_state()
    model = build(genome(text), seed=1)
    result = train(model, corpus, RECIPE, checkpoint=path)
    assert losses(result) == losses(expected) and same_weights(model, whole)
    assert result.val_loss_se == expected.val_loss_se and result.tokens == expected.tokens


def test_a_rung_sees_the_schedule_of_the_whole_budget(corpus):
    """After the warm-up the same step of a shorter *budget* has another learning rate, and so other weights."""
    rung = train(build(genome("7-9"), seed=0), corpus, RECIPE.replace(schedule="linear"), stop_tokens=1024)
    whole = train(build(genome("7-9"), seed=0), corpus, RECIPE.replace(schedule="linear"))
    short = train(build(genome("7-9"), seed=0), corpus, RECIPE.replace(schedule="linear", tokens=1024))
    assert rung.tokens == short.tokens == 1024
    assert rung.val_loss == whole.curve[1]["val_loss"] != short.val_loss


def test_a_stop_at_the_end_or_beyond_is_the_end(corpus):
    expected = train(build(genome("7-9"), seed=0), corpus, RECIPE)
    for stop in (2048, 10**9):
        assert losses(train(build(genome("7-9"), seed=0), corpus, RECIPE, stop_tokens=stop)) == losses(expected)


def test_a_checkpoint_beyond_the_stop_is_refused(corpus, tmp_path):
    path = tmp_path / "train.safetensors"
    train(build(genome("7-9")), corpus, RECIPE, checkpoint=path, stop_tokens=1024)
    with pytest.raises(CheckpointError, match="after 1,024 tokens, beyond the stop at 512"):
        train(build(genome("7-9")), corpus, RECIPE, checkpoint=path, stop_tokens=512)


# ---- as jobs of a search


@pytest.fixture
def job(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_corpus", lambda spec, tokenizer: corpus)
    from dataclasses import asdict

    return {
        "id": genome(TEXTS[0]).id,
        "attempt": 0,
        "seed": 5,
        "genome": to_json(genome(TEXTS[0])),
        "costs": {},
        "corpus": "words",
        "fingerprint": corpus.fingerprint,
        "recipe": asdict(RECIPE) | {"seed": 5},
        "threads": torch.get_num_threads(),
        "timeout": None,
        "directory": str(tmp_path / "candidate"),
        "keep_weights": True,
    }


def quiet(progress):
    pass


def test_test_text_is_measured_on_the_final_weights_and_only_when_asked_for(job, corpus):
    result = finish(training.assess(job, quiet))
    assert "test_bpb" not in result["metrics"]
    tested = finish(training.assess(job | {"test": True}, quiet))
    assert scores(tested) == scores(result)
    model = build(from_json(job["genome"]), vocab_size=corpus.vocab_size, seed=0)
    model.load_state_dict(load_file(Path(job["directory"]) / "weights.safetensors"), strict=False)
    blocks = validation_blocks(corpus.test, RECIPE.seq_len, training.TEST_TOKENS)
    loss, error = evaluate(model.eval(), *blocks)
    assert tested["metrics"]["test_bpb"] == pytest.approx(loss / math.log(2), rel=1e-6)
    assert tested["metrics"]["test_bpb_se"] == pytest.approx(error / math.log(2), rel=1e-6)
    assert tested["metrics"]["test_bpb"] != tested["metrics"]["bpb"]


def rung(job, number, stop):
    path = str(Path(job["directory"]) / "checkpoint.safetensors")
    return job | {"rung": number, "stop_tokens": stop, "checkpoint": path}


def scores(result):
    return (
        [(p["tokens"], p["val_loss"]) for p in result["curve"]],
        result["metrics"]["val_loss"],
        result["metrics"]["tokens"],
    )


def test_rungs_of_a_job_end_in_the_same_weights(job):
    folder = Path(job["directory"])
    expected = finish(training.assess(job, quiet))
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").unlink()
    for number, stop in enumerate((512, 1000)):
        result = finish(training.assess(rung(job, number, stop), quiet))
        assert json.loads((folder / "result.json").read_text())["rung"] == number
        assert stop <= result["metrics"]["tokens"] < stop + 64
        assert (folder / "checkpoint.safetensors").exists() and not (folder / "weights.safetensors").exists()
    result = finish(training.assess(rung(job, 2, None), quiet))
    assert scores(result) == scores(expected)
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert not (folder / "checkpoint.safetensors").exists()  # nothing goes on from the end


@pytest.mark.parametrize("spoil", ["damaged", "missing", "of another attempt", "beyond"])
def test_a_checkpoint_that_is_no_use_costs_time_only(job, spoil):
    path = Path(job["directory"]) / "checkpoint.safetensors"
    expected = finish(training.assess(job | {"directory": None, "rung": 1, "stop_tokens": 1000}, quiet))
    finish(training.assess(rung(job, 0, 512), quiet))
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    elif spoil == "missing":
        path.unlink()
    elif spoil == "beyond":
        finish(training.assess(rung(job, 2, 1500), quiet))
    else:
        finish(
            training.assess(
                rung(job | {"seed": 6, "attempt": 1, "recipe": job["recipe"] | {"seed": 6}}, 1, 1000), quiet
            )
        )
    assert scores(finish(training.assess(rung(job, 1, 1000), quiet))) == scores(expected)


def test_candidates_side_by_side_get_what_they_get_alone(job, tmp_path):
    other = job | {"id": "other", "genome": to_json(genome(TEXTS[1])), "directory": str(tmp_path / "other")}
    alone = [scores(finish(training.assess(one, quiet))) for one in (job, other)]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("candidate", "other")]
    outcomes = run_side_by_side("star.assess.evaluations.training:assess", [job, other], [quiet, quiet])
    assert [scores(outcome["result"]) for outcome in outcomes] == alone
    assert [outcome["result"]["metrics"]["side_by_side"] for outcome in outcomes] == [2, 2]
    assert [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("candidate", "other")] == weights


def test_tabular_rungs_rank_better_and_better():
    jobs = [
        {"id": f"{i * 0x9E3779B97F4A % 16**12:012x}", "costs": {"parameters": 10.0 ** (3 + i % 4)}}
        for i in range(1, 400)
    ]
    recipe = {"tokens": 1000}

    def losses_at(stop):
        results = [tabular.assess(job | {"recipe": recipe, "stop_tokens": stop}, quiet) for job in jobs]
        assert {result["metrics"]["tokens"] for result in results} == {stop or 1000}
        return np.array([result["metrics"]["val_loss"] for result in results])

    final = losses_at(None)
    assert (losses_at(1000) == final).all()
    stops = (50, 200, 500, 900)
    correlations = [np.corrcoef(losses_at(stop), final)[0, 1] for stop in stops]
    means = [losses_at(stop).mean() for stop in (*stops, None)]
    assert correlations == sorted(correlations) and 0.1 < correlations[0] < 0.8 and correlations[-1] > 0.95
    assert means == sorted(means, reverse=True)
