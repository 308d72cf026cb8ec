"""weight_similarity: the definition, what it does not see, and that it only looks."""

import copy
import math
import warnings
from contextlib import ExitStack

import pytest
import torch
import torch_ws
from architectures import build
from conversions import quietly
from torch import nn
from torch.nn.utils import parametrizations
from torch_ws import weight_similarity

LAYERS = 4  # of cnn()


def cnn(seed=0, **options):
    """A nested sequence for (3, 8, 8), with modules that do not take part; converted by options."""
    torch.manual_seed(seed)
    body = nn.Sequential(nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, groups=2))
    tail = nn.Sequential(nn.LayerNorm((4, 4, 4)), nn.Flatten(), nn.Linear(64, 5))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), body, nn.ConvTranspose2d(8, 4, 2, 2), tail)
    return quietly(model, linear=True, **options) if options else model


def plain(model):
    """The same network without standardization."""
    return torch_ws.fold(copy.deepcopy(model))


def definition(a, b):
    """The cosine of the Gram matrices over the inputs, of the network's whole Jacobian.

    Where kernels do not overlap, an input and an output position have one path between them, if
    any: the Jacobian holds P_l, with columns at places that are the same for both networks.
    """

    def gram(model, size):
        x = torch.zeros(size, dtype=torch.float64)
        product = torch.autograd.functional.jacobian(model, x).flatten(1)  # a row a channel
        return product.T @ product

    found = gram(*a), gram(*b)
    return (found[0] * found[1]).sum() / (found[0].norm() * found[1].norm())


def sequence(width, *makers):
    return nn.Sequential(*(make(width) for make in makers)).double()


CHAINS = {
    # matrices alone
    "linear": [(5,), lambda w: nn.Linear(5, w), lambda w: nn.Linear(w, 4)],
    # one dimension
    "1-d": [
        (3, 6),
        lambda w: nn.Conv1d(3, w, 2, stride=2),
        lambda w: nn.Conv1d(w, 4, 3, stride=3),
    ],
    # two, with a kernel that is not square
    "2-d": [
        (2, 4, 6),
        lambda w: nn.Conv2d(2, w, (2, 3), stride=(2, 3)),
        lambda w: nn.Conv2d(w, 3, 2, stride=2),
    ],
    "3-d": [(2, 2, 2, 4), lambda w: nn.Conv3d(2, w, 2, stride=2), lambda w: nn.Conv3d(w, 3, 1)],
    # groups at the input, where M is the identity, and after it
    "grouped": [
        (4, 4, 4),
        lambda w: nn.Conv2d(4, w, 2, stride=2, groups=2),
        lambda w: nn.Conv2d(w, 2 * w, 2, stride=2, groups=w),
    ],
    # the positions of what was flattened are a kernel's
    "linear after flatten": [
        (3, 4, 6),
        lambda w: nn.Conv2d(3, w, 2, stride=2),
        lambda w: nn.Flatten(0),
        lambda w: nn.Linear(6 * w, 5),
    ],
    # each input position has several outputs
    "transposed": [
        (2, 4),
        lambda w: nn.Conv1d(2, w, 2, stride=2),
        lambda w: nn.ConvTranspose1d(w, 2 * w, 3, stride=3),
        lambda w: nn.ConvTranspose1d(2 * w, w, 2, stride=2, groups=2),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_equals_the_definition(name):
    size, *makers = CHAINS[name]
    a, b = sequence(4, *makers), sequence(8, *makers)  # of two widths
    found = weight_similarity(a, b)
    ends = [i + 1 for i, layer in enumerate(a) if hasattr(layer, "weight")]
    expected = [definition((a[:end], size), (b[:end], size)).item() for end in ends]
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_network_with_itself_and_in_either_order():
    a, b = cnn(0), cnn(1)
    assert weight_similarity(a, a) == pytest.approx([1.0] * LAYERS, rel=1e-12)
    found = weight_similarity(a, b)
    assert len(found) == LAYERS and all(0 < value < 1 for value in found)
    assert weight_similarity(b, a) == pytest.approx(found, rel=1e-12)
    torch.manual_seed(0)
    layers = [nn.Linear(3, 2) for _ in range(1000)]  # of some, rounding makes more than 1
    assert max(weight_similarity(layer, layer)[0] for layer in layers) == 1.0


def test_the_order_and_the_scale_of_hidden_channels_do_not_count():
    """With their rows in one layer, the columns of the next move; a linear one has 16 each."""
    a = cnn(0).double()
    b = copy.deepcopy(a)
    with torch.no_grad():
        first, grouped, up, head = a[0], a[1][2], a[2], a[3][2]
        order = torch.tensor([2, 0, 1, 4, 5, 3])  # within the groups of the next layer
        b[0].weight.copy_(-3 * first.weight[order])
        moved = grouped.weight.view(2, 4, 3, 3, 3)
        moved = torch.stack([moved[0][:, order[:3]], moved[1][:, order[3:] - 3]]).flatten(0, 1)
        order = torch.randperm(8)
        b[1][2].weight.copy_(moved)
        b[2].weight.copy_(up.weight)
        assert weight_similarity(a, b) == pytest.approx([1.0] * LAYERS, rel=1e-12)
        order = torch.randperm(4)
        b[2].weight.copy_(1e-3 * up.weight[:, order])
        assert weight_similarity(a, b)[2:] != pytest.approx([1.0, 1.0], rel=1e-3)  # head's did not
        b[3][2].weight.copy_(head.weight.view(5, 4, 16)[:, order].flatten(1))
        assert weight_similarity(a, b) == pytest.approx([1.0] * LAYERS, rel=1e-12)


def test_independent_networks_by_their_widths():
    """Of C random rows of N elements, the similarity is C / (N + C) in the mean."""
    torch.manual_seed(0)
    narrow = [nn.Linear(512, 16) for _ in range(2)]
    assert weight_similarity(*narrow) == pytest.approx([16 / 528], rel=0.1)
    wide = [nn.Linear(16, 512) for _ in range(2)]
    assert weight_similarity(*wide) == pytest.approx([512 / 528], rel=0.1)
    deep = [nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))) for _ in range(2)]
    found = weight_similarity(*deep)
    assert found == sorted(found, reverse=True) and found[-1] < 0.2


