"""The script that proves a GPU: its parts run in miniature on a CPU, and one that fails costs only itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "gpu.py"


def run(*options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_did_not_run():
    result = run()
    assert result.returncode == 1 and result.stderr.startswith("not run: this machine has no CUDA GPU")


def test_parts_report_and_the_time_is_kept(tmp_path):
    result = run("--device", "cpu", "--parts", "machine", "replay", "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "gpu-cpu.json").read_text())["rows"]
    assert rows["replay: classes compared"] == 3 and rows["replay: classes that differ"] == "none"
    assert not any("FAILED" in name for name in rows)
    run("--device", "cpu", "--parts", "evolution", "--minutes", 0.01, "--out", tmp_path)
    assert json.loads((tmp_path / "gpu-cpu.json").read_text())["rows"] == {"evolution: not run": "no time left"}
