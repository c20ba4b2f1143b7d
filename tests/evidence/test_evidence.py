"""Evidence: a protocol fixed beforehand, arms of equal size with rates of their own, test text, honest verdicts."""

import json
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import SEEN, Interrupted, config, history, run
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from star.cli import app
from star.cost import costs
from star.engine import InProcess
from star.errors import UserError
from star.evidence.comparison import Arm, Comparison, compare
from star.evidence.design import INITIAL, RANDOM, protocol
from star.evidence.matching import MATCHINGS, matched, measure_of
from star.evidence.verdict import standings
from star.genome import from_json, load_genome
from star.report.evidence_report import evidence_figure, evidence_json, evidence_lines, evidence_tables, protocol_lines
from star.report.page import write_page
from star.run import Run
from star.store import read_events

SETTINGS = config(search__generations=4, search__baselines=("transformer++", "lfm2-350m"))
BUDGET = SETTINGS.training.tokens
FUNCTION = "fakes:attention_is_slow"
QUICK = {"rates": (0.5, 1.0), "seeds": 2, "headline": 3}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    path = tmp_path_factory.mktemp("evidence") / "run"
    run(path, SETTINGS, FUNCTION)
    before = history(path)
    SEEN.clear()
    compare(path, protocol(Run(path), **QUICK), engine=InProcess(FUNCTION, 2))
    assert history(path) == before
    return Run(path)


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("name", ["transformer++", "lfm2-350m", "striped-mamba"])
def test_a_genome_is_brought_to_a_size_by_its_width_alone(name, matching):
    genome = load_genome(name).scaled(d_model=64)
    measure = measure_of(matching, vocab_size=256, seq_len=128, cache_tokens=4096)
    assert matched(genome, measure, measure(genome)) == genome
    for times in (0.7, 1.4):
        found = matched(genome, measure, times * measure(genome))
        assert found is not None and found.fits and found.backbone == genome.backbone
        assert measure(found) == pytest.approx(times * measure(genome), rel=0.08)
        assert 32 <= found.d_model <= 128
    assert matched(genome, measure, 50 * measure(genome)) is None


def test_what_a_matching_makes_equal_is_the_plans_own_cost():
    genome = load_genome("lfm2-350m").scaled(d_model=64)
    at = {name: measure_of(name, vocab_size=300, seq_len=128, cache_tokens=4096)(genome) for name in MATCHINGS}
    assert at["parameters"] == costs(genome, 300, 128).parameters
    assert at["flops"] == costs(genome, 300, 128).train_flops_per_token
    assert at["cache"] == costs(genome, 300, 4096).cache_bytes


def test_the_protocol_is_recorded_before_anything_is_trained(compared):
    kinds = [event.kind for event in read_events(compared.path)]
    assert kinds.index("protocol") < kinds.index("comparison")
    (found,) = compared.protocols()
    assert found == protocol(compared, **QUICK)  # nothing that came later changed it
    trained = [c for c in compared.candidates() if c.objectives and c.origin != "baseline"]
    assert len(found["random"]) == len(trained)
    assert not {from_json(genome).id for genome in found["random"]} & {c.id for c in compared.candidates()}
    assert {arm["origin"] for arm in found["arms"]} >= {"front", "initial", "baseline"}


def test_every_arm_has_its_size_rate_and_seeds_and_only_finals_see_test_text(compared):
    comparison = Comparison(compared)
    (found,) = compared.protocols()
    arms = comparison.arms
    assert arms[0].name == found["at"] == compared.best().id and arms[-1].name == RANDOM
    assert INITIAL in {arm.name for arm in arms}
    random = {row["id"]: row["objectives"]["bpb"] for row in compared.comparisons() if row["stage"] == "random"}
    assert arms[-1].genome.id == min(random, key=random.__getitem__)
    for arm in arms:
        rates = {row["rate"]: row["bpb"] for t in comparison._rates(arm) if (row := comparison.rows[t.key])}
        assert len(rates) == 2 and comparison.rate(arm) == min(rates, key=rates.__getitem__)
        for name, n in (("parameters", 3), ("flops", 2), ("cache", 2)):
            values = comparison.values(arm, name)
            assert values is None or (len(values) == n and None not in values)
    jobs = [job for job in SEEN if job["recipe"]["tokens"] == 10 * BUDGET]
    tested = [job for job in jobs if job["test"]]
    assert {job["recipe"]["learning_rate"] / SETTINGS.training.learning_rate for job in jobs} == {0.5, 1.0}
    assert len({job["seed"] for job in tested}) == 3 and not any(job["keep_weights"] for job in jobs)
    assert not {job["seed"] for job in tested} & {job["seed"] for job in jobs if not job["test"]}
    assert {row["stage"] for row in compared.comparisons() if row["test_bpb"] is not None} == {"final"}
    assert all(job["recipe"]["tokens"] == BUDGET for job in SEEN if "test" not in job)


