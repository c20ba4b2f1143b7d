"""Checkpoints for classes of transformers: what these load is the model, without any code of ours."""

import json
import sys

import numpy as np
import pytest
import torch

import star
from star.data.tokenizer import make_tokenizer
from star.errors import UserError
from star.export import export_hugging_face
from star.export.hugging_face_checkpoint import byte_vocabulary
from star.export.stock import STOCK, where
from star.genome import EXPORTABLE_CLASSES, Genome, Space, load_genome, parse_text, resolve
from star.genome.codec import NamedGenome
from star.genome.edit import SPARSITY_GENES, with_operators
from star.genome.stock_config import READERS, genome_of_config

transformers = pytest.importorskip("transformers")


def genome_of(name: str) -> Genome:
    """A layout at width 128, its windows 16 tokens; or text, at width 64."""
    if name[0].isdigit():
        return Genome(parse_text(name), 64, 16)
    genome = load_genome(name, d_model=128, depth=8, head_dim=16)
    operators = [genome.operator(gene) for gene in genome.backbone]
    return with_operators(genome, [o.with_gene("sparsity", SPARSITY_GENES[16]) if o.window else o for o in operators])


def built(name: str, vocab_size: int = 256) -> star.LanguageModel:
    """With noise on norms, skips and biases, to show that they are used."""
    model, generator = star.build(genome_of(name), vocab_size, seed=3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


CASES = {
    "llama-3.2-1b": "Llama",
    "tinyllama-1.1b": "Llama",
    "mistral-7b": "Mistral",
    "qwen3-0.6b": "Qwen3",
    "olmo-2-1b": "Olmo2",
    "lfm2-350m": "Lfm2",
    "40-40": "Mamba2",
    "24-41-64-64-24-41": "NemotronH",
}


@pytest.mark.parametrize("name", CASES)
def test_a_class_of_transformers_gives_the_same_logits_and_the_same_text(name, tmp_path):
    ours = built(name)
    assert export_hugging_face(ours, ours.genome, tmp_path / "model") == CASES[name]
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", trust_remote_code=False).eval()
    assert type(peer).__name__ == f"{CASES[name]}ForCausalLM" and not list((tmp_path / "model").glob("*.py"))
    tokens = torch.randint(1, 256, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = ours(tokens)[0], peer(tokens).logits
        assert float((logits - expected).abs().max() / expected.abs().max()) < 2e-5
        options = {"max_new_tokens": 12, "do_sample": False, "use_cache": True, "eos_token_id": None}
        continued = peer.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    assert torch.equal(continued, ours.generate(tokens, 12, temperature=0.0))
    assert sum(p.numel() for p in ours.parameters()) == star.costs(ours.genome).parameters
    assert star.load_genome(tmp_path / "model" / "genome.json") == ours.genome
    again = genome_of_config(json.loads((tmp_path / "model" / "config.json").read_text()))
    configs = [[layer.config for layer in resolve(genome).layers] for genome in (again.genome, ours.genome)]
    assert configs[0] == configs[1] and again.vocab_size == 256
    assert "AutoModelForCausalLM" in (tmp_path / "model" / "README.md").read_text()


def test_a_padded_batch_of_prompts_is_continued_as_each_alone(tmp_path):
    ours = built("qwen3-0.6b")
    export_hugging_face(ours, ours.genome, tmp_path / "model")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.randint(1, 256, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :13] = 0
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = ours.generate(tokens, 8, temperature=0.0, lengths=torch.tensor([7, 20]))
    assert torch.equal(peer.generate(tokens, attention_mask=mask, **options)[:, 20:], expected[:, 20:])


def test_tokenizers_of_bytes_and_subwords(tmp_path):
    text = "def f(x):\n\treturn 'é – 日本'  # \x07"
    ours = built("1-9")
    export_hugging_face(ours, ours.genome, tmp_path / "bytes")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bytes")
    assert tokenizer(text)["input_ids"] == list(text.encode()) and tokenizer.decode(list(text.encode())) == text
    assert sorted(byte_vocabulary().values()) == list(range(256))
    ours = built("1-9", 300)
    ours.tokenizer = make_tokenizer("bpe:300").train([b"for i in range(10):\n" * 50])
    export_hugging_face(ours, ours.genome, tmp_path / "subwords")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "subwords")
    assert tokenizer("for i in range(7):")["input_ids"] == ours.tokenizer.encode("for i in range(7):").tolist()
    assert tokenizer.eos_token_id == ours.tokenizer.separator


REASONS = {
    "1-9-1-21": ("Llama", "all its SwiGLU must be equal"),
    "1-9-1": ("Llama", "an even number of LIVs"),
    "10-9": ("Llama", r"LIV 1 \(SA-1-Diff\) is differential"),
    "1.1.2.0.0-9-1.1.2.0.0-9": ("Llama", "shares with another LIV"),
    "65-9": ("Llama", "no output gate"),
    "40-41": ("Mamba2", "all its Mamba-2 must be equal"),
    "5-5": ("Mamba2", "Mamba-2 has a skip, a gate and a norm"),
    "8-9-18-9": ("Lfm2", "no short filters"),
    "24-3": ("NemotronH", "no rotary positions"),
}


@pytest.mark.parametrize("text", REASONS)
def test_a_genome_that_no_class_can_express_is_refused_with_the_reason(text, tmp_path):
    name, reason = REASONS[text]
    ours = built(text)
    with pytest.raises(UserError, match=f"{name}: [^;]*{reason}"):
        export_hugging_face(ours, ours.genome, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_exportable_is_exported():
    """`space.classes=exportable`: every genome of the space is a Nemotron-H."""
    space = Space(8, (64, 128), 16, EXPORTABLE_CLASSES, max_groups=0)
    for row in space.sample(np.random.default_rng(0), 50):
        assert dict(where(resolve(space.decode(row))))["NemotronH"] == ""


def test_transformers_is_only_needed_for_this(tmp_path, monkeypatch):
    assert all(stock.config and stock.weights for stock in STOCK.values())
    monkeypatch.setitem(sys.modules, "transformers", None)
    ours = built("1-9")
    with pytest.raises(UserError, match=r"needs transformers: pip install 'star\[hf\]'"):
        export_hugging_face(ours, ours.genome, tmp_path / "model")


# Published configurations, as far as they matter.
PUBLIC = {
    "llama-3.2-1b": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256}
    | {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3"}, "tie_word_embeddings": True},
    "mistral-7b": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096, "vocab_size": 32000},
    "qwen3-0.6b": {"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    | {"rope_theta": 1000000, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "olmo-2-1b": {"model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 100352, "rope_theta": 500000},
    "lfm2-350m": {"model_type": "lfm2", "hidden_size": 1024, "intermediate_size": 6656, "num_hidden_layers": 16}
    | {"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 65536, "block_multiple_of": 256}
    | {"full_attn_idxs": [2, 5, 8, 10, 12, 14], "rope_theta": 1000000.0, "block_auto_adjust_ff_dim": True},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configurations_are_the_shipped_genomes(name):
    found = genome_of_config(PUBLIC[name])
    assert found.genome == load_genome(name) and isinstance(found, NamedGenome)
    assert ("rescaling" in found.description) == ("rope_scaling" in PUBLIC[name])
    assert ("epsilon" in found.description) == ("rms_norm_eps" in PUBLIC[name])


FAULTS = {
    "hidden_size": (0, "a whole number from 1"),
    "intermediate_size": (8000, "must be 12 to 96 twelfths of 2048"),
    "num_key_value_heads": (5, "can have one key"),
    "num_attention_heads": ("32", "a whole number"),
    "num_hidden_layers": (10**9, "from 1 to 512"),
    "attention_bias": (True, "biases"),
    "hidden_act": ("gelu", "must be silu"),
    "model_type": ("gpt_neox", f"known are {', '.join(READERS)}"),
    "vocab_size": (None, "a whole number"),
    "rope_theta": ("x", "could not convert"),
}


@pytest.mark.parametrize("key", FAULTS)
def test_what_no_genome_can_be_is_one_sentence(key):
    value, message = FAULTS[key]
    with pytest.raises(UserError, match=message) as error:
        genome_of_config(PUBLIC["llama-3.2-1b"] | {key: value}, "a/config.json")
    assert str(error.value).startswith("a/config.json: ")
    with pytest.raises(UserError, match="no configuration of transformers"):
        genome_of_config([1])
