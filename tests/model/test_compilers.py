"""A model under torch.compile and torch.export, and its state, which both take apart."""

import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

import star
from star.genome import POOL, Gene, Genome
from star.model.language_model import ModelState

VOCAB = 37
ONE_OF_EACH = ("SA-1", "SWA-16", "Rec-1", "GLA", "DeltaNet", "GConv-1", "Hyena", "RG-LRU", "GMemless")
NUMBERS = {row.name: number for number, row in enumerate(POOL, 1)}
LOOPS = ("delta rule", "modal convolution", "elementwise recurrence")


def smallest(*numbers: int) -> star.LanguageModel:
    """A model of these classes at the smallest width that suits them."""
    for width, head in ((16, 4), (24, 4), (32, 8), (64, 8), (128, 8), (256, 8)):
        genome = Genome(tuple(map(Gene, numbers)), d_model=width, head_dim=head)
        try:
            return star.build(genome, VOCAB, seed=0).eval()
        except star.UserError:
            continue
    raise AssertionError(f"{numbers} fit no width")


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


def tensors_of(state: ModelState) -> list[torch.Tensor]:
    return [tensor for layer in state.layers for tensor in layer.values()]


# ---- the state


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_state_is_continued_once_and_its_copies_as_often_as_there_are(name):
    model = smallest(NUMBERS[name], NUMBERS["SA-1"]).double()
    prefix, a, b = tokens(2, 40), tokens(2, 5), tokens(2, 3)
    with torch.no_grad():
        _, state = model(prefix, model.init_state(2, 50))  # with room, so that nothing is copied for want of it
        copy = state.copy()
        first, _ = model(a, state)
        with pytest.raises(ValueError, match=r"continued already; .* state.copy\(\)"):
            model(b, state)
        with pytest.raises(ValueError, match="copy it before that"):
            state.copy()
        second, _ = model(b, copy)
        for suffix, logits in ((a, first), (b, second)):
            torch.testing.assert_close(logits, model(torch.cat([prefix, suffix], 1))[0][:, 40:], rtol=0, atol=1e-10)


def test_a_state_is_a_pytree():
    model = smallest(NUMBERS["SA-1"], NUMBERS["Rec-1"])
    _, state = model(tokens(1, 9))
    leaves, spec = tree_flatten(state)
    assert all(leaf is None or isinstance(leaf, torch.Tensor | int) for leaf in leaves)
    again = tree_unflatten(leaves, spec)
    assert isinstance(again, ModelState) and again.length == 9
    torch.testing.assert_close(model(tokens(1, 2), state.copy())[0], model(tokens(1, 2), again)[0])


# ---- torch.export


def pytest_generate_tests(metafunc):
    """Every row is exported with `--genomes` above 300, which takes two minutes; else one of each kind."""
    if "exported" in metafunc.fixturenames:
        every = metafunc.config.getoption("genomes") > 300
        kinds = (*ONE_OF_EACH, "SWA-128-GQA-8-sink-bias", "GConv-2-Diff")
        metafunc.parametrize("exported", list(NUMBERS) if every else kinds)


def test_export_for_any_batch_and_length_or_a_sentence_that_names_the_operator(exported):
    model, any_size = smallest(NUMBERS[exported]), torch.export.Dim.DYNAMIC
    example = tokens(2, 300)
    others = [tokens(3, 401), tokens(1, 256), tokens(2, 40), tokens(1, 5)]  # whole chunks, less than a chunk or window
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=({0: any_size, 1: any_size},))
    except NotImplementedError as error:
        assert any(f"the {loop} has a loop over chunks" in str(error) for loop in LOOPS)
        others = [example.clone()]  # the example is marked as dynamic
        program = torch.export.export(model, (others[0],))
    with torch.no_grad():
        for other in others:
            logits, state = program.module()(other)
            torch.testing.assert_close(logits, model(other)[0], rtol=0, atol=2e-5)
            assert isinstance(state, ModelState) and state.length == other.shape[1]


# ---- torch.compile


@pytest.mark.parametrize("name", ["SA-1", "Rec-1", "DeltaNet", "GConv-1", "Hyena", "RG-LRU", "GMemless"])
def test_compiled_for_any_shape_with_and_without_a_state(name):
    model = smallest(NUMBERS[name])
    torch._dynamo.reset()
    compiled = torch.compile(model, dynamic=True, backend="eager")
    with torch.no_grad():
        for sequence in (tokens(2, 70), tokens(3, 133)):
            torch.testing.assert_close(compiled(sequence)[0], model(sequence)[0], rtol=0, atol=2e-5)
        first, state = compiled(sequence[:, :40])
        second, _ = compiled(sequence[:, 40:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), model(sequence)[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("room, prompt", [(60, 10), (None, 10), (10, 10), (20, 10), (12, 3)])
@pytest.mark.parametrize("name", ["SA-1", "SWA-16", "Rec-1", "GLA", "GConv-1", "Hyena", "RG-LRU", "GMemless"])
def test_at_most_three_graphs_for_any_decode(name, room, prompt):
    """The prompt, a token, and a token where the state grows, windows that fill up included."""
    model, graphs = smallest(NUMBERS[name]), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled, sequence = torch.compile(model, backend=backend), tokens(1, 60)
    with torch.no_grad():
        logits, state = compiled(sequence[:, :prompt], model.init_state(1, room) if room else None)
        parts = [logits]
        for t in range(prompt, 60):
            logits, state = compiled(sequence[:, t : t + 1], state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), model(sequence)[0], rtol=0, atol=2e-5)
    assert len(graphs) <= 3


@pytest.mark.parametrize("name", ["SWA-16", "Rec-1", "GLA", "DeltaNet", "GConv-2", "Hyena", "RG-LRU"])
def test_a_state_keeps_no_activations_of_the_prompt_alive(name):
    model = smallest(NUMBERS[name])
    _, state = model(tokens(1, 300))
    owned = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_of(state)}
    assert sum(owned.values()) == state.nbytes
