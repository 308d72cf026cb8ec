"""What the tests of batch-channel normalization share: its mathematics, and layers to hold to it.

The mathematics is channel by channel and group by group, in plain float64 arithmetic; autograd
gives its gradients. Functions take an input (N, C, ...); with running statistics they return the
output and the new ones.
"""

import io

import torch


def varied(layer):
    """The layer, with parameters and statistics that all differ from their initial values."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return layer


def exported(layer, x):
    """The program of the layer, for batches of any size, as a file would give it back."""
    batches = {0: torch.export.Dim("batch")}
    program = torch.export.export(layer, (x,), dynamic_shapes=(batches,))
    file = io.BytesIO()
    torch.export.save(program, file)
    return torch.export.load(io.BytesIO(file.getvalue())).module()


def _normalized(values, mean, var, eps):
    return (values - mean) / (var + eps).sqrt()


def _by_channel(x, weight, bias, statistics, eps):
    """statistics: of channel c's values, (mean, var) to normalize by."""
    channels = []
    for c in range(x.shape[1]):
        y = _normalized(x[:, c], *statistics(c, x[:, c]), eps)
        channels.append(y if weight is None else y * weight[c] + bias[c])
    return torch.stack(channels, 1)


def estimated(x, weight, bias, mean, var, *, rate, eps=1e-5):
    """The authors' EstBN in training; rate 0 is evaluation."""
    new_mean, new_var = mean.clone(), var.clone()
    for c in range(x.shape[1]):
        values = x[:, c].detach().flatten()
        new_mean[c] = (1 - rate) * mean[c] + rate * values.mean()
        new_var[c] = (1 - rate) * var[c] + rate * ((values - mean[c]) ** 2).mean()
    y = _by_channel(x, weight, bias, lambda c, _: (new_mean[c], new_var[c]), eps)
    return y, new_mean, new_var


def batch(x, weight, bias, mean, var, *, momentum, eps=1e-5):
    """torch.nn's batch normalization in training: its running variance is the sample variance."""
    new_mean, new_var = mean.clone(), var.clone()
    for c in range(x.shape[1]):
        values = x[:, c].detach().flatten()
        new_mean[c] = (1 - momentum) * mean[c] + momentum * values.mean()
        new_var[c] = (1 - momentum) * var[c] + momentum * values.var(correction=1)
    own = lambda c, values: (values.mean(), values.var(correction=0))  # noqa: E731
    return _by_channel(x, weight, bias, own, eps), new_mean, new_var


def groups(x, num_groups, weight, bias, eps=1e-5):
    """The second step; weight and bias have one value a group, or one a channel."""
    size = x.shape[1] // num_groups
    samples = []
    for sample in x:
        blocks = sample.split(size)
        blocks = [_normalized(b, b.mean(), b.var(correction=0), eps) for b in blocks]
        if weight is not None:
            each = (-1, *[1] * (sample.dim() - 1))
            blocks = [
                block * w.view(each) + b.view(each)
                for block, w, b in zip(
                    blocks, weight.chunk(num_groups), bias.chunk(num_groups), strict=True
                )
            ]
        samples.append(torch.cat(blocks))
    return torch.stack(samples)
