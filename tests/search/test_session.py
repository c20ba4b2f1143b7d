"""A run opened for work: from any directory, with its text where it is now, and stopped by any signal."""

import os
import shutil
import signal

import pytest
from typer.testing import CliRunner

from star.cli import app
from star.config import load_config
from star.errors import UserError
from star.genome import PAPER_CLASSES
from star.search import evolve
from star.search.repeats import rescore
from star.search.session import open_run, stop_on_signals
from star.search.spaces import left_out, make_space

TINY = {
    "engine.kind": "inprocess",
    "search.baselines": (),
    "search.population": 2,
    "search.offspring": 2,
    "search.generations": 1,
    "space.slots": 2,
    "training.tokens": 256,
    "training.seq_len": 32,
    "training.eval_tokens": 128,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_ends_a_process_stops_the_work(number):
    class Work:
        stopped = False

        def stop(self):
            self.stopped = True

    work, before = Work(), signal.getsignal(number)
    with stop_on_signals(work):
        assert signal.getsignal(number) != before
        os.kill(os.getpid(), number)
        assert work.stopped
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_run_on_a_relative_path_is_continued_from_elsewhere_and_after_a_move(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("the star evolves and the front moves on " * 400)
    (here / "texts" / "b.txt").write_text("another document, for validation, of some length " * 400)
    monkeypatch.chdir(here)
    evolve("run", load_config("smoke", overrides=TINY | {"data.corpus": "texts"}))
    monkeypatch.chdir(there)
    assert rescore(here / "run", repeats=1) > 0, "the stored path is absolute"
    evolve(here / "run", load_config("smoke", overrides=TINY | {"data.corpus": "../here/texts"}))  # another spelling
    shutil.move(here / "texts", there / "moved")
    with pytest.raises(UserError, match="No corpus at"), open_run(here / "run"):
        pass
    with open_run(here / "run", data="moved") as session:
        assert session.config.data.corpus == str((there / "moved").resolve())
    for verb in ("rescore", "refine"):
        result = CliRunner().invoke(app, [verb, str(here / "run"), "--data", "nowhere"])
        assert 'No corpus at "nowhere"' in result.output
    result = CliRunner().invoke(app, ["rescore", str(here / "run"), "--seeds", "2", "--data", "moved", "--json"])
    assert result.exit_code == 0, result.output
    (there / "moved" / "a.txt").write_text("other text " * 900)
    with pytest.raises(UserError, match="give the original text with --data"), open_run(here / "run", data="moved"):
        pass


def test_default_classes_that_do_not_fit_the_width_are_left_out_and_named(tmp_path):
    """Grouped queries need a number of heads that the group size divides; 24 / 8 heads are three."""
    settings = {"space.d_models": (24,), "space.head_dim": 8, "evaluation": "tabular"}
    config, texts = load_config("smoke", overrides=TINY | settings), []
    unfit = left_out(config)
    assert unfit and set(make_space(config).classes) == set(PAPER_CLASSES) - set(unfit)
    evolve(tmp_path / "run", config, callbacks=[lambda event: texts.append(event.get("text") or "")])
    assert any("left out, because they do not fit" in text for text in texts)
    named = config.replace({"space.classes": (1, next(iter(unfit)))})
    assert left_out(named) == {}
    with pytest.raises(UserError, match="class "):
        make_space(named)
