"""Trains an image classifier with group normalization and weight standardization, to copy from.

    python examples/train.py DATA --batch 32 --micro-batch 2 --epochs 10 --out run

DATA is a folder of images: train/ and val/ with a subfolder a class, or these subfolders, of which
a tenth is then held out; torchvision reads it. Without DATA: Fashion-MNIST, if it is here.
Micro-batches add up to a batch; GN and WS do as well with one image as with many. run/ gets
last.pt, from which --resume goes on as if nothing had happened, best.pt, and plain.pt: the best
network's standardized weights, for the same network of plain torch.nn layers.

With WS try a higher learning rate before a lower one: small ones train slower than without.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

sys.path.append(str(Path(__file__).parents[1]))  # bench, which finds Fashion-MNIST
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's colors


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        check(args)
        *sets, classes = load_data(args)
        if args.limit:  # every so many, for the classes come one after the other
            sets = [Subset(s, range(0, len(s), -(-len(s) // args.limit))) for s in sets]
        train_set, val_set = sets
        if len(train_set) < args.batch:
            raise ValueError(f"{len(train_set)} training images are fewer than --batch")
        run(args, train_set, val_set, classes)
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="?", metavar="DATA", help="folder of images")
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--resume", action="store_true", help="goes on from OUT/last.pt")
    parser.add_argument("--model", help="resnet18, timm:NAME or small; default: resnet18 with DATA")
    parser.add_argument("--ws", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, help="default: the batch")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="of convolutions, head")
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--size", type=int, default=224, help="of the images in pixels, with DATA")
    parser.add_argument("--limit", type=int, help="images at most, to try things out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def check(args):
    """What can be known before any work, and what must not be written over."""
    args.micro_batch = args.batch if args.micro_batch is None else args.micro_batch
    for name in ("epochs", "batch", "micro_batch", "size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 < args.lr < math.inf or not 0 <= args.seed < 2**63:
        raise ValueError("--lr must be positive, --seed a number from 0 on")
    if args.batch % args.micro_batch:
        raise ValueError(f"--micro-batch must divide --batch {args.batch}, got {args.micro_batch}")
    args.model = args.model or ("resnet18" if args.data else "small")
    has_run = (args.out / "last.pt").exists()
    if has_run and not args.resume:
        raise ValueError(
            f"{args.out} has a run: --resume goes on with it, another --out begins one"
        )
    if args.resume and not has_run:
        raise ValueError(f"--resume: there is no {args.out / 'last.pt'}")


# --- data


def load_data(args):
    """Training and validation images, and the number of classes."""
    if args.data is not None:
        return load_folder(args)
    from bench.evidence.data import NotFound, get

    try:
        data = get(None)
    except NotFound as error:
        raise ValueError(f"no DATA, and {error}") from None
    images = [data.normalized(s.images).expand(-1, 3, -1, -1) for s in (data.train, data.test)]
    labels = data.train.labels, data.test.labels
    return *map(TensorDataset, images, labels), data.classes


def load_folder(args):
    try:
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # the latter where its PyTorch is another
        hint = "pip install torchvision, of the index that your PyTorch is from"
        raise ImportError(f"DATA needs torchvision ({error}): {hint}") from None
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    train = v2.Compose([v2.RandomResizedCrop(args.size), v2.RandomHorizontalFlip(), *end])
    val = v2.Compose([v2.Resize(args.size * 8 // 7), v2.CenterCrop(args.size), *end])
    root = Path(args.data)
    if not root.is_dir():
        raise ValueError(f"DATA: there is no folder {root}")
    if (root / "train").is_dir() and (root / "val").is_dir():
        sets = ImageFolder(root / "train", train), ImageFolder(root / "val", val)
        if sets[0].classes != sets[1].classes:
            raise ValueError(f"DATA: train and val in {root} must have the same classes")
        classes = sets[0].classes
    else:
        sets = ImageFolder(root, train), ImageFolder(root, val)
        classes = sets[0].classes
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.randperm(len(sets[0]), generator=generator).tolist()
        held_out = max(1, len(order) // 10)
        sets = Subset(sets[0], order[held_out:]), Subset(sets[1], order[:held_out])
    if len(classes) < 2:
        raise ValueError(f"DATA: {root} must have two classes or more, got {', '.join(classes)}")
    return *sets, len(classes)


# --- model


def make_model(name, classes):
    """A network of plain torch.nn layers, with GN where it is ours to choose."""
    if name == "small":
        return make_small(classes)
    if name.startswith("timm:"):
        try:
            import timm
        except (ImportError, RuntimeError) as error:
            raise ImportError(f"--model {name} ({error}): pip install timm") from None
        if name.removeprefix("timm:") not in timm.list_models():
            raise ValueError(f"--model {name}: timm has no such model")
        return timm.create_model(name.removeprefix("timm:"), num_classes=classes)
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"--model {name} ({error}): pip install torchvision") from None
    try:
        return models.get_model(name, num_classes=classes, norm_layer=group_norm)
    except TypeError:  # such as VGG's; an unknown name is a ValueError of its own
        raise ValueError(f"--model {name}: its normalization is not ours to choose") from None


def group_norm(channels):
    return nn.GroupNorm(32 if channels % 32 == 0 else 8, channels)


def make_small(classes):
    layers, inputs = [], 3
    for width in (32, 64, 128, 128):
        conv = nn.Conv2d(inputs, width, 3, 2 if inputs != 3 else 1, 1, bias=False)
        layers += [conv, group_norm(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


# --- training


def run(args, train_set, val_set, classes):
    torch.manual_seed(args.seed)
    model = make_model(args.model, classes)
    if args.ws:
        torch_ws.convert(model)  # convolutions; linear layers, such as the head, stay
    model.to(args.device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]  # biases, norms, gains, shifts
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    steps = args.epochs * (len(train_set) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(  # a short warm-up, then down along a cosine
        optimizer, args.lr, steps, pct_start=0.05, cycle_momentum=False
    )
    first, best = 0, -1.0
    settings = {
        k: v for k, v in vars(args).items() if k not in ("out", "resume", "device", "workers")
    }
    if args.resume:
        found = torch.load(args.out / "last.pt", map_location=args.device, weights_only=True)
        changed = [k for k, v in settings.items() if found["settings"].get(k) != v]
        if changed:
            raise ValueError(f"--resume: the run in {args.out} had another {', '.join(changed)}")
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        torch.set_rng_state(found["rng"].cpu())
        first, best = found["epoch"], found["best"]
    if args.ws:
        torch_ws.fuse(model, optimizer)  # standardizes as a part of the optimizer's step
    args.out.mkdir(parents=True, exist_ok=True)
    for epoch in range(first, args.epochs):
        loss = train_epoch(args, epoch, model, train_set, optimizer, schedule)
        accuracy = evaluate(args, model, val_set)
        print(f"epoch {epoch + 1}: loss {loss:.4f}, accuracy {100 * accuracy:.2f} %", flush=True)
        if accuracy > best:
            best = accuracy
            save(model.state_dict(), args.out / "best.pt")
        state = {
            "settings": settings,
            "epoch": epoch + 1,
            "best": best,
            "rng": torch.get_rng_state(),
        }
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        save({**state, **{k: part.state_dict() for k, part in parts.items()}}, args.out / "last.pt")
    export(args, classes, val_set)


def train_epoch(args, epoch, model, images, optimizer, schedule):
    model.train()
    generator = torch.Generator().manual_seed(args.seed + epoch)  # of the order, also when resumed
    options = {"num_workers": args.workers, "drop_last": True, "generator": generator}
    total = count = 0
    for x, y in DataLoader(images, args.batch, shuffle=True, **options):
        x, y = x.to(args.device), y.to(args.device)
        for micro_x, micro_y in zip(
            x.split(args.micro_batch), y.split(args.micro_batch), strict=True
        ):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=args.bf16):
                out = model(micro_x)
            loss = F.cross_entropy(out.float(), micro_y) * (len(micro_x) / len(x))
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        count += 1
    if not math.isfinite(total):
        raise ValueError("the loss is not finite any more: try a lower --lr")
    return total / count


@torch.no_grad()
def evaluate(args, model, images):
    model.eval()
    right = 0
    for x, y in DataLoader(images, 4 * args.batch, num_workers=args.workers):
        right += (model(x.to(args.device)).argmax(1).cpu() == y).sum().item()
    return right / len(images)


def save(found, path):
    """Whole or not at all."""
    torch.save(found, f"{path}.part")
    os.replace(f"{path}.part", path)


@torch.no_grad()
def export(args, classes, images):
    """The best network's standardized weights, in a network that knows nothing of torch_ws."""
    trained, plain = make_model(args.model, classes).eval(), make_model(args.model, classes).eval()
    if args.ws:
        torch_ws.convert(trained)
    trained.load_state_dict(torch.load(args.out / "best.pt", map_location="cpu", weights_only=True))
    x = torch.stack([images[i][0] for i in range(min(16, len(images)))])
    expected = trained(x)
    plain.load_state_dict(torch_ws.fold(trained).state_dict())
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)
    save(plain.state_dict(), args.out / "plain.pt")
    print(f"{args.out / 'plain.pt'}: plain torch.nn layers, the same outputs", flush=True)


if __name__ == "__main__":
    main()
