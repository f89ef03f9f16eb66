// What the page says, in both languages, and the settings that it offers.

const WORDS = {
  zh: {
    otherLanguage: "English", new: "新对话", history: "历史对话", noHistory: "还没有对话。对话只保存在这个浏览器里。",
    remove: "删除", removeSure: "删除这段对话？删除后无法恢复。",
    weights: "模型权重", weightsB: "对比的模型权重", compare: "对比两个模型", compareNone: "服务器只有一个模型：启动时用 --weight A --weight B 可以对比",
    export: "导出对话", exportMarkdown: "Markdown（适合阅读）", exportJson: "JSON（适合程序和训练）", exportNothing: "对话还是空的",
    settings: "生成设置", more: "更多设置", reset: "恢复默认设置", close: "关闭", conversation: "对话",
    system: "系统提示", systemHint: "可以不填，例如：你是一位耐心的老师。",
    emptyTitle: "你自己训练的模型，聊聊看", emptyText: "换不同阶段的权重，回答同一个问题，看看 SFT 和 DPO 各教会了它什么。",
    prompt: "问题", promptHint: "输入问题……", hint: "Enter 发送 · Shift+Enter 换行 · Esc 停止 · 小模型会出错，请自己核对",
    retry: "重答", retryHint: "用现在的设置重新回答最后一个问题", tokens: "概率", tokensHint: "用颜色显示每个 token 的概率，点一下看最可能的五个",
    unsure: "没把握", sure: "有把握", stop: "停止 (Esc)", send: "发送 (Enter)",
    edit: "修改", editHint: "发送后，这个问题之后的内容会被替换", save: "发送", cancel: "取消", copy: "复制", copied: "已复制", copyFailed: "浏览器不允许复制",
    thought: "思考过程", thinking: "正在思考……", stopped: "已停止", length: "达到最长回答，后面被截断",
    speed: "{n} 个 token · 每秒 {s} 个", count: "{n} 个 token", seed: "种子 {n}", left_out: "最早的 {n} 轮超出模型能读的长度，这次没有发送",
    likeliest: "最可能的五个", picked: "选中 {p}", noToken: "这个回答没有概率：服务器没有返回",
    keyTitle: "需要密钥", keyText: "这个服务器设置了密钥（启动时的 --api_key）。它只保存在这个标签页里。", keyWrong: "密钥不对，请再输入一次。", keySend: "继续",
    themes: { auto: "跟随系统", light: "浅色", dark: "深色" }, full: "浏览器的存储空间满了：请导出并删除旧对话", halfFull: "存储空间满了：删除了一些概率数据，文字都还在",
    noModels: "没有模型", user: "用户", truncatedTitle: "（空）",
    errors: {
      0: "服务器没有响应。它还在运行吗？启动：bash scripts/serve.sh", cut: "连接中断，回答不完整。", 401: "需要密钥。再试一次就可以输入。",
      404: "服务器没有这个模型：{m}", 429: "服务器正忙，请过几秒再试。", context_length_exceeded: "这段对话太长，模型读不下。请开始新对话，或缩短问题。",
    },
  },
  en: {
    otherLanguage: "中文", new: "New conversation", history: "History", noHistory: "No conversations yet. They are kept in this browser only.",
    remove: "Delete", removeSure: "Delete this conversation? It can't be brought back.",
    weights: "Weights", weightsB: "Weights to compare with", compare: "Compare two models", compareNone: "The server has one model only: start it with --weight A --weight B to compare",
    export: "Export the conversation", exportMarkdown: "Markdown (to read)", exportJson: "JSON (for programs, for training)", exportNothing: "The conversation is still empty",
    settings: "Generation", more: "More settings", reset: "Back to the defaults", close: "Close", conversation: "Conversation",
    system: "System prompt", systemHint: "Optional, such as: 你是一位耐心的老师。",
    emptyTitle: "Talk to the model you trained", emptyText: "Ask the weights of two stages the same question, and see what SFT and DPO have changed.",
    prompt: "Question", promptHint: "Ask something…", hint: "Enter sends · Shift+Enter: new line · Esc stops · A small model makes mistakes: check what it says",
    retry: "Retry", retryHint: "Answer the last question again, with the settings of now", tokens: "Tokens", tokensHint: "Each token in the colour of its probability; click one for the five likeliest",
    unsure: "unsure", sure: "sure", stop: "Stop (Esc)", send: "Send (Enter)",
    edit: "Edit", editHint: "All that follows this question will be replaced", save: "Send", cancel: "Cancel", copy: "Copy", copied: "Copied", copyFailed: "The browser does not allow copying",
    thought: "Thoughts", thinking: "Thinking…", stopped: "stopped", length: "cut off at the longest answer",
    speed: "{n} tokens · {s} a second", count: "{n} tokens", seed: "seed {n}", left_out: "The {n} oldest turns no longer fit and were not sent",
    likeliest: "The five likeliest", picked: "chosen, {p}", noToken: "No probabilities for this answer: the server sent none",
    keyTitle: "A key is needed", keyText: "This server was started with a key (--api_key). It is kept for this tab only.", keyWrong: "That key is wrong. Try again.", keySend: "Continue",
    themes: { auto: "System", light: "Light", dark: "Dark" }, full: "The browser's storage is full: export and delete old conversations", halfFull: "Storage was full: some probabilities were removed; all text is kept",
    noModels: "no model", user: "User", truncatedTitle: "(empty)",
    errors: {
      0: "The server does not answer. Is it running? Start it: bash scripts/serve.sh", cut: "The connection broke off: the answer is not complete.", 401: "A key is needed. Try again to enter it.",
      404: "The server has no such model: {m}", 429: "The server is busy. Try again in a few seconds.", context_length_exceeded: "This conversation is too long for the model. Start a new one, or shorten the question.",
    },
  },
};

