"""Prefetched batches equal the plain ones, in order, and the thread ends when it should."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from star.data import Batches, Prefetcher

TOKENS = np.random.default_rng(0).integers(0, 256, 3_000).astype(np.uint16)


def batches() -> Batches:
    return Batches(TOKENS, batch_size=4, seq_len=16, seed=1)  # an epoch is 46.5 batches


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def until(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class Counted:
    """Batches that record which steps were made, and fail at one of them."""

    def __init__(self, fails_at: int | None = None):
        self.made: list[int] = []
        self.fails_at = fails_at

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == self.fails_at:
            raise OSError("the disk is gone")
        self.made.append(step)
        return torch.tensor([[step]]), torch.tensor([[step + 1]])


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("first", [0, 45])
def test_the_same_batches_in_the_same_order_over_an_epoch(ahead, first):
    source, plain = batches(), batches()
    with Prefetcher(source, first, "cpu", ahead) as prefetched:
        for step in range(first, first + 60):
            assert all(torch.equal(a, b) for a, b in zip(prefetched[step], plain[step], strict=True))
            source[0]  # another reader of the same text, in another epoch
    assert not threads()


def test_any_step_can_be_asked_for():
    plain = batches()
    with Prefetcher(batches(), 0, "cpu", 2) as prefetched:
        for step in (0, 1, 1, 7, 8, 3, 100):
            assert all(torch.equal(a, b) for a, b in zip(prefetched[step], plain[step], strict=True))
            assert len(threads()) == 1
        prefetched.close()
        assert not threads()
        assert torch.equal(prefetched[101][0], plain[101][0])


def test_it_prepares_exactly_as_far_ahead_as_asked():
    source = Counted()
    with Prefetcher(source, 5, "cpu", 2) as prefetched:
        assert until(lambda: source.made == [5, 6, 7])  # two in the queue, one waiting for room
        prefetched[5]
        assert until(lambda: source.made == [5, 6, 7, 8])
        time.sleep(0.05)
        assert source.made == [5, 6, 7, 8]


def test_an_error_is_raised_at_its_step_and_again():
    with Prefetcher(Counted(fails_at=2), 0, "cpu", 3) as prefetched:
        assert prefetched[0][0] == 0 and prefetched[1][0] == 1
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                prefetched[2]
        assert prefetched[3][0] == 3
    assert not threads()


def test_a_garbage_collected_prefetcher_ends_its_thread():
    prefetched = Prefetcher(batches(), 0, "cpu", 2)
    assert len(threads()) == 1
    del prefetched
    gc.collect()
    assert until(lambda: not threads())


def test_on_a_cpu_there_is_no_thread_unless_it_is_asked_for():
    with Prefetcher(batches(), 0, "cpu") as prefetched:
        assert torch.equal(prefetched[4][0], batches()[4][0]) and not threads()
