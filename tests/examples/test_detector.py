"""examples/detector.py: it learns, in micro-batches as in batches; its targets and its measure."""

import pytest
import torch
from example_programs import run_example

from examples import detector


@pytest.mark.slow
def test_it_learns_and_is_folded():
    options = ("--steps", 120, "--size", 48, "--micro-batch", 4, "--test", 60)
    *steps, precision, folded = run_example("detector.py", *options, OMP_NUM_THREADS="1")
    losses = [float(line.split()[-1]) for line in steps]
    assert len(losses) == 5 and losses[-1] < 0.6 * losses[0]
    assert float(precision.split()[2]) > 30  # of an untrained one: about 1
    assert folded == "folded to plain layers: the same outputs"


@pytest.mark.parametrize("flag", ["--ws", "--no-ws"])  # fused, and by torch's step
def test_micro_batches_add_up_to_the_batch(flag, capsys):
    """The loss is divided by the boxes' cells of the batch, so only by rounding do they differ."""
    losses = []
    for micro_batch in ("1", "2", "4"):
        options = ["--steps", "5", "--size", "32", "--batch", "4", "--test", "1", flag]
        detector.main([*options, "--micro-batch", micro_batch])
        *steps, _, _ = capsys.readouterr().out.splitlines()
        losses.append([float(line.split()[-1]) for line in steps])
    assert losses[1] == pytest.approx(losses[0], abs=3e-3)
    assert losses[2] == pytest.approx(losses[0], abs=3e-3)


def test_boxes_are_where_the_shapes_are():
    """A shape is brighter than its surroundings by at least 1, the noise's deviation is 0.2."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        image, boxes, labels = detector.draw(64, generator)
        assert 1 <= len(boxes) == len(labels)
        assert boxes.min() >= 0 and boxes.max() <= 64
        brightness = image.mean(0)
        background = brightness.flatten().median()
        for x0, y0, x1, y1 in boxes.round().int().tolist():
            inner = brightness[y0:y1, x0:x1]
            middle = inner[inner.shape[0] // 2, inner.shape[1] // 2]
            assert middle > background + 0.5
            outside = brightness.clone()
            for a, b, c, d in boxes.round().int().tolist():
                outside[max(0, b - 1) : d + 1, max(0, a - 1) : c + 1] = background
            assert outside.max() < background + 0.7


def test_targets_say_where_the_box_is():
    boxes = torch.tensor([[4.0, 6.0, 30.0, 34.0], [40.0, 40.0, 56.0, 60.0]])
    classes, distances = detector.targets(boxes, torch.tensor([0, 1]), 64)
    points = detector.cells(64)
    for label, box in enumerate(boxes):
        mine = classes == label
        assert mine.any()
        sides = detector.STRIDE * distances[mine]
        decoded = torch.cat([points[mine] - sides[:, :2], points[mine] + sides[:, 2:]], 1)
        torch.testing.assert_close(decoded, box.expand_as(decoded))
    away = (points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2).amin(1)
    assert (classes[away > 1.5 * detector.STRIDE] == -1).all()


def test_the_smaller_box_counts():
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [24.0, 24.0, 44.0, 44.0]])
    for order in ([0, 1], [1, 0]):
        classes, _ = detector.targets(boxes[order], torch.tensor([0, 1])[order], 64)
        inside = ((detector.cells(64) > 24) & (detector.cells(64) < 44)).all(1)
        assert (classes[inside] == 1).all()


def test_exact_predictions_have_the_least_loss():
    """Boxes that are met add nothing; from there every change adds."""
    boxes = torch.tensor([[4.0, 6.0, 30.0, 34.0]])
    classes, distances = detector.targets(boxes, torch.tensor([1]), 64)
    sure = torch.full((len(classes), detector.CLASSES), -20.0)
    sure[classes == 1, 1] = 20.0
    inside = classes >= 0
    near, far = distances.chunk(2, 1)
    nearness = (near.minimum(far) / near.maximum(far)).prod(1).sqrt()
    best = sure, distances, torch.logit(nearness.clamp(1e-6, 1 - 1e-6))
    least = detector.loss_of(best, classes, distances)
    entropy = -nearness * nearness.log() - (1 - nearness) * (1 - nearness).log()
    torch.testing.assert_close(least, entropy[inside].sum())
    for i in range(3):
        worse = list(best)
        worse[i] = worse[i] * 1.1 if i else -worse[i]
        assert detector.loss_of(worse, classes, distances) > least + 1e-4


FOUND = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "expected"),
    [
        (FOUND, [0.9, 0.8], [0, 1], 1.0),
        (FOUND, [0.9, 0.8], [1, 0], 0.0),  # of the other class
        (FOUND[:1], [0.9], [0], 0.5),  # one class is found
        (FOUND + 6, [0.9, 0.8], [0, 1], 0.0),  # overlap too little
        (FOUND[[0, 0, 1]], [0.9, 0.8, 0.7], [0, 0, 1], 1.0),  # a second one comes after all
        # a wrong one before the right one: precision is a half
        (torch.cat([FOUND[:1] + 6, FOUND]), [0.9, 0.8, 0.7], [0, 0, 1], 0.75),
        (FOUND[:0], [], [], 0.0),
    ],
)
def test_average_precision(boxes, scores, labels, expected, monkeypatch):
    found = boxes, torch.tensor(scores), torch.tensor(labels, dtype=torch.long)
    monkeypatch.setattr(detector, "detect", lambda model, image: found)
    pictures = [(None, FOUND, torch.tensor([0, 1]))]
    assert detector.average_precision(torch.nn.Identity(), pictures) == pytest.approx(expected)


def test_of_boxes_that_overlap_the_best_is_kept():
    """Three cells see the same box, one another class there, one a box elsewhere."""
    points = detector.cells(64)
    boxes = torch.tensor([[8.0, 8.0, 32.0, 32.0]]).repeat(len(points), 1)
    boxes[40] = torch.tensor([40.0, 40.0, 60.0, 60.0])
    logits = torch.full((1, len(points), detector.CLASSES), -20.0)
    for cell, label, logit in [(9, 0, 1.0), (10, 0, 3.0), (18, 0, 2.0), (17, 1, 0.5), (40, 0, 2.5)]:
        logits[0, cell, label] = logit
    distances = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1) / detector.STRIDE
    outputs = logits, distances[None], torch.full((1, len(points)), 20.0)
    found, scores, labels = detector.detect(lambda x: outputs, torch.zeros(3, 64, 64))
    torch.testing.assert_close(found, boxes[[10, 40, 17]])
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.5, 0.5]).sigmoid().sqrt())
    assert labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--micro-batch", "3"], "--micro-batch must divide --batch 8, got 3"),
        (["--size", "8"], "--size must be at least 16"),
        (["--steps", "0"], "the other numbers at least 1"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        # the test's pictures are those of seed -1, to torch the same as 2**64 - 1
        (["--seed", "-1"], "--seed must be from 0 to 2**63 - 1, got -1"),
        (["--seed", str(2**64 - 1)], f"--seed must be from 0 to 2**63 - 1, got {2**64 - 1}"),
    ],
)
def test_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        detector.main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_says_when_it_diverges():
    with pytest.raises(SystemExit, match="not finite any more: try a lower --lr"):
        detector.main(["--lr", "1e6", "--steps", "20", "--size", "16", "--batch", "1"])
