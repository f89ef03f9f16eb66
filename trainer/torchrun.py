"""torchrun as run.sh starts it: a trainer's error line stays the last one, and its exit code is kept. 多进程启动训练器。

python trainer/torchrun.py --standalone --nproc_per_node 2 trainer/train_pretrain.py --profile default
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch.distributed.run as launcher
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from configs.cli import run
from configs.schema import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes; returns the exit code of the first that failed.

    torchrun itself would add forty lines about its own insides below a trainer's one, and always end with 1.
    """
    logging.disable(logging.ERROR)  # of this process alone: which child ended, which are ended for it
    try:
        launcher.run(launcher.parse_args(list(sys.argv[1:] if argv is None else argv)))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        own = [code for code in codes.values() if code > 0]  # the others were ended for it
        if own:
            return own[0]
        rank, code = min(codes.items(), key=lambda failed: failed[1] == -signal.SIGTERM)  # which torchrun itself sends
        raise UserError(
            f"process {rank} was killed (signal {-code}), often for lack of memory. Free some, then rerun the same command; it "
            "resumes at the last save.",
            "进程被终止，多半是内存不足：释放内存后再次运行同一命令即可继续",
        ) from None
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    run(main)
