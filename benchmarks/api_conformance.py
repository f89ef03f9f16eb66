"""What OpenAI's protocol asks for, a row a behaviour: our server beside llama.cpp's.

    python scripts/convert_model.py --input out/full_sft_192.pth --to gguf --output out/gguf/m.gguf
    python benchmarks/api_conformance.py --weight out/full_sft_192.pth --gguf out/gguf/m.gguf

Without --gguf only ours is asked. llama.cpp's server comes with the wheel xllamacpp.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file: let Python find the other packages of the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.api.asking import Server, llama_cpp, ours
from benchmarks.api.rows import ROWS


def outcome(server: Server, name: str) -> str:
    """`yes`, `no`, or the error that the row ended with."""
    try:
        return "yes" if ROWS[name](server) else "no"
    except Exception as error:  # an answer in another shape
        return f"no ({type(error).__name__})"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns: 1 if ours lacks a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weight", type=Path, required=True)
    parser.add_argument("--tokenizer_dir", type=Path)
    parser.add_argument("--gguf", type=Path, help="the same model, for llama.cpp")
    parser.add_argument("--port", type=int, default=18_099, help="of llama.cpp's server")
    arguments = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(ours(arguments.weight, arguments.tokenizer_dir))]
        if arguments.gguf:
            servers.append(stack.enter_context(llama_cpp(arguments.gguf, arguments.port)))
        print("|", " | ".join(["behaviour", *(server.name for server in servers)]), "|")
        print("|---" * (1 + len(servers)) + "|")
        totals = [0] * len(servers)
        for name in ROWS:
            outcomes = [outcome(server, name) for server in servers]
            totals = [total + (one == "yes") for total, one in zip(totals, outcomes, strict=True)]
            print("|", " | ".join([name, *outcomes]), "|", flush=True)
        print("|", " | ".join(["**rows**", *(f"{total} of {len(ROWS)}" for total in totals)]), "|")
    return 0 if totals[0] == len(ROWS) else 1


if __name__ == "__main__":
    sys.exit(main())
