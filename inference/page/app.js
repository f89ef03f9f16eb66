// The conversation as it goes on: questions out, answers in, and every button.

let talk = newTalk();
let models = [];
let tokensShown = recall("tokens", false);
let comparing = recall("compare", false);
let theme = recall("theme", "auto");
let settings = recall("settings", {});
let editing = -1; // the turn whose question is being edited
language = recall("language", language);

const running = new Map(); // id of a conversation -> what stops its answers
let views = new Map(); // answer -> its view, of the conversation on the screen
const waiting = new Set(); // views to update before the next picture

// --- asking ---------------------------------------------------------------------------------------

const setting = (row) => (row.name in settings ? settings[row.name] : row.value);

/** The fields of a request that say how to generate. What changes nothing is left out, so that
 * other servers of this protocol understand the request too. */
function sampling(seed) {
  const fields = { seed };
  for (const row of SETTINGS) {
    const value = setting(row);
    if (row.name === "seed" || value === null || value === row.neutral) continue;
    if (row.name === "thinking") fields.chat_template_kwargs = { enable_thinking: value === "on" };
    else fields[row.name] = row.lines ? value.split("\n").filter(Boolean) : value;
  }
  return fields;
}

/** The weights that answer: one, or two to compare. */
function chosenWeights() {
  return comparing ? [$("weights").value, $("weights-b").value] : [$("weights").value];
}

function ask(text) {
  if (!text.trim() || running.has(talk.id)) return false;
  if (!models.length) {
    loadModels().then((found) => found && ask(text)); // the server was away, or had no key from us
    return false;
  }
  if ($("prompt").value === text) $("prompt").value = "";
  grow($("prompt"));
  talk.turns.push({ text: text.trim(), answers: [] });
  answerLast();
  return true;
}

/** Asks which models there are. Returns whether there is one. */
async function loadModels() {
  try {
    models = (await (await request("v1/models")).json()).data.map((model) => model.id);
  } catch (error) {
    notify(error instanceof Refusal ? error.shown("") : error.message);
  }
  showModels();
  showTalk();
  return models.length > 0;
}

/** Answers the last question, with the weights and settings of now. */
async function answerLast() {
  const asked = talk;
  const turn = asked.turns[asked.turns.length - 1];
  const before = asked.turns[asked.turns.length - 2];
  const stopper = new AbortController();
  const seed = setting(SETTINGS.find((row) => row.name === "seed")) ?? Math.floor(Math.random() * 1e6);
  const fields = sampling(seed);
  turn.answers = chosenWeights().map((model, column) => ({
    model, seed, text: "", thought: "", tokens: [], reason: "", error: null, seconds: 0,
    leftOut: ((before && before.answers[column]) || {}).leftOut || 0,
  }));
  asked.time = Date.now();
  running.set(asked.id, stopper);
  tab.set("talk", asked.id);
  keepTalk(asked);
  showTalk();
  showHistory();
  scrollDown();
  await Promise.all(turn.answers.map((_, column) => answer(asked, turn, column, fields, stopper.signal)));
  running.delete(asked.id);
  if (!gone.has(asked.id)) keepTalk(asked);
  showButtons();
}

const gone = new Set(); // conversations that were deleted while they ran

async function answer(asked, turn, column, fields, signal) {
  const answer = turn.answers[column];
  const end = asked.turns.indexOf(turn);
  let started = 0;
  const got = (delta, tokens) => {
    answer.text += delta.content || "";
    answer.thought += delta.reasoning_content || "";
    answer.tokens.push(...tokens);
    started = started || (tokens.length ? performance.now() : 0);
    if (started) answer.seconds = (performance.now() - started) / 1000;
    refresh(answer);
  };
  for (;;) {
    try {
      const messages = messagesOf(asked, end, column, answer.leftOut);
      answer.reason = await streamAnswer({ model: answer.model, messages, ...fields }, signal, got);
    } catch (error) {
      if (error.code === "context_length_exceeded" && !answer.text && answer.leftOut < end) {
        answer.leftOut += 1; // as in a terminal: the oldest turn is forgotten
        continue;
      }
      if (error.name === "AbortError") answer.reason = "stopped";
      else answer.error = { status: error.status ?? 0, code: error.code, message: error.message };
    }
    return refresh(answer);
  }
}

function refresh(answer) {
  const view = views.get(answer);
  if (!view) return;
  if (!waiting.size) requestAnimationFrame(updateViews);
  waiting.add(view);
}

function updateViews() {
  const low = isLow();
  waiting.forEach((view) => view.update());
  waiting.clear();
  if (low) scrollDown();
}

