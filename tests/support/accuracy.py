"""The one tolerance rule: PyTorch's own error on the same rows, not what happens to pass.

`F.layer_norm` over a channel is weight standardization with eps inside the root, and PyTorch's
native kernel for it. Whatever we compute may be at most twice as far from float64, relative to the
largest value, plus one rounding of the result's dtype (two in float64, where the judge rounds too).
"""

import torch
import torch.nn.functional as F
from torch_ws import reference


def rows_of(tensor, channel_dim=0):
    return tensor.movedim(channel_dim, 0).flatten(1)


def relative_error(actual, expected):
    scale = expected.abs().max().item()
    return (actual.double() - expected).abs().max().item() / scale if scale > 0 else 0.0


def layer_norm_errors(weight, grad, channel_dim=0):
    """The relative errors of F.layer_norm, forward and backward, in weight's and grad's dtypes."""
    rows = rows_of(weight.detach(), channel_dim)
    grad = rows_of(grad, channel_dim)
    peer = rows.clone().requires_grad_()
    out = F.layer_norm(peer, peer.shape[1:], eps=1e-5).to(grad.dtype)
    out.backward(grad)
    judge = rows.double().requires_grad_()
    expected = reference.standardize(judge, formula="nnabla")  # eps 1e-5 in the root
    expected.backward(grad.double())
    return relative_error(out.detach(), expected.detach()), relative_error(peer.grad, judge.grad)


def assert_close(actual, expected, peer_error):
    """`expected` is float64; `peer_error` comes from layer_norm_errors."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    roundings = 2 if actual.dtype == torch.float64 else 1
    bound = 2 * peer_error + roundings * torch.finfo(actual.dtype).eps
    error = relative_error(actual, expected)
    assert error <= bound, f"relative error {error:.3g}, allowed {bound:.3g}"
