"""``python -m bench [standardize]``: standardization itself, weight by weight, and its peers."""
