"""Write a model for other programs, and read one back. 把模型导出给其他程序，或读回来。

python scripts/convert_model.py --input out/rlhf_512.pth --to hf --output out/minillm_hf --verify
python scripts/convert_model.py --input out/rlhf_512.pth --to gguf --output out/gguf/minillm.gguf
python scripts/convert_model.py --input out/minillm_hf --to pth --output out/again_512.pth
python scripts/convert_model.py --input out/rlhf_512.pth --to safetensors --quantize int4 --gptq \\
    --calibration data/processed/sft_chinese.jsonl --output out/rlhf_512_int4.safetensors
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

from torch import Tensor

from configs.artifacts import atomic_write, write_json
from configs.cli import Parser, add_switch, run
from configs.flags import add_shared
from configs.folders import new_folder
from configs.paths import default_tokenizer_dir, display, find_dataset
from configs.schema import ModelConfig, UserError
from configs.stage_table import continues_text
from dataset.calibration import calibration_text
from dataset.chat import ASSISTANT_END, CHAT_TEMPLATE, END_OF_TEXT
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
from dataset.tokenizer_files import TOKENIZER_FILES, hugging_face_json
from inference.conversation import context_tokens
from inference.other_programs import LlamaCpp, readers_of_folder
from inference.verify import Bars, compare
from model.export import FILES, Marks, read_hugging_face, read_plain, write_hugging_face, write_plain, write_tensors
from model.gguf import KINDS, Words, template_for_llama_cpp, write_gguf
from model.gptq import gptq_rounding
from model.manifest import WeightsManifest
from model.model_card import model_card
from model.model_minillm import MiniLLM
from model.ollama import modelfile
from model.quantize import KINDS as WEIGHT_KINDS
from model.quantize import quantized_state
from model.weights import check_tokenizer, load_strict, read_weights, save_weights

FORMATS = ("hf", "gguf", "safetensors", "pth")
TEMPLATE_FILE, CARD, VERDICT = "chat_template.jinja", "README.md", "verify.json"
STAGES_THAT_THINK = {"reason"}
BARS = {
    "f32": Bars(),
    "f16": Bars(logit=1e-2, bits=1e-4),
    "q8_0": Bars(logit=None, bits=1e-3),
    "q5_0": Bars(logit=None, bits=1e-2),
    "q4_0": Bars(logit=None, bits=3e-2),
}
"""What an export of each type may differ by."""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .pth, a .safetensors of this program, or a Hugging Face folder 输入",
    )
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write 目标格式")
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="a folder for hf, else a file 输出")
    parser.add_argument(
        "--quantize",
        choices=[*KINDS, *WEIGHT_KINDS],
        default="f32",
        help=f"type of the matrices: {', '.join(KINDS)} of gguf, {', '.join(WEIGHT_KINDS)} of safetensors 权重精度 (%(default)s)",
    )
    add_switch(
        parser,
        "--gptq",
        default=False,
        help="int4 of safetensors: round so that what the model computes on training text changes least 用训练文本校准取整",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="PATH",
        help="for --gptq: a JSONL file of training records, or token tensors 校准用的训练文本",
    )
    add_shared(parser, "tokenizer_dir")
    parser.add_argument(
        "--rope_scaling_factor",
        type=float,
        default=1.0,
        metavar="F",
        help="YaRN for hf and gguf: F times as long texts 上下文扩展倍数 (%(default)s)",
    )
    add_switch(
        parser,
        "--verify",
        default=False,
        help="open the export in other programs and compare; writes verify.json 用其他程序打开并逐项核对",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """One model in, one out."""
    arguments = build_parser().parse_args(argv)
    check_flags(arguments)
    source, output = find_dataset(arguments.input), arguments.output
    model, manifest = open_any(source)
    if arguments.rope_scaling_factor != 1.0:
        config = replace(model.config, rope_scaling_factor=arguments.rope_scaling_factor)
        model = built(model.state_dict(), config, source)
    if arguments.to == "pth":
        write_pth(output, model, manifest, source)
    elif arguments.to == "safetensors" and arguments.quantize != "f32":
        write_quantized(arguments, model, manifest, source)
    elif arguments.to == "safetensors":
        write_plain(output, model.state_dict(), model.config, manifest)
    else:
        tokenizer = tokenizer_of(source, manifest, arguments.tokenizer_dir)
        write = write_folder if arguments.to == "hf" else write_gguf_file
        write(arguments, model, manifest, tokenizer)
    print(f"{display(output)}: {model.num_parameters():,} parameters")
    return verify(arguments, model, tokenizer) if arguments.verify else 0


def check_flags(arguments: Namespace) -> None:
    """Raises: UserError for flags that a format has no use for."""
    to = arguments.to
    if arguments.verify and to not in {"hf", "gguf"}:
        raise UserError(f"--verify: no other program reads --to {to}. Leave it out.", "此格式无需核对：请去掉")
    if arguments.gptq != (arguments.calibration is not None):
        given, lacking = ("gptq", "calibration FILE") if arguments.gptq else ("calibration", "gptq")
        raise UserError(
            f"--{given}: goes with --{lacking}. Give both, or neither.", "--gptq 与 --calibration 要一起给出，或都不给"
        )
    if arguments.gptq and (to, arguments.quantize) != ("safetensors", "int4"):
        raise UserError(
            "--gptq: rounds for --to safetensors --quantize int4. Give these, or leave --gptq and --calibration out.",
            "只用于 --to safetensors --quantize int4",
        )
    kinds = {"gguf": KINDS, "safetensors": ("f32", *WEIGHT_KINDS)}.get(to, ("f32",))
    if arguments.quantize not in kinds:
        raise UserError(
            f"--quantize {arguments.quantize}: --to {to} holds {', '.join(kinds)}. Give one of these, or another --to.",
            "该格式没有这种精度：请用列出的精度，或换一种格式",
        )
    if arguments.rope_scaling_factor != 1.0 and to not in {"hf", "gguf"}:
        raise UserError(
            f"--rope_scaling_factor: --to {to} keeps no YaRN. Give it when the weights are used: "
            "python eval_model.py --rope_scaling_factor F.",
            "此格式不保存 YaRN：请在使用权重时给出该参数",
        )


# --- what comes in --------------------------------------------------------------------------------


def open_any(path: Path) -> tuple[MiniLLM, WeightsManifest]:
    """The model of any file or folder that this program writes, or of another Qwen3 folder.

    Raises: UserError when something is missing, damaged, or of a network that MiniLLM can't be.
    """
    if path.is_dir():
        state, config, manifest = read_hugging_face(path)
    elif path.suffix == ".safetensors":
        state, config, manifest = read_plain(path)
    else:
        state, config, manifest = read_weights(path)
    return built(state, config, path), manifest


def built(state: dict[str, Tensor], config: ModelConfig, path: Path) -> MiniLLM:
    """A model of that shape, for inference, with these tensors."""
    model = MiniLLM(config).eval()
    load_strict(model, state, path)
    return model


def tokenizer_of(source: Path, manifest: WeightsManifest, given: Path | None) -> RustBPETokenizer:
    """The tokenizer that belongs to a model: the given one, the one in its folder, else as
    everywhere.

    Raises: UserError when it is another one than the model was trained with.
    """
    own = source if (source / "tokenizer.pkl").exists() else default_tokenizer_dir(source.parent)
    folder = given or own
    tokenizer = RustBPETokenizer.from_directory(folder)
    check_tokenizer(source, manifest, tokenizer.sha256, display(folder))
    return tokenizer


def marks_of(tokenizer: RustBPETokenizer) -> Marks:
    """The tokens that begin and end texts."""
    ends = (tokenizer.assistant_end_id, tokenizer.end_of_text_id)
    return Marks(tokenizer.get_bos_token_id(), ends, tokenizer.end_of_text_id)


# --- what goes out --------------------------------------------------------------------------------


def write_folder(arguments: Namespace, model: MiniLLM, manifest: WeightsManifest, tokenizer: RustBPETokenizer) -> None:
    """A Hugging Face folder."""
    ours = {*FILES, *TOKENIZER_FILES, TEMPLATE_FILE, CARD, VERDICT}
    with new_folder(arguments.output, ours.__contains__) as folder:
        tokenizer.save(folder)
        (folder / TEMPLATE_FILE).write_text(CHAT_TEMPLATE, encoding="utf-8")
        (folder / CARD).write_text(model_card(model, manifest), encoding="utf-8")
        write_hugging_face(folder, model.state_dict(), model.config, manifest, marks_of(tokenizer))


def write_gguf_file(
    arguments: Namespace, model: MiniLLM, manifest: WeightsManifest, tokenizer: RustBPETokenizer
) -> None:
    """A GGUF file, and ollama's Modelfile beside it."""
    stage, output = manifest.stage, arguments.output
    template = template_for_llama_cpp(CHAT_TEMPLATE, thinks=stage in STAGES_THAT_THINK)
    words = Words(hugging_face_json(tokenizer), tokenizer.pattern == QWEN2_PATTERN, template, marks_of(tokenizer))
    rough = write_gguf(output, model.state_dict(), model.config, words, arguments.quantize)
    if rough:
        print(
            f"{len(rough)} matrices have rows that are no multiple of 32: in float16 行长不是 32 的倍数，存为 float16"
        )
    text = modelfile(
        output.name, context=context_tokens(model), ends=[ASSISTANT_END, END_OF_TEXT], completes=continues_text(stage)
    )
    with atomic_write(output.with_name("Modelfile")) as file:
        file.write(text)


