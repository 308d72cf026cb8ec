"""OUT/runs.jsonl: nothing that was written down is lost, and nothing is mixed."""

import json

import pytest

from bench.evidence.journal import FILE, Journal, Refused
from bench.evidence.settings import Setting

HEAD = {"cpu": "some", "torch": "2.13.0", "data": {"train images": "c59f"}}
SETTINGS = [Setting(), Setting(norm="bn", lr=0.3), Setting(formula="paper", seed=1)]


def filled(out):
    journal = Journal(out, HEAD, resume=False)
    for number, setting in enumerate(SETTINGS):
        journal.add(setting, {"loss": number})
    return out / FILE


def test_runs_are_taken_up(tmp_path):
    path = filled(tmp_path / "new" / "folder")
    before = path.read_bytes()
    journal = Journal(path.parent, HEAD, resume=True)
    assert {key: run["loss"] for key, run in journal.runs.items()} == {
        setting.key: number for number, setting in enumerate(SETTINGS)
    }
    assert path.read_bytes() == before


def test_what_is_there_is_not_written_over(tmp_path):
    path = filled(tmp_path)
    before = path.read_bytes()
    with pytest.raises(Refused, match="has 3 runs: --resume goes on with them, another --out"):
        Journal(tmp_path, HEAD, resume=False)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        (1, 2),  # the line is whole, but its end
        (20, 2),
        (0, 3),
    ],
)
def test_a_line_that_was_not_finished_is_run_again(cut, left, tmp_path):
    path = filled(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    journal = Journal(tmp_path, HEAD, resume=True)
    assert list(journal.runs) == [setting.key for setting in SETTINGS[:left]]
    for setting in SETTINGS[left:]:
        journal.add(setting, {"loss": 2})
    assert path.read_bytes() == content


@pytest.mark.parametrize("change", [{"cpu": "other"}, {"torch": "2.10"}, {"data": {}}])
def test_runs_made_otherwise_are_not_mixed(change, tmp_path):
    path = filled(tmp_path)
    before = path.read_bytes()
    with pytest.raises(Refused, match="was made from other images, or by another CPU or PyTorch"):
        Journal(tmp_path, {**HEAD, **change}, resume=True)
    assert path.read_bytes() == before


def test_damage_is_said(tmp_path):
    path = filled(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:10] + "\n" + lines[2])
    before = path.read_bytes()
    with pytest.raises(Refused, match="line 2 is damaged"):
        Journal(tmp_path, HEAD, resume=True)
    assert path.read_bytes() == before


def test_nothing_to_resume(tmp_path):
    with pytest.raises(Refused, match="--resume: there is no"):
        Journal(tmp_path / "new", HEAD, resume=True)
    assert not (tmp_path / "new").exists()


def test_a_run_of_an_older_version_is_not_taken_for_another(tmp_path):
    """A setting that has one field more today."""
    path = filled(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["setting"]["lr"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(tmp_path, HEAD, resume=True)
    assert SETTINGS[0].key not in journal.runs and SETTINGS[1].key in journal.runs
