"""The operators against reference implementations in transformers, to which our random weights are copied.

Logits agree within float32 rounding, and greedy decoding with caches gives the same tokens.
"""

import pytest
import torch

import star
from star.genome import Gene, Genome, load_genome
from star.genome.classes import POOL
from star.genome.edit import SPARSITY_GENES, with_operators
from star.liv.attention import causal_mask
from star.model import LanguageModel

transformers = pytest.importorskip("transformers")
VOCAB = 97
ERROR = 2e-5  # largest difference over the largest output


def class_id(name: str) -> int:
    return [c.name for c in POOL].index(name) + 1


def randomised(model: LanguageModel, seed=0) -> LanguageModel:
    """The model with other norms, skips and biases than 1 and 0, to show that they are used."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def copy_weights(peer: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copies `weights` to the parameters of `peer`, which must have the same names."""
    with torch.no_grad():
        names = {name for name, _ in peer.named_parameters()}
        assert names == set(weights), names ^ set(weights)
        for name, parameter in peer.named_parameters():
            parameter.copy_(weights[name].detach().reshape(parameter.shape))


def assert_same_language_model(ours: LanguageModel, peer: torch.nn.Module, seq_len=40, n_tokens=16) -> None:
    tokens = torch.randint(ours.vocab_size, (2, seq_len), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = peer(tokens, use_cache=False).logits
        logits, _ = ours(tokens)
        assert ((logits - expected).abs().max() / expected.abs().max()).item() < ERROR
        continued = peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_tokens, do_sample=False, use_cache=True
        )
        assert torch.equal(ours.generate(tokens, n_tokens, temperature=0.0), continued)


