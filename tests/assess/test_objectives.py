"""Objectives by name: those of the package, and those of a user's own module."""

import sys

import numpy as np
import pytest

from star.assess import Objective, load_objectives
from star.assess.pareto import dominates, non_dominated
from star.errors import UserError


def test_an_objective_from_a_module_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from star.assess import Objective\nDEPTH = Objective('depth', 'LIVs', 'depth', lambda c: 3.0, "
        "cheap=True)\nX = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loss, depth = load_objectives(("bpb", "mine:DEPTH"))
    assert isinstance(depth, Objective) and depth.name == "depth" and loss.name == "bpb"
    for name, why in (
        ("mine:X", "not a star.assess.Objective"),
        ("mine:Y", "no attribute"),
        ("nothing:X", "No module"),
    ):
        with pytest.raises(UserError, match=why):
            load_objectives((name,))
    with pytest.raises(UserError, match="each once"):
        load_objectives(("mine:DEPTH", "mine:DEPTH"))
    sys.modules.pop("mine")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UserError,
        match=r"'speed'; it may hold bpb, bpb_horizon, cache, copying, extrapolation, flops, loss, mad, mqar, needle, ",
    ):
        load_objectives(("speed",))


def test_the_front_of_many_is_what_nobody_dominates():
    rng = np.random.default_rng(0)
    for _ in range(200):
        F = rng.integers(0, rng.integers(2, 30), size=(rng.integers(1, 60), rng.integers(1, 5))).astype(float)
        assert non_dominated(F).tolist() == [not dominates(F, row).any() for row in F]
