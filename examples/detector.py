"""Trains an anchor-free detector with GN and weight standardization in micro-batches.

    python examples/detector.py --batch 8 --micro-batch 1

Images of detectors are large, so that few fit: with GN and WS one at a time does as well as many.
Every cell of a grid predicts classes, the distances to a box's four sides, and how near to the
box's center the cell is, as in FCOS (Tian et al. 2019, arXiv:1904.01355), here on one scale. The
pictures are rectangles and ellipses that this script draws. It prints the loss and the average
precision.
"""

import argparse
import math

import torch
import torch.nn.functional as F
import torch_ws
from torch import nn

CLASSES = 2  # rectangles, ellipses
STRIDE = 8  # pixels a cell


def draw(size, generator):
    """A picture (3, size, size) of one to three shapes, their boxes (n, 4) x0 y0 x1 y1, classes."""

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    image = 0.2 * torch.randn(3, size, size, generator=generator) + uniform(-1, 1, 3, 1, 1)
    boxes, labels = torch.empty(0, 4), []
    y, x = torch.meshgrid(*2 * [torch.arange(size) + 0.5], indexing="ij")
    for _ in range(int(uniform(1, 4, 1))):
        half = uniform(size / 10, size / 5, 2)
        center = half + uniform(0, 1, 2) * (size - 2 * half)
        box = torch.cat([center - half, center + half])[None]
        if iou(box, boxes).any():  # none hides another
            continue
        label = int(uniform(0, CLASSES, 1))
        dx, dy = (x - center[0]) / half[0], (y - center[1]) / half[1]
        inside = dx.square() + dy.square() < 1 if label else dx.abs().maximum(dy.abs()) < 1
        image = torch.where(inside, image + uniform(1, 2, 3, 1, 1), image)
        boxes, labels = torch.cat([boxes, box]), [*labels, label]
    return image, boxes, torch.tensor(labels)


def iou(a, b):
    """Intersection over union of each box of a with each of b."""
    low, high = a[:, None, :2].maximum(b[:, :2]), a[:, None, 2:].minimum(b[:, 2:])
    common = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


