"""Build the model of a genome, train it on the corpus, and measure its loss on held-out text."""

import contextlib
import json
import time
from collections.abc import Generator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from star.assess.constraints import skills_of
from star.engine.protocol import Report
from star.errors import UserError
from star.store.files import RESULT, WEIGHTS, write_atomically, write_json

TEST_TOKENS = 262_144  # size of the fixed test sample


def prepare(config) -> dict:
    """Opens the corpus, and builds it if needed, so that no worker has to. Returns its facts."""
    from star.data import open_corpus
    from star.data.tokenizer import SubwordTokenizer

    corpus = open_corpus(config.data.corpus, tokenizer=config.data.tokenizer)
    corpus.check_context(config.training.seq_len)
    if "extrapolation" in (skills_of(config.objectives) or {}).get("names", ()):
        from star.assess.skill_tests import check_text

        check_text(corpus, config.training.seq_len)
    facts = {"name": corpus.name, "fingerprint": corpus.fingerprint, "vocab_size": corpus.vocab_size}
    if isinstance(corpus.tokenizer, SubwordTokenizer):
        facts |= {"tokenizer": corpus.tokenizer.name, "bytes_per_token": corpus.bytes_per_token}
        facts |= {"tokenizer_json": corpus.tokenizer.json_text}
    return facts | {"baselines": corpus.baselines(), "notes": list(corpus.notes)}


def warm_up() -> None:
    """What a worker does before its first job, while others are still preparing it: it imports, and opens its GPU."""
    import torch

    import star.training.trainer  # noqa: F401

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def assess(job: dict, report: Report) -> Generator[None, None, dict]:
    """Trains one candidate to the end or to a rung, in steps that others can take turns with.

    Writes its weights (at the end) and then result.json, atomically.

    The result file remains if the coordinator dies before it receives the result. A rung resumes from the checkpoint of
    the previous one; without a checkpoint it trains from the start, with the same result.
    """
    import torch  # here: the coordinator only names this function, and should not wait for the import

    from star.genome import from_json
    from star.model import build
    from star.training import CheckpointError, Recipe
    from star.training.trainer import training

    torch.set_num_threads(job["threads"])
    corpus = open_text(job)
    deadline = time.monotonic() + job["timeout"] if job["timeout"] else None
    last = job.get("stop_tokens") is None
    checkpoint = job.get("checkpoint") and Path(job["checkpoint"])

    def attempt():
        model = build(from_json(job["genome"]), vocab_size=corpus.vocab_size, seed=job["seed"])
        recipe, stop = Recipe(**job["recipe"]), job.get("stop_tokens")
        return model, (yield from training(model, corpus, recipe, report, deadline, checkpoint, stop))

    try:
        model, trained = yield from attempt()
    except CheckpointError:  # damaged, or of another attempt: train from the start
        Path(job["checkpoint"]).unlink(missing_ok=True)
        model, trained = yield from attempt()
    metrics = asdict(trained)
    curve, status, reason = (metrics.pop(key) for key in ("curve", "status", "reason"))
    if trained.val_loss is not None:
        metrics["bpb"] = corpus.bits_per_byte(trained.val_loss)
        metrics["bpb_se"] = corpus.bits_per_byte(trained.val_loss_se)
    if job.get("test") and status == "ok":
        metrics |= _test(model, corpus, Recipe(**job["recipe"]))
    if job.get("side_by_side", 1) > 1:
        metrics["side_by_side"] = job["side_by_side"]  # the peak of memory is that of all of them
    if status == "ok" and (job.get("tasks") or job.get("skills")):
        scores = yield from _tasks(job, deadline)
        if scores is None:
            status, reason = "timeout", "out of time on the synthetic tasks"
        else:
            metrics |= scores
            if "extrapolation" in (job.get("skills") or {}).get("names", ()):
                from star.assess.skill_tests import loss_by_position

                metrics |= loss_by_position(model, corpus, Recipe(**job["recipe"]))
    result = {"status": status, "reason": reason, "metrics": metrics, "curve": curve}
    if job["directory"]:
        directory = Path(job["directory"])
        if last and status == "ok" and job["keep_weights"]:
            write_atomically(directory / WEIGHTS, lambda path: _save(model, path))
        names = {key: job[key] for key in ("id", "attempt", "seed")} | {"rung": job.get("rung", 0)}
        write_json(directory / RESULT, names | result)
    if checkpoint and (last or status != "ok"):
        checkpoint.unlink(missing_ok=True)  # nothing resumes from it
        if job["directory"]:
            _tasks_file(job).unlink(missing_ok=True)
    if torch.cuda.is_available():
        del model
        torch.cuda.empty_cache()  # other workers may share this GPU
    return result


