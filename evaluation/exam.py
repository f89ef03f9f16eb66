"""What a checkpoint is examined on: it is opened, its questions are chosen, its answers are scored.

`scripts/evaluate_stage.py` says what is asked for (`Request`), and keeps and shows what comes out.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs.load import Profile
from configs.messages import both
from configs.paths import (
    DATA_DIR,
    display,
    env_path,
    find_dataset,
    find_model_folder,
    latest_weights,
)
from configs.schema import EvalConfig, UserError
from configs.stage_table import DATA_STEMS, STAGE_TABLE, heldout_file
from evaluation.baselines import TrainingExamples, training_examples
from evaluation.danger import DangerPrompt, choose_danger_prompts
from evaluation.first_minutes import Prompt, choose_prompts
from evaluation.heldout import Heldout, chats_beside, read_heldout, without_few
from evaluation.intervals import Metric
from evaluation.judges import dpo_beside
from evaluation.new_name import Renaming, name_metrics
from evaluation.policy import prompt_metrics
from evaluation.provenance import (
    Trained,
    heldout_of_own_set,
    is_bundled,
    is_held_out_by_a_mix,
    mixture_of,
    names_of,
    reference_path,
    require_parts,
    start_of_adapter,
    trained_on,
)
from evaluation.stage import Evaluation
from inference.conversation import context_tokens
from inference.loading import OpenModel, open_model, tokenizer_of
from model.device import seed_everything
from model.heads import read_reward_model
from model.manifest import IMPORTED
from model.model_minillm import MiniLLM
from model.weights import load_model

START_MATTERS = ("dpo", "lora", "reward")
"""Stages whose weights are judged together with those that they started from."""
BESIDE_CHATS = ("dpo", "lora", "reason", "grpo", "ppo")
"""Stages that are judged on the chats of the mix too, to see what became of their answers."""
LIKELIHOOD = ("loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for: flags over the profile over defaults."""

    stage: str
    profile: Profile
    settings: EvalConfig
    checkpoint: Path | None
    """None: the newest weights of the stage in `out_dir`."""
    load_from: Path | None
    """The folder of another model, instead of a checkpoint."""
    quantize: str
    out_dir: Path
    tokenizer_dir: Path | None
    """None: the one that belongs to the weights."""
    reference: Path | None
    lora_name: str
    data: str
    """Kind of data that the stage is trained on: documents, conversations or pairs."""
    data_path: Path | None
    """None: what was held out of the set that the weights or the adapter were trained on."""
    sft_data_path: Path | None
    """None: the chats of the mix."""
    first_minutes: str
    danger_prompts: str
    half: str
    results_file: Path
    answers_file: Path | None
    run_id: str
    device: torch.device
    show_wrong: int

    @property
    def exam(self) -> str:
        """The stage whose exam is taken: a student of documents continues texts."""
        return "pretrain" if self.data == "documents" else self.stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """What a checkpoint is asked, and what is known about its training."""

    heldout: Heldout
    chats: Heldout | None
    """After an optional stage and preference training: chats of the mix, to see what it did to
    them."""
    prompts: list[Prompt]
    unnamed: list[str]
    """A line about prompts that are left out, because the name that they ask for is not known."""
    danger: list[DangerPrompt]
    names: tuple[str, str]
    """The model's name and its author's."""
    renaming: Renaming | None
    """Which names an adapter gives them."""
    examples: TrainingExamples


def heldout_of_mix(data: str) -> Path:
    """The held-out file of a kind of data that the mix has written."""
    return env_path("DATA_DIR", DATA_DIR) / heldout_file(data)


def with_data_of(checkpoint: OpenModel, request: Request) -> Request:
    """The request with the kind of data that a student has learnt from, which its settings say."""
    data = checkpoint.manifest.settings.train.get("data_kind", request.data)
    if data == request.data or data not in DATA_STEMS:
        return request
    is_default = request.data_path == heldout_of_mix(request.data)
    return replace(request, data=data, data_path=heldout_of_mix(data) if is_default else request.data_path)


# --- what is judged, and on what ------------------------------------------------------------------