const STAGES = {
  zh: { pretrain: "预训练", full_sft: "SFT 微调", rlhf: "DPO 偏好", reason: "推理" },
  en: { pretrain: "pretrained", full_sft: "SFT", rlhf: "DPO", reason: "reasoning" },
};

const EXAMPLES = [
  ["你是谁？", "Who are you?"],
  ["法国的首都是哪里？", "What is the capital of France?"],
  ["小明有12个苹果，吃了5个，还剩几个？", "Twelve apples, five eaten: how many are left?"],
  ["我今天心情不太好", "I do not feel well today"],
];

/** A row a setting: name in a request; `value`: the default of the page; `neutral`: not sent. */
const SETTINGS = [
  { name: "temperature", value: 0.3, min: 0, max: 2, step: 0.05, slide: 1, zh: ["温度", "0：总选最可能的 token；越大越随机"], en: ["Temperature", "0: always the likeliest token; higher: more random"] },
  { name: "top_p", value: 0.9, min: 0.01, max: 1, step: 0.01, slide: 1, zh: ["Top-p", "只从概率之和达到 p 的 token 里选"], en: ["Top-p", "Choose among the likeliest that make up p"] },
  { name: "max_tokens", value: 512, min: 1, max: 1e6, step: 1, zh: ["最长回答", "token 数；不填：直到上下文用完"], en: ["Longest answer", "In tokens; empty: the rest of the context"] },
  { name: "seed", value: null, min: 0, max: 2 ** 31 - 1, step: 1, zh: ["随机种子", "不填：每次不同；填了：每次相同"], en: ["Seed", "Empty: another one each time; set: always the same"] },
  { name: "top_k", value: 0, neutral: 0, min: 0, max: 1e6, step: 1, more: 1, zh: ["Top-k", "只从最可能的 k 个里选；0：全部"], en: ["Top-k", "Choose among the k likeliest; 0: all"] },
  { name: "min_p", value: 0, neutral: 0, min: 0, max: 1, step: 0.01, more: 1, zh: ["Min-p", "去掉比最可能的低太多的 token；0：不去"], en: ["Min-p", "Leave out what is less likely than this share of the likeliest"] },
  { name: "repetition_penalty", value: 1, neutral: 1, min: 0.1, max: 2, step: 0.05, more: 1, zh: ["重复惩罚", "大于 1：少用出现过的 token"], en: ["Repetition penalty", "Above 1: fewer tokens that were there before"] },
  { name: "presence_penalty", value: 0, neutral: 0, min: -2, max: 2, step: 0.1, more: 1, zh: ["出现惩罚", "回答里出现过就扣分"], en: ["Presence penalty", "Against what the answer holds already"] },
  { name: "frequency_penalty", value: 0, neutral: 0, min: -2, max: 2, step: 0.1, more: 1, zh: ["频率惩罚", "出现几次就扣几次"], en: ["Frequency penalty", "The same, once for each time it was used"] },
  { name: "no_repeat_ngram_size", value: 0, neutral: 0, min: 0, max: 100, step: 1, more: 1, zh: ["不重复的长度", "连续 n 个 token 不出现两次；0：不限制"], en: ["No repeated n-gram", "No n tokens in a row come twice; 0: they may"] },
  { name: "stop", value: "", neutral: "", lines: 1, more: 1, zh: ["停止文本", "一行一个；回答在它之前结束"], en: ["Stop texts", "One a line; the answer ends before it"] },
  { name: "thinking", value: "auto", neutral: "auto", more: 1, zh: ["思考", "先思考再回答（需要推理模型）"], en: ["Thinking", "Think before the answer (reasoning models)"], choices: { auto: ["由模型决定", "model decides"], on: ["思考", "think"], off: ["不思考", "do not think"] } },
];

let language = (navigator.language || "zh").startsWith("zh") ? "zh" : "en";

/** A text in the chosen language, with {names} filled in. */
function say(key, values = {}) {
  return fill(WORDS[language][key], values);
}

function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
