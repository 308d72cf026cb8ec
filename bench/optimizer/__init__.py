"""``python -m bench optimizer``: the update of a model's weights alone, by torch_ws and torch."""
