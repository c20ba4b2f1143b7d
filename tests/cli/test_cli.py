"""The command line: every verb on a real run, every error one sentence that names the value and the fix."""

import json
import os
import pkgutil
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import star
from star import config
from star.cli import app
from star.cli.arguments import ALGORITHMS, ENGINES, PRESETS
from star.errors import RunFailed
from star.export.folder import FILES
from star.genome import from_json, gene_table
from star.run import Run
from star.search import algorithms
from star.store.database import disk_full

ROOT = Path(star.__file__).parents[1]
VERBS = (
    "evolve",
    "status",
    "watch",
    "front",
    "report",
    "compare",
    "refine",
    "rescore",
    "show",
    "plot",
    "train",
    "export",
    "generate",
    "import",
    "doctor",
)


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output or result.exception
    return result.output


def refused(*arguments: object, code: int = 2) -> str:
    """The one sentence that a command fails with."""
    result = call(*arguments)
    assert result.exit_code == code, result.output or result.exception
    lines = [line for line in result.output.splitlines() if line.startswith("star: ")]
    assert len(lines) == 1 and "Traceback" not in result.output
    return lines[0]


def process(*arguments: object, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "star", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes | options)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A little text to train on."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(12):
        (folder / f"{n}.py").write_text(f"def function_{n}(x):\n    return x * {n} + sum(range({n}))\n" * 40)
    return folder


@pytest.fixture(scope="module")
def settings(text) -> list:
    tiny = "search.population=3 search.offspring=3 search.generations=2 engine.kind=inprocess".split()
    tiny += ["training.tokens=1024", "training.eval_tokens=512"]
    return ["--preset", "smoke", "--data", text, *(word for setting in tiny for word in ("--set", setting))]


@pytest.fixture(scope="module")
def evolved(tmp_path_factory, settings) -> tuple[Path, str]:
    """A finished run, and what `star evolve` printed."""
    run = tmp_path_factory.mktemp("runs") / "first"
    return run, ok("evolve", run, *settings)


@pytest.fixture
def run(evolved) -> Path:
    return evolved[0]


# Every verb on a real run.


def test_evolve_prints_the_front_and_writes_plots_and_exports_the_best_and_the_knee(evolved):
    run, output = evolved
    opened = Run(run)
    for words in ("candidates to train", "initial population done", "generation 1 of 1 done", "left)"):
        assert words in output
    assert "All 7 candidates are done." in output
    assert all(member.id in output for member in opened.front()) and f"{opened.knee().id} knee" in output
    for word in ("byte unigram", "byte bigram", "hypervolume: initial population", "beaten by"):
        assert word in output
    for name in ("pareto_fronts", "hypervolume", "learning_curves", "knee_genome"):
        assert (run / "plots" / f"{name}.png").exists() and (run / "plots" / f"{name}.svg").exists()
    assert (run / "report.html").exists()
    for member in (opened.best(), opened.knee()):
        folder = run / "exported" / member.id
        assert {path.name for path in folder.iterdir()} == set(FILES) | {"training.json"}
        assert str(folder) in output
    assert "best bpb, to use or to train for longer" in output
    assert "Sample of the best after 'def '" in output and len(output.rpartition("'):\n\n")[2]) > 100


def test_evolve_says_how_long_a_new_run_will_take(evolved, settings):
    assert re.search(r"expected time: about \d+ s \(measured [\d,]+ tokens/s for one worker\)", evolved[1])
    assert "expected time" not in ok("evolve", evolved[0], *settings)


def test_evolve_again_has_nothing_left_to_do(evolved, settings):
    run, _ = evolved
    before = [(c.id, c.objectives) for c in Run(run).front()]
    assert "resuming with 7 of 7 candidates done" in ok("evolve", run, *settings)
    assert [(c.id, c.objectives) for c in Run(run).front()] == before


