// How a conversation is shown. Texts are set as text, never as HTML.

const $ = (id) => document.getElementById(id);

/** An element: properties (`class`, `on...`, attributes) and what it holds. */
function el(tag, properties = {}, ...inside) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...inside);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A small button with a picture. */
function action(name, click) {
  const words = { title: say(name), "aria-label": say(name) };
  return el("button", { type: "button", class: `icon ${name}`, ...words, onclick: click }, icon(name));
}

const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return `${share >= 99.95 ? "100" : share >= 0.1 || share === 0 ? share.toFixed(1) : "<0.1"}%`;
};

/** Which of the six colours a log-probability has. */
function shade(logprob) {
  const share = Math.exp(logprob);
  return [0.1, 0.3, 0.5, 0.7, 0.9].filter((bound) => share >= bound).length;
}

/** Joins tokens that hold only a part of a character with those that complete it.
 * Returns groups {text, tokens}, and how many tokens at the end still wait for the rest. */
function grouped(tokens) {
  const groups = [];
  let open = [];
  const close = () => {
    if (open.length) groups.push({ text: new TextDecoder().decode(bytesOf(open)), tokens: open });
    open = [];
  };
  for (const next of tokens) {
    if (!next.b) close(); // what came before can't be completed any more
    open.push(next);
    if (decoded(bytesOf(open)) !== null) close();
  }
  return { groups, waiting: open.length, flush: close };
}

const bytesOf = (tokens) => new Uint8Array(tokens.flatMap((one) => one.b || [...new TextEncoder().encode(one.t)]));

/** How an answer is shown. `update` follows what the stream brings. */
class AnswerView {
  constructor(answer, showModel) {
    this.answer = answer;
    this.shown = 0; // tokens that have their element
    this.text = el("div", { class: "text" });
    this.thought = el("details", { class: "thought" }, el("summary"), el("div"));
    this.model = el("div", { class: "model" }, modelName(answer.model));
    this.model.hidden = !showModel;
    this.note = el("div", { class: "note" });
    this.problem = el("div", { class: "problem", role: "alert" });
    this.meta = el("span", { class: "meta" });
    this.copy = action("copy", () => copyText(answer.text));
    const actions = el("div", { class: "actions" }, this.copy, this.meta);
    this.root = el("div", { class: "answer" });
    this.root.append(this.model, this.note, this.thought, this.text, this.problem, actions);
    this.text.addEventListener("click", (event) => this.open(event.target.closest(".token")));
    this.text.addEventListener("keydown", (event) => this.move(event));
    this.update();
  }

  update() {
    const { answer } = this;
    const busy = !answer.reason && !answer.error;
    this.root.classList.toggle("busy", busy);
    this.root.setAttribute("aria-busy", busy);
    this.thought.hidden = !answer.thought;
    const [title, inside] = this.thought.children;
    title.textContent = say(busy && !answer.text ? "thinking" : "thought");
    inside.textContent = answer.thought;
    this.note.hidden = !answer.leftOut;
    this.note.textContent = say("left_out", { n: answer.leftOut });
    this.problem.hidden = !answer.error;
    const { status, code, message } = answer.error || {};
    this.problem.textContent = answer.error ? new Refusal(status, code, message).shown(answer.model) : "";
    this.text.hidden = Boolean(answer.error) && !answer.text;
    this.copy.hidden = busy || !answer.text;
    this.meta.replaceChildren(...this.facts(busy));
    if (tokensShown && answer.tokens.length) this.showTokens(busy);
    else if (this.text.textContent !== answer.text || this.shown) {
      this.shown = 0;
      this.text.textContent = answer.text;
    }
  }

  /** The line below an answer. */
  facts(busy) {
    const { answer } = this;
    if (busy) return [];
    const count = answer.tokens.length;
    const pace = ((count - 1) / answer.seconds).toFixed(0); // the first token came at second 0
    const speed = answer.seconds > 0 && count > 1 ? say("speed", { n: count, s: pace }) : say("count", { n: count });
    const ended = { length: say("length"), stopped: say("stopped") }[answer.reason];
    const facts = [this.model.hidden && modelName(answer.model), count && speed, ended].filter(Boolean).join(" · ");
    return [facts, el("span", { class: "seed" }, ` · ${say("seed", { n: answer.seed })}`)];
  }

