"""Cross-attention that is kept or bounded to a hole, in the smallest Stable Diffusion."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rad.networks.attention import Focus, FocusedAttention, grids, patch_attention, shrunk
from tests.rounding import assert_same
from tests.tiny_stable import make_unet

DEPTHS = 4


@pytest.fixture(scope="module")
def unet():
    unet = make_unet().double().requires_grad_(False)
    assert patch_attention(unet) == 0
    return unet


def cross_attentions(unet):
    return [layer for layer in unet.modules() if isinstance(layer, FocusedAttention) and layer.depth is not None]


def inputs(seed=0):
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 4, 16, 16, generator=random, dtype=torch.float64),
        torch.tensor([500.0, 20.0]),
        torch.randn(2, 12, 16, generator=random, dtype=torch.float64),
    )


def two_holes():
    hole = torch.zeros(2, 1, 16, 16)
    hole[0, :, 4:12, 4:16] = 1
    hole[1, :, :, :8] = 1
    return hole


def places(hole):
    return {size[0] * size[1]: shrunk(hole, size).flatten(1) for size in grids((16, 16), DEPTHS)}


def outputs_of(unet, focus, x, times, text):
    """The network's output, and the output of each cross-attention."""
    layers, given, hooks = cross_attentions(unet), [], []
    for layer in layers:
        hooks.append(layer.register_forward_hook(lambda _, __, made: given.append(made)))
    try:
        return unet(x, times, encoder_hidden_states=text, cross_attention_kwargs={"focus": focus}).sample, given
    finally:
        for hook in hooks:
            hook.remove()


def test_the_layers_have_the_cells_of_their_depth(unet):
    layers = cross_attentions(unet)
    assert sorted(layer.depth for layer in layers) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    focus = Focus(tokens=torch.ones(2, 12))
    outputs_of(unet, focus, *inputs())
    assert [kept.shape[1] for kept in focus.kept] == [256, 64, 16, 4, 16, 16, 64, 64, 256, 256]


@pytest.mark.parametrize(("size", "want"), [((16, 16), [(16, 16), (8, 8), (4, 4)]), ((7, 5), [(7, 5), (4, 3), (2, 2)])])
def test_odd_sides_are_rounded_up(size, want):
    assert grids(size, 3) == want


def test_a_hole_shrinks_on_coarser_cells_and_never_grows():
    hole = torch.zeros(1, 1, 16, 16)
    hole[:, :, 3:13, 4:12] = 1
    assert torch.equal(shrunk(hole, (16, 16))[0], hole[0, 0] == 1)
    half = shrunk(hole, (8, 8))[0]
    assert torch.equal(half.nonzero().amin(0), torch.tensor([2, 2])), "row 1 is half a hole, so it is none"
    assert torch.equal(half.nonzero().amax(0), torch.tensor([5, 5]))
    three = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    assert shrunk(three, (2, 2))[0].tolist() == [[True, False], [False, False]], "three of four pixels are not enough"
    assert bool(shrunk(torch.ones(1, 1, 7, 5), (3, 2)).all())
    assert not bool(shrunk(torch.zeros(1, 1, 7, 5), (3, 2)).any())


def test_kept_attention_is_a_distribution_and_changes_nothing(unet):
    x, times, text = inputs()
    plain = unet(x, times, encoder_hidden_states=text).sample
    parts = []
    for token in range(12):
        focus = Focus(tokens=torch.eye(12)[token].expand(2, -1))
        made, _ = outputs_of(unet, focus, x, times, text)
        assert_same(made, plain)
        parts.append(focus.kept)
    for layer in zip(*parts, strict=True):
        assert_same(sum(layer), torch.ones_like(layer[0]))
        assert float(min(part.min() for part in layer)) >= 0
        assert float(torch.stack(list(layer)).std()) > 1e-3, "some token has more than others"


def test_shallow_layers_are_not_kept(unet):
    focus = Focus(tokens=torch.ones(2, 12), shallowest=1)
    outputs_of(unet, focus, *inputs())
    assert [kept.shape[1] for kept in focus.kept] == [64, 16, 4, 16, 16, 64, 64]


def test_no_bound_and_all_hole_are_the_untouched_network_bit_for_bit(unet):
    x, times, text = inputs()
    plain = unet(x, times, encoder_hidden_states=text).sample
    assert torch.equal(outputs_of(unet, Focus(), x, times, text)[0], plain)
    whole = places(torch.ones(2, 1, 16, 16))
    assert torch.equal(outputs_of(unet, Focus(whole), x, times, text)[0], plain)
    assert torch.equal(unet(x, times, encoder_hidden_states=text).sample, plain), "and it is left as it was"


