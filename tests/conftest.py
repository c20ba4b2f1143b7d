"""One thread per process (results depend on the count, and tests run side by side) and a corpus cache of their own."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """Corpora are cached per machine; tests must neither use nor fill the cache of the person who runs them."""
    patch = pytest.MonkeyPatch()
    patch.setenv("STAR_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()
