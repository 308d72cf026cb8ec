"""Who computes the standardized weights for the layers: a pass of a group, or a block of passes."""