def test_more_baselines_at_another_depth(compared):
    more = protocol(compared, baselines=("samba-hybrid", "gated-delta-hybrid@8"), **QUICK)
    found = {arm["name"]: from_json(arm["genome"]) for arm in more["arms"] if arm["origin"] == "baseline"}
    assert {len(genome.backbone) for genome in found.values()} == {6, 8}
    deep = found["gated-delta-hybrid layout, 8 LIVs"]
    families = [deep.operator(gene).family for gene in deep.backbone]
    assert families.count("attention") == 1 and families.count("recurrence") == 3  # at six LIVs it would have none


def test_it_goes_on_after_a_kill_and_a_second_protocol_trains_only_what_is_new(tmp_path):
    run(tmp_path, SETTINGS, FUNCTION)
    fixed = protocol(Run(tmp_path), matchings=("parameters",), **QUICK)
    with pytest.raises(ConnectionError, match="killed"):
        compare(tmp_path, fixed, engine=Interrupted(FUNCTION, 1, seed=0, left=40))
    done = len(Run(tmp_path).comparisons())
    left = compare(tmp_path, fixed, engine=InProcess(FUNCTION, 1))
    rows = Run(tmp_path).comparisons()
    keys = {(r["stage"], r["id"], r["budget"], r["rate"], r["number"]) for r in rows}
    assert 0 < done < done + left == len(rows) == len(keys)
    assert compare(tmp_path, fixed, engine=InProcess(FUNCTION, 1)) == 0
    more = protocol(Run(tmp_path), matchings=("parameters",), **QUICK | {"headline": 4})
    arms = len(Comparison(Run(tmp_path)).arms)
    assert more["id"] != fixed["id"] and compare(tmp_path, more, engine=InProcess(FUNCTION, 1)) == arms
    assert [p["id"] for p in Run(tmp_path).protocols()] == [fixed["id"], more["id"]]


def judge(values: dict[str, list[float | None]], sizes: dict[str, float] | None = None):
    """Standings of arms with these values, the first of them the reference."""
    genomes = {name: load_genome("lfm2-350m").scaled(d_model=64) for name in values}
    arms = [Arm(name, "front", genomes[name]) for name in values]
    config_ = SimpleNamespace(training=SimpleNamespace(seq_len=128), objectives=SimpleNamespace(cache_tokens=4096))
    fake = SimpleNamespace(
        run=SimpleNamespace(corpus={"vocab_size": 256}, config=config_),
        protocol={"win": 0.0072, "level": 0.01},
        arms=arms,
        values=lambda arm, _: values[arm.name],
        rate=lambda _: 1.0,
        sized=lambda arm, _: genomes[arm.name].scaled(d_model=(sizes or {}).get(arm.name, 64)),
    )
    return {s.arm.name: s for s in standings(fake, "parameters")}


def test_with_two_arms_the_difference_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = 2.0 + rng.normal(scale=0.01, size=5), 2.02 + rng.normal(scale=0.01, size=5)
    found = judge({"a": a.tolist(), "b": b.tolist()})["b"]
    theirs = ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_intervals_hold_as_often_as_they_say_and_false_wins_are_rare():
    rng, inside, wins, n = np.random.default_rng(1), 0, 0, 400
    for _ in range(n):
        seeds = rng.normal(scale=0.05, size=3)  # shared by all arms: blocks
        values = {name: (2.0 + seeds + rng.normal(scale=0.01, size=3)).tolist() for name in "abcde"}
        found = judge(values)["c"]
        inside += found.low <= 0 <= found.high
        wins += found.verdict in ("win", "loss")
    assert 0.92 <= inside / n <= 0.98 and wins / n <= 0.02