def test_front_as_json_and_csv(run):
    rows = json.loads(ok("front", run, "--json"))
    assert rows and [row["knee"] for row in rows].count(True) == 1
    assert all(row["measured"]["bpb"]["se"] > 0 and row["generation"] in (0, 1) for row in rows)
    assert len(json.loads(ok("front", run, "--json", "--baselines"))) == len(rows) + 1
    assert all(
        from_json(row["genome"]).id == row["id"] and set(row["objectives"]) == {"bpb", "parameters", "cache"}
        for row in rows
    )
    table = ok("front", run, "--csv").splitlines()
    assert table[0].startswith("id,generation,bpb,parameters,cache,genome,bpb_se,") and len(table) == len(rows) + 1
    assert "exclude each other" in refused("front", run, "--json", "--csv")


def test_status_as_text_and_json(run):
    assert "7 of 7 candidates done" in ok("status", run)
    assert json.loads(ok("status", run, "--json"))["done"] == 7


def test_rescore_says_that_one_seed_measures_no_noise(run, tmp_path):
    path = Path(shutil.copytree(run, tmp_path / "run"))
    output = ok("rescore", path, "knee", "--seeds", 1)
    assert "training 1 candidate of" in output and "1 fresh seed each" in output
    assert "noise of bpb between seeds: unknown" in output and "[" not in output
    rows = json.loads(ok("rescore", path, "knee", "--seeds", 2, "--json"))
    assert [row["seeds"] for row in rows] == [2] and rows[0]["failed"] == 0
    assert re.search(r"\d\.\d+ \[\d\.\d+, \d\.\d+\]", ok("rescore", path, "knee", "--seeds", 2))
    assert "no candidate with an id that begins with 'zzz'" in refused("rescore", path, "zzz")


def test_plot_writes_to_the_given_folder(run, tmp_path):
    output = ok("plot", run, "--out", tmp_path / "plots")
    assert str(tmp_path / "plots") in output and "PNG and SVG" in output
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 4
    assert "PDF" in ok("plot", run, "--out", tmp_path / "pdf", "--format", "pdf")
    assert len(list((tmp_path / "pdf").glob("*"))) == len(list((tmp_path / "pdf").glob("*.pdf"))) == 4
    assert "write one or more of png, svg, pdf" in refused("plot", run, "--format", "bmp")


def test_show_understands_every_kind_of_genome(run, tmp_path):
    knee = Run(run).knee()
    (tmp_path / "mine.json").write_text(
        json.dumps(star.genome.to_json(knee.genome, name="mine", description="found by me"))
    )
    for source in (f"{run}:knee", f"{run}:{knee.id}", f"{run}:{knee.id[:8]}", tmp_path / "mine.json"):
        assert knee.genome.id in ok("show", source)
    assert "found by me" in ok("show", tmp_path / "mine.json")
    assert "4 LIVs of width 64" in ok("show", "transformer++", "--d-model", 64, "--depth", 4)
    assert "65,536 and a context of 128 tokens" in ok(
        "show", "21211-31112-21221-32112", "--vocab-size", 65_536, "--seq-len", 128
    )


def test_show_prints_the_gene_table(tmp_path):
    output = ok("show", "--genes")
    assert all(row["gene"].split()[0] in output for row in gene_table())
    assert "or --genes" in refused("show")


def test_show_draws_a_diagram(tmp_path):
    assert "genome.svg" in ok("show", "lfm2-350m", "--diagram", tmp_path / "genome.svg")
    assert b"<svg" in (tmp_path / "genome.svg").read_bytes()[:500]
    assert ".png, .svg or .pdf" in refused("show", "lfm2-350m", "--diagram", tmp_path / "genome.doc")


