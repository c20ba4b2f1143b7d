"""Models on capability tasks, the loss beyond the training context, and both as objectives and bounds of a search."""

from types import SimpleNamespace

import pytest
import torch
from fakes import TABULAR, config
from fakes import run as search

from star.assess import load_objectives, skill_tests
from star.assess.constraints import SKILLS as NAMED
from star.assess.constraints import measured_bounds, skills_of
from star.assess.skill_tests import NAMES, loss_by_position, measuring
from star.config import load_config
from star.data import open_corpus
from star.data.skills import SKILLS
from star.errors import UserError
from star.genome import Genome
from star.genome.codec import parse_text
from star.model import build
from star.run import Run
from star.search import evolve
from star.training.recipe import Recipe
from star.turns import finish


def genome(text: str, d_model: int = 32, **options) -> Genome:
    return Genome(parse_text(text), d_model=d_model, head_dim=8, **options)


def score(text: str, name: str, tokens: int, **sizes) -> dict[str, float]:
    return finish(measuring(genome(text), {name: SKILLS[name].sized(sizes)}, tokens))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"the star {n} evolves {n * n} times. " for n in range(4000)))
    return open_corpus(tmp_path / "text.txt", cache_dir=tmp_path / "cache")


def test_attention_recalls_what_a_short_convolution_cannot_reach():
    sizes = {"pairs": 2, "symbols": 4, "length": 12}
    attention = 1 - score("2-9", "mqar", 30_000, **sizes)["mqar"]
    convolution = 1 - score("7-9", "mqar", 30_000, **sizes)["mqar"]
    assert attention > 0.9 and 0.2 < convolution < 0.7  # chance is a half


def test_short_states_are_tracked_without_operators_made_for_it():
    found = score("5-9", "parity", 30_000, length=16)
    assert list(found) == ["parity 2", "parity 4", "parity 8", "parity 16", "parity"]
    assert found["parity 2"] > 0.9 and found["parity 16"] < 0.65
    parts = [value for name, value in found.items() if name != "parity"]
    assert found["parity"] == pytest.approx(1 - sum(parts) / 4)


def test_a_score_depends_on_nothing_but_its_task_seed_and_genome():
    two = {name: SKILLS[name] for name in ("needle", "copying")}
    before = torch.get_rng_state()
    both = finish(measuring(genome("7-9", 16), two, 2000, seed=3))
    alone = finish(measuring(genome("7-9", 16), {"copying": SKILLS["copying"]}, 2000, seed=3))
    assert {name: both[name] for name in alone} == alone and torch.equal(before, torch.get_rng_state())
    assert finish(measuring(genome("7-9", 16), two, 2000, deadline=0.0)) is None


def test_wide_genomes_are_scaled_down(monkeypatch):
    seen = []

    def fit(genome, *_):
        seen.append(genome.d_model)
        yield
        return lambda inputs: torch.zeros(*inputs.shape, 2)

    monkeypatch.setattr(skill_tests, "fit", fit)
    for width in (16, 512):
        finish(measuring(genome("1-9", width), {"parity": SKILLS["parity"]}, 100))
    assert seen == [16, 64]


# ---- beyond the training context


