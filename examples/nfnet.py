"""Trains one of timm's NFNets: no normalization, adopted layers, adaptive gradient clipping.

    python examples/nfnet.py --model nfnet_l0 --size 96

timm's layers standardize by several operations each time they are called. `adopt` takes them over
with the same numbers, `fuse` standardizes and clips in the optimizer's step: Brock et al. 2021,
arXiv:2102.06171. The images are gratings that this script draws, the classes are their directions.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
import torch_ws

CLASSES = 4


def draw(count, size, generator):
    """Gratings of random color, wavelength and phase in noise (count, 3, size, size); labels."""
    labels = torch.randint(CLASSES, (count,), generator=generator)
    wavelength, phase = 4 + 8 * torch.rand(2, count, 1, 1, generator=generator)
    angle = (labels * math.pi / CLASSES)[:, None, None]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = x * angle.cos() + y * angle.sin()
    wave = torch.sin(2 * math.pi * along / wavelength + phase)
    color = torch.rand(count, 3, 1, 1, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return color * wave[:, None] + noise, labels


def make_model(name):
    """timm's network with torch_ws's layers, and how far the two are apart."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        sys.exit(f"timm is needed ({error}): pip install timm")
    model = timm.create_model(name, num_classes=CLASSES)
    x = torch.randn(2, 3, 64, 64)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        torch_ws.adopt(model)
        error = (model(x) - expected).abs().max() / expected.abs().max()
    return model, error.item()


def make_optimizer(model, lr):
    """Weight decay for what has a direction: no biases, gains, nor the branches' skip gains.

    timm's gains have shape (C, 1, 1, 1); adopted they are vectors, so that their number of
    dimensions tells. Neither the classifier is clipped nor the gains: those that begin at 0 could
    move by no more than 1e-5 a step, and their branches would stay off in a short training.
    """
    groups = {True: [], False: []}
    for parameter in model.parameters():
        groups[parameter.dim() > 1].append(parameter)
    options = [
        {"params": groups[True], "weight_decay": 2e-5},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(options, lr=lr, momentum=0.9, nesterov=True)
    head = {id(p) for p in model.get_classifier().parameters()}
    unclipped = {
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in head or name.endswith("gain")
    }
    torch_ws.fuse(model, optimizer, agc=lambda name: None if name in unclipped else 0.01)
    return optimizer


def train(model, args):
    optimizer = make_optimizer(model, args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    total = 0.0
    for step in range(1, args.steps + 1):
        x, y = draw(args.batch, args.size, generator)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()  # clips, decays, steps, standardizes
        optimizer.zero_grad()
        schedule.step()
        total += loss.item()
        if step % max(1, args.steps // 5) == 0:
            print(f"step {step}: loss {total / max(1, args.steps // 5):.3f}", flush=True)
            total = 0.0


@torch.no_grad()
def accuracy(model, size):
    x, y = draw(200, size, torch.Generator().manual_seed(-1))
    model.eval()
    outputs = torch.cat([model(part) for part in x.split(50)])
    return outputs, (outputs.argmax(1) == y).double().mean().item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nfnet_l0", help="of timm; default: nfnet_l0")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.steps, args.batch, args.size) < 1:
        parser.error("--steps, --batch and --size must be at least 1")
    if not 0 < args.lr < math.inf or not 0 <= args.seed < 2**63:
        parser.error("--lr must be positive, --seed a number from 0 on")
    torch.manual_seed(args.seed)
    model, error = make_model(args.model)
    print(f"adopted: outputs differ by {error:.1e} of the largest")
    train(model, args)
    outputs, right = accuracy(model, args.size)
    print(f"accuracy {100 * right:.1f} %")
    folded, _ = accuracy(torch_ws.fold(model), args.size)
    difference = (folded - outputs).abs().max() / outputs.abs().max()
    print(f"folded to plain layers: outputs differ by {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