def assert_same_attention(ours, peer: torch.nn.Module, weights: dict, rotary: torch.nn.Module, mask=None) -> None:
    copy_weights(peer, weights)
    x = torch.randn(2, 150, ours.config.d_model, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        table = rotary(x, torch.arange(150)[None])
        y, expected = ours(x)[0], peer(x, table, mask)[0]
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR


def swiglu(liv) -> dict[str, torch.Tensor]:
    return {"gate": liv.gate, "up": liv.value_map, "down": liv.out}


def assert_is_lfm2(genome: Genome, vocab_size: int, n_tokens: int) -> None:
    ours = randomised(star.build(genome, vocab_size, seed=3))
    mixers, mlp = [layer.config for layer in ours.plan.layers[::2]], ours.plan.layers[1].config
    attention = next(config for config in mixers if hasattr(config, "n_kv_heads"))
    config = transformers.Lfm2Config(
        vocab_size=vocab_size,
        hidden_size=genome.d_model,
        intermediate_size=mlp.width,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=len(mixers),
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads,
        full_attn_idxs=[i for i, config in enumerate(mixers) if hasattr(config, "n_kv_heads")],
        conv_L_cache=3,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert config.rope_parameters["rope_theta"] == genome.rope_theta == 1e6
    peer = transformers.Lfm2ForCausalLM(config).eval()
    weights = {"model.embed_tokens.weight": ours.embedding, "model.embedding_norm.weight": ours.final_norm}
    for i in range(len(mixers)):
        mixer, mlp, layer = ours.blocks[2 * i], ours.blocks[2 * i + 1], f"model.layers.{i}."
        weights |= {f"{layer}operator_norm.weight": mixer.norm_in, f"{layer}ffn_norm.weight": mlp.norm_in}
        weights |= {
            f"{layer}feed_forward.{w}.weight": swiglu(mlp.liv)[name]
            for w, name in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
        }
        liv = mixer.liv
        if i in config.full_attn_idxs:
            weights |= {f"{layer}self_attn.{g}_proj.weight": getattr(liv, g) for g in "qkv"} | {
                f"{layer}self_attn.out_proj.weight": liv.out
            }
            weights |= {f"{layer}self_attn.{g}_layernorm.weight": getattr(liv, f"{g}_norm") for g in "qk"}
        else:
            weights |= {
                f"{layer}conv.in_proj.weight": torch.cat([liv.b, liv.c, liv.h]),
                f"{layer}conv.out_proj.weight": liv.out,
            }
            weights |= {f"{layer}conv.conv.weight": liv.kernel}
    copy_weights(peer, weights)
    assert_same_language_model(ours, peer, n_tokens=n_tokens)


def test_lfm2_350m_is_lfm2_at_full_width():
    assert_is_lfm2(load_genome("lfm2-350m", depth=8), VOCAB, n_tokens=6)


@pytest.mark.parametrize("name, width", [("lfm2-350m", 128), ("lfm2-700m", 192), ("lfm2-1.2b", 128), ("lfm2-2.6b", 64)])
def test_lfm2_is_lfm2_at_reduced_width(name, width):
    assert_is_lfm2(load_genome(name, d_model=width, head_dim=16 if width < 192 else 32), VOCAB, n_tokens=12)


def small(name: str, window: int | None = None) -> Genome:
    """Four pairs of a layout at width 128 with heads of 16; window: instead of its own."""
    genome = load_genome(name, d_model=128, depth=8, head_dim=16)
    operators = [genome.operator(gene) for gene in genome.backbone]
    if window:
        operators = [o.with_gene("sparsity", SPARSITY_GENES[window]) if o.window else o for o in operators]
    return with_operators(genome, operators)


# Layout -> its class in transformers, the width of its FFN at width 128, its key heads, and what else its class needs.
DECODERS = {
    "llama-3.2-1b": ("Llama", 512, 2, {}),
    "tinyllama-1.1b": ("Llama", 352, 1, {}),
    "mistral-7b": ("Mistral", 448, 2, {"sliding_window": 16}),
    "qwen3-0.6b": ("Qwen3", 384, 8, {"head_dim": 16}),
    "qwen3-1.7b": ("Qwen3", 384, 4, {"head_dim": 16}),
    "qwen3-8b": ("Qwen3", 384, 2, {"head_dim": 16}),
    "olmo-2-1b": ("Olmo2", 512, 8, {}),
    "3-21-3-21-3-21-64-21": ("SmolLM3", 512, 2, {}),  # no positions in every fourth attention
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_layouts_are_those_of_transformers(name):
    family, intermediate_size, key_heads, more = DECODERS[name]
    genome = small(name, more.get("sliding_window"))
    ours = randomised(star.build(genome, VOCAB, seed=3))
    attention = ours.plan.layers[0].config
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=intermediate_size,
        num_hidden_layers=4,
        num_attention_heads=attention.n_heads,
        num_key_value_heads=key_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": genome.rope_theta},
        tie_word_embeddings=genome.embedding == 1,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
        **more,
    )
    peer = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    weights = {"model.embed_tokens.weight": ours.embedding, "model.norm.weight": ours.final_norm}
    weights |= {} if ours.tie_embeddings else {"lm_head.weight": ours.head}
    norms = ("norm_in", "input_layernorm", "post_attention_layernorm")
    if genome.norm == 3:
        norms = ("norm_out", "post_attention_layernorm", "post_feedforward_layernorm")
    for i in range(4):
        mixer, mlp, layer = ours.blocks[2 * i], ours.blocks[2 * i + 1], f"model.layers.{i}."
        weights |= {f"{layer}{norms[1 + n]}.weight": getattr(b, norms[0]) for n, b in enumerate((mixer, mlp))}
        weights |= {f"{layer}mlp.{name}_proj.weight": w for name, w in swiglu(mlp.liv).items()}
        weights |= {f"{layer}self_attn.{g}_proj.weight": getattr(mixer.liv, g) for g in "qkv"}
        weights |= {f"{layer}self_attn.o_proj.weight": mixer.liv.out}
        if attention.qk_norm:
            weights |= {f"{layer}self_attn.{g}_norm.weight": getattr(mixer.liv, f"{g}_norm") for g in "qk"}
    copy_weights(peer, weights)
    assert_same_language_model(ours, peer)


def test_gpt2_layout_is_gpt2():
    ours = randomised(star.build(small("gpt-2"), VOCAB, seed=3))
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=1024, n_embd=128, n_layer=4, n_head=8, eos_token_id=None, bos_token_id=None
    )
    peer = transformers.GPT2LMHeadModel(config).eval()
    weights = {"wte.weight": ours.embedding, "wpe.weight": ours.positions}
    weights |= {"ln_f.weight": ours.final_norm, "ln_f.bias": ours.final_norm_bias}
    for i in range(4):
        layer = f"h.{i}."
        for n, block in enumerate(ours.blocks[2 * i : 2 * i + 2], start=1):
            weights |= {f"{layer}ln_{n}.weight": block.norm_in, f"{layer}ln_{n}.bias": block.norm_in_bias}
        liv, mlp = ours.blocks[2 * i].liv, ours.blocks[2 * i + 1].liv
        maps = {"mlp.c_fc": (mlp.value_map, mlp.value_map_bias), "mlp.c_proj": (mlp.out, mlp.out_bias)}
        maps["attn.c_attn"] = torch.cat([liv.q, liv.k, liv.v]), torch.cat([liv.q_bias, liv.k_bias, liv.v_bias])
        maps["attn.c_proj"] = liv.out, liv.out_bias
        for name, (weight, bias) in maps.items():  # its maps are [in, out]
            weights |= {f"{layer}{name}.weight": weight.T, f"{layer}{name}.bias": bias}
    copy_weights(peer, {f"transformer.{name}": weight for name, weight in weights.items()})
    assert_same_language_model(ours, peer)


def mamba2_weights(liv, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}in_proj.weight": torch.cat([liv.z, liv.v, liv.b, liv.c, liv.dt]),
        f"{prefix}conv1d.weight": torch.cat([liv.v_filter, liv.b_filter, liv.c_filter]),
        f"{prefix}dt_bias": liv.dt_bias,
        f"{prefix}A_log": liv.log_rate,
        f"{prefix}D": liv.skip,
        f"{prefix}norm.weight": liv.norm,
        f"{prefix}out_proj.weight": liv.out,
    }


