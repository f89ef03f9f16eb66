"""Settings, paths, errors and artefact manifests: what every other package may import."""

import os
import shlex
import sys
from types import TracebackType

from configs.messages import both

# By default OpenMP's threads spin while they wait, which uses a core. When other programs want the
# cores too, the spinning threads slow down the thread that works: on two busy cores training ran at
# a sixth of its speed. Torch reads the variable when it is loaded, so we set it here, before that.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PACKAGES = ("numpy", "tiktoken", "torch", "tqdm", "yaml")
"""The packages of requirements.txt, by the names of their imports."""


def _tell_of_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In a Python without our requirements, print one line that says which Python has them.

    Other errors are shown as usual.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name not in PACKAGES:
        sys.__excepthook__(kind, error, trace)
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib costs 10 ms
    folder = os.environ.get("VENV_DIR") or os.path.join(root, ".venv")  # noqa: PTH118
    python = os.path.join(folder, "bin", "python")  # noqa: PTH118
    if os.access(python, os.X_OK) and not os.path.samefile(folder, sys.prefix):  # noqa: PTH121
        remedy = f"Run it with the environment's Python: {python} {shlex.join(sys.argv)}"
    else:
        remedy = f"Make the environment: bash {os.path.join(root, 'scripts', 'run.sh')} --until-stage env"  # noqa: PTH118
    what = f"error: {error.name}: not installed for {sys.executable}. {remedy}"
    print(both(what, "缺少依赖：请改用给出的命令"), file=sys.stderr)


sys.excepthook = _tell_of_missing_package
