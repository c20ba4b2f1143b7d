"""Writes a model as a checkpoint of an existing class of transformers, which loads it without any code of ours.

    AutoModelForCausalLM.from_pretrained(folder)      AutoTokenizer.from_pretrained(folder)

Needs the extra `hf` (transformers), which is imported only here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from star.data.tokenizer import SubwordTokenizer
from star.errors import RunFailed, UserError
from star.export.stock import STOCK, where
from star.model import LanguageModel

ERROR = 1e-4  # largest difference of logits over the largest logit that is still rounding, in float32


def stock_class(model: LanguageModel) -> str:
    """The first class that can express the model. Raises UserError with a reason for each if there is none."""
    found = where(model.plan)
    names = [name for name, reason in found if not reason]
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found)
        raise UserError(
            f"no class of transformers can express this genome ({reasons}); export it without --format, as PyTorch"
        )
    return names[0]


def write_hugging_face(model: LanguageModel, folder: Path, name: str) -> None:
    """Write config.json, weights, generation configuration and tokenizer to an existing folder. name: of the class.

    The checkpoint is read back and compared with the model. Raises UserError if transformers is missing, and RunFailed
    if what was read back computes something else.
    """
    transformers = import_transformers()
    separator = 0 if model.tokenizer is None else model.tokenizer.separator
    config = getattr(transformers, f"{name}Config")(
        **({"tie_word_embeddings": model.tie_embeddings} | STOCK[name].config(model.plan)),
        vocab_size=model.vocab_size,
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=separator,
    )
    kind = getattr(transformers, f"{name}ForCausalLM")
    peer = kind(config).to(model.embedding.dtype).eval()
    weights = {key: value.detach() for key, value in STOCK[name].weights(model).items()}
    known = {key: parameter.shape for key, parameter in peer.named_parameters()}
    if known != {key: value.shape for key, value in weights.items()}:
        wrong = sorted(key for key in known.keys() | weights.keys() if key not in known or key not in weights)
        raise RunFailed(
            f"{name} of transformers {transformers.__version__} has other weights than expected: {wrong[:5]}"
        )
    peer.load_state_dict(weights, strict=False)
    peer.save_pretrained(folder)
    write_tokenizer(model, folder)
    compare(model, kind.from_pretrained(folder, dtype=torch.float32), name)


def compare(model: LanguageModel, peer: Any, name: str) -> None:
    """Raises RunFailed unless both give the same logits in float32."""
    tokens = torch.randint(model.vocab_size, (2, 100), generator=torch.Generator().manual_seed(0))
    dtype = model.embedding.dtype
    with torch.no_grad():
        expected, _ = model.float()(tokens)
        found = peer.eval()(tokens, use_cache=False).logits
    model.to(dtype)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < ERROR:
        raise RunFailed(f"{name} gives other logits than the model (relative difference {error:.1e}); report this")


def write_tokenizer(model: LanguageModel, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, for bytes too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers = import_transformers()
    if isinstance(model.tokenizer, SubwordTokenizer):
        inner = Tokenizer.from_str(model.tokenizer.json_text)
        special = {"eos_token": inner.id_to_token(model.tokenizer.separator)}
    elif model.vocab_size == 256:
        inner = Tokenizer(models.BPE(vocab=byte_vocabulary(), merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        special = {}
    else:
        return
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def byte_vocabulary() -> dict[str, int]:
    """The character that byte-level tokenizers (GPT-2) write for each byte, and the byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def import_transformers() -> Any:
    """The library. Raises UserError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError("--format hf needs transformers: pip install 'star[hf]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