@pytest.mark.parametrize("name, state_size", [("Mamba-2", 128), ("Mamba-2-64", 64)])
def test_mamba2_rows_are_mamba2(name, state_size):
    """The mixer, and a language model of it. Without conv biases: on the value path one would make y = T x + c."""
    ours = randomised(star.build(Genome((Gene(class_id(name)),) * 2, 32, 16), VOCAB, seed=3))
    config = transformers.Mamba2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=16,
        state_size=state_size,
        expand=2,
        n_groups=1,
        use_conv_bias=False,
        chunk_size=16,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    peer = transformers.Mamba2ForCausalLM(config).eval()
    weights = {"backbone.embeddings.weight": ours.embedding, "backbone.norm_f.weight": ours.final_norm}
    for i, block in enumerate(ours.blocks):
        weights |= {f"backbone.layers.{i}.norm.weight": block.norm_in} | mamba2_weights(
            block.liv, f"backbone.layers.{i}.mixer."
        )
    copy_weights(peer, weights)
    x = torch.randn(2, 150, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, _ = ours.blocks[0].liv(x)
        expected = peer.backbone.layers[0].mixer(x)
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR
    assert_same_language_model(ours, peer)


def gated_delta_weights(liv) -> dict[str, torch.Tensor]:
    """The weights of a gated delta rule under the names that Qwen3-Next and OLMo Hybrid have in common."""
    return {
        "conv1d.weight": torch.cat([liv.c_filter, liv.b_filter, liv.v_filter]),
        "dt_bias": liv.dt_bias,
        "A_log": liv.log_rate,
    }


def qwen3_next_weights(liv) -> dict[str, torch.Tensor]:
    """Of both mixers of Qwen3-Next; its norms scale by 1 + w, except those after a delta rule."""
    if hasattr(liv, "q"):
        heads = [w.unflatten(0, (liv.config.n_heads, -1)) for w in (liv.q, liv.gate)]
        weights = {f"{g}_proj.weight": w for g, w in (("k", liv.k), ("v", liv.v), ("o", liv.out))}
        weights["q_proj.weight"] = torch.cat(heads, 1).flatten(0, 1)
        return weights | {f"{g}_norm.weight": getattr(liv, f"{g}_norm") - 1 for g in "qk"}
    weights = {}
    for name, maps in (("qkvz", (liv.c, liv.b, liv.v, liv.z)), ("ba", (liv.beta, liv.dt))):
        by_key_head = [w.unflatten(0, (liv.config.n_groups, -1)) for w in maps]
        weights[f"in_proj_{name}.weight"] = torch.cat(by_key_head, dim=1).flatten(0, 1)
    return weights | gated_delta_weights(liv) | {"norm.weight": liv.norm, "out_proj.weight": liv.out}


def test_gated_delta_row_is_that_of_qwen3_next():
    """`Qwen3NextGatedDeltaNet` with as many key heads as value heads."""
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    head_dim, heads = 64, 2  # the row's state size is 64
    ours = randomised(star.build(Genome((Gene(class_id("GatedDelta")),), 128, head_dim), VOCAB, seed=3)).blocks[0].liv
    config = transformers.Qwen3NextConfig(
        hidden_size=128,
        linear_num_value_heads=heads,
        linear_num_key_heads=heads,
        linear_key_head_dim=64,
        linear_value_head_dim=head_dim,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        layer_types=["linear_attention"],
    )
    peer = module.Qwen3NextGatedDeltaNet(config, 0).eval()
    copy_weights(peer, qwen3_next_weights(ours))
    x = torch.randn(2, 150, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, expected = ours(x)[0], peer(x)
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR


def test_gated_attention_row_is_that_of_qwen3_next():
    """`Qwen3NextAttention` with RoPE on all channels."""
    from transformers.models.qwen3_next import modeling_qwen3_next as module

    ours = randomised(star.build(Genome((Gene(class_id("GQA-8-QKN-gate-2x")),), 64, 16), VOCAB, seed=3)).blocks[0].liv
    config = module.Qwen3NextConfig(
        hidden_size=64,
        head_dim=16,
        num_attention_heads=8,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    )
    config._attn_implementation = "sdpa"
    peer = module.Qwen3NextAttention(config, 0).eval()
    assert_same_attention(ours, peer, qwen3_next_weights(ours), module.Qwen3NextRotaryEmbedding(config))


def test_gated_delta_hybrid_is_qwen3_next_with_dense_ffns():
    genome = load_genome("gated-delta-hybrid", d_model=128, depth=8, head_dim=32)
    ours = randomised(star.build(genome, VOCAB, seed=3))
    config = transformers.Qwen3NextConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        mlp_only_layers=[0, 1, 2, 3],
        head_dim=32,
        num_attention_heads=8,
        num_key_value_heads=1,
        linear_num_value_heads=8,
        linear_num_key_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": genome.rope_theta, "partial_rotary_factor": 0.25},
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    assert config.layer_types == ["linear_attention"] * 3 + ["full_attention"]
    peer = transformers.Qwen3NextForCausalLM(config).eval()
    weights = {"model.embed_tokens.weight": ours.embedding, "model.norm.weight": ours.final_norm - 1}
    for i in range(4):
        mixer, mlp, layer = ours.blocks[2 * i], ours.blocks[2 * i + 1], f"model.layers.{i}."
        weights |= {f"{layer}input_layernorm.weight": mixer.norm_in - 1}
        weights |= {f"{layer}post_attention_layernorm.weight": mlp.norm_in - 1}
        weights |= {f"{layer}mlp.{name}_proj.weight": w for name, w in swiglu(mlp.liv).items()}
        name = "self_attn" if i == 3 else "linear_attn"
        weights |= {f"{layer}{name}.{theirs}": w for theirs, w in qwen3_next_weights(mixer.liv).items()}
    copy_weights(peer, weights)
    assert_same_language_model(ours, peer)


def latent_weights(liv) -> dict[str, torch.Tensor]:
    """Of a latent attention, under the names that DeepSeek-V3 and Kimi Linear have in common."""
    by_head = [w.unflatten(0, (liv.config.n_heads, -1)) for w in (liv.k, liv.v)]
    return {
        "q_proj.weight": liv.q,
        "kv_a_proj_with_mqa.weight": torch.cat([liv.latent, liv.key]),
        "kv_a_layernorm.weight": liv.latent_norm,
        "kv_b_proj.weight": torch.cat(by_head, 1).flatten(0, 1),
        "o_proj.weight": liv.out,
    }


def test_latent_attention_row_is_that_of_deepseek():
    """`DeepseekV3Attention` with RoPE of halves, as everywhere here."""
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as module

    ours = randomised(star.build(Genome((Gene(class_id("MLA")),), 128, 32), VOCAB, seed=3)).blocks[0].liv
    config = module.DeepseekV3Config(
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        rope_interleave=False,
        rms_norm_eps=1e-5,
        num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    config._attn_implementation = "sdpa"
    peer = module.DeepseekV3Attention(config, 0).eval()
    peer.kv_a_layernorm.variance_epsilon = 1e-5  # it has 1e-6, whatever the configuration says
    assert_same_attention(ours, peer, latent_weights(ours), module.DeepseekV3RotaryEmbedding(config))


def test_mixers_of_kimi_linear():
    module = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    genome = load_genome("kimi-linear", d_model=128, head_dim=32)
    blocks = randomised(star.build(genome, VOCAB, seed=3)).blocks
    ours, latent = blocks[0].liv, blocks[6].liv
    config = module.KimiLinearConfig(
        hidden_size=128,
        linear_head_dim=32,
        linear_num_heads=4,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    config._attn_implementation = "sdpa"
    maps = {"q": "c", "k": "b", "v": "v", "b": "beta", "g_a": "z_low", "g_b": "z_high", "o": "out"}
    weights = {f"{theirs}_proj.weight": getattr(ours, name) for theirs, name in maps.items()}
    weights |= {"forget_gate.f_a_proj.weight": ours.dt_low, "forget_gate.f_b_proj.weight": ours.dt_high}
    gates = gated_delta_weights(ours)
    weights |= {name if name == "conv1d.weight" else f"forget_gate.{name}": weight for name, weight in gates.items()}
    peer = module.KimiLinearDeltaAttention(config, 0).eval()
    copy_weights(peer, weights | {"o_norm.weight": ours.norm})
    x = torch.randn(2, 150, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, expected = ours(x)[0], peer(x)
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR
    peer = module.KimiLinearAttention(config, 3).eval()
    peer.kv_a_layernorm.variance_epsilon = 1e-5
    copy_weights(peer, latent_weights(latent))
    with torch.no_grad():
        y, expected = latent(x)[0], peer(x, None)[0]
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR


def test_mixers_of_olmo_hybrid():
    """Its blocks have other norms than ours, so its mixers alone: the delta rule of strength up to 2, and attention."""
    module = pytest.importorskip("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    delta, attention = (
        randomised(star.build(load_genome("olmo-hybrid", d_model=128, head_dim=64), VOCAB, seed=3)).blocks[i].liv
        for i in (0, 6)
    )
    config = module.OlmoHybridConfig(
        hidden_size=128,
        num_attention_heads=2,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        rms_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"
    maps = {"q": "c", "k": "b", "v": "v", "a": "dt", "b": "beta", "g": "z", "o": "out"}
    weights = {f"{theirs}_proj.weight": getattr(delta, name) for theirs, name in maps.items()}
    peer = module.OlmoHybridGatedDeltaNet(config, 0).eval()
    copy_weights(peer, weights | gated_delta_weights(delta) | {"o_norm.weight": delta.norm})
    x = torch.randn(2, 150, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, expected = delta(x)[0], peer(x)
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR
    maps = {"q": "q", "k": "k", "v": "v", "o": "out"}
    weights = {f"{theirs}_proj.weight": getattr(attention, name) for theirs, name in maps.items()}
    weights |= {f"{g}_norm.weight": getattr(attention, f"{g}_norm") for g in "qk"}
    assert_same_attention(attention, module.OlmoHybridAttention(config, 3).eval(), weights, lambda *_: None)


@pytest.mark.parametrize("name", ["GQA-8-sink-bias", "SWA-128-GQA-8-sink-bias"])
def test_sink_rows_are_those_of_gpt_oss(name):
    """`GptOssAttention` with the plain RoPE."""
    from transformers.models.gpt_oss import modeling_gpt_oss as module

    ours = randomised(star.build(Genome((Gene(class_id(name)),), 128, 16), VOCAB, seed=3)).blocks[0].liv
    config = module.GptOssConfig(
        hidden_size=128,
        head_dim=16,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    config._attn_implementation = "eager"
    maps = {"q": "q", "k": "k", "v": "v", "o": "out"}
    weights = {f"{theirs}_proj.weight": getattr(ours, name) for theirs, name in maps.items()}
    weights |= {f"{theirs}_proj.bias": getattr(ours, f"{name}_bias") for theirs, name in maps.items()}
    mask = torch.zeros(150, 150).masked_fill(
        ~causal_mask(150, 150, ours.config.window, torch.device("cpu")), -torch.inf
    )
    peer = module.GptOssAttention(config, 0).eval()
    rotary = module.GptOssRotaryEmbedding(config)
    assert_same_attention(ours, peer, weights | {"sinks": ours.sink}, rotary, mask[None, None])


def test_rg_lru_row_is_that_of_recurrent_gemma():
    """`RecurrentGemmaRecurrentBlock`, its linear biases at zero: on the value path they would make y = T x + c."""
    module = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    ours = randomised(star.build(Genome((Gene(class_id("RG-LRU")),), 64, 16), VOCAB, seed=3)).blocks[0].liv
    config = transformers.RecurrentGemmaConfig(
        hidden_size=64,
        lru_width=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        conv1d_width=4,
        num_hidden_layers=1,
        head_dim=16,
    )
    peer = module.RecurrentGemmaRecurrentBlock(config, 0).eval()
    weights = {
        name: torch.zeros_like(p)
        for name, p in peer.named_parameters()
        if name.endswith("bias") and "rg_lru" not in name
    }
    weights |= {
        "linear_x.weight": ours.v,
        "linear_y.weight": ours.c,
        "linear_out.weight": ours.out,
        "conv_1d.weight": ours.v_filter,
    }
    weights["rg_lru.recurrent_param"] = ours.rate
    for theirs, name in (("input", "input"), ("recurrent", "decay")):
        weights[f"rg_lru.{theirs}_gate_weight"] = (
            getattr(ours, f"{name}_gate").unflatten(0, (4, 16)).transpose(1, 2)
        )  # x @ W, not W @ x
        weights[f"rg_lru.{theirs}_gate_bias"] = getattr(ours, f"{name}_bias")
    copy_weights(peer, weights)
    x = torch.randn(2, 70, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, expected = ours(x)[0], peer(x, torch.arange(70)[None], None, use_cache=False)[0]
    assert ((y - expected).abs().max() / expected.abs().max()).item() < ERROR
