"""Every class of layer in every shape that matters, beside its counterpart of torch.nn."""

import torch
import torch_ws
from torch import nn

# (our class, its counterpart, arguments): every class; grouped, depthwise, strided and dilated
LAYERS = {
    "Conv1d": (torch_ws.WSConv1d, nn.Conv1d, (4, 6, 3), {"padding": 1}),
    "Conv2d": (torch_ws.WSConv2d, nn.Conv2d, (4, 6, 3), {"stride": 2, "dilation": 2}),
    "Conv2d grouped": (torch_ws.WSConv2d, nn.Conv2d, (4, 6, 3), {"groups": 2, "bias": False}),
    "Conv2d depthwise": (torch_ws.WSConv2d, nn.Conv2d, (4, 4, 3), {"groups": 4}),
    "Conv2d reflect": (
        torch_ws.WSConv2d,
        nn.Conv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "reflect"},
    ),
    "Conv2d same": (torch_ws.WSConv2d, nn.Conv2d, (4, 6, 4), {"padding": "same"}),
    "Conv3d": (torch_ws.WSConv3d, nn.Conv3d, (4, 6, 2), {}),
    "ConvTranspose1d": (torch_ws.WSConvTranspose1d, nn.ConvTranspose1d, (4, 6, 3), {"stride": 2}),
    "ConvTranspose2d": (
        torch_ws.WSConvTranspose2d,
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"stride": 2, "output_padding": 1, "padding": 1},
    ),
    "ConvTranspose2d grouped": (
        torch_ws.WSConvTranspose2d,
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"groups": 2},
    ),
    "ConvTranspose2d depthwise": (
        torch_ws.WSConvTranspose2d,
        nn.ConvTranspose2d,
        (4, 8, 3),
        {"groups": 4},
    ),
    "ConvTranspose3d": (torch_ws.WSConvTranspose3d, nn.ConvTranspose3d, (4, 6, 2), {}),
    "Linear": (torch_ws.WSLinear, nn.Linear, (4, 6), {}),
}


def make(name, **options):
    cls, counterpart, arguments, kwargs = LAYERS[name]
    layer = cls(*arguments, **kwargs, **options)
    plain = counterpart(*arguments, **kwargs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    plain.load_state_dict(layer.state_dict(), strict=not options)
    dims = 0 if isinstance(plain, nn.Linear) else plain.weight.dim() - 2
    return layer, plain, torch.randn(2, 4, *[9] * dims)
