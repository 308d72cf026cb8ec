"""The class that a grouped model has: its own, with the forward within a pass of the group."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import nn


def subclass_of(base: type[nn.Module]) -> type[nn.Module]:
    """The class with its forward within a pass of the group."""

    def forward(self, *args, **kwargs):
        group = self.__dict__.get("_ws_group")
        current = None if group is None else group.begin(self)
        if current is None:
            return base.forward(self, *args, **kwargs)
        try:
            result = base.forward(self, *args, **kwargs)
            group.end(current)
        finally:
            current.close()
        return result

    def __reduce_ex__(self, protocol):  # copies are of the class that the model had
        made: Any = base.__reduce_ex__(self, protocol)
        function, arguments, state, *rest = made
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # there since Python 2.2
            function, arguments = _new, (base, *arguments[1:])
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != "_ws_group"}
        return function, arguments, state, *rest

    functools.update_wrapper(forward, base.forward)
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"forward": forward, "__reduce_ex__": __reduce_ex__, **names}
    return type(base.__name__, (base,), members)


def _new(cls, *arguments):
    return cls.__new__(cls, *arguments)  # as copyreg.__newobj__, but for another class than it is
