"""``python -m bench evidence``: what weight standardization does to training, on real images."""
