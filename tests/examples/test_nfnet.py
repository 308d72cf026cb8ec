"""examples/nfnet.py, with timm."""

import pytest
from example_programs import NO_PEERS, PEERS, run_example

from examples import nfnet


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason=NO_PEERS)
def test_it_is_adopted_learns_and_is_folded():
    """By timm's smallest NFNet."""
    lines = run_example("nfnet.py", "--model", "test_nfnet", "--steps", 60, peers=True)
    adopted, *steps, accuracy, folded = lines
    assert float(adopted.split()[4]) < 1e-4
    losses = [float(line.split()[-1]) for line in steps]
    assert len(losses) == 5 and losses[-1] < 0.8 * losses[0]
    assert float(accuracy.split()[1]) > 45  # of four classes
    assert float(folded.split()[-4]) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--steps", "0"), "must be at least 1"), (("--lr", "nan"), "--lr must be positive")],
)
def test_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        nfnet.main(arguments)
    assert status.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_without_timm_it_says_so():
    [line] = run_example("nfnet.py", status=1)
    assert line.startswith("timm is needed") and line.endswith("pip install timm")
