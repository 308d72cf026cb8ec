"""``python -m bench step``: what weight standardization costs in training, of whole networks."""