  showTokens(busy) {
    if (!this.shown) this.text.textContent = "";
    const all = grouped(this.answer.tokens.slice(this.shown));
    if (!busy) all.flush();
    for (const group of all.groups.filter((one) => one.text)) {
      const chance = group.tokens.reduce((sum, one) => sum + one.p, 0);
      const tabindex = this.text.firstElementChild ? "-1" : "0";
      const span = el("span", { class: `token p${shade(chance)}`, role: "button", tabindex }, group.text);
      span.title = percent(chance);
      span.classList.toggle("line", group.text.startsWith("\n"));
      span.group = group;
      this.text.append(span);
    }
    this.shown = this.answer.tokens.length - (busy ? all.waiting : 0);
  }

  /** One token of an answer is in the order of Tab; arrows lead to the others. */
  move(event) {
    const now = event.target.closest(".token");
    if (!now) return;
    if (event.key === "Enter" || event.key === " ") this.open(now);
    else {
      const next = {
        ArrowRight: now.nextElementSibling,
        ArrowLeft: now.previousElementSibling,
        Home: this.text.firstElementChild,
        End: this.text.lastElementChild,
      }[event.key];
      if (!next) return;
      now.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      if (!$("detail").hidden) this.open(next);
    }
    event.preventDefault();
  }

  open(span) {
    if (span) showDetail(span);
  }
}

/** A token's five likeliest, beside it. */
function showDetail(span) {
  hideDetail();
  const visible = (text) => text.replace(/\n/g, "↵").replace(/^ | $/g, "␣");
  const box = $("detail");
  const rows = span.group.tokens.flatMap((one) => {
    const taken = one.top.findIndex(([text]) => text === one.t);
    const all = taken < 0 ? [...one.top, [one.t, one.p]] : one.top;
    const at = taken < 0 ? all.length - 1 : taken;
    return [
      el("p", {}, `${visible(one.t)} · ${say("picked", { p: percent(one.p) })}`),
      ...all.map(([text, logprob], place) => {
        const bar = el("i");
        bar.style.width = `${Math.exp(logprob) * 100}%`;
        const row = el("div", { class: place === at ? "row taken" : "row" });
        row.append(el("span", {}, visible(text)), el("div", { class: "bar" }, bar), el("em", {}, percent(logprob)));
        return row;
      }),
    ];
  });
  box.replaceChildren(...rows);
  box.hidden = false;
  span.classList.add("chosen");
  const place = span.getClientRects()[0] || span.getBoundingClientRect();
  const below = place.bottom + 8 + box.offsetHeight < innerHeight;
  box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${below ? place.bottom + 6 : Math.max(8, place.top - box.offsetHeight - 6)}px`;
}

function hideDetail() {
  $("detail").hidden = true;
  document.querySelectorAll(".token.chosen").forEach((span) => span.classList.remove("chosen"));
}

/** A weight's file name with the stage that made it. */
function modelName(id) {
  const [stem, adapter] = id.split("+");
  const stage = Object.keys(STAGES[language]).find((name) => stem.startsWith(`${name}_`));
  return stage && !adapter ? `${id} · ${STAGES[language][stage]}` : id;
}

let noticeTimer = 0;

/** A line that goes away by itself. */
function notify(text) {
  clearTimeout(noticeTimer);
  $("notice").textContent = text;
  $("notice").hidden = false;
  noticeTimer = setTimeout(() => ($("notice").hidden = true), 4000);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    notify(say("copied"));
  } catch {
    // Over plain HTTP from another machine there is no clipboard: the old way.
    const area = el("textarea", { class: "offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    notify(say(document.execCommand("copy") ? "copied" : "copyFailed"));
    area.remove();
  }
}

function download(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