/** Whether the end of the conversation is on the screen: only then the page follows the answer. */
const isLow = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;

function scrollDown() {
  if (talk.turns.length) $("log").scrollTop = $("log").scrollHeight;
}

function stop() {
  const stopper = running.get(talk.id);
  if (stopper) stopper.abort();
}

function retry() {
  if (talk.turns.length && !running.has(talk.id)) answerLast();
}

/** Replaces a question and all that follows it. */
function replaceQuestion(index, text) {
  if (!text.trim() || running.has(talk.id)) return;
  editing = -1;
  talk.turns.length = index;
  ask(text);
  $("prompt").focus();
}

// --- showing --------------------------------------------------------------------------------------

function showTalk() {
  hideDetail();
  views = new Map();
  $("empty").hidden = talk.turns.length > 0;
  $("system").value = talk.system;
  $("turns").replaceChildren(...talk.turns.map(turnElement));
  // Both ids are always there, for programs that drive the page.
  for (const id of ["answer-a", "answer-b"]) if (!$(id)) $("turns").append(el("div", { id, hidden: true }));
  document.body.classList.toggle("comparing", comparing || talk.turns.some((turn) => turn.answers.length > 1));
  grow($("system"));
  showButtons();
}

function turnElement(turn, index) {
  const two = turn.answers.length > 1;
  const last = index === talk.turns.length - 1;
  const answers = turn.answers.map((answer, column) => {
    const view = new AnswerView(answer, two);
    views.set(answer, view);
    if (last) view.text.id = `answer-${"ab"[column]}`;
    return view.root;
  });
  return el("article", { class: "turn" }, questionElement(turn, index), el("div", { class: two ? "answers two" : "answers" }, ...answers));
}

