"""Talk to your models in the browser, on http://127.0.0.1:7860. 在浏览器里和模型对话。

python scripts/web_demo.py
python scripts/web_demo.py --weight out/pretrain_192.pth --weight out/full_sft_192.pth

It is the API server on another port. Without --weight it serves the newest weights of each stage,
the last stage first, then those of optional stages, and the newest adapter on its base, so that the
page can compare them.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: let Python find the other packages of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do if torch is missing

# isort: split

import torch

from configs.cli import run
from configs.paths import OUT_DIR, env_path, latest_weights
from configs.schema import UserError
from configs.stage_table import WEIGHT_FILE
from inference.loading import LAST_STAGE_FIRST
from model.model_lora import FOLDER
from model.weights import read_made, weights_sha256
from scripts import serve_openai_api

PORT = 7860


def newest_of_each_stage(out_dir: Path) -> list[Path]:
    """The weights in a folder that can be compared, the last stage first."""
    found = []
    for stem in LAST_STAGE_FIRST:
        with contextlib.suppress(UserError):  # this stage was not trained
            found.append(latest_weights(stem, out_dir))
    return found


def newest_adapter(out_dir: Path, weights: Sequence[Path]) -> str | None:
    """The name of the newest adapter that was trained for one of these weights; None without
    one."""
    bases = {weights_sha256(path) for path in weights}
    files = [path for path in (out_dir / FOLDER).glob("*.pth") if not path.stem.endswith(".previous")]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(UserError):  # damaged: nobody asked for this very file
            start, name = read_made(path).start, WEIGHT_FILE.fullmatch(path.name)
            if start is not None and name and start.sha256 in bases:
                return name["stem"]
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = serve_openai_api.build_parser(PORT).parse_args(words)
    if not arguments.weight:
        out_dir = arguments.out_dir or env_path("OUT_DIR", OUT_DIR)
        weights = newest_of_each_stage(out_dir)
        for path in weights:
            words += ["--weight", str(path)]
        if not arguments.lora_name and (adapter := newest_adapter(out_dir, weights)):
            words += ["--lora_name", adapter]
    return serve_openai_api.main(words, port=PORT)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run(main)
