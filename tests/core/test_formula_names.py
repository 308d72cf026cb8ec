"""torch_ws.formulas as a mapping, and names that it does not have: the nearest are in the error."""

import copy
from collections.abc import Mapping

import pytest
import torch
import torch_ws
from torch import nn
from torch_ws import formulas

W = torch.ones(2, 3)
MISSPELT = [
    ("Timm", "'timm'"),  # in capitals
    ("NFNET", "'nfnet'"),
    ("papers", "'paper'"),  # too much
    ("nfne", "'nfnet'"),  # too little
    ("weight-norm", "'weight_norm'"),
    ("centred_weight_norm", "'centered_weight_norm'"),
    (" timm", "'timm'"),
    ("qioa", "'qiao'"),
]


@pytest.mark.parametrize(("name", "nearest"), MISSPELT)
def test_the_nearest_names_are_in_every_error(name, nearest):
    words = rf"{name!r} \(did you mean {nearest}.*\?\)"
    for call in (
        lambda: torch_ws.standardize(W, formula=name),
        lambda: torch_ws.standardize_many([W], formula=name),
        lambda: torch_ws.standardize_many([W, W], formula=["paper", name]),
        lambda: torch_ws.reference.standardize(W, formula=name),
        lambda: torch_ws.WSLinear(3, 2, formula=name),
        lambda: torch_ws.convert(nn.Conv2d(3, 4, 3), name),
        lambda: torch_ws.parametrize(nn.Linear(3, 4), formula=name),
    ):
        with pytest.raises(ValueError, match=f"formula must be one of paper, .*; got {words}$"):
            call()
    with pytest.raises(KeyError, match=f"no formula {words}; there are paper, qiao, "):
        formulas[name]


@pytest.mark.parametrize("name", ["", "xyz", "µ", "batch normalization"])
def test_nothing_is_guessed_where_nothing_is_near(name):
    with pytest.raises(ValueError, match=f"; got {name!r}$"):
        torch_ws.standardize(W, formula=name)
    with pytest.raises(KeyError, match=f"no formula {name!r}; there are paper, .*weight_norm"):
        formulas[name]


@pytest.mark.parametrize("key", [None, 3, torch_ws.Formula(), ("timm",)])
def test_what_is_no_name_is_no_key(key):
    with pytest.raises(KeyError, match=r"no formula .*; there are paper"):
        formulas[key]
    with pytest.raises(TypeError, match="unhashable"):
        formulas[["timm"]]


def test_it_is_a_mapping():
    assert isinstance(formulas, Mapping) and isinstance(formulas["paper"], torch_ws.Formula)
    names = list(formulas)
    assert names[:2] == ["paper", "qiao"] and len(formulas) == len(names)
    assert list(formulas.keys()) == names and dict(formulas.items()) == formulas
    assert [formulas[name] for name in names] == list(formulas.values())
    assert "timm" in formulas and "Timm" not in formulas and None not in formulas
    assert formulas.get("Timm") is None and formulas.get("Timm", 3) == 3
    assert formulas.get("timm") is formulas["timm"]
    assert "'timm': Formula(eps=1e-06, " in repr(formulas)


def test_it_is_read_only_and_what_is_made_of_it_is_not():
    for change in (
        lambda: formulas.__setitem__("mine", torch_ws.Formula()),
        lambda: formulas.__delitem__("timm"),
        lambda: formulas.clear(),
        lambda: formulas.pop("timm"),
        lambda: formulas.setdefault("mine", torch_ws.Formula()),
        lambda: formulas.update(mine=torch_ws.Formula()),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    assert "timm" in formulas and "mine" not in formulas
    mine = {**formulas, "mine": torch_ws.Formula(eps=1)}
    assert mine["mine"].eps == 1 and (formulas | {"mine": mine["mine"]}) == mine
    assert copy.copy(formulas["timm"]) == formulas["timm"]


@pytest.mark.usefixtures("fresh_compiler")
def test_names_are_looked_up_in_compiled_code():
    @torch.compile(fullgraph=True, backend="eager")
    def run(w):
        return torch_ws.standardize(w, formula="timm") + formulas["timm"].eps

    w = torch.randn(4, 9)
    torch.testing.assert_close(run(w), torch_ws.standardize(w, formula="timm") + 1e-6)
