"""The real thing: build the genome's model, train it on the corpus, and measure it on held-out text."""

import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from star.engine.protocol import Report
from star.errors import UserError
from star.store.files import RESULT, WEIGHTS, write_atomically, write_json


def prepare(config) -> dict:
    """Opens the corpus, building it if this machine has not seen it, so that no worker has to."""
    from star.data import open_corpus

    corpus = open_corpus(config.data.corpus)
    corpus.check_context(config.training.seq_len)
    facts = {"name": corpus.name, "fingerprint": corpus.fingerprint, "vocab_size": corpus.vocab_size}
    return facts | {"baselines": corpus.baselines()}


def assess(job: dict, report: Report) -> dict:
    """Trains one candidate to the end or to a rung. Writes its weights (at the end), then result.json, each whole or not at all.

    result.json outlives a coordinator that dies before it hears of the result. A rung goes on from the checkpoint of the
    one before; without a checkpoint it trains from the start, to the same result.
    """
    import torch  # here, so that the coordinator, which only names this function, need not pay for the import

    from star.genome import from_json
    from star.model import build
    from star.training import CheckpointError, Recipe, train

    torch.set_num_threads(job["threads"])
    corpus = _corpus(job["corpus"])
    if corpus.fingerprint != job["fingerprint"]:
        raise UserError(f"the text of {job['corpus']} is not what it was when the run began")
    deadline = time.monotonic() + job["timeout"] if job["timeout"] else None
    last = job.get("stop_tokens") is None
    checkpoint = job.get("checkpoint") and Path(job["checkpoint"])

    def attempt():
        model = build(from_json(job["genome"]), vocab_size=corpus.vocab_size, seed=job["seed"])
        return model, train(model, corpus, Recipe(**job["recipe"]), report, deadline, checkpoint, job.get("stop_tokens"))

    try:
        model, trained = attempt()
    except CheckpointError:  # of another attempt, or damaged: all it can save is time
        checkpoint.unlink(missing_ok=True)
        model, trained = attempt()
    metrics = asdict(trained)
    curve, status, reason = (metrics.pop(key) for key in ("curve", "status", "reason"))
    result = {"status": status, "reason": reason, "metrics": metrics, "curve": curve}
    if job["directory"]:
        directory = Path(job["directory"])
        if last and status == "ok" and job["keep_weights"]:
            write_atomically(directory / WEIGHTS, lambda path: _save(model, path))
        names = {key: job[key] for key in ("id", "attempt", "seed")} | {"rung": job.get("rung", 0)}
        write_json(directory / RESULT, names | result)
    if checkpoint and (last or status != "ok"):
        checkpoint.unlink(missing_ok=True)  # nothing goes on from here
    if torch.cuda.is_available():
        del model
        torch.cuda.empty_cache()  # other workers may share this GPU
    return result


@lru_cache(maxsize=2)
def _corpus(spec: str):
    from star.data import open_corpus

    return open_corpus(spec)


def _save(model, path: Path) -> None:
    """Every parameter once, one that several LIVs share under the name of its owner, as `star.export` reads it."""
    from safetensors.torch import save

    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    path.write_bytes(save(tensors))  # not save_file: it makes files that only their owner may read
