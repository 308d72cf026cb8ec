"""README's and docs/evidence.md's figures are those of the recorded runs."""

import json
import re
from pathlib import Path

import pytest

from bench.evidence import report
from bench.evidence.measures import LOSS, Measure
from bench.evidence.panels import LONG, PANELS
from bench.evidence.verdict import AGAINST, judge

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
PAGE = (ROOT / "docs" / "evidence.md").read_text()
README = (ROOT / "README.md").read_text()
RECORDED = {
    name: json.loads((RESULTS / f"{name}.json").read_text())
    for name in ("evidence", "evidence-long")
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_page_has_the_table_of_each_recorded_run(name):
    assert report.as_markdown(RECORDED[name]) in PAGE


def test_readme_has_six_rows_and_says_where_it_is_slower():
    rows = re.findall(
        r"^\|.*\| (?:\*\*)?(?:shows|does not show|against)(?:\*\*)? \|$", README, re.M
    )
    recorded = [
        report.markdown_row(row) for found in RECORDED.values() for row in found["comparisons"]
    ]
    assert len(rows) == 6 and set(rows) <= set(recorded)
    assert sum(f"**{AGAINST}**" in row for row in rows) >= 2


def test_readme_counts_right():
    comparisons = sum(len(found["comparisons"]) for found in RECORDED.values())
    assert f"trains {len(RECORDED['evidence']['runs'])} small networks" in README
    assert f"Six of {comparisons} comparisons" in README


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs_are_whole_and_quotable(name):
    found = RECORDED[name]
    assert found["complete"] and found["load"] <= 0.5
    assert found["settings"]["seeds"] == 5 and found["settings"]["steps"] == 200
    assert found["data"]["name"] == "Fashion-MNIST" and found["data"]["warnings"] == []
    panels = {comparison["panel"] for comparison in found["comparisons"]}
    assert panels == ({LONG} if name == "evidence-long" else set(PANELS) - {LONG})


@pytest.mark.parametrize("name", RECORDED)
def test_verdicts_follow_from_the_recorded_values(name):
    for row in RECORDED[name]["comparisons"]:
        measure = Measure(row["measure"], LOSS.of, row["claim"], row["is_ratio"])
        found = judge(row["values_without"], row["values_with"], measure)
        assert found.verdict == row["verdict"], row
        actual = [found.without, found.with_, found.difference, found.low, found.high]
        recorded = [row[key] for key in ("without", "with", "difference", "low", "high")]
        assert actual == pytest.approx(recorded, rel=2e-3, abs=2e-4)


def test_the_picture_is_shown():
    for page, text in ((ROOT / "README.md", README), (ROOT / "docs" / "evidence.md", PAGE)):
        [path] = re.findall(r"\]\(([^)]*evidence[^)]*\.png)\)", text)
        assert (page.parent / path).resolve() == ROOT / "docs" / "evidence.png"
