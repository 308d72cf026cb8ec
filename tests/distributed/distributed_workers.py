"""What each process of test_distributed.py does.

    python distributed_workers.py RANK WORLD FOLDER [CASE ...]

Every case compares with the same computation in a single process. The ranks tell each other the
end of a case; where one fails alone, the others wait for it, and the group gives up.
"""

import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import cases_before_gather  # noqa: F401
import cases_data_parallel  # noqa: F401
import cases_fuse  # noqa: F401
import cases_fuse_changes  # noqa: F401
import cases_sharded_weights  # noqa: F401
import torch
import torch.distributed as dist
from one_process import CASES

PATIENCE = timedelta(seconds=30)


def main(rank, world, folder, *names):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    ended = dist.FileStore(f"{folder}/ended", world)
    for name in names or CASES:
        torch.manual_seed(0)
        try:
            CASES[name](rank, world)
            outcome = "ok"
        except BaseException:
            outcome = traceback.format_exc()
        (folder / f"{name}.{rank}").write_text(outcome)
        ended.set(f"{name}.{rank}", outcome)
        try:
            ended.wait([f"{name}.{other}" for other in range(world)], PATIENCE)
        except dist.DistError:
            break
    # PyTorch's threads may abort an interpreter that finalizes: leave without
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