def test_export_and_generate(run, tmp_path):
    ok("export", f"{run}:knee", "--out", tmp_path / "model")
    first, second = (ok("generate", tmp_path / "model", "--prompt", "def ", "--tokens", 20) for _ in range(2))
    assert first == second and first.startswith("def ") and len(first) > 20
    assert ok("generate", tmp_path / "model", "--tokens", 20, "--temperature", 0)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["source"]["run"] == str(run) and config["trained"]
    assert config["metrics"]["bpb"] == Run(run).knee().objectives["bpb"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert config["source"]["fingerprint"] in card and "`optimizer` adamw" in card and "| bpb |" in card
    sentence = refused("export", f"{run}:knee", "--out", tmp_path / "model")
    assert "holds an exported model already" in sentence and "--overwrite to replace it" in sentence
    ok("export", f"{run}:knee", "--out", tmp_path / "model", "--overwrite")


def test_rescored_losses_are_what_front_and_exports_show(run, tmp_path):
    path = Path(shutil.copytree(run, tmp_path / "run"))
    searched = {row["id"]: row["objectives"]["bpb"] for row in json.loads(ok("front", path, "--json"))}
    fresh = {row["id"]: row["fresh"]["bpb"] for row in json.loads(ok("rescore", path, "--seeds", 2, "--json"))}
    shown = {row["id"]: row["objectives"]["bpb"] for row in json.loads(ok("front", path, "--json"))}
    assert set(shown) <= set(searched) and all(shown[id] == fresh[id] != searched[id] for id in shown)
    assert all(f"{bpb:.3f} [" in ok("front", path) for bpb in shown.values())
    best = Run(path).best()
    ok("export", f"{path}:{best.id}", "--out", tmp_path / "model")
    metrics = json.loads((tmp_path / "model" / "config.json").read_text())["metrics"]
    assert metrics["bpb"] == shown[best.id] and metrics["bpb_seeds"] == 2
    assert metrics["bpb_low"] < metrics["bpb"] < metrics["bpb_high"]
    assert metrics["val_loss"] * Run(path).bits_per_nat == pytest.approx(searched[best.id]), "of the stored weights"


def test_generate_from_a_member_of_a_front(run):
    best = Run(run).best()
    options = ("--prompt", "def ", "--tokens", 20)
    assert ok("generate", f"{run}:best", *options) == ok("generate", f"{run}:{best.id}", *options)
    assert "no candidate with an id" in refused("generate", f"{run}:zzz")


def test_a_member_of_a_run_is_trained_on_its_text_with_its_recipe(run, text, tmp_path):
    ok("train", f"{run}:best", "--out", tmp_path / "model")
    source = json.loads((tmp_path / "model" / "config.json").read_text())["source"]
    best, opened = Run(run).best(), Run(run)
    assert source["run"] == str(run) and source["id"] == best.id
    assert source["fingerprint"] == opened.corpus["fingerprint"]
    stored = json.loads((tmp_path / "model" / "training.json").read_text())
    assert stored["recipe"]["tokens"] == 1024 and stored["recipe"]["seq_len"] == opened.config.training.seq_len
    ok("train", f"{run}:best", "--preset", "smoke", "--tokens", 2048, "--out", tmp_path / "other")
    assert json.loads((tmp_path / "other" / "training.json").read_text())["recipe"]["tokens"] == 2048
    moved = text.with_name("elsewhere")
    text.rename(moved)
    try:
        sentence = refused("train", f"{run}:best", "--out", tmp_path / "third")
        assert str(run) in sentence and str(text) in sentence and "--data" in sentence
        ok("train", f"{run}:best", "--data", moved, "--out", tmp_path / "third")
    finally:
        moved.rename(text)
    (text / "0.py").write_text((first := (text / "0.py").read_text()) + "# changed\n")
    try:
        assert "is not the one of" in refused("train", f"{run}:best", "--out", tmp_path / "fourth")
    finally:
        (text / "0.py").write_text(first)


def test_export_of_an_untrained_genome_is_asked_for(tmp_path):
    command = ("export", "transformer++", "--d-model", 32, "--depth", 2, "--out", tmp_path / "model")
    assert "--untrained" in refused(*command)
    ok(*command, "--untrained")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["name"] == "transformer++ layout"
    assert star.genome.load_genome("transformer++", 32, 2) == star.export.load(tmp_path / "model").genome


def test_weights_that_were_not_kept_are_missed(run):
    lost = next(c for c in Run(run).candidates() if Run(run).weights(c.id) is None)
    assert "has no saved weights" in refused("export", f"{run}:{lost.id}")


def test_train_one_architecture(text, tmp_path):
    options = (*"--preset smoke --tokens 1_024 --set eval_tokens=512 --data".split(), text, "--out", tmp_path / "model")
    output = ok("train", "transformer++", "--d-model", 32, "--depth", 2, *options)
    assert re.search(r"validation loss \d\.\d+ \+- ", output) and "byte bigram" in output
    assert ok("generate", tmp_path / "model", "--tokens", 10)
    assert "holds an exported model already" in refused("train", "1-9", *options)


def test_train_a_scaled_backbone_with_every_technique(text, tmp_path):
    out = tmp_path / "model"
    settings = ("eval_tokens=512", "optimizer=muon", "adaptive=true", "layer_decay=0.5", "sparsify=0.5")
    options = ("--preset", "smoke", "--data", text, "--tokens", 4096, "--scale", "2x-depth,2x-width", "--out", out)
    output = ok("train", "1-9", "--d-model", 32, *options, *(word for s in settings for word in ("--set", s)))
    assert "muon, linear, accumulation adapts up to 16, rates x 0.5^(l/L), attention sparsified (tau 0.5)" in output
    assert "sparsification saves" in output
    stored = json.loads((out / "training.json").read_text())
    assert stored["curve"][-1]["tokens"] == 4096 and stored["recipe"]["optimizer"] == "muon"
    config = json.loads((out / "config.json").read_text())
    assert config["genome"]["d_model"] == 64 and len(config["genome"]["backbone"].split("-")) == 4
    assert ok("generate", out, "--tokens", 10)
    assert not list(tmp_path.glob("*.checkpoint.safetensors"))
    assert "'3x-heads' is no part of a scale" in refused(
        "train", "1-9", "--scale", "3x-heads", "--out", tmp_path / "other"
    )
    assert (
        "pip install 'star[wandb]'" in refused("train", "1-9", "--log", "wandb:a", "--out", tmp_path / "other")
        or "wandb" in sys.modules
    )


def test_what_a_refinement_made_is_shown_exported_and_trained_longer(run, text, tmp_path):
    path = Path(shutil.copytree(run, tmp_path / "run"))
    options = "--members knee --budget 10 --seeds 1 --change recipes --no-policy --range optimizer=muon".split()
    output = ok("refine", path, *options)
    assert "full trainings" in output and "plots:" in output
    refined = Run(path).refinement()
    made = next(c for c in refined.candidates() if c.recipe.optimizer == "muon" and c.metrics["fresh"])
    assert made.id.startswith("r") and "muon" in ok("show", f"{path}:{made.id}")
    out = tmp_path / "longer"
    output = ok("train", f"{path}:{made.id}", "--data", text, "--tokens", 2_048, "--out", out)
    assert "muon" in output and ok("generate", out, "--tokens", 10)
    stored = json.loads((out / "training.json").read_text())["recipe"]
    assert stored["learning_rate"] == made.recipe.learning_rate and stored["betas"] == list(made.recipe.betas)
    assert stored["tokens"] == 2_048
    options = "--preset smoke --tokens 1_024 --set eval_tokens=512 --data".split()
    assert "muon" not in ok("train", f"{path}:{made.id}", *options, text, "--out", tmp_path / "plain")
    assert "exported" in ok("export", f"{path}:{made.id}", "--out", tmp_path / "exported")
    assert ok("generate", tmp_path / "exported", "--tokens", 10)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> Path:
    """A training that was never stopped; its command is `whole_command`."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    ok("train", "transformer++", *whole_command(text), 40_960, "--out", folder)
    return folder


def whole_command(text: Path) -> list:
    options = "--preset smoke --d-model 32 --depth 2 --set eval_tokens=512 --set device=cpu".split()
    return [*options, "--data", text, "--tokens"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_train_resumes_where_it_was_stopped(text, whole, tmp_path, number):
    options = whole_command(text)
    out, checkpoint = tmp_path / "model", tmp_path / "model.checkpoint.safetensors"
    stopped = process("train", "transformer++", *options, 40_960, "--out", out)
    while not checkpoint.exists() and stopped.poll() is None:
        time.sleep(0.01)
    stopped.send_signal(number)
    _, errors = stopped.communicate()
    assert checkpoint.exists() and not out.exists()
    if number != signal.SIGKILL:
        assert stopped.returncode == 1
        assert errors.strip() == f"star: stopped; the same command resumes from {checkpoint}"
    message = refused("train", "transformer++", *options, 20_480, "--out", out)
    assert "of another run: its recipe.tokens is 40960, not 20480; remove it" in message
    output = ok("train", "transformer++", *options, 40_960, "--out", out)
    assert re.search(rf"resuming from {re.escape(str(checkpoint))} at step \d+", output)
    curves = [json.loads((folder / "training.json").read_text())["curve"] for folder in (whole, out)]
    assert [p["val_loss"] for p in curves[0]] == [p["val_loss"] for p in curves[1]]


def test_doctor_describes_the_machine_and_times_a_preset(text):
    output = ok("doctor", "--preset", "smoke", "--data", text, "--seconds", "0.5")
    assert f"star {star.__version__}" in output and "cores" in output and "preset smoke: float32, no graph" in output
    assert re.search(r"preset smoke \(13 candidates of 8,192 tokens\): expected time: about \d+", output)
    assert "no preset 'smokes'" in refused("doctor", "--preset", "smokes")


# Help, and a fast start.


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    output = ok(verb, "--help")
    assert f"Example: star {verb} " in output


def test_version_and_list_of_verbs():
    assert ok("--version") == f"star {star.__version__}\n"
    output = ok("--help")
    assert [verb for verb in VERBS if re.search(rf"^  {verb} ", output, re.MULTILINE)] == list(VERBS)


def test_help_and_completion_name_what_there_is():
    assert set(PRESETS) == set(config.PRESETS)
    assert set(ALGORITHMS) == {module.name for module in pkgutil.iter_modules(algorithms.__path__)}
    assert ", ".join(ENGINES) in next(row["legal"] for row in config.describe() if row["key"] == "engine.kind")
    for verb in ("evolve", "train"):
        output = "".join(ok(verb, "--help").split())  # help breaks lines at hyphens
        assert all(f"{name}," in output or f"{name}(default)" in output for name in list(config.PRESETS)[:-1])


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("star resc", {"rescore"}),
        ("star show lfm2-3", {"lfm2-350m"}),
        ("star train --preset two", {"two-stage"}),
        ("star generate RUN:be", {"RUN:best"}),
        ("star show nowhere:be", set()),
    ],
)
def test_the_shell_completes_verbs_names_and_ids(run, typed, offered):
    words = typed.replace("RUN", str(run))
    asked = {"_STAR_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'star'; from star.cli import main; main()"]
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)} | asked, capture_output=True, text=True)
    names = {name.replace("\\", "") for name in re.findall(r'"([^"]*)"', found.stdout)}
    assert found.returncode == 0 and {name.replace(str(run), "RUN") for name in names} >= offered, found.stdout


def test_names_of_the_package_are_listed_once():
    assert star.Run and star.load
    assert len(dir(star)) == len(set(dir(star))) and {"Run", "load"} <= set(dir(star))


def test_the_command_line_alone_imports_nothing_heavy():
    code = f"""
import sys, types
star = types.ModuleType("star"); star.__path__ = [{str(ROOT / "star")!r}]; sys.modules["star"] = star
import star.cli
print([name for name in ("torch", "matplotlib", "numpy", "pymoo") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Bad input.


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_unknown_genome_name():
    assert "did you mean 'transformer++'" in refused("show", "transformr++")


@pytest.mark.parametrize(
    "genome, message",
    [("21211-312", "segment 2 is '312'"), ("1--9", "segment 2 is ''"), ("1.2-9", "segment 1 is '1.2'")],
)
def test_malformed_genome_text(genome, message):
    assert message in refused("show", genome)


GENES = {
    "99": r"LIV 1: gene 'class' is 99; legal is 0 \(no operator\) to \d+",
    "1-1.1.3.0.0": r"LIV 2: gene 'featurizer strategy' is 3; legal is 0 or 1 \(none\), 2 \(all weights\)",
    "1-1.1.2.1.9": r"LIV 2: gene 'feature strategy' is 9; legal is 0 to \d+ for SA-1",
    "1.2000.2.0.0": r"LIV 1: gene 'featurizer group' is 2000; legal is 0 \(none\) to 1024",
}


@pytest.mark.parametrize("genome", GENES)
def test_gene_out_of_range_names_gene_liv_and_legal_values(genome):
    assert re.search(GENES[genome], refused("show", genome))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[1, 2]", 'JSON object with "format": "star-genome"'),
        ('{"format": "star-genome", "version": 7}', "genome version 7 is not supported"),
        ('{"format": "star-genome", "version": 1, "backbone": "1", "colour": 3}', "unknown key 'colour'"),
        (
            '{"format": "star-genome", "version": 1, "backbone": [[1, 0, 0, 0, 0], [500, 0, 0, 0, 0]]}',
            "LIV 2: gene 'class' is 500",
        ),
        ('{"format": "star-genome", "version": 1, "backbone": "1", "head_dim": 7}', "head_dim is 7"),
    ],
)
def test_malformed_genome_file(content, message, tmp_path):
    sentence = refused("show", written(tmp_path, "mine.json", content))
    assert message in sentence and "mine.json" in sentence


def test_genome_file_that_is_missing_or_unreadable(tmp_path):
    assert "none.json: cannot be read" in refused("show", tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    assert "folder.json" in refused("show", tmp_path / "folder.json")


def test_corpus_that_is_empty_missing_or_too_small(tmp_path, settings):
    (tmp_path / "empty").mkdir()
    rest = [word for word in settings if word not in ("--data", settings[3])]
    for source, message in (
        (tmp_path / "empty", "holds no text"),
        (written(tmp_path, "nothing.txt", ""), "nothing.txt"),
        (tmp_path / "missing.txt", "missing.txt"),
        (written(tmp_path, "small.txt", "a short text\n" * 5), "too small for a context of 64 tokens"),
    ):
        sentence = refused("evolve", tmp_path / "run", "--data", source, *rest)
        assert message in sentence
    assert not (tmp_path / "run").exists()


def test_run_directory_that_is_no_run(tmp_path):
    for verb in ("status", "front", "plot"):
        assert "there is no run at" in refused(verb, tmp_path / "none")
        assert "is not a run" in refused(verb, tmp_path)
    assert "there is no run at" in refused("export", f"{tmp_path / 'none'}:knee")
    written(tmp_path, "thesis.tex", "")
    assert "holds no run but other files (thesis.tex" in refused("evolve", tmp_path)
    assert "is a file" in refused("evolve", tmp_path / "thesis.tex")


def test_run_of_another_format_or_damaged(run, tmp_path):
    for verb in ("status", "front", "plot", "evolve"):
        copy = tmp_path / verb
        shutil.copytree(run, copy)
        with sqlite3.connect(copy / "run.sqlite") as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        assert "has format 99 and this version of star reads format" in refused(verb, copy)
        (copy / "run.sqlite").write_bytes(b"no database at all" * 100)
        for rest in copy.glob("run.sqlite-*"):
            rest.unlink()
        assert "is damaged or no SQLite file" in refused(verb, copy)


def test_run_of_another_version_or_configuration(run, tmp_path, monkeypatch):
    sentence = refused("evolve", run, "--seed", 5)
    assert "seed was 0 and is now 5" in sentence and "another run directory" in sentence
    monkeypatch.setattr(star, "__version__", "9.9.9")
    assert "was made by star" in refused("evolve", run)


def test_candidate_that_is_not_there(run):
    assert "no candidate with an id that begins with 'zzz'" in refused("show", f"{run}:zzz")
    assert "must be RUN:ID" in refused("export", f"{run}:")


def test_settings_that_are_not_there_or_not_legal(tmp_path):
    run = tmp_path / "run"
    assert "did you mean 'search.population'" in refused("evolve", run, "--set", "search.populaton=4")
    assert "write KEY=VALUE" in refused("evolve", run, "--set", "search.population")
    assert "search.population is 1; it must be from 2" in refused("evolve", run, "--population", 1)
    assert "training.tokens is 'many'; it must be a whole number" in refused("evolve", run, "--tokens", "many")
    assert "did you mean 'laptop'" in refused("evolve", run, "--preset", "labtop")
    assert "mine.toml: not valid TOML" in refused("evolve", run, "--config", written(tmp_path, "mine.toml", "x ="))
    assert "there is no setting 'training.colour'" in refused("train", "1-9", "--set", "colour=3")
    assert not run.exists()


def test_exported_folder_that_is_none(tmp_path):
    assert "there is no such folder" in refused("generate", tmp_path / "none")
    assert "is not an exported model" in refused("generate", tmp_path)


def test_folder_that_cannot_be_written(run, tmp_path):
    below = written(tmp_path, "file", "") / "plots"
    for arguments in (
        ("plot", run, "--out", below),
        ("export", f"{run}:knee", "--out", below),
        ("show", "1-9", "--diagram", below / "x.png"),
    ):
        assert str(tmp_path / "file") in refused(*arguments)


def test_wrong_use_is_exit_code_2():
    for arguments in (["frobnicate"], ["front"], ["evolve", "x", "--seed", "many"], ["generate", "x", "--tokens", "0"]):
        assert call(*arguments).exit_code == 2


def test_what_cannot_end_within_a_year_is_refused(text, settings, tmp_path):
    run = tmp_path / "run"
    sentence = refused("evolve", run, *settings, "--set", "training.tokens=1e30")
    assert re.search(r"would take about .* years .*: lower training.tokens, or insist with --yes", sentence)
    assert not run.exists()
    sentence = refused("train", "transformer++", "--d-model", 32, "--depth", 2, "--tokens", "1e30", "--data", text)
    assert "this training would take about" in sentence


def test_work_that_fails_is_exit_code_1(tmp_path, monkeypatch):
    def full(run, *_, **__):
        raise RunFailed(disk_full(run / "run.sqlite"))

    monkeypatch.setattr("star.search.evolve", full)
    sentence = refused("evolve", tmp_path / "run", "--preset", "smoke", code=1)
    assert "is full: free some space and run the same command again" in sentence


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_full_disk_under_the_output(run):
    with open("/dev/full", "w") as full:
        child = process("front", run, "--json", stdout=full)
        errors = child.communicate()[1]
    assert child.returncode == 1 and errors.startswith("star: the disk is full") and "Traceback" not in errors


def test_errors_go_to_standard_error_and_a_closed_pipe_is_quiet(run):
    child = process("status", "nowhere")
    output, errors = child.communicate()
    assert child.returncode == 2 and output == ""
    assert errors.startswith("star: there is no run at nowhere") and errors.count("\n") == 1
    child = process("show", "--genes")
    child.stdout.close()
    assert child.stderr.read() == "" and child.wait() == 1


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1:strict", "utf-8"])
def test_what_the_output_cannot_encode_is_replaced(run, tmp_path, monkeypatch, encoding):
    """On both streams and in the report, in names that are no Unicode at all too."""
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    place = tmp_path / os.fsdecode("模".encode() + b"\xff")
    shutil.copytree(run, place)
    for arguments in (("show", f"{place}:knee"), ("front", place), ("plot", place), ("show", place / "nothing")):
        _, err = process(*arguments, encoding=encoding.partition(":")[0]).communicate()
        assert "Traceback" not in err and ("star: " in err) == (arguments[-1] == place / "nothing")
    assert "?/nothing" in err


def test_ctrl_c_finishes_cleanly_and_says_how_to_resume(tmp_path, settings):
    run = tmp_path / "run"
    child = process("evolve", run, *settings, "--generations", 40)
    lines = []
    for line in child.stdout:
        lines.append(line)
        if "candidate" in line and "bpb" in line and "%" not in line:  # one has ended
            child.send_signal(signal.SIGINT)
            break
    rest, errors = child.communicate(timeout=60)
    assert child.returncode == 1 and errors == "", errors
    assert re.search(rf"Stopped after \d+ of \d+ candidates; star evolve {re.escape(str(run))} resumes\.", rest)
    assert "stopped; star evolve" in ok("status", run)
    done = Run(run).status()["done"]
    assert 1 <= done < 100
    output = ok("evolve", run, "--generations", 2)
    assert f"resuming with {done} of" in output and "All" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "٢١٢١١-١١١١١"),
        ("show", "transformer++", "--d-model", "٦٤"),
        ("generate", "nowhere", "--tokens", "١٠"),
        ("generate", "nowhere", "--temperature", "٠.٥"),
        ("train", "transformer++", "--scale", "٢x-depth"),
        ("train", "transformer++", "--tokens", "١٠"),
    ],
    ids=lambda arguments: "-".join(arguments[::2]),
)
def test_digits_of_another_script_are_no_numbers(arguments):
    result = call(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert any(digit in result.output for digit in "٠١٢٦") or "genome" in result.output


def test_export_as_a_checkpoint_of_transformers(tmp_path):
    command = ("export", "transformer++", "--d-model", 32, "--depth", 2, "--untrained", "--format")
    output = ok(*command, "hf", "-o", tmp_path / "model")
    assert "LlamaForCausalLM of transformers" in output and "AutoModelForCausalLM.from_pretrained" in output
    assert "holds an exported model already" in refused(*command, "hf", "-o", tmp_path / "model")
    assert "there is no such format; give one of pytorch, hf" in refused(*command, "onnx", "-o", tmp_path / "other")
    assert "no class of transformers can express" in refused("export", "10-9", *command[6:], "hf")
    assert "NemotronH" in (shown := ok("show", "transformer++")) and re.search(r"Llama +yes", shown)


def test_import_of_a_configuration_of_transformers(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **sizes}))
    out = tmp_path / "mine.json"
    assert "4 LIVs of width 64, 144,192 parameters" in ok("import", tmp_path, "-o", out)
    assert "4 LIVs" in ok("show", out)
    assert "exists already" in refused("import", tmp_path / "config.json", "--out", out)
    assert "star import" in refused("show", tmp_path / "config.json")
    assert "cannot be read" in refused("import", tmp_path / "none.json")