def write_quantized(arguments: Namespace, model: MiniLLM, manifest: WeightsManifest, source: Path) -> None:
    """A safetensors file in fewer bits; after GPTQ its metadata say by which text."""
    rounding, facts = None, {}
    if arguments.gptq:
        path = find_dataset(arguments.calibration)
        tokenizer = tokenizer_of(source, manifest, arguments.tokenizer_dir)
        text = calibration_text(path, tokenizer, row_tokens=context_tokens(model))
        print(f"reading {text.input_ids.numel():,} tokens of {display(path)} 正在读入校准文本")
        rounding = gptq_rounding(model, text.input_ids, text.document_ids)
        told = {"path": path.name, "sha256": text.sha256, "tokens": text.input_ids.numel()}
        facts = {"calibration": json.dumps(told)}
    state, metadata = quantized_state(model, arguments.quantize, manifest.as_plain(), rounding)
    write_tensors(arguments.output, state, metadata | facts)


def write_pth(path: Path, model: MiniLLM, manifest: WeightsManifest, source: Path) -> None:
    """Our weight file. YaRN is not in it: it is chosen when weights are used."""
    factor = model.config.rope_scaling_factor
    if factor != 1.0:
        model = built(model.state_dict(), replace(model.config, rope_scaling_factor=1.0), source)
        print(f"--rope_scaling_factor {factor:g} gives it the same long context 使用时加此参数即可恢复长上下文")
    save_weights(path, model, manifest)
    if not manifest.tokenizer_sha256:
        print("its tokenizer is not one of MiniLLM's: these weights can be read, not talked to 分词器不通用，不能对话")
    elif (source / "tokenizer.pkl").exists():
        print(f"its tokenizer: --tokenizer_dir {display(source)} 它的分词器")


# --- the comparison -------------------------------------------------------------------------------


def verify(arguments: Namespace, model: MiniLLM, tokenizer: RustBPETokenizer) -> int:
    """Compare an export with our model and write down what came out.

    Returns: 1 where a reader gives something else, else 0.
    """
    output: Path = arguments.output
    folder = output if arguments.to == "hf" else output.parent
    readers = readers_of_folder(output) if arguments.to == "hf" else [LlamaCpp(output, arguments.quantize)]
    reports = {reader.name: compare(model, tokenizer, reader, BARS[arguments.quantize]) for reader in readers}
    write_json(folder / VERDICT, {name: report.as_dict() for name, report in reports.items()})
    for name, report in reports.items():
        print(f"{name}: {json.dumps(report.as_dict())}")
    return 0 if all(report.ok for report in reports.values()) else 1


if __name__ == "__main__":
    run(main)
