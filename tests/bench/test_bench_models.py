"""The benchmark's model data against the rules of the models' definitions, and published counts."""

import pytest

from bench.weights.workloads import MODELS, SHAPES, model_shapes, model_workload, parse_shape


def resnet50():
    shapes = [(64, 3, 7, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, inputs, 1, 1))
            inputs = 4 * width
    return shapes


def nfnet_f0():
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)]
    inputs = 128
    for stage, (outputs, blocks) in enumerate(((256, 1), (512, 2), (1536, 6), (1536, 3))):
        width = outputs // 2  # expansion 0.5 of the output, in groups of 128
        for block in range(blocks):
            if inputs != outputs or (stage > 0 and block == 0):  # channels or resolution change
                shapes.append((outputs, inputs, 1, 1))
            shapes += [(width, inputs, 1, 1), (width, 128, 3, 3), (width, 128, 3, 3)]
            shapes.append((outputs, width, 1, 1))
            inputs = outputs
    return [*shapes, (2 * inputs, inputs, 1, 1)]


def ddpm_unet():
    def block(inputs, outputs):  # ResnetBlock: two 3x3 convolutions, each with a GroupNorm
        return [(outputs, inputs, 3, 3), (outputs, outputs, 3, 3)]

    levels = [(64, 64), (64, 128), (128, 256), (256, 512)]  # dim 64, dim_mults 1, 2, 4, 8
    shapes = []
    for inputs, _ in levels:
        shapes += 2 * block(inputs, inputs)
    shapes += 2 * block(512, 512)
    for inputs, outputs in reversed(levels):
        shapes += 2 * block(inputs + outputs, outputs)  # with the skip connection
    return shapes + block(2 * 64, 64)


def mask_rcnn_r50_fpn():
    lateral = [(256, inputs, 1, 1) for inputs in (256, 512, 1024, 2048)]
    fpn, box_head, mask_head = 4, 4, 4
    return resnet50() + lateral + (fpn + box_head + mask_head) * [(256, 256, 3, 3)]


def unet3d():
    cube = (3, 3, 3)
    shapes = []
    inputs = 3
    for outputs in (64, 128, 256, 512):
        middle = max(inputs, outputs // 2)
        shapes += [(middle, inputs, *cube), (outputs, middle, *cube)]
        inputs = outputs
    for skip in (256, 128, 64):
        shapes += [(skip, skip + inputs, *cube), (skip, skip, *cube)]
        inputs = skip
    return shapes


RULES = {
    "resnet50": resnet50,
    "bit_r50x1": resnet50,
    "nfnet_f0": nfnet_f0,
    "ddpm_unet": ddpm_unet,
    "mask_rcnn_r50_fpn": mask_rcnn_r50_fpn,
    "unet3d": unet3d,
}


@pytest.mark.parametrize("name", MODELS)
def test_model_shapes(name):
    assert model_shapes(name) == RULES[name]()
    assert MODELS[name]["source"] and MODELS[name]["note"]


@pytest.mark.parametrize(
    ("name", "weights", "elements", "rows"),
    [
        ("resnet50", 53, 23_454_912, 26_560),
        ("bit_r50x1", 53, 23_454_912, 26_560),
        ("nfnet_f0", 57, 46_480_304, 44_912),
        ("ddpm_unet", 38, 28_495_872, 8_064),
        ("mask_rcnn_r50_fpn", 69, 31_515_840, 30_656),
        ("unet3d", 14, 16_314_912, 2_336),
    ],
)
def test_model_totals(name, weights, elements, rows):
    workload = model_workload(name)
    assert (len(workload.shapes), workload.elements, workload.rows) == (weights, elements, rows)


def test_model_totals_give_the_published_parameter_counts():
    def elements(name):
        return model_workload(name).elements

    def rows(name):
        return model_workload(name).rows

    classifier = 2048 * 1000 + 1000
    # torchvision's resnet50: a BatchNorm's two parameters for every row
    assert elements("resnet50") + 2 * rows("resnet50") + classifier == 25_557_032

    # BiT-R50x1 with 1000 classes: GroupNorms before the three convolutions of each unit, one last
    normalized = 2048
    for width, units, inputs in ((64, 3, 64), (128, 4, 256), (256, 6, 512), (512, 3, 1024)):
        normalized += inputs + (units - 1) * 4 * width + units * 2 * width
    assert elements("bit_r50x1") + 2 * normalized + classifier == 25_549_352

    # NFNet-F0, 71.5 M in the paper: a gain and a bias for every row, squeeze-and-excite, skip gain
    blocks = [256, 512, 512, *9 * [1536]]
    excite = sum(2 * (c * (c // 2)) + c // 2 + c + 1 for c in blocks)
    total = elements("nfnet_f0") + 2 * rows("nfnet_f0") + excite + 3072 * 1000 + 1000
    assert round(total / 1e6, 1) == 71.5

    # 3-D U-Net, counted in its paper: two parameters for every normalized row, three 2x2x2
    # up-convolutions without a bias, the final 1x1x1 convolution
    up = 8 * (512**2 + 256**2 + 128**2)
    total = elements("unet3d") + rows("unet3d") + up + 64 * 3 + 3
    assert total == 19_069_955


def test_named_shapes_are_weights():
    assert all(parse_shape(text) for text in SHAPES)
    assert parse_shape("512x128x3x3") == (512, 128, 3, 3)
