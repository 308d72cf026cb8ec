"""LoRA on standardizing layers, by peft: trained as it is, merged after fold or refused."""

import copy

import pytest
import torch
import torch_ws
from torch import nn

peft = pytest.importorskip("peft", exc_type=ImportError)


class Net(nn.Module):
    """Of WS layers, or with a plain layer before them."""

    def __init__(self, first=torch_ws.WSConv2d):
        super().__init__()
        self.first = first(3, 4, 3)
        self.conv = torch_ws.WSConv2d(4, 8, 3, gain=True)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = torch_ws.WSLinear(8, 5, formula="timm")

    def forward(self, x):
        return self.fc(self.norm(self.conv(self.first(x))).relu().mean((2, 3)))


def adapted(net, kind=peft.LoraConfig, **options):
    """With an adapter that is not 0, as after training."""
    options = {"init_lora_weights": False, **options} if kind is peft.LoraConfig else options
    config = kind(target_modules=["first", "conv", "fc"], **options)
    model = peft.get_peft_model(net.double(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith("original"):
                parameter.normal_()
    return model.eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)


# by addition to the layer's output, by a factor to it; and two that read the layer's weight
KINDS = {
    "lora": (peft.LoraConfig, {"r": 2}),
    "loha": (peft.LoHaConfig, {"r": 2, "init_weights": False}),
    "lokr": (peft.LoKrConfig, {"r": 2, "init_weights": False}),
    "ia3": (peft.IA3Config, {"feedforward_modules": [], "init_ia3_weights": False}),
    "dora": (peft.LoraConfig, {"r": 2, "use_dora": True}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 1, "init_weights": False}),
}
OF_THE_OUTPUT = ("lora", "loha", "lokr", "ia3")


def test_training_does_not_touch_the_standardized_layers():
    model, x = adapted(Net())
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    model(x).square().mean().backward()
    optimizer.step()
    changed = {key for key, v in model.state_dict().items() if not torch.equal(v, before[key])}
    assert changed and all("lora_" in key for key in changed)


@pytest.mark.parametrize("kind", OF_THE_OUTPUT)
def test_fold_then_merge(kind):
    """The adapter trained on the standardizing layers fits the folded ones, in the same model."""
    make, options = KINDS[kind]
    model, x = adapted(Net(), make, **options)
    expected = model(x)
    torch_ws.fold(model)
    torch.testing.assert_close(model(x), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected)
    assert type(merged.conv) is nn.Conv2d and type(merged.fc) is nn.Linear


@pytest.mark.parametrize("safe_merge", [False, True])  # in place, or in a copy that is put there
@pytest.mark.parametrize("kind", KINDS)
def test_merging_is_an_error_that_changes_no_standardizing_layer(kind, safe_merge):
    make, options = KINDS[kind]
    model, x = adapted(Net(), make, **options)
    expected, before = model(x), copy.deepcopy(model.state_dict())
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(RuntimeError, match=r"would merge .* WSConv2d .*torch_ws\.fold"):
            merge(safe_merge=safe_merge)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())


def test_a_refused_merge_is_finished_after_fold():
    """The plain layers before the first standardizing one are merged by then."""
    model, x = adapted(Net(nn.Conv2d))
    expected = model(x)
    with pytest.raises(RuntimeError, match="WSConv2d"):
        model.merge_and_unload()
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(torch_ws.fold(model).merge_and_unload()(x), expected)


def test_without_standardizing_layers_among_its_targets_an_adapter_is_merged():
    config = peft.LoraConfig(target_modules=["first"], r=2, init_lora_weights=False)
    model = peft.get_peft_model(Net(nn.Conv2d).double().eval(), config)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    expected = model(x)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected)
    assert type(merged.conv) is torch_ws.WSConv2d


def test_unload_gives_the_standardizing_layers_back():
    net = Net().double().eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    expected = net(x)
    model, _ = adapted(net)
    assert torch.equal(model.unload()(x), expected)


def test_fold_then_adapt():
    net = Net().double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    plain = torch_ws.fold(net)(x)
    model, x = adapted(net)
    expected = model(x)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
