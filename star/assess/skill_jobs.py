"""Jobs of an engine that measure a candidate on one task of `star.assess.skill_tests`, apart from any search.

A job is one of `star.assess.evaluations`, with "skill": {"name", "sizes", "tokens", "weights"}. weights: path of the
trained weights whose loss by position is asked for; None: the candidate is trained first, as the job says.
"""

import time
from collections.abc import Generator

import torch

from star.assess.evaluations import training
from star.assess.skill_tests import EXTRAPOLATION, loss_by_position, measuring
from star.data.skills import SKILLS
from star.engine.protocol import Report
from star.errors import UserError
from star.genome import from_json
from star.model import LanguageModel, build
from star.training.device import resolve_device
from star.training.recipe import Recipe


def assess(job: dict, report: Report) -> Generator[None, None, dict]:
    """Measures one candidate on one task. The result is as of an evaluation, with metrics of `skill_tests`."""
    torch.set_num_threads(job["threads"])
    name, deadline = job["skill"]["name"], time.monotonic() + job["timeout"] if job["timeout"] else None
    if name == EXTRAPOLATION and job["skill"]["weights"] is None:
        result: dict = yield from training.assess(job | {"skills": {"names": [name], "tokens": 0}}, report)
        kept = {key: value for key, value in result["metrics"].items() if key.startswith(name) or key == "bpb"}
        return result | {"metrics": kept, "curve": []}
    if name == EXTRAPOLATION:
        corpus = training.open_text(job)
        model = build(from_json(job["genome"]), vocab_size=corpus.vocab_size)
        load(model, job["skill"]["weights"])
        model.to(resolve_device(job["recipe"]["device"]))
        return _ok(loss_by_position(model, corpus, Recipe(**job["recipe"])))
    genome, skills = from_json(job["genome"]), {name: SKILLS[name].sized(job["skill"]["sizes"])}
    device, seed = str(resolve_device(job["recipe"]["device"])), job["seed"] % 2**31
    scores = yield from measuring(genome, skills, job["skill"]["tokens"], seed, device, deadline)
    if scores is None:
        return {"status": "timeout", "reason": f"out of time on {name}", "metrics": {}, "curve": []}
    return _ok(scores)


def _ok(scores: dict[str, float]) -> dict:
    return {"status": "ok", "reason": "", "metrics": scores, "curve": []}


def load(model: LanguageModel, path: str) -> None:
    """Weights that a search kept. Raises UserError if the file is damaged or of another model."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: is damaged or of another model ({error}); remove it, and the model is trained again"
        ) from None
