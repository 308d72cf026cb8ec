"""State dicts say by which formula they were trained; what does not fit is explained."""

import io
import warnings

import pytest
import torch
import torch_ws
from peer_layers import ScaledStdConv2d
from torch import nn


def saved(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file)  # weights_only


def network(formula, **options):
    return nn.Sequential(
        torch_ws.WSConv2d(3, 4, 3, formula=formula, **options),
        torch_ws.WSLinear(4, 2, formula=formula, **options),
    )


CUSTOM = torch_ws.Formula(eps=1e-3, scale="fan_in")


@pytest.mark.parametrize(
    ("ours", "theirs", "was", "has"),
    [("timm", "paper", "'timm'", "'paper'"), ("nfnet", CUSTOM, "'nfnet'", r"Formula\(eps=0.001")],
)
def test_another_formula_is_warned_of_once(ours, theirs, was, has):
    state, model = saved(network(ours)), network(theirs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model.load_state_dict(state)
    [warning] = caught
    assert issubclass(warning.category, UserWarning)
    with (
        pytest.raises(
            UserWarning, match=f"saved by a layer with formula {was}, .*into one with {has}"
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        model.load_state_dict(state)
    assert torch.equal(model[0].weight, state["0.weight"])


def silent(model, state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(state)


def test_no_warning_where_nothing_is_known_or_nothing_differs():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    silent(network("timm"), saved(network("timm")))
    silent(network("paper"), saved(network("qiao")) and saved(plain))  # says nothing
    silent(network("paper"), dict(saved(network("timm"))))  # lost what it said
    silent(plain, saved(network("timm")))
    # the same formula by another name
    silent(network(torch_ws.Formula(eps=1e-6, eps_mode="var")), saved(network("timm")))


def test_a_converted_model_says_it_too():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    torch_ws.convert(model, "timm", linear=True)
    with pytest.warns(UserWarning, match="formula 'timm'"):
        network("paper").load_state_dict(saved(model))


def test_formulas_of_a_later_version_are_not_understood_but_warned_of():
    state = saved(network("paper"))
    state._metadata["0"]["formula"] = {"eps": 1e-5, "window": 3}
    with pytest.warns(UserWarning, match="formula {'eps': 1e-05, 'window': 3}"):
        network("paper").load_state_dict(state)


def test_timms_gain_points_to_from_timm():
    state = nn.Sequential(ScaledStdConv2d(3, 4, 3)).state_dict()
    model = nn.Sequential(torch_ws.WSConv2d(3, 4, 3, formula="timm_scaled", gain=True))
    with pytest.raises(RuntimeError, match=r"0\.gain .* torch_ws\.checkpoints\.from_timm"):
        model.load_state_dict(state)
    model.load_state_dict(torch_ws.checkpoints.from_timm(state))
    with pytest.raises(RuntimeError) as error:  # any other shape is no reason for the hint
        model.load_state_dict({**model.state_dict(), "0.gain": torch.ones(3)})
    assert "from_timm" not in str(error.value)
