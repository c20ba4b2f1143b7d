"""The statistics and tables of the refinement benchmark. Tables lie outside the project: skipped, saying so, where they
are absent.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from star.surrogate.posterior import Observations

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "refine"


def module(name: str):
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


paired, tasks = module("paired"), module("table_tasks")


def test_anova_equals_statsmodels():
    pandas, formula = pytest.importorskip("pandas"), pytest.importorskip("statsmodels.formula.api")
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 6)) + 0.5 * np.arange(4)[None, :, None] + rng.normal(size=(3, 1, 6))
    rows = [(f"t{t}", f"a{a}", f"t{t}s{s}", values[t, a, s]) for t in range(3) for a in range(4) for s in range(6)]
    table = pandas.DataFrame(rows, columns=["task", "arm", "block", "y"])
    slow = anova_lm(formula.ols("y ~ C(arm) + C(arm):C(task) + C(block)", table).fit(), typ=1)
    found = paired.anova(values)
    assert found["arm"]["F"] == pytest.approx(slow.loc["C(arm)", "F"]) and found["arm"]["p"] == pytest.approx(
        slow.loc["C(arm)", "PR(>F)"]
    )
    assert found["arm x task"]["df_error"] == slow.loc["Residual", "df"]


def test_holm():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_paired_differences():
    rng = np.random.default_rng(0)
    b = rng.normal(size=40)
    a = b - 0.5 + 0.3 * rng.normal(size=40)
    found = paired.mean_difference(a, b)
    assert found["t_p"] == pytest.approx(stats.ttest_rel(a, b).pvalue) and found["low"] < -0.5 < found["high"] < 0
    assert found["better"] + found["worse"] + found["ties"] == 40
    same = paired.mean_difference(b, b)
    assert same["mean"] == same["low"] == same["high"] == 0 and same["t_p"] == 1.0 and same["ties"] == 40


def test_ratio_and_probability_of_improvement():
    found = paired.ratio(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0]))
    assert found["ratio"] == found["low"] == found["high"] == pytest.approx(0.5)
    assert paired.probability_of_improvement([1, 2], [2, 3]) == 0.875
    assert paired.interquartile_mean(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5


@pytest.fixture(scope="module")
def table():
    if not tasks.SHARED.is_dir():
        pytest.skip(f"{tasks.SHARED} is absent")
    return tasks


def test_tasks_are_the_tables(table):
    for name in table.TASKS:
        task = table.load(name)
        n, k = task.loss.shape
        assert task.X.shape[0] == task.relative.shape[0] == n and task.relative.shape[1] == k == len(task.fidelities)
        assert np.isfinite(task.full).all() and task.X.min() >= 0 and task.X.max() <= 1
        assert (task.full <= task.target).mean() == pytest.approx(0.01, abs=0.01)
        assert task.regret(task.full.min()) == 0 and task.regret(float(np.median(task.full))) == pytest.approx(100)


def test_the_rule_knows_nothing_of_the_size_it_is_for(table):
    rows = table.steplaw_rows()
    size = np.unique(rows["N"])[1]
    spoilt = rows | {
        "smooth_loss": np.where(rows["N"] == size, np.random.default_rng(0).random(len(rows["N"])), rows["smooth_loss"])
    }
    for D in (5e9, 80e9):
        a, b = (table.rule(t, rows["N"] != size) for t in (rows, spoilt))
        assert a[0](size, D) == b[0](size, D) and a[1](size, D) == b[1](size, D)


@pytest.mark.parametrize(
    "arm", ["random", "ASHA", "RL only", "BO", "BO + rate", "BO + rule", "BO + transfer", "BO + RL gated"]
)
def test_every_arm_keeps_to_its_budget(table, arm, monkeypatch):
    refine = module("refine_on_tables")
    name = "steplaw-537M"
    task = table.load(name)
    monkeypatch.setattr(refine, "MOST_TRIALS", 7)
    run = refine.Run(task, 3)
    refine.ARMS[arm](run)
    assert 0 < run.spent <= task.budget * (1 + 1e-9) and len({(i, j) for i, j, _ in run.trials}) == len(run.trials)
    assert run.spent == pytest.approx(sum(task.fidelities[j] for _, j, _ in run.trials))
    again = refine.Run(task, 3)
    refine.ARMS[arm](again)
    assert again.trials == run.trials and again.curve == run.curve


def test_a_related_task_helps_and_an_unrelated_one_is_dropped():
    rng = np.random.default_rng(0)
    f = lambda X: np.sin(6 * X[:, 0]) + X[:, 1] ** 2  # noqa: E731
    X, held = rng.random((6, 2)), rng.random((40, 2))
    related = module("related_task")
    alike = related.Source(XS := rng.random((30, 2)), f(XS) + 5.0)
    unlike = related.Source(XS, -3 * f(XS) + rng.standard_normal(30))
    from star.surrogate.posterior import fit

    alone = fit(Observations(X, f(X)), False).predict(held)[0]
    joined, kept = related.contextual(Observations(X, f(X)), [alike, unlike], False)
    assert kept == [0]
    both = fit(joined, False).predict(related.widen(held, 1, False))[0]
    assert np.abs(both - f(held)).mean() < 0.5 * np.abs(alone - f(held)).mean()
    assert related.widen(np.array([[0.1, 1.0]]), 2, True, 1).tolist() == [[0.1, 0.0, 1.0, 1.0]]
