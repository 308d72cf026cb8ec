"""A backend for torch.compile that counts what standardizes in its graphs."""

from collections import Counter

from torch._dynamo.backends.common import aot_autograd


class Graphs:
    """A backend that runs what AOTAutograd makes, and counts the package's ops in it."""

    def __init__(self):
        self.compilations = 0
        self.forward: list = []
        self.backward: list = []
        self._backend = aot_autograd(
            fw_compiler=self._recorder(self.forward),
            bw_compiler=self._recorder(self.backward),
            inference_compiler=self._recorder(self.forward),
        )

    def _recorder(self, into):
        def compile(module, inputs):
            names = (str(node.target) for node in module.graph.nodes)
            into.append(dict(Counter(n.split(".")[1] for n in names if n.startswith("ws."))))
            return module

        return compile

    def __call__(self, module, inputs, **options):
        self.compilations += 1
        return self._backend(module, inputs, **options)