class Detector(nn.Module):
    """Logits (images, cells, classes), distances in cells (images, cells, 4), centerness logits."""

    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for width, stride in [(32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (128, 1)]:
            conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            layers += [conv, nn.GroupNorm(16, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.predict = nn.Conv2d(inputs, CLASSES + 5, 3, padding=1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)
        nn.init.constant_(self.predict.bias[:CLASSES], -math.log(99))  # nearly all is background

    def forward(self, x):
        found = self.predict(self.body(x)).flatten(2).transpose(1, 2)
        logits, distances, centerness = found.split([CLASSES, 4, 1], 2)
        return logits, distances.exp(), centerness.squeeze(2)


def cells(size):
    """The cells' centers (cells, 2), x y, in pixels."""
    along = STRIDE * (torch.arange(-(-size // STRIDE)) + 0.5)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], 2).flatten(0, 1)


def targets(boxes, labels, size):
    """Of each cell: its class, -1 for background, and the distances to its box's sides in cells.

    A box's cells are those in it that are near its center; of two boxes the smaller one counts.
    """
    points = cells(size)[:, None]
    distances = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 2)
    off = (points - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
    belongs = (distances.amin(2) > 0) & (off < 1.5 * STRIDE)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    smallest, which = torch.where(belongs, area, torch.inf).min(1)
    classes = torch.where(smallest.isinf(), -1, labels[which])
    return classes, distances[torch.arange(len(which)), which] / STRIDE


def loss_of(outputs, classes, distances):
    """Focal loss of the classes, -log IoU of the boxes, cross-entropy of the centerness; summed."""
    logits, predicted, centerness = outputs
    right = F.one_hot(classes + 1, CLASSES + 1)[..., 1:].float()
    entropy = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
    share = torch.where(right > 0, 0.25, 0.75)
    loss = (share * (1 - torch.exp(-entropy)).square() * entropy).sum()
    inside = classes >= 0
    near, far = distances[inside].chunk(2, 1)  # left and top, right and bottom
    least = predicted[inside].minimum(distances[inside])
    common = (least[:, :2] + least[:, 2:]).prod(1)
    areas = [(box[:, :2] + box[:, 2:]).prod(1) for box in (predicted[inside], distances[inside])]
    loss = loss - torch.log(common / (areas[0] + areas[1] - common)).sum()
    nearness = (near.minimum(far) / near.maximum(far)).prod(1).sqrt()
    return loss + F.binary_cross_entropy_with_logits(centerness[inside], nearness, reduction="sum")


@torch.no_grad()
def detect(model, image):
    """Boxes, scores and classes; of those of a class that overlap by half, the best."""
    logits, distances, centerness = (part[0] for part in model(image[None]))
    scores, labels = (logits.sigmoid() * centerness.sigmoid()[:, None]).sqrt().max(1)
    points = cells(image.shape[-1])
    sides = STRIDE * distances
    boxes = torch.cat([points - sides[:, :2], points + sides[:, 2:]], 1)
    order = scores.argsort(descending=True)[: (scores > 0.05).sum()]
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        same = (iou(boxes[first, None], boxes[order])[0] > 0.5) & (labels[order] == labels[first])
        order = order[~same]
    kept = torch.tensor(kept, dtype=torch.long)
    return boxes[kept], scores[kept], labels[kept]


def average_precision(model, pictures):
    """The mean over classes of the area below precision over recall, at an IoU of a half."""
    model.eval()
    hits, counts = [[] for _ in range(CLASSES)], [0] * CLASSES
    for image, boxes, labels in pictures:
        found = detect(model, image)
        for c in range(CLASSES):
            counts[c] += int((labels == c).sum())
            overlap = iou(found[0][found[2] == c], boxes[labels == c])
            for row, score in zip(overlap, found[1][found[2] == c], strict=True):  # best first
                best = row.max(0) if len(row) else None
                hit = best is not None and bool(best.values >= 0.5)
                if hit:
                    overlap[:, best.indices] = 0  # a box is found once
                hits[c].append((score.item(), hit))
    areas = []
    for found, count in zip(hits, counts, strict=True):
        right = torch.tensor([hit for _, hit in sorted(found, reverse=True)]).double()
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        areas.append(((precision * right).sum() / max(1, count)).item())
    return sum(areas) / CLASSES


def train(model, args):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.1, cycle_momentum=False
    )
    if args.ws:
        torch_ws.fuse(model, optimizer)  # standardizes once for all micro-batches
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    every, total = max(1, args.steps // 5), 0.0
    for step in range(1, args.steps + 1):
        pictures = [draw(args.size, generator) for _ in range(args.batch)]
        images = torch.stack([image for image, _, _ in pictures])
        aims = [targets(boxes, labels, args.size) for _, boxes, labels in pictures]
        classes, distances = map(torch.stack, zip(*aims, strict=True))
        count = max(1, int((classes >= 0).sum()))  # of the batch, however it is divided
        parts = (part.split(args.micro_batch) for part in (images, classes, distances))
        for x, *aim in zip(*parts, strict=True):
            loss = loss_of(model(x), *aim) / count
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise SystemExit("the loss is not finite any more: try a lower --lr")
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % every == 0:
            print(f"step {step}: loss {total / every:.3f}", flush=True)
            total = 0.0


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ws", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--test", type=int, default=200, help="pictures to test with")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.steps, args.batch, args.micro_batch, args.test) < 1 or args.size < 2 * STRIDE:
        parser.error(f"--size must be at least {2 * STRIDE}, the other numbers at least 1")
    if args.batch % args.micro_batch:
        parser.error(f"--micro-batch must divide --batch {args.batch}, got {args.micro_batch}")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        parser.error(f"--lr must be positive and finite, got {args.lr}")
    if not 0 <= args.seed < 2**63:  # the test's pictures are those of seed -1
        parser.error(f"--seed must be from 0 to 2**63 - 1, got {args.seed}")
    torch.manual_seed(args.seed)
    model = Detector()
    if args.ws:
        torch_ws.convert(model, skip=["predict"])  # no normalization follows it
    train(model, args)
    generator = torch.Generator().manual_seed(-1)
    pictures = [draw(args.size, generator) for _ in range(args.test)]
    print(f"average precision {100 * average_precision(model, pictures):.1f} %")
    x = pictures[0][0][None]
    with torch.no_grad():
        expected = model(x)
        for part, wanted in zip(torch_ws.fold(model)(x), expected, strict=True):
            torch.testing.assert_close(part, wanted)
    print("folded to plain layers: the same outputs")


if __name__ == "__main__":
    main()
