"""torchrun as run.sh starts it: a trainer's error line stays the last, its exit code is kept.
多进程启动训练器。

python trainer/torchrun.py --standalone --nproc_per_node 2 trainer/train_pretrain.py
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
    """Start the processes and wait for them.

    torchrun itself would print forty lines about its own code below a trainer's one line, and would
    always exit with 1.
    Returns: the exit code of the first process that failed by itself; 0 where none did.
    Raises: UserError where a process was killed.
    """
    logging.disable(logging.ERROR)  # only torchrun's own lines: which process ended, which it ended then
    try:
        launcher.run(launcher.parse_args(list(sys.argv[1:] if argv is None else argv)))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # A negative code is that of a signal. Once one process fails, torchrun ends the others.
        own = [code for code in codes.values() if code > 0]
        if own:
            return own[0]
        rank, code = min(codes.items(), key=lambda failed: failed[1] == -signal.SIGTERM)  # that is what torchrun sends
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
