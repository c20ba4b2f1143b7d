"""Work in steps: a generator that yields between steps, so that one process can do several works in turn."""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")


def finish(steps: Generator[None, None, T], stopped: Callable[[], bool] = lambda: False) -> T:
    """Take all steps; their result. Once `stopped()` is true, closes the steps and raises KeyboardInterrupt."""
    while not stopped():
        try:
            next(steps)
        except StopIteration as end:
            return end.value
    steps.close()
    raise KeyboardInterrupt


def take_turns(works: Sequence[Generator[None, None, T]]) -> list[T]:
    """One step of each work after the other until all have ended; their results, in the order of `works`."""
    waiting, results = dict(enumerate(works)), dict[int, T]()
    while waiting:
        for number, steps in list(waiting.items()):
            try:
                next(steps)
            except StopIteration as end:
                results[number] = end.value
                del waiting[number]
    return [results[number] for number in range(len(works))]
