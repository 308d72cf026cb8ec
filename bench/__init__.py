"""The benchmark of torch_ws: ``python -m bench``, from the root of the repository."""