def open_text(job: dict):
    """The corpus of a job. Raises UserError if its text has changed."""
    corpus = _corpus(job["corpus"], job.get("tokenizer", "bytes"))
    if corpus.fingerprint != job["fingerprint"]:
        raise UserError(f"the text of {job['corpus']} has changed since the run started; restore it or start a new run")
    return corpus


def _test(model, corpus, recipe) -> dict[str, float]:
    """Bits per byte of test text, which decides nothing, and their standard error over blocks."""
    from star.data import validation_blocks
    from star.training.evaluation import evaluate

    device = next(model.parameters()).device
    separator = corpus.tokenizer.separator if recipe.documents == "separate" else None
    blocks = validation_blocks(corpus.test, recipe.seq_len, TEST_TOKENS, separator)
    loss, error = evaluate(model, *(block.to(device) for block in blocks))
    return {"test_bpb": corpus.bits_per_byte(loss, "test"), "test_bpb_se": corpus.bits_per_byte(error, "test")}


def _tasks(job: dict, deadline: float | None) -> Generator[None, None, dict[str, float] | None]:
    """Metrics of the synthetic tasks; with rungs they are measured at the first rung and reused at the others.

    None past the deadline.
    """
    from star.assess import skill_tests, synthetic_tasks
    from star.data.skills import SKILLS
    from star.genome import from_json
    from star.training.device import resolve_device

    path = _tasks_file(job) if job["directory"] and job.get("checkpoint") else None
    facts = {"seed": job["seed"], "tokens": job.get("tasks"), "skills": job.get("skills")}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text()) if path else {}
        if known.items() >= facts.items():
            return known["metrics"]
    genome, device, seed = from_json(job["genome"]), str(resolve_device(job["recipe"]["device"])), job["seed"] % 2**31
    metrics: dict[str, float] = {}
    if job.get("tasks"):
        scores = yield from synthetic_tasks.measuring(genome, job["tasks"], seed, device=device, deadline=deadline)
        if scores is None:
            return None
        metrics = {f"task {name}": score for name, score in scores.items() if name != "mean"}
        metrics["mad"] = 1.0 - scores["mean"]
    if job.get("skills"):
        wanted = {name: SKILLS[name] for name in job["skills"]["names"] if name in SKILLS}
        errors = yield from skill_tests.measuring(genome, wanted, job["skills"]["tokens"], seed, device, deadline)
        if errors is None:
            return None
        metrics |= errors
    if path:
        write_json(path, facts | {"metrics": metrics})
    return metrics


def _tasks_file(job: dict) -> Path:
    return Path(job["directory"]) / f"tasks-{job['attempt']}.json"


@lru_cache(maxsize=2)
def _corpus(spec: str, tokenizer: str):
    from star.data import open_corpus

    return open_corpus(spec, tokenizer=tokenizer)


def _save(model, path: Path) -> None:
    """Every parameter once, a shared one under the name of its owner, as `star.export` reads them."""
    from safetensors.torch import save

    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    path.write_bytes(save(tensors))  # save_file would make files that only their owner may read