def test_generate_takes_several_prompts_a_file_and_stop_strings(run, tmp_path):
    options = ("--tokens", 30, "--temperature", 0)
    whole = ok("generate", f"{run}:best", "--prompt", "def ", *options)[len("def ") : -1]
    stop = whole[10:13]
    assert whole.index(stop) <= 10
    stopped = ok("generate", f"{run}:best", "--prompt", "def ", *options, "--stop", "never", "--stop", stop)
    assert stopped == f"def {whole[: whole.index(stop)]}\n"
    (tmp_path / "prompts.txt").write_text("import os\\n\n\nclass A:\n")
    command = ("generate", f"{run}:best", "--prompt", "def ", "--prompts", tmp_path / "prompts.txt", *options)
    rows = [json.loads(line) for line in ok(*command).splitlines()]
    assert [row["prompt"] for row in rows] == ["def ", "import os\n", "class A:"] and rows[0]["text"] == whole
    alone = ok("generate", f"{run}:best", "--prompt", "class A:", *options)
    assert alone == f"class A:{rows[2]['text']}\n"
    (tmp_path / "empty.txt").write_text("\n")
    assert "has no prompt; write one per line" in refused(
        "generate", f"{run}:best", "--prompts", tmp_path / "empty.txt"
    )
    assert "cannot be read" in refused("generate", f"{run}:best", "--prompts", tmp_path / "none.txt")