function questionElement(turn, index) {
  if (index !== editing) {
    const edit = action("edit", () => editQuestion(index));
    return el("div", { class: "question" }, el("div", { class: "bubble" }, turn.text), el("div", { class: "actions" }, edit, action("copy", () => copyText(turn.text))));
  }
  const area = el("textarea", { rows: "1", "aria-label": say("edit"), oninput: () => grow(area) });
  area.value = turn.text;
  area.addEventListener("keydown", (event) => {
    if (isSend(event)) replaceQuestion(index, area.value);
    else if (event.key === "Escape") editQuestion(-1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const later = el("small", {}, say("editHint"));
  later.hidden = index === talk.turns.length - 1;
  const cancel = el("button", { type: "button", class: "quiet", onclick: () => editQuestion(-1) }, say("cancel"));
  const send = el("button", { class: "main" }, say("save"));
  const submit = (event) => {
    event.preventDefault();
    replaceQuestion(index, area.value);
  };
  return el("div", { class: "question" }, el("form", { onsubmit: submit }, area, el("div", { class: "choices" }, later, cancel, send)));
}

function editQuestion(index) {
  if (running.has(talk.id)) return;
  editing = index;
  showTalk();
  const area = document.querySelector(".question form textarea");
  if (!area) return $("prompt").focus();
  grow(area);
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

/** What can be pressed now. */
function showButtons() {
  const busy = running.has(talk.id);
  const leaves = busy ? $("send") : $("stop");
  if (document.activeElement === leaves) $("prompt").focus(); // the button below the finger goes away
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("send").disabled = !$("prompt").value.trim();
  $("retry").disabled = busy || !talk.turns.length || !models.length;
  $("tokens").setAttribute("aria-pressed", tokensShown);
  $("legend").hidden = !tokensShown;
  $("compare").setAttribute("aria-pressed", comparing);
  $("weights-b").hidden = !comparing;
  document.querySelectorAll(".actions .edit").forEach((button) => (button.disabled = busy));
}

function showHistory() {
  const talks = allTalks();
  const items = talks.map((other) => {
    const now = other.id === talk.id;
    const open = el("button", { class: "open", title: titleOf(other), onclick: () => openTalk(other.id) }, titleOf(other));
    if (now) open.setAttribute("aria-current", "true");
    const remove = el("button", { class: "icon remove", title: say("remove"), "aria-label": `${say("remove")}: ${titleOf(other)}`, onclick: () => removeTalk(other.id) }, icon("trash"));
    return el("div", { class: now ? "item now" : "item" }, open, remove);
  });
  $("history").replaceChildren(...(items.length ? items : [el("p", {}, say("noHistory"))]));
}

const open = new Map(); // conversations of which a copy is in this page, so that running ones go on

function openTalk(id) {
  open.set(talk.id, talk);
  talk = (running.has(id) && open.get(id)) || recall(`talk.${id}`, null) || newTalk();
  settle(talk);
  editing = -1;
  tab.set("talk", talk.id);
  showTalk();
  showHistory();
  closePanels();
  scrollDown();
  if (!isNarrow()) $("prompt").focus();
}

/** An answer that was being written when the page was closed was stopped by that. */
function settle(opened) {
  if (running.has(opened.id)) return;
  opened.turns.forEach((turn) => turn.answers.forEach((answer) => (answer.reason = answer.reason || (answer.error ? "" : "stopped"))));
}

function removeTalk(id) {
  if (!confirm(say("removeSure"))) return;
  if (running.has(id)) {
    gone.add(id);
    running.get(id).abort();
  }
  kept.remove(`talk.${id}`);
  if (id === talk.id) openTalk(newTalk().id);
  else showHistory();
}

function showModels() {
  const options = () => models.map((id) => el("option", { value: id }, modelName(id)));
  const pick = (select, wanted, otherwise) => {
    select.replaceChildren(...(models.length ? options() : [el("option", { value: "" }, say("noModels"))]));
    select.value = models.includes(wanted) ? wanted : otherwise || "";
  };
  pick($("weights"), recall("weights", ""), models[0]);
  const other = models.find((id) => id !== $("weights").value) || models[0];
  pick($("weights-b"), recall("weights-b", ""), other);
  comparing = recall("compare", false) && models.length > 1;
  $("compare").disabled = models.length < 2;
  $("compare").title = say(models.length < 2 ? "compareNone" : "compare");
}

function showSettings() {
  for (const [place, more] of [["basic", undefined], ["further", 1]])
    $(place).replaceChildren(...SETTINGS.filter((row) => row.more === more).map(settingElement));
}

function settingElement(row) {
  const [title, help] = row[language];
  const id = `set-${row.name}`;
  const set = (value) => {
    settings = { ...settings, [row.name]: value };
    kept.set("settings", JSON.stringify(settings));
  };
  const head = el("div", { class: "head" }, el("label", { for: id }, title));
  const root = el("div", { class: "setting" }, head);
  if (row.choices) {
    const select = el("select", { id, onchange: () => set(select.value) });
    Object.entries(row.choices).forEach(([value, words]) => select.append(el("option", { value }, words[language === "zh" ? 0 : 1])));
    select.value = setting(row);
    head.append(select);
  } else if (row.lines) {
    const area = el("textarea", { id, rows: "2", oninput: () => set(area.value) });
    area.value = setting(row);
    root.append(area);
  } else {
    const number = el("input", { id, type: "number", min: `${row.min}`, max: `${row.max}`, step: `${row.step}`, inputmode: "decimal" });
    number.value = setting(row) ?? "";
    const slide = row.slide && el("input", { type: "range", "aria-label": title, min: `${row.min}`, max: `${row.max}`, step: `${row.step}` });
    const changed = (text) => {
      const given = Math.min(row.max, Math.max(row.min, Number(text)));
      const value = text === "" ? (row.value === null || row.name === "max_tokens" ? null : row.value) : row.step === 1 ? Math.round(given) : given;
      set(value);
      number.value = value ?? "";
      if (slide) slide.value = value;
    };
    number.addEventListener("change", () => changed(number.value));
    head.append(number);
    if (slide) {
      slide.value = setting(row);
      slide.addEventListener("input", () => changed(slide.value));
      root.append(slide);
    }
  }
  root.append(el("small", {}, help));
  return root;
}

function showLanguage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-t], [data-t-title], [data-t-label], [data-t-placeholder]").forEach((node) => {
    const { t, tTitle, tLabel, tPlaceholder } = node.dataset;
    if (t) node.textContent = say(t);
    if (tTitle) node.title = say(tTitle);
    if (tTitle || tLabel) node.setAttribute("aria-label", say(tTitle || tLabel));
    if (tPlaceholder) node.placeholder = say(tPlaceholder);
  });
  $("examples").replaceChildren(
    ...EXAMPLES.map(([text, meaning]) => el("button", { type: "button", onclick: () => ask(text) }, text, ...(language === "en" ? [el("small", {}, meaning)] : []))),
  );
  showTheme();
  showModels();
  showSettings();
  showHistory();
  showTalk();
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("theme-name").textContent = WORDS[language].themes[theme];
}

/** A text field as high as its text. */
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

// --- the key --------------------------------------------------------------------------------------

let keyAsked = null; // both columns wait for the same answer

