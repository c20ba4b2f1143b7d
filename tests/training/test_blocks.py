"""Compiled and checkpointed blocks: one compilation for each variant, and the numbers of plain blocks."""

import copy

import pytest
import torch

import star
from star.genome import Genome, parse_text
from star.training import compile as blocks
from star.training.compile import checkpoint_blocks, compile_blocks

VOCAB = 31
SHARING = "11214-90000-11214-70000-90000"  # weights and features
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")


def build(text: str, seed: int = 0, **options) -> star.LanguageModel:
    return star.build(Genome(parse_text(text), 32, 8, **options), VOCAB, seed)


def tokens(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, 40), generator=torch.Generator().manual_seed(seed))


def generated(model: star.LanguageModel) -> torch.Tensor:
    return model.generate(tokens(0)[:, :4], 8, temperature=0)


def step(model: star.LanguageModel, seed: int = 0) -> list[torch.Tensor]:
    """The loss and all gradients."""
    model.zero_grad()
    loss = model.loss(tokens(seed), tokens(seed + 100))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """A backend that runs graphs unchanged, and the list of graphs that it received."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(blocks, "VARIANTS", {})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return backend, graphs


def test_each_variant_is_compiled_once_for_all_architectures(counting):
    backend, graphs = counting
    # Sharing has two new variants: one block provides features, another takes them.
    for text, variants in {"1-9-7-9-1": 3, "7-7-9-1": 3, "9-1-9": 3, "5-9": 4, SHARING: 6}.items():
        for seed in range(2):
            model, plain = build(text, seed), build(text, seed)
            compile_blocks(model, backend)
            for a, b in zip(step(model, seed), step(plain, seed), strict=True):
                torch.testing.assert_close(a, b)
            assert len(graphs) == len(blocks.VARIANTS) == variants
    wide = star.build(Genome(parse_text("9"), 64, 8), VOCAB)
    step(compile_blocks(wide, backend))
    assert len(graphs) == 7


def test_weights_are_inputs_and_not_constants(counting):
    backend, graphs = counting
    model = compile_blocks(build("9-9"), backend)
    step(model)
    assert not list(graphs[0].parameters()) and not list(graphs[0].buffers())
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(1.1)
    plain = build("9-9")
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(step(model), step(plain))
    assert len(graphs) == 1


def test_more_than_the_usual_limit_of_shapes_stay_compiled(counting):
    backend, graphs = counting
    model = compile_blocks(build("9"), backend)
    for batch in range(1, 13):  # torch gives up after 8
        model.loss(tokens(0, batch), tokens(1, batch)).backward()
    assert len(graphs) == 12


def test_evaluation_decoding_and_copies_do_not_change(counting):
    backend, graphs = counting
    model, plain = compile_blocks(build(SHARING), backend).eval(), build(SHARING).eval()
    assert torch.equal(generated(model), generated(plain))
    with torch.no_grad():
        assert torch.equal(model.loss(tokens(0), tokens(1)), plain.loss(tokens(0), tokens(1)))
    assert not graphs and model.state_dict().keys() == plain.state_dict().keys()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param.zero_()
    torch.testing.assert_close(step(model), step(plain))  # the copy has its own weights
    assert step(other)[0] != step(model)[0]


def test_gradients_are_the_same_when_differentiated_ahead_of_time(counting):
    model, plain = compile_blocks(build(SHARING, norm=2, residual=2), "aot_eager"), build(SHARING, norm=2, residual=2)
    torch.testing.assert_close(step(model), step(plain), rtol=1e-4, atol=1e-5)


def saved_bytes(model: star.LanguageModel) -> int:
    """Bytes that the forward keeps for the backward, without the weights."""
    weights, kept = {p.data_ptr() for p in model.parameters()}, {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(tokens(0), tokens(1))
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("text", ["1-9-7-9", SHARING, "5-8-9", "14-16-12"])
def test_checkpointed_blocks_are_bit_identical_and_keep_less(text):
    model, plain = checkpoint_blocks(checkpoint_blocks(build(text))), build(text)
    assert all(torch.equal(a, b) for a, b in zip(step(model), step(plain), strict=True))
    assert 2 * saved_bytes(model) < saved_bytes(plain)
    assert torch.equal(generated(model), generated(plain))


def test_compiled_blocks_can_be_checkpointed(counting):
    backend, graphs = counting
    model, plain = checkpoint_blocks(compile_blocks(build("1-9-1-9"), backend)), build("1-9-1-9")
    torch.testing.assert_close(step(model), step(plain))
    assert len(graphs) == 2
