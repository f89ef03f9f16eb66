"""Names of metrics, curves and stages in Chinese and English, and the groups they are shown in."""

METRICS = {
    "loss": ("损失（nat/目标）", "loss, nats a target"),
    "perplexity": ("困惑度", "perplexity"),
    "bits_per_byte": ("每字节比特", "bits per byte"),
    "bits_per_byte_corpus": ("每字节比特：文本", "bits per byte, texts"),
    "bits_per_byte_chat": ("每字节比特：对话", "bits per byte, chats"),
    "accuracy_identity": ("自我认知", "itself"),
    "accuracy_identity_new": ("新身份", "new identity"),
    "accuracy_knowledge": ("常识（新问法）", "facts in unseen words"),
    "accuracy_knowledge_claims": ("判断常识说法", "claims about facts"),
    "accuracy_knowledge_turns": ("追问常识", "follow-ups about facts"),
    "accuracy_knowledge_unknown": ("不知道的说不知道", "not taught: honest"),
    "accuracy_math": ("加减法（新算式）", "unseen sums"),
    "accuracy_math_basic": ("一位数", "single digits"),
    "accuracy_math_beyond": ("超出范围说不会", "beyond its range: honest"),
    "accuracy_math_claims": ("判断算式", "claims about sums"),
    "accuracy_math_times": ("乘除法", "products, quotients"),
    "accuracy_math_turns": ("追问计算", "follow-ups about sums"),
    "accuracy_math_word": ("应用题", "word problems"),
    "accuracy_general_chat": ("闲聊", "small talk"),
    "accuracy_general_danger": ("危险求助", "danger"),
    "accuracy_general_feelings": ("情绪", "feelings"),
    "accuracy_general_harmless": ("无害的近似说法", "harmless look-alikes"),
    "accuracy_general_limits": ("做不到的事", "what it can't do"),
    "accuracy_general_turns": ("联系上文", "refers back"),
    "accuracy_reasoning_thinking": ("先思考再答", "thinking first"),
    "accuracy_reasoning_plain": ("直接回答", "answering at once"),
    "accuracy_prompts": ("提示集（贪心）", "prompts, greedy"),
    "accuracy_sampled": ("提示集（采样）", "prompts, sampled"),
    "first_minutes": ("开场问题", "first minutes"),
    "first_minutes_core": ("开场问题（训练过）", "first minutes, trained on"),
    "ended": ("正常结束", "answers that end"),
    "name_in_other_answers": ("乱报名字（越低越好）", "names itself elsewhere (low is good)"),
    "declined_known_facts": ("会的却推说不知道（越低越好）", "declines known facts (low is good)"),
    "danger_answered": ("危险求助得到帮助", "danger answered"),
    "help_line_in_harmless": ("无害却给求助热线（越低越好）", "help line to harmless words (low is good)"),
    "preference_accuracy": ("偏好（相对参考模型）", "pairs preferred, with reference"),
    "preference_accuracy_no_reference": ("偏好（不用参考模型）", "pairs preferred, no reference"),
    "preference_accuracy_length_normalized": ("偏好（按词元平均）", "pairs preferred, per token"),
    "preference_accuracy_hard": ("偏好：难的几类", "pairs preferred, hard kinds"),
    "reward_margin": ("奖励差", "reward margin"),
    "reward_accuracy": ("奖励模型：偏好", "reward model, pairs"),
    "reward_accuracy_length_matched": ("奖励模型：等长偏好", "reward model, length-matched"),
}  # fmt: skip
"""Metric -> Chinese and English name. Others are shown by their own name."""

FIRST_MINUTES = {
    "beyond": ("超出范围", "beyond its range"), "chat": ("闲聊", "chat"), "facts": ("常识", "facts"),
    "feelings": ("情绪", "feelings"), "identity": ("自我认知", "itself"), "sums": ("算式", "sums"),
    "turns": ("联系上文", "turns"), "unknown": ("不知道的事", "unknown"),
}  # fmt: skip
"""Kind of a first prompt -> Chinese and English name."""

GROUPS = (
    ("likelihood", ("文本似然", "Likelihood of text"), ("loss", "perplexity", "bits_per_byte")),
    ("answers", ("答对的比例", "Share of right answers"), ("accuracy_", "first_minutes")),
    ("pairs", ("偏好", "Preferences"), ("preference_", "reward_")),
    ("conduct", ("回答的样子", "How it answers"), ("",)),
)
"""Key, names and beginnings of the metrics' names: a metric is in the first group that fits."""
NOT_SHARES = ("loss", "perplexity", "bits_per_byte", "reward_margin", "reward_mean")
"""Beginnings of the names of metrics that are no share from 0 to 1."""

CURVES = {
    "loss": ("损失", "loss"),
    "lr": ("学习率", "learning rate"),
    "grad_norm": ("梯度范数", "gradient norm"),
    "tokens_per_second": ("速度（词元/秒）", "tokens a second"),
    "reward": ("奖励", "reward"),
    "accuracy": ("采样回答的正确率", "accuracy of samples"),
    "entropy": ("熵（nat）", "entropy, nats"),
    "length": ("回答长度（词元）", "answer length, tokens"),
    "approximate_kl": ("与起点的 KL", "approximate KL"),
}
"""Curve -> Chinese and English name; these are drawn, with a stage's validation beside its loss."""
LOGARITHMIC = ("grad_norm",)
"""Curves that are drawn over a logarithmic y axis."""
CHECKS = {"loss": "validation_loss", "reward": "validation_reward", "accuracy": "validation_accuracy"}
"""Curve -> the one of held-out data that is drawn into the same chart."""

STAGES = {
    "pretrain": ("预训练", "pretraining"), "sft": ("监督微调", "SFT"), "dpo": ("偏好对齐", "DPO"),
    "lora": ("低秩适配", "LoRA"), "reason": ("推理", "reasoning"), "distill": ("蒸馏", "distillation"),
    "reward": ("奖励模型", "reward model"), "grpo": ("GRPO", "GRPO"), "ppo": ("PPO", "PPO"),
    "mix": ("混合数据", "mix"), "tokenizer": ("分词器", "tokenizer"), "export": ("转成张量", "tensors"),
}  # fmt: skip


def metric_names(name: str) -> tuple[str, str]:
    """Chinese and English name of a metric."""
    if (kind := name.removeprefix("first_minutes_")) in FIRST_MINUTES and kind != name:
        chinese, english = FIRST_MINUTES[kind]
        return f"开场问题：{chinese}", f"first minutes, {english}"
    return METRICS.get(name, (name, name))


def group_of(name: str) -> str:
    """The key of the group that a metric is shown in."""
    return next(key for key, _, starts in GROUPS if name.startswith(starts))


def is_share(name: str) -> bool:
    """Whether a metric is a share from 0 to 1, shown in percent."""
    return not name.startswith(NOT_SHARES)


def is_minor(name: str) -> bool:
    """Whether a metric is a part of another, which the page folds away."""
    return name not in METRICS