/** Asks for the server's key. Returns whether there is one to try. */
function askForKey(wrong) {
  keyAsked =
    keyAsked ||
    new Promise((given) => {
      $("key-text").textContent = say(wrong ? "keyWrong" : "keyText");
      $("key").value = "";
      $("key-dialog").returnValue = "";
      $("key-dialog").showModal();
      $("key-dialog").onclose = () => {
        keyAsked = null;
        given($("key-dialog").returnValue === "given");
      };
    });
  return keyAsked;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("key").value) return;
  tab.set("key", $("key").value);
  $("key-dialog").close("given");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close(""));

// --- panels and buttons ---------------------------------------------------------------------------

const isNarrow = () => matchMedia("(max-width: 960px)").matches;

function showPanel(name, shown) {
  document.body.classList.toggle(`show-${name}`, shown);
  document.querySelector("main").inert = shown && isNarrow(); // the keyboard stays in the panel
  $(name === "history" ? "menu" : "tune").setAttribute("aria-expanded", shown);
}

/** Closes what lies over the conversation. Returns whether there was anything. */
function closePanels() {
  const detail = !$("detail").hidden;
  const menu = $("export").open;
  hideDetail();
  $("export").open = false;
  const over = isNarrow() && ["history", "settings"].filter((name) => document.body.classList.contains(`show-${name}`));
  if (!over || !over.length) return detail || menu;
  over.forEach((name) => showPanel(name, false));
  $(over[0] === "history" ? "menu" : "tune").focus();
  return true;
}

/** Enter, but not the Enter that ends the spelling of a Chinese word. */
const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;

const choose = (name, value) => kept.set(name, JSON.stringify(value));

const buttons = {
  new: () => openTalk(newTalk().id),
  stop,
  retry,
  menu: () => {
    showPanel("history", true);
    $("new").focus();
  },
  tune: () => {
    const shown = !document.body.classList.contains("show-settings");
    showPanel("settings", shown);
    if (!isNarrow()) choose("panel", shown);
    else $("close-settings").focus();
  },
  "close-settings": closePanels,
  shade: closePanels,
  tokens: () => {
    tokensShown = !tokensShown;
    choose("tokens", tokensShown);
    hideDetail();
    views.forEach((view) => ((view.shown = 0), view.update()));
    showButtons();
    const bare = talk.turns.length && !talk.turns[talk.turns.length - 1].answers.some((answer) => answer.tokens.length);
    if (tokensShown && bare && !running.has(talk.id)) notify(say("noToken"));
  },
  compare: () => {
    comparing = !comparing;
    choose("compare", comparing);
    document.body.classList.toggle("comparing", comparing);
    showButtons();
  },
  language: () => {
    language = language === "zh" ? "en" : "zh";
    choose("language", language);
    showLanguage();
  },
  theme: () => {
    theme = { auto: "light", light: "dark", dark: "auto" }[theme];
    choose("theme", theme);
    showTheme();
  },
  reset: () => {
    settings = {};
    kept.remove("settings");
    showSettings();
  },
  "export-markdown": () => exported("md", "text/markdown", asMarkdown),
  "export-json": () => exported("json", "application/json", asJson),
};
Object.entries(buttons).forEach(([id, click]) => $(id).addEventListener("click", click));

function exported(ending, kind, write) {
  closePanels();
  if (!talk.turns.length) return notify(say("exportNothing"));
  const name = titleOf(talk).replace(/[\\/:*?"<>|\s.]+/g, "_");
  download(`${name}.${ending}`, kind, write(talk));
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("prompt").value);
});
$("prompt").addEventListener("input", () => {
  grow($("prompt"));
  showButtons();
});
$("prompt").addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("prompt").value && talk.turns.length) {
    event.preventDefault();
    editQuestion(talk.turns.length - 1);
  }
});
$("system").addEventListener("input", () => {
  talk.system = $("system").value;
  grow($("system"));
});
$("system").addEventListener("change", () => keepTalk(talk));
for (const name of ["weights", "weights-b"]) $(name).addEventListener("change", () => choose(name, $(name).value));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open && !closePanels()) stop();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".token, #detail")) hideDetail();
  if (!event.target.closest("#export")) $("export").open = false;
});
$("log").addEventListener("scroll", hideDetail);
addEventListener("resize", () => {
  hideDetail();
  if (!isNarrow()) document.querySelector("main").inert = false;
});
addEventListener("storage", showHistory); // another tab has changed it
addEventListener("pagehide", () => running.has(talk.id) && keepTalk(talk));
dark.addEventListener("change", showTheme);

// --- the beginning --------------------------------------------------------------------------------

function start() {
  showPanel("settings", recall("panel", innerWidth > 1500) && !isNarrow());
  talk = recall(`talk.${tab.get("talk")}`, null) || talk;
  settle(talk);
  showLanguage();
  scrollDown();
  if (!isNarrow()) $("prompt").focus();
  loadModels();
}

start();
