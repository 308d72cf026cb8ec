"""The dtypes and row lengths that the tests of the kernels run over."""

import torch

# (weight, out): every pair that has a kernel
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
]

# Elements of a channel. A vector has 2 to 16 lanes, four of them make one step, and sums start
# anew every 4096 elements: below one vector, around one, around a step, and across two blocks.
LENGTHS = [1, 2, 3, 8, 15, 16, 17, 31, 63, 64, 65, 147, 576, 4095, 4096, 4097, 9000]
