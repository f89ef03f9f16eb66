// The conversation as it goes on: questions out, answers in, and what of it is on the screen.

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
  const columns = el("div", { class: two ? "answers two" : "answers" }, ...answers);
  return el("article", { class: "turn" }, questionElement(turn, index), columns);
}

function questionElement(turn, index) {
  if (index !== editing) {
    const edit = action("edit", () => editQuestion(index));
    const actions = el("div", { class: "actions" }, edit, action("copy", () => copyText(turn.text)));
    return el("div", { class: "question" }, el("div", { class: "bubble" }, turn.text), actions);
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
  const choices = el("div", { class: "choices" }, later, cancel, send);
  return el("div", { class: "question" }, el("form", { onsubmit: submit }, area, choices));
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
    const title = titleOf(other);
    const open = el("button", { class: "open", title, onclick: () => openTalk(other.id) }, title);
    if (now) open.setAttribute("aria-current", "true");
    const words = { title: say("remove"), "aria-label": `${say("remove")}: ${title}` };
    const remove = el("button", { class: "icon remove", ...words, onclick: () => removeTalk(other.id) }, icon("trash"));
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
  for (const answer of opened.turns.flatMap((turn) => turn.answers))
    if (!answer.reason && !answer.error) answer.reason = "stopped";
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