def open_checkpoint(request: Request) -> OpenModel:
    """The weights, with the tokenizer that belongs to them.

    Raises: UserError if they belong to another stage.
    """
    stage, given = request.stage, request.checkpoint
    if request.load_from:
        path = find_model_folder(request.load_from)
    else:
        spec = STAGE_TABLE[stage]
        stem = request.lora_name or spec.weights
        path = find_dataset(given) if given else latest_weights(stem, request.out_dir / spec.folder)
    seed_everything(request.settings.seed)
    if stage == "reward":
        return open_reward_model(request, path)
    base, adapter = path, None
    if stage == "lora" and not request.load_from:
        base, adapter = reference_path(request.reference, path, start_of_adapter(path), stage), path
    checkpoint = open_model(
        base,
        device=request.device,
        tokenizer_dir=request.tokenizer_dir,
        quantize=request.quantize,
        lora=adapter,
    )
    checkpoint = replace(checkpoint, path=path)
    if checkpoint.manifest.stage == IMPORTED:
        if request.data == "pairs":
            raise UserError(
                f"{display(path)}: a model of others has no start to compare pairs with. Give --stage sft or pretrain.",
                "别人的模型没有可对照的起始权重：请用 --stage sft 或 pretrain",
            )
        return checkpoint
    if (other := checkpoint.manifest.stage) != stage:
        raise UserError(
            f"{display(path)}: weights of stage {other or 'unknown'}, not {stage}. Give another --checkpoint.",
            "权重不属于该阶段：请换 --checkpoint 或 --stage",
        )
    require_parts(path, checkpoint.manifest, stage)
    return checkpoint


def open_reward_model(request: Request, path: Path) -> OpenModel:
    """A reward model, with the tokenizer that belongs to it. Raises: UserError."""
    reward = read_reward_model(path, device=request.device)
    tokenizer, manifest = tokenizer_of(path, reward.manifest, reward.model.config, request.tokenizer_dir)
    require_parts(path, manifest, "reward")
    return OpenModel(path, reward.model, tokenizer, manifest, reward.model.num_parameters())


def set_exam(request: Request, checkpoint: OpenModel) -> Exam:
    """The records and prompts that the weights have not been trained on.

    Raises: UserError if there are none.
    """
    stage, seed, sources = request.exam, request.settings.seed, checkpoint.manifest.training_data
    with_texts = request.data == "documents"
    if checkpoint.manifest.stage == IMPORTED:
        examples, trained = TrainingExamples(reason="a model of others", is_partial=True), Trained((), frozenset())
    else:
        examples = training_examples(sources, seed, with_texts=with_texts)
        trained = trained_on(sources, examples, checkpoint.path.parent, with_texts=with_texts)
    data_path = request.data_path or heldout_of_own_set(checkpoint.path, sources)
    heldout = read_heldout(data_path, stage, trained, request.settings.max_samples, seed)
    # The manifest of the mix lies beside the held-out file, or beside the training files if the
    # held-out file is somewhere else.
    folders = [heldout.path.parent, *(Path(source.path).parent for source in sources)]
    mixture = next(filter(None, (mixture_of(folder, sources) for folder in folders)), None)
    names = names_of(mixture, (request.profile.mix.name, request.profile.mix.author))
    renaming = None
    if stage == "lora" and (renaming := Renaming.in_records(heldout.records, names)):
        names = renaming.new
    prompts: list[Prompt] = []
    unnamed: list[str] = []
    danger: list[DangerPrompt] = []
    if stage != "reward":  # which says nothing
        prompts, unnamed = choose_prompts(
            request.first_minutes, stage, request.half, names, everything=is_bundled(mixture)
        )
        danger = choose_danger_prompts(request.danger_prompts, stage)
    chats = None
    if stage in BESIDE_CHATS and (path := request.sft_data_path or chats_beside(heldout.path)):
        chats = read_heldout(path, "sft", trained, request.settings.max_samples, seed)
    if renaming is not None:
        heldout = replace(heldout, records=list(map(renaming.as_new_identity, heldout.records)))
        chats = replace(chats, records=list(map(renaming.renamed, chats.records))) if chats else None
    return Exam(
        heldout=heldout,
        chats=chats,
        prompts=prompts,
        unnamed=unnamed,
        danger=danger,
        names=names,
        renaming=renaming,
        examples=examples,
    )