@pytest.mark.parametrize(
    "options",
    [
        {"formula": "paper"},  # the default
        # gain and shift, and a formula of each layer's fan-in
        {"formula": "nfnet", "gain": True, "shift": True},
    ],
)
def test_layers_that_standardize_count_with_what_they_apply(options):
    a, b = cnn(0, **options), cnn(1, **options)
    for layer in (*a.modules(), *b.modules()):
        for vector in (getattr(layer, "gain", None), getattr(layer, "shift", None)):
            if vector is not None:
                nn.init.normal_(vector)
    found = weight_similarity(a, b)
    assert found == weight_similarity(plain(a), plain(b)) == weight_similarity(a, plain(b))
    assert found != pytest.approx(weight_similarity(cnn(0), cnn(1)), rel=1e-3)


def test_parametrized_layers_count_with_what_they_apply():
    a, b = cnn(0), cnn(1)
    converted = [cnn(0, formula="timm"), cnn(1, formula="timm")]
    for model in (a, b):
        for layer in (model[0], model[1][2], model[2], model[3][2]):
            torch_ws.parametrize(layer, formula="timm")
    assert weight_similarity(a, b) == weight_similarity(*converted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])  # whose products would overflow
def test_in_float64_whatever_the_weights_are(dtype):
    a, b = cnn(0).to(dtype), cnn(1).to(dtype)
    found = weight_similarity(a, b)
    assert all(type(value) is float for value in found)
    assert found == weight_similarity(a.double(), b.double())


def test_positions_one_by_one_or_together(monkeypatch):
    a, b = cnn(0), cnn(1)
    expected = weight_similarity(a, b)
    monkeypatch.setattr(torch_ws.similarity, "CHUNK", 1)
    assert weight_similarity(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])  # whose square is out of range
def test_long_chains_stay_in_range(scale):
    torch.manual_seed(0)
    a, b = (nn.Sequential(*(nn.Linear(8, 8) for _ in range(100))).double() for _ in range(2))
    expected, products = [], [torch.eye(8, dtype=torch.float64)] * 2
    for layers in zip(a, b, strict=True):
        products = [layer.weight.data @ p for layer, p in zip(layers, products, strict=True)]
        products = [p / p.norm() for p in products]
        grams = [p.T @ p for p in products]
        grams = [g / g.norm() for g in grams]
        expected.append((grams[0] * grams[1]).sum().item())
    with torch.no_grad():
        for layer in b:
            layer.weight.mul_(scale)
    assert weight_similarity(a, b) == pytest.approx(expected, rel=1e-9)


