"""The scripts in examples/ run, and do what they say."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry():
    """What examples register is forgotten afterwards."""
    from star.genome.classes import FEATURIZERS
    from star.liv import FAMILIES

    before = dict(FAMILIES), dict(FEATURIZERS)
    yield
    for table, kept in zip((FAMILIES, FEATURIZERS), before, strict=True):
        table.clear()
        table.update(kept)


def test_a_new_operator_in_under_forty_lines(registry):
    found = load("new_operator").main(steps=40)
    assert found["last"] < found["first"] - 1.5, "it learns"
    assert found["error"] < 1e-12 and found["pieces"] < 1e-12 and found["future"] == 0.0
    text = (EXAMPLES / "new_operator.py").read_text()
    definition = text[text.index("@dataclass") : text.index("\n\n\ndef main")]
    assert sum(bool(line.strip()) for line in definition.splitlines()) < 40


def test_a_search_with_an_objective_of_your_own(tmp_path):
    (tmp_path / "text.txt").write_text("the star evolves and the front moves on " * 2000)
    settings = {
        "data.corpus": str(tmp_path / "text.txt"),
        "engine.kind": "inprocess",
        "search.baselines": (),
        "space.slots": 3,
        "training.tokens": 512,
        "training.seq_len": 32,
        "training.eval_tokens": 256,
    }
    rows = load("own_objective").main(tmp_path / "run", candidates=6, **settings)
    assert rows and all(traffic > 0 for _, _, traffic in rows)
    assert sorted(rows, key=lambda row: row[1]) == sorted(rows, key=lambda row: -row[2]), "it is a front"
