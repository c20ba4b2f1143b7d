"""star watch follows a run that another process drives, and only reads."""

import io
import multiprocessing
import re
import time

import pytest
from fakes import config, large, run
from rich.console import Console
from typer.testing import CliRunner

from star.cli import app
from star.report.live import screen, sparkline
from star.run import Run
from star.store.database import exists
from star.store.lock import is_held


def watch(*words) -> str:
    result = CliRunner().invoke(app, ["watch", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_follows_a_run_to_its_end_and_keeps_the_page_up_to_date(tmp_path):
    path = tmp_path / "run"

    def wait(event):  # half of the run happens after the first look
        while event["kind"] == "candidate_end" and event["done"] == 20 and not (path / "report.html").exists():
            time.sleep(0.05)

    arguments = (path, config(search__generations=5), "fakes:slow", 1, [wait])
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    process.start()
    while not is_held(path) or not exists(path):
        time.sleep(0.01)
    lines = watch(path, "--every", 0.1, "--html").splitlines()
    process.join()
    counts = [int(n) for n in re.findall(r"(\d+) of 40 candidates", "\n".join(lines))]
    assert counts[0] <= 20 and counts == sorted(counts) and counts[-1] == 40
    assert lines[0].startswith("running, generation") and lines[-2].startswith("finished, generation 4 of 4")
    assert lines[-1] == f"report: {path / 'report.html'}"
    page = (path / "report.html").read_text()
    assert '"refresh":null' in page and all(c.id in page for c in Run(path).candidates())


def test_it_says_that_a_run_has_stopped_and_changes_nothing(tmp_path):
    path = tmp_path / "run"

    def stop(event):
        if event["kind"] == "candidate_end" and event["done"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, config(), callbacks=[stop])
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    assert f"no process works on {path} now; star evolve {path} resumes it" in watch(path)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("height", (24, 60))
def test_the_screen_fits_the_terminal(tmp_path, height):
    path = tmp_path / "run"
    large(path, 200, 2)
    out = Console(file=io.StringIO(), width=100, height=height, markup=False, highlight=False)
    opened = Run(path)
    out.print(screen(opened, height))
    text = out.file.getvalue()
    assert len(text.splitlines()) <= height
    assert opened.best().id in text and "hypervolume" in text and "208 of 208" in text
    assert f"best bpb {opened.best().values['bpb']:.3f}" in " ".join(text.split())


def test_a_sparkline_keeps_the_last_value_of_each_part():
    assert sparkline([0.0, 1.0, 2.0, 4.0], 4) == "▁▃▅█"
    assert sparkline([9.0, 4.0, 9.0, 8.0], 2) == "▄█" and len(sparkline(range(1000), 48)) == 48