def test_verdicts():
    near = [2.000, 2.001, 2.002]
    found = judge(
        {
            "reference": near,
            "better": [1.9, 1.901, 1.902],
            "worse": [2.1, 2.101, 2.102],
            "tiny": [2.005, 2.006, 2.007],
            "failed": [2.1, None, 2.1],
        }
    )
    assert {name: s.verdict for name, s in found.items()} == {
        "reference": "reference",
        "better": "loss",
        "worse": "win",
        "tiny": "no difference shown",  # certain, but too small to count
        "failed": "incomplete",
    }
    noisy = judge({"reference": [2.0, 2.2, 1.9], "other": [2.3, 2.0, 2.1], "third": [2.1, 2.1, 2.2]})
    assert noisy["other"].verdict == "no difference shown"
    larger = judge(
        {"reference": near, "small": [2.1, 2.101, 2.102], "large": [1.9, 1.901, 1.902]}, {"small": 48, "large": 80}
    )
    assert larger["small"].verdict == larger["large"].verdict == "larger"
    assert judge({"reference": near, "small": [1.9, 1.901, 1.902]}, {"small": 48})["small"].verdict == "loss"


def test_what_it_says(compared, tmp_path):
    comparison = Comparison(compared)
    tables = dict(evidence_tables(comparison))
    assert len(tables) == 3 and all(len(table.rows) == len(comparison.arms) for table in tables.values())
    lines = evidence_lines(comparison)
    assert len(lines) == 3 * (len(comparison.arms) - 1)
    assert all("bits/byte" in line or "not compared" in line for line in lines)
    assert "a win is at least 0.0072 bits/byte at p < 0.01" in "\n".join(protocol_lines(comparison))
    figure = evidence_figure(compared)
    assert len(figure.axes) == 3
    page = unescape(write_page(compared, tmp_path / "report.html").read_text())
    assert all(text in page for text in [*tables, *lines]) and page.count("<img") == 1
    data = json.loads(json.dumps(evidence_json(comparison)))
    assert len(data["claims"]) == len(lines) and set(data["standings"]) == set(MATCHINGS)


def test_a_failing_training_costs_only_its_arm(tmp_path):
    run(tmp_path, SETTINGS, FUNCTION)
    compare(
        tmp_path, protocol(Run(tmp_path), matchings=("parameters",), **QUICK), engine=InProcess("fakes:unreliable", 2)
    )
    comparison = Comparison(Run(tmp_path))
    assert not comparison.wanted()
    assert evidence_lines(comparison) and evidence_tables(comparison)


def test_bad_use_is_one_sentence(tmp_path, compared):
    path = str(compared.path)
    for arguments, words in (
        (["--match", "size"], "--match size: choose of parameters, flops, cache"),
        (["--budget", "0.5"], "--budget 0.5: must be at least 1"),
        (["--rates", "0,1"], "--rates must be numbers above 0"),
        (["--rates", "x"], "write learning rates of the recipe"),
        (["--seeds", "1", "--headline", "1"], "needs at least two trainings"),
        (["--at", "nobody"], "is no arm of the comparison"),
        (["--members", "zzz"], "no candidate with an id that begins with 'zzz'"),
        (["--baselines", "no-such-genome"], "no-such-genome"),
        (["--baselines", "samba-hybrid@x"], "'x' is no number of LIVs; write such as samba-hybrid@8"),
    ):
        result = CliRunner().invoke(app, ["evidence", path, *arguments])
        assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
    run(tmp_path, config(search__generations=1, search__population=4), FUNCTION)
    result = CliRunner().invoke(app, ["evidence", str(tmp_path), "--show"])
    assert result.exit_code == 2 and "has no evidence yet: star evidence" in result.output
    with pytest.raises(UserError, match="has no evidence yet"):
        Comparison(Run(tmp_path))


def test_from_the_command_line(compared):
    arguments = ["evidence", str(compared.path), "--rates", "0.5,1", "--seeds", "2", "--headline", "3"]
    data = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)  # nothing is left to train
    assert data["protocol"]["id"] == compared.protocols()[0]["id"]
    text = CliRunner().invoke(app, [*arguments, "--show"]).output
    assert "equal parameters" in text and RANDOM in text and "protocol " + data["protocol"]["id"] in text
