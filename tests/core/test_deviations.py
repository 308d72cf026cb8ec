"""docs/formulas.md: its tables are what torch_ws.formulas says and what the code computes."""

import re

import pytest
import torch
from formulas_page import table
from published import PUBLISHED
from torch_ws import Formula, formulas, standardize

EXACT = Formula(eps=0.0, eps_mode="var")

# A stem, a narrow and a wide 3x3, a wide 1x1 and a depthwise layer.
SHAPES = [(64, 3, 7, 7), (64, 64, 3, 3), (512, 512, 3, 3), (2048, 512, 1, 1), (64, 1, 3, 3)]


def initialized(shape, seed=0):
    """A weight as torch.nn initializes it, in float64, as one row a channel."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(shape, dtype=torch.float64)
    return torch.nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator).flatten(1)


def deviation(weight, formula):
    exact = standardize(weight, formula=EXACT)
    out = standardize(weight, formula=formula)
    if formula.scale == "fan_in":
        out = out * weight.shape[1] ** 0.5
    return ((out - exact).abs().amax(1) / exact.abs().amax(1)).max().item()


def printed(value):
    """Two digits, as the page has them: 6.4e-2."""
    return "0" if value < 1e-12 else re.sub(r"e-0", "e-", f"{value:.1e}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_deviations(shape):
    weight, heading = initialized(shape), "×".join(map(str, shape))
    rows = table("formula")
    assert sorted(name for row in rows for name in row["formula"].split(", ")) == sorted(formulas)
    for row in rows:
        for name in row["formula"].split(", "):
            assert row[heading] == printed(deviation(weight, formulas[name])), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_another_seed_gives_about_the_same(shape):
    """What the page concludes must not hang on its seed; of 9 elements, the least variance does."""
    weight, other = initialized(shape), initialized(shape, seed=1)
    for name, formula in formulas.items():
        one, two = deviation(weight, formula), deviation(other, formula)
        if formula.center and max(one, two) > 1e-12:
            assert max(one, two) / min(one, two) < (3 if shape[1] == 1 else 1.2), name


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_rules_of_thumb(shape):
    """The page's 1.5 eps N and its like, for channels of the variance 1 / (3 N)."""
    weight = initialized(shape)
    cols = weight.shape[1]
    for name, formula in formulas.items():
        eps = formula.eps / cols if formula.eps_per_fan_in else formula.eps
        rules = {"var": 1.5 * eps * cols, "std": eps * (3 * cols) ** 0.5, "clamp": 0.0}
        rule = rules[formula.eps_mode] + formula.correction / (2 * cols)
        if formula.center:
            # first order, and a channel's variance is not quite 1 / (3 N)
            assert deviation(weight, formula) == pytest.approx(rule, rel=0.25, abs=1e-12), name


def test_the_table_of_names():
    rows = table("name")
    assert [row["name"] for row in rows] == list(formulas)
    for row in rows:
        other = set(filter(None, row["other"].split(", ")))
        formula = Formula(
            correction=int(row["correction"]),
            eps=float(row["eps"]),
            eps_mode=row["eps_mode"],
            scale="fan_in" if "fan_in" in other else "unit",
            eps_per_fan_in="eps_per_fan_in" in other,
            center="center=False" not in other,
        )
        assert formula == formulas[row["name"]], row["name"]
        assert other <= {"fan_in", "eps_per_fan_in", "center=False"}
        takes = tuple(filter(None, row["takes"].split(", ")))
        assert {s.takes for s in PUBLISHED if s.formula == row["name"]} == {takes}


def test_every_repository_of_the_table_is_transcribed():
    repository = re.compile(r"[\w.-]+/[\w.-]+(?= :)")
    for row in table("name"):
        sources = [s.compute for s in PUBLISHED if s.formula == row["name"]]
        docstrings = " ".join(getattr(s, "func", s).__doc__ for s in sources)
        in_page = set(repository.findall(row["as in (repository : path)"]))
        assert in_page <= set(repository.findall(docstrings)), row["name"]
