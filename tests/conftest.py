"""Tests use one thread per process, because results depend on the number, and a corpus cache of their own."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Tests must neither use nor fill the corpus cache of the user who runs them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STAR_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


def pytest_addoption(parser):
    parser.addoption("--genomes", type=int, default=300, help="random genomes of tests/model/test_fuzz.py")