def test_zeros_and_what_is_not_finite():
    a, b = cnn(0), cnn(1)
    expected = weight_similarity(a, b)
    with torch.no_grad():
        nn.init.zeros_(b[1][2].weight)
        assert weight_similarity(a, b) == [expected[0], 0.0, 0.0, 0.0]
        assert weight_similarity(b, b)[1:] == [0.0, 0.0, 0.0]
        for value in (math.nan, math.inf):
            b = cnn(1)
            b[1][2].weight[3, 0, 0, 0] = value
            found = weight_similarity(a, b)
            assert found[0] == expected[0] and all(map(math.isnan, found[1:]))


def test_a_layer_that_comes_twice():
    layer = nn.Linear(4, 4)
    again = nn.Sequential(layer, nn.ReLU(), layer)
    copied = nn.Sequential(copy.deepcopy(layer), copy.deepcopy(layer))
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert weight_similarity(again, other) == weight_similarity(copied, other)


def test_a_layer_alone_and_classes_of_ones_own():
    """Of a layer only if it standardizes: such a class applies its standardized weight."""

    class Sequence(nn.Sequential):
        pass

    class Layer(torch_ws.Standardized, nn.Conv1d):
        channels = "out_channels"

    a, b, own = nn.Conv1d(3, 4, 5), torch_ws.WSConv1d(3, 8, 5), Layer(3, 8, 5)
    own.load_state_dict(b.state_dict())
    expected = weight_similarity(a, b)
    assert expected == weight_similarity(Sequence(a), nn.Sequential(Sequence(own)))


def test_a_chain_by_its_names():
    """In a network with branches, of which it takes one; in any order."""
    a, b = (build("resnet")[0] for _ in range(2))
    names = ["0.0", "1.0.conv1", "1.0.conv2", "1.0.conv3", "1.1.conv1"]
    chains = [nn.Sequential(*map(model.get_submodule, names)) for model in (a, b)]
    assert weight_similarity(a, b, iter(names)) == weight_similarity(*chains)
    backwards = ["1.1.conv1", "1.0.conv2"]
    pairs = [nn.Sequential(*map(model.get_submodule, backwards)) for model in (a, b)]
    assert weight_similarity(a, b, layers=backwards) == weight_similarity(*pairs)


WHERE = {
    "training": lambda model: ExitStack(),
    "inside hold": lambda model: torch_ws.hold(model),
    # which warns of layers that train outside of a pass
    "grouped": lambda model: torch_ws.group(model),
    # whose layers count their uses
    "fused": lambda model: torch_ws.fuse(model, torch.optim.SGD(model.parameters(), 0.1)),
}


@pytest.mark.parametrize("where", WHERE)
def test_it_only_looks(where):
    a, b = cnn(0, formula="paper"), cnn(1, formula="paper")
    expected = weight_similarity(a, b)
    assert all("_cached" not in vars(m) for m in a.modules())
    x = torch.randn(2, 3, 8, 8)

    def gradients(looks):
        model = copy.deepcopy(a)
        with ExitStack() as stack:
            state = WHERE[where](model)
            if hasattr(state, "__enter__"):
                stack.enter_context(state)
            for _ in range(2):  # before a pass, and between two
                if looks:
                    known = [vars(m).copy() for m in model.modules()]
                    assert weight_similarity(model, b) == expected
                    assert [vars(m) for m in model.modules()] == known
                model(x).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found, alone in zip(gradients(True), gradients(False), strict=True):
            assert torch.equal(found, alone)


def test_no_pass_of_a_parametrization_that_has_a_state():
    layer = parametrizations.spectral_norm(nn.Linear(6, 5))
    assert layer.training
    before = copy.deepcopy(layer.state_dict())
    assert weight_similarity(layer, nn.Linear(6, 5))[0] > 0
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_autocast_does_not_count():
    a, b = cnn(0, formula="paper"), cnn(1, formula="paper")
    expected = weight_similarity(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert weight_similarity(a, b) == expected
