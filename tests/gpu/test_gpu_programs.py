"""The programs of ``make gpu``: entries by the CPU's kernels, launches under a made-up ncu."""

import sys

import pytest
import torch
import torch_ws

from gpu import entries, launches
from gpu.stages import ROW_LENGTHS


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # to wake others for small references takes longer
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not torch_ws.info()["cuda_build"], reason="built without CUDA: no launch table")
def test_every_entry_computes_the_right_things(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # by the CPU's kernels
    assert entries.main([]) == entries.main(["--few"]) == 0
    every, few = capsys.readouterr().out.splitlines()
    assert " weights, 0 wrong, the worst error 0." in every
    assert 0 < int(few.split()[0]) < int(every.split()[0]) / 4  # for the sanitizers


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not torch_ws.info()["cuda_build"], reason="built without CUDA: no launch table")
def test_every_wrong_weight_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    right, many = torch_ws.standardize, torch_ws.standardize_many

    def wrong(weight, gain, shift, **options):  # its values, and not its gradients
        out = right(weight, gain, shift, **options)
        return out + 9 * (weight.shape == (3, 29) and out.dtype == torch.bfloat16)

    def nan_in_one(weights, **options):
        outs = many(weights, **options)
        return outs if len(outs) < 300 else [outs[0] * float("nan"), *outs[1:]]

    monkeypatch.setattr(entries, "standardize", wrong)
    monkeypatch.setattr(entries, "standardize_many", nan_in_one)
    assert entries.main([]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert f", {len({line.split(':')[1] for line in lines})} wrong, the worst error nan" in last
    single = [line for line in lines if line.startswith("WRONG: 3x29 at offset ")]
    assert single and all(": result is off by " in line for line in single)
    assert any(" 1, bfloat16 to bfloat16, entry " in line for line in single)
    assert any(" 0, float32 to bfloat16, entry " in line for line in single)
    listed = [line for line in lines if line not in single]
    assert listed and all("weight 0 of 300: " in line and "nan" in line for line in listed)


def test_launches():
    calls = list(launches.calls("cpu"))
    titles = [title for title, _ in calls]
    model, weights = titles[:5], titles[5:]
    assert model == [
        "ResNet-50 to torch.float32, forward",
        "ResNet-50 to torch.float32, backward",
        "ResNet-50 to torch.bfloat16, forward",
        "ResNet-50 to torch.float32, update",
        "ResNet-50 to torch.float32, norms",
    ]
    lengths = [int(title.split()[0].split("x")[1]) for title in weights if "forward" in title]
    assert lengths == list(ROW_LENGTHS) and len(weights) <= 14  # a dozen: each takes ncu a second
    assert [title for title in weights if "backward" in title]
    for _, call in (*calls[3:5], *calls[-5:]):
        call()


# As ncu prints, shortened: its own lines, the program's, the names, the units, a line for a launch.
PRINTED = """==PROF== Connected to process 7
  0  ResNet-50 to torch.float32, forward
==PROF== Profiling "batch_kernel": 0%....100%
"ID","Kernel Name","gpu__time_duration.sum"
"","","ns"
"""


@pytest.mark.parametrize(
    ("counted", "status", "code"),
    [
        ('"0","void ws::batch_kernel(int)","47,000"\n', 0, 0),
        ("", 0, 1),  # no kernel of that name
        ('"0","void ws::batch_kernel(int)","47,000"\n', 1, 1),  # it stopped
    ],
)
def test_counters(tmp_path, monkeypatch, capsys, counted, status, code):
    ncu = tmp_path / "ncu"
    printed = PRINTED + counted
    ncu.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'arguments')!r}, 'w')"
        f".write(' '.join(sys.argv))\nprint({printed!r}, end='')\nsys.exit({status})\n"
    )
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert launches.main(["--csv", str(tmp_path / "counters.csv")]) == code
    table = [line for line in printed.splitlines(True) if line.startswith('"')]
    assert (tmp_path / "counters.csv").read_text() == "".join(table)
    out = capsys.readouterr().out
    assert "==PROF== Connected to process 7\n  0  ResNet-50" in out
    assert out.endswith(f"\n{counted.count('ws::')} launches counted\n")
    arguments = (tmp_path / "arguments").read_text()
    assert "--clock-control none" in arguments  # the card's settings stay as they are
    assert arguments.endswith(f"{sys.executable} -m gpu.launches")