class Late(torch.nn.Module):
    """Its loss is 1 nat, and 1 more for each further training context of 16 tokens."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.plan = SimpleNamespace(positions=0)

    def loss(self, x, y, reduction):
        return (1.0 + torch.arange(x.shape[1]) // 16).expand(x.shape)


def test_loss_by_position_is_of_each_range_and_against_the_same_tokens_in_short_contexts(corpus):
    found = loss_by_position(Late(), corpus, Recipe(seq_len=16))
    nats = {name: value / corpus.bits_per_byte(1.0) for name, value in found.items()}
    parts = {"extrapolation 1x": 1, "extrapolation 2x": 2, "extrapolation 4x": 3.5, "extrapolation 8x": 6.5}
    assert nats == pytest.approx(parts | {"extrapolation": 5.5, "extrapolation_se": 0.0}, abs=1e-9)


def test_what_sees_one_token_loses_nothing_and_what_sees_more_changes(corpus):
    blind, seeing = (
        loss_by_position(build(genome(text, 16), corpus.vocab_size), corpus, Recipe(seq_len=16)) for text in "91"
    )
    assert blind["extrapolation"] == pytest.approx(0, abs=1e-6) and abs(seeing["extrapolation"]) > 1e-5


def test_with_separate_documents_nothing_is_measured_across_them(tmp_path):
    (tmp_path / "texts").mkdir()
    for n in range(600):  # of 8 x 16 tokens, all of the last range lies in few of them
        (tmp_path / "texts" / f"{n}.txt").write_text(f"document {n} " * (4 if n % 4 else 14))
    corpus = open_corpus(tmp_path / "texts", cache_dir=tmp_path / "cache")
    found = loss_by_position(Late(), corpus, Recipe(seq_len=16, documents="separate"))
    assert found["extrapolation 1x"] == pytest.approx(corpus.bits_per_byte(1.0))
    assert found["extrapolation 2x"] == pytest.approx(corpus.bits_per_byte(2.0))
    with pytest.raises(UserError, match=r"no document of the corpus .* is longer than 4 times"):
        loss_by_position(Late(), corpus, Recipe(seq_len=48, documents="separate"))


def test_what_cannot_be_measured_is_one_sentence(corpus):
    with pytest.raises(UserError, match=r"8 times the training context of 4096 needs 65,537; give more text"):
        loss_by_position(Late(), corpus, Recipe(seq_len=4096))
    short = Late()
    short.plan.positions = 100
    with pytest.raises(UserError, match="has 100 learned positions, and 8 times the training context are 128"):
        loss_by_position(short, corpus, Recipe(seq_len=16))


# ---- as objectives and bounds


def test_each_is_an_objective_and_a_bound():
    assert NAMED == NAMES
    for name in NAMES:
        (objective,) = load_objectives([name])
        assert not objective.cheap and objective.measure({name: 0.25}) == 0.25
        settings = load_config(overrides={f"objectives.max_{name}": 0.5}).objectives
        assert measured_bounds(settings) == {name: 0.5}
        assert skills_of(settings) == {"names": [name], "tokens": 200_000}
    assert skills_of(
        load_config(overrides={"objectives.names": "s5,cache", "objectives.skill_tokens": 7}).objectives
    ) == {
        "names": ["s5"],
        "tokens": 7,
    }
    assert skills_of(load_config().objectives) is None


def tiny(tmp_path, **settings) -> object:
    small = {"data.corpus": str(tmp_path / "text.txt"), "engine.kind": "inprocess", "search.baselines": ()}
    small |= {"search.population": 3, "search.offspring": 1, "search.generations": 2, "search.screen": 1}
    small |= {"training.tokens": 1024, "training.seq_len": 16, "training.eval_tokens": 256, "training.device": "cpu"}
    return load_config("smoke", overrides=small | settings)


def test_a_search_minimises_them_and_measures_them_once_for_all_rungs(tmp_path, corpus, monkeypatch):
    names = ("mqar", "extrapolation", "parameters")
    settings = {"objectives.names": names, "objectives.skill_tokens": 1024, "search.rungs": (0.5,)}
    trained = []
    fit = skill_tests.fit
    monkeypatch.setattr(skill_tests, "POSITION_TOKENS", 2048)
    monkeypatch.setattr(skill_tests, "fit", lambda genome, *rest: trained.append(genome.id) or fit(genome, *rest))
    evolve(tmp_path / "run", tiny(tmp_path, **settings))
    found = Run(tmp_path / "run")
    ended = [c for c in found.candidates() if c.objectives]
    assert ended and all(set(c.objectives) == set(names) for c in ended) and found.front()
    for c in ended:
        assert 0 <= c.objectives["mqar"] <= 1 and c.metrics["mqar"] == c.objectives["mqar"]
        assert c.metrics["extrapolation 8x"] > 0 and c.measured["extrapolation"].se > 0
    assert len(trained) == len(set(trained)) == len(found.candidates())


def test_a_bound_makes_candidates_infeasible(tmp_path):
    search(tmp_path, config(objectives__max_needle=0.5), TABULAR)
    found = Run(tmp_path).candidates()
    broken = [c for c in found if c.status == "infeasible"]
    assert broken and all("needle is 0." in c.reason and c.reason.endswith("above 0.5") for c in broken)
    assert all(c.metrics["needle"] <= 0.5 for c in found if c.status == "ok") and len(broken) < len(found)


def test_a_text_that_is_too_short_for_the_objective_is_said_before_the_search(tmp_path):
    (tmp_path / "text.txt").write_text("the star evolves " * 100)
    with pytest.raises(UserError, match="8 times the training context of 16 needs 257"):
        evolve(tmp_path / "run", tiny(tmp_path, **{"objectives.names": ("bpb", "extrapolation")}))
