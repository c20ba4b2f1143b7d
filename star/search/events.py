"""What a search tells whoever displays it."""

import warnings
from collections.abc import Callable, Iterable

Callback = Callable[[dict], None]
"""Called with one dict per event; "kind" says which (its other keys):

    run_start           run (path), resumed, done, total, generation, generations, population, workers, corpus (name),
                        baselines ({"unigram": nats, "bigram": nats}; empty where there is no corpus), bytes_per_token
    candidate_start     id, text, origin, name, generation, attempt, costs ({"parameters", "cache", ...})
    candidate_progress  id, step, steps, tokens, loss, val_loss, tokens_per_second, eta (seconds)
    candidate_end       id, text, origin, name, generation, attempt, status, reason, objectives (None unless ok),
                        metrics, seconds, worker, final (False: it will be tried again), on_front, done, total,
                        eta_seconds
    generation_end      generation (from 0), generations, front ([id]), hypervolume (None before there is a frame),
                        best ({objective: value}), generated, repaired, duplicates, done, total, eta_seconds
    message             level ("info" | "warning"), text
    run_end             status ("finished" | "interrupted" | "exhausted"), text, done, total

`text` is the genome in short, `name` the name of a baseline or None. done and total include baselines.
"""


class Emitter:
    """Passes events to callbacks. A callback that raises is dropped with a warning, so a display never ends a run."""

    def __init__(self, callbacks: Iterable[Callback] = ()):
        self.callbacks = list(callbacks)

    def __call__(self, kind: str, **data) -> None:
        for callback in list(self.callbacks):
            try:
                callback({"kind": kind, **data})
            except Exception as error:
                self.callbacks.remove(callback)
                warnings.warn(f"a display of the run was switched off: {type(error).__name__}: {error}", stacklevel=2)
