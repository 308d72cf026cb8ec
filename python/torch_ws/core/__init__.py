"""The function and its node: what stands between `torch_ws.standardize` and the kernels."""
