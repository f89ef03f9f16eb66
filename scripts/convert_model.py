"""Write a model for other programs, and read one back. 把模型导出给其他程序，或读回来。

python scripts/convert_model.py --input out/rlhf_512.pth --to hf --output out/minillm_hf --verify
python scripts/convert_model.py --input out/rlhf_512.pth --to gguf --output out/gguf/minillm.gguf
python scripts/convert_model.py --input out/minillm_hf --to pth --output out/again_512.pth
python scripts/convert_model.py --input out/rlhf_512.pth --lora_name X --to peft --output out/peft
python scripts/convert_model.py --input out/rlhf_512.pth --to safetensors --quantize int4 --gptq \\
    --calibration data/processed/sft_chinese.jsonl --output out/rlhf_512_int4.safetensors
"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import configs  # noqa: F401  # before torch: it says what to do where that is missing

# isort: split

from torch import Tensor

from configs.artifacts import atomic_write, write_json
from configs.cli import Parser, add_switch, run
from configs.flags import add_shared
from configs.folders import new_folder
from configs.paths import display, find_dataset
from configs.schema import ModelConfig, UserError
from configs.stage_table import continues_text
from dataset.calibration import calibration_text
from dataset.chat import ASSISTANT_END, CHAT_TEMPLATE, END_OF_TEXT
from dataset.foreign_tokenizer import FILES as FOREIGN_FILES
from dataset.tokenizer import QWEN2_PATTERN, RustBPETokenizer
from dataset.tokenizer_files import TOKENIZER_FILES, hugging_face_json
from inference.adapters import attach_found, merge_adapter
from inference.conversation import context_tokens
from inference.loading import keep_tokenizer, tokenizer_of
from inference.other_programs import LlamaCpp, Peft, readers_of_folder
from inference.verify import Bars, Reader, compare
from model.export import FILES, Marks, read_plain, write_hugging_face, write_plain, write_tensors
from model.gguf import KINDS, Words, template_for_llama_cpp, write_gguf
from model.gptq import gptq_rounding
from model.manifest import IMPORTED, WeightsManifest
from model.model_card import model_card
from model.model_lora import attach_adapter, detach, merge, save_adapter
from model.model_minillm import MiniLLM
from model.ollama import modelfile
from model.peft_export import FILES as PEFT_FILES
from model.peft_export import is_peft, write_peft
from model.quantize import KINDS as WEIGHT_KINDS
from model.quantize import quantized_state
from model.weights import load_strict, read_weights, save_weights

FORMATS = ("hf", "peft", "gguf", "safetensors", "pth")
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
        help="a .pth, a .safetensors of this program, a Hugging Face folder, or an adapter of peft 输入",
    )
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write 目标格式")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PATH", help="a folder for hf and peft, else a file 输出"
    )
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
    add_shared(parser, "lora_name")
    add_switch(parser, "--merge", default=False, help="merge the adapter into the weights 把适配器合并进权重")
    parser.add_argument(
        "--base", type=Path, metavar="PATH", help="the weights that a peft adapter belongs to 适配器的底座"
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
    check_adapter_flags(arguments, source)
    if arguments.base:
        return write_adapter(arguments, find_dataset(arguments.base), source)
    if arguments.to == "peft":
        return write_adapter(arguments, source, arguments.lora_name)
    model, manifest = open_any(source)
    if arguments.merge:
        model, manifest = merge_adapter(model, manifest, arguments.lora_name, source)
    if arguments.rope_scaling_factor != 1.0:
        config = replace(model.config, rope_scaling_factor=arguments.rope_scaling_factor)
        model = built(model.state_dict(), config, source)
    if arguments.to in {"pth", "safetensors"}:
        manifest = with_tokenizer(source, manifest, model.config, output)
    if arguments.to == "pth":
        write_pth(output, model, manifest, source)
    elif arguments.to == "safetensors" and arguments.quantize != "f32":
        write_quantized(arguments, model, manifest, source)
    elif arguments.to == "safetensors":
        write_plain(output, model.state_dict(), model.config, manifest)
    else:
        tokenizer, manifest = tokenizer_of(source, manifest, model.config, arguments.tokenizer_dir)
        check_foreign(arguments, tokenizer)
        if arguments.to == "hf":
            write_folder(output, model, manifest, tokenizer)
        else:
            write_gguf_file(arguments, model, manifest, tokenizer)
    print(f"{display(output)}: {model.num_parameters():,} parameters")
    return verify(arguments, model, tokenizer) if arguments.verify else 0


def check_flags(arguments: Namespace) -> None:
    """Raises: UserError for flags that a format has no use for."""
    to = arguments.to
    if arguments.verify and to not in {"hf", "peft", "gguf"}:
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


def check_adapter_flags(arguments: Namespace, source: Path) -> None:
    """Raises: UserError for flags about adapters that do not go together."""
    to, name = arguments.to, arguments.lora_name
    if is_peft(source) != bool(arguments.base) or (arguments.base and (to != "pth" or name or arguments.merge)):
        raise UserError(
            f"{display(source)}: --base is for an adapter of peft, which becomes one of ours: --input FOLDER --base "
            "out/full_sft_512.pth --to pth --output out/lora/NAME_512.pth.",
            "读入 peft 适配器时需要 --base：请照所列格式填写",
        )
    if arguments.base:
        return
    if to == "peft" and (name is None or arguments.merge):
        raise UserError(
            "--to peft: writes an adapter alone. Give its --lora_name, and leave --merge out.",
            "此格式只写适配器：请给出 --lora_name，并去掉 --merge",
        )
    if to != "peft" and arguments.merge != (name is not None):
        raise UserError(
            f"--to {to}: takes --lora_name and --merge together. Give both, or --to peft for the adapter alone.",
            "--lora_name 与 --merge 须同时给出；只导出适配器请用 --to peft",
        )


# --- what comes in --------------------------------------------------------------------------------


def open_any(path: Path) -> tuple[MiniLLM, WeightsManifest]:
    """The model of any file or folder that this program writes, or of another Qwen3 folder.

    Raises: UserError when something is missing, damaged, or of a network that MiniLLM can't be.
    """
    if path.suffix == ".safetensors":
        state, config, manifest = read_plain(path)
    else:
        state, config, manifest = read_weights(path)
    return built(state, config, path), manifest


def built(state: dict[str, Tensor], config: ModelConfig, path: Path) -> MiniLLM:
    """A model of that shape, for inference, with these tensors."""
    model = MiniLLM(config).eval()
    load_strict(model, state, path)
    return model


def with_tokenizer(source: Path, manifest: WeightsManifest, config: ModelConfig, output: Path) -> WeightsManifest:
    """The manifest of weights that become one file. If their tokenizer is that of another model, it
    is kept beside this file.

    A line says why where such a tokenizer can't be used.
    """
    try:
        tokenizer, manifest = tokenizer_of(source, manifest, config)
    except UserError as error:
        if manifest.stage == IMPORTED and not manifest.tokenizer_sha256:
            print(f"these weights can be read, not talked to 不能对话: {error}")
        return manifest
    keep_tokenizer(tokenizer, output.parent)
    return manifest


def check_foreign(arguments: Namespace, tokenizer: RustBPETokenizer) -> None:
    """Raises: UserError for flags that need our own tokenizer and chat template."""
    if not tokenizer.is_foreign:
        return
    if arguments.to == "gguf":
        raise UserError(
            "--to gguf: this model has the tokenizer of another one. Give --to hf, and that folder to convert_hf_to_gguf of "
            "llama.cpp.",
            "该模型用的是别人的分词器：请先用 --to hf 导出，再用 llama.cpp 的转换脚本",
        )
    if arguments.verify:
        raise UserError(
            "--verify: this model has the tokenizer and template of another one, which are written as they were. Leave it out.",
            "该模型的分词器和模板原样写出，无需核对：请去掉",
        )


def marks_of(tokenizer: RustBPETokenizer) -> Marks:
    """The tokens that begin and end texts."""
    ends = (tokenizer.assistant_end_id, tokenizer.end_of_text_id)
    return Marks(tokenizer.get_bos_token_id(), ends, tokenizer.end_of_text_id)


# --- what goes out --------------------------------------------------------------------------------


def write_folder(output: Path, model: MiniLLM, manifest: WeightsManifest, tokenizer: RustBPETokenizer) -> None:
    """A Hugging Face folder."""
    ours = {*FILES, *TOKENIZER_FILES, *FOREIGN_FILES, TEMPLATE_FILE, CARD, VERDICT}
    with new_folder(output, ours.__contains__) as folder:
        tokenizer.save(folder)
        (folder / TEMPLATE_FILE).write_text(tokenizer.chat_format.template, encoding="utf-8")
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
        tokenizer, _ = tokenizer_of(source, manifest, model.config, arguments.tokenizer_dir)
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
    if (source / "tokenizer.pkl").exists():
        print(f"its tokenizer: --tokenizer_dir {display(source)} 它的分词器")


def write_adapter(arguments: Namespace, base: Path, given: str | Path) -> int:
    """An adapter, as a folder of peft or as a file of ours.

    Args: base: the weights that it belongs to. given: its name or path.
    Returns: 1 where a reader gives something else, else 0.
    """
    model, manifest = open_any(base)
    adapter = attach_found(model, manifest, given, base)
    output: Path = arguments.output
    if arguments.to == "pth":
        save_adapter(output, adapter)
    else:
        with new_folder(output, {*PEFT_FILES, VERDICT}.__contains__) as folder:
            write_peft(folder, adapter)
    print(f"{display(output)}: {model.num_parameters():,} parameters")
    if not arguments.verify:
        return 0
    tokenizer, manifest = tokenizer_of(base, manifest, model.config, arguments.tokenizer_dir)
    check_foreign(arguments, tokenizer)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        detach(model)
        write_folder(folder, model, manifest, tokenizer)
        attach_adapter(model, adapter, output, base)
        merge(model)
        return verdict(output, [Peft(folder, output)], model, tokenizer, BARS["f32"])


# --- the comparison -------------------------------------------------------------------------------


def verify(arguments: Namespace, model: MiniLLM, tokenizer: RustBPETokenizer) -> int:
    """Compare an exported model with ours. Returns: 1 where a reader gives something else, else
    0."""
    output: Path = arguments.output
    folder = output if arguments.to == "hf" else output.parent
    readers = readers_of_folder(output) if arguments.to == "hf" else [LlamaCpp(output, arguments.quantize)]
    return verdict(folder, readers, model, tokenizer, BARS[arguments.quantize])


def verdict(folder: Path, readers: Sequence[Reader], model: MiniLLM, tokenizer: RustBPETokenizer, bars: Bars) -> int:
    """Ask the readers and write down what came out, in a folder.

    Returns: 1 where a reader gives something else, else 0.
    """
    reports = {reader.name: compare(model, tokenizer, reader, bars) for reader in readers}
    write_json(folder / VERDICT, {name: report.as_dict() for name, report in reports.items()})
    for name, report in reports.items():
        print(f"{name}: {json.dumps(report.as_dict())}")
    return 0 if all(report.ok for report in reports.values()) else 1


if __name__ == "__main__":
    run(main)