@pytest.mark.parametrize("keeping", [False, True])
def test_outside_the_hole_a_layer_gives_the_first_value_times_its_probability(unet, keeping):
    """By the formula, with the probabilities written out; both ways in which a layer may be computed."""
    layer, random = cross_attentions(unet)[0], torch.Generator().manual_seed(3)
    hidden, text = (torch.randn(2, count, 16, generator=random, dtype=torch.float64) for count in (256, 12))
    where, attn = places(two_holes())[256], layer
    focus = Focus({256: where}, torch.ones(2, 12) if keeping else None)
    made = attn(hidden, encoder_hidden_states=text, focus=focus)

    def heads(values):
        return values.view(2, -1, attn.heads, 16 // attn.heads).transpose(1, 2)

    query, key, value = heads(attn.to_q(hidden)), heads(attn.to_k(text)), heads(attn.to_v(text))
    chances = (query @ key.mT * attn.scale).softmax(-1)
    allowed = where[:, None, :, None].repeat(1, 1, 1, 12)
    allowed[..., 0] = True
    want = attn.to_out[0](((chances * allowed) @ value).transpose(1, 2).flatten(2))
    assert_same(made, want)


@pytest.mark.parametrize("keeping", [False, True])
def test_garbage_in_the_values_of_other_tokens_changes_nothing_outside(unet, keeping):
    layer, random = cross_attentions(unet)[0], torch.Generator().manual_seed(3)
    hidden, text = (torch.randn(2, count, 16, generator=random, dtype=torch.float64) for count in (256, 12))
    where = places(two_holes())[256]

    def outcome(extra):
        def garbage(_, __, values):
            return values + extra * torch.arange(12.0)[None, :, None]  # nothing is added to token 0

        hook = layer.to_v.register_forward_hook(garbage)
        try:
            focus = Focus({256: where}, torch.ones(2, 12) if keeping else None)
            return layer(hidden, encoder_hidden_states=text, focus=focus)
        finally:
            hook.remove()

    one, other = outcome(0.0), outcome(100.0)
    assert torch.equal(one[~where], other[~where])
    assert float((one - other)[where].abs().amax(1).min()) > 100


def test_each_image_of_a_batch_has_its_own_bound(unet):
    x, times, text = inputs()
    hole = two_holes()
    both = outputs_of(unet, Focus(places(hole)), x, times, text)[0]
    for row in (0, 1):
        own = slice(row, row + 1)
        alone = outputs_of(unet, Focus(places(hole[own])), x[own], times[own], text[own])[0]
        assert_same(both[own], alone)
    assert float((both[1:] - outputs_of(unet, Focus(places(hole.flip(0))), x, times, text)[0][1:]).abs().max()) > 1e-3


def test_a_network_without_focus_is_diffusers_own_with_equal_names(unet):
    x, times, text = inputs()
    stock = make_unet().double()
    assert unet.state_dict().keys() == stock.state_dict().keys()
    assert torch.equal(unet(x, times, encoder_hidden_states=text).sample, stock(x, times, text).sample)


def test_calls_in_threads_have_their_own_focus(unet):
    """One bounded, one kept and one plain call at a time equal those one after another, bit for bit."""
    x, times, text = inputs()

    def call(number):
        focus = [Focus(places(two_holes())), Focus(tokens=torch.ones(2, 12)), Focus()][number % 3]
        output = unet(x, times, encoder_hidden_states=text, cross_attention_kwargs={"focus": focus}).sample
        return output, len(focus.kept)

    with torch.no_grad():
        expected = [call(number) for number in range(3)]
    assert [count for _, count in expected] == [0, 10, 0]
    with ThreadPoolExecutor(3) as pool:
        for number, (output, count) in enumerate(pool.map(torch.no_grad()(call), range(9))):
            assert torch.equal(output, expected[number % 3][0])
            assert count == expected[number % 3][1]


def test_gradients_are_the_same_when_activations_are_computed_again(unet):
    x, times, text = inputs()
    found = []
    for again in (False, True):
        if again:
            unet.enable_gradient_checkpointing()
        try:
            at = x.clone().requires_grad_()
            focus = Focus(places(two_holes()), torch.eye(12)[1].expand(2, -1), shallowest=1)
            made = outputs_of(unet, focus, at, times, text)[0]
            loss = made.square().sum() + sum(1000 * kept.square().sum() for kept in focus.kept)
            found.append(torch.autograd.grad(loss, at)[0])
        finally:
            unet.disable_gradient_checkpointing()
    assert_same(found[0], found[1])
    assert float(found[0].abs().max()) > 0
