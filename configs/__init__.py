"""Settings, paths, errors and artefact manifests: what every other package may import."""

import os
import shlex
import sys
from types import TracebackType

from configs.messages import both

# OpenMP's threads spin while they wait. As soon as another program wants a core, the spinning
# thread holds up the one that works: on two busy cores training ran at a sixth of its speed. Read
# when torch is loaded, hence set here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

PACKAGES = ("numpy", "tiktoken", "torch", "tqdm", "yaml")
"""What requirements.txt installs, by the names under which it is imported."""


def _tell_of_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Under a Python without our requirements, say which Python has them: one line in place of a
    traceback."""
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