def evaluation_of(request: Request, checkpoint: OpenModel, exam: Exam) -> Evaluation:
    """The `Evaluation` that takes the metrics, with notes about what was left out so far."""
    length = checkpoint.manifest.settings.train.get("max_seq_len") or context_tokens(checkpoint.model)
    evaluation = Evaluation(
        checkpoint.model, checkpoint.tokenizer, exam.names, asdict(request.settings), length, exam.examples
    )
    evaluation.notes += [*exam.heldout.notes, *exam.unnamed]
    if checkpoint.manifest.stage == IMPORTED:
        evaluation.notes.append(
            both(
                "a model of others: whether it was trained on any of this can't be told",
                "别人的模型：是否训练过这些数据无从得知",
            )
        )
    return evaluation


# --- the metrics ----------------------------------------------------------------------------------


def take_exam(request: Request, checkpoint: OpenModel, exam: Exam, evaluation: Evaluation) -> dict[str, Metric]:
    """All metrics of the stage. Raises: UserError if there is nothing to evaluate on."""
    metrics = heldout_metrics(request, checkpoint, exam.heldout.records, evaluation)
    counts, own = exam.heldout.counts, list(evaluation.verdicts)
    if exam.chats is not None:
        evaluation.notes += exam.chats.notes
        counts = counts | exam.chats.counts  # the categories of chats; that of pairs is `preference`
        chats = evaluation.of_chats(exam.chats.records) if exam.chats.records else {}
        # After pairs, these are the only likelihoods of texts. Those of an adapter are of its set.
        metrics |= {
            f"{name}_mix" if name in metrics and name in LIKELIHOOD else name: one for name, one in chats.items()
        }
    if exam.renaming is not None:
        metrics |= name_metrics(own, evaluation.verdicts[len(own) :], exam.renaming)
    metrics = without_few(metrics, counts, evaluation.notes)
    if exam.prompts:
        metrics |= evaluation.of_prompts(exam.prompts)
    if exam.danger:
        metrics |= evaluation.of_danger(exam.danger)
    # A mix that held nothing out is no error. A file whose records all fall out is.
    if not metrics and exam.heldout.records and not is_held_out_by_a_mix(exam.heldout.path):
        reasons = "; ".join(note.partition(" | ")[0] for note in evaluation.notes)
        raise UserError(
            f"{display(exam.heldout.path)}: nothing to evaluate on ({reasons}). Give another --data_path.",
            "没有可评测的记录：请换 --data_path",
        )
    return metrics


def heldout_metrics(
    request: Request, checkpoint: OpenModel, records: Sequence[dict[str, Any]], evaluation: Evaluation
) -> dict[str, Metric]:
    """The metrics on records of the stage's own kind; none without records.

    Raises: UserError if the reference of pairs is missing.
    """
    match request.data:
        case "documents":
            return evaluation.of_texts(records) if records else {}
        case "conversations":
            return evaluation.of_chats(records) if records else {}
        case "pairs" if request.stage == "reward":
            start = checkpoint.manifest.start
            assert start is not None  # else `open_reward_model` has refused it
            dpo = dpo_beside(checkpoint.path, start.sha256)
            return evaluation.of_rewards(records, start_of(request, checkpoint), dpo) if records else {}
        case "pairs":
            reference, beta = start_of(request, checkpoint), checkpoint.manifest.settings.train["beta"]
            return evaluation.of_pairs(records, reference, beta) if records else {}
        case "prompts":
            train = checkpoint.manifest.settings.train
            return prompt_metrics(
                evaluation,
                records,
                max_new_tokens=train["max_gen_len"],
                temperature=train["temperature"],
                seed=request.settings.seed,
            )
        case other:
            raise AssertionError(f"no metrics for data of the kind {other}")


def start_of(request: Request, checkpoint: OpenModel) -> MiniLLM:
    """The weights that preference training started from, which are its reference."""
    start = checkpoint.manifest.start
    assert start is not None  # else `open_checkpoint` has refused it
    path = reference_path(request.reference, checkpoint.path, start, request.stage)
    return load_model(path, device=request.device)[0].eval()
