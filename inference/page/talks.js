// What the browser keeps: conversations and choices (localStorage), the key (sessionStorage).
//
// A conversation: {id, time, system, turns: [{text, answers: [one a column]}]}.
// An answer: {model, seed, text, thought, tokens, reason, error, seconds, leftOut}.

/** A part of the browser's storage under our own names. Where storing is forbidden, the values
 * last as long as the page. */
function storage(kind) {
  const memory = new Map();
  const place = () => {
    try {
      return window[kind];
    } catch {
      return null;
    }
  };
  return {
    get: (name) => (place() ? place().getItem(`minillm.${name}`) : memory.get(name) ?? null),
    set: (name, value) => (place() ? place().setItem(`minillm.${name}`, value) : memory.set(name, value)),
    remove: (name) => (place() ? place().removeItem(`minillm.${name}`) : memory.delete(name)),
    names: () => {
      if (!place()) return [...memory.keys()];
      const ours = Object.keys(place()).filter((name) => name.startsWith("minillm."));
      return ours.map((name) => name.slice("minillm.".length));
    },
  };
}

const kept = storage("localStorage");
const tab = storage("sessionStorage");

/** A value that was kept as JSON, or `otherwise` where there is none or it can't be read. */
function recall(name, otherwise) {
  try {
    return JSON.parse(kept.get(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function newTalk() {
  // Not randomUUID: a page that comes over plain HTTP from another machine has none.
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, time: Date.now(), system: "", turns: [] };
}

/** All conversations, the newest first. Each has a name of its own, so two tabs do not overwrite
 * each other's. */
function allTalks() {
  const talks = kept.names().filter((name) => name.startsWith("talk.")).map((name) => recall(name, null));
  return talks.filter((talk) => talk && Array.isArray(talk.turns)).sort((a, b) => b.time - a.time);
}

/** Keeps a conversation. If there is no room, probabilities make it: those of the oldest
 * conversations first, its own last. */
function keepTalk(talk) {
  if (!talk.turns.length) return;
  const bare = (key, value) => (key === "tokens" ? [] : value);
  const hasTokens = (other) => JSON.stringify(other) !== JSON.stringify(other, bare);
  for (let rule = null, others = null; ; ) {
    try {
      return kept.set(`talk.${talk.id}`, JSON.stringify(talk, rule));
    } catch {
      if (rule) return notify(say("full"));
      others = others || allTalks().filter((other) => other.id !== talk.id && hasTokens(other));
      const oldest = others.pop();
      if (oldest) kept.set(`talk.${oldest.id}`, JSON.stringify(oldest, bare));
      else rule = bare;
      notify(say("halfFull"));
    }
  }
}

function titleOf(talk) {
  return talk.turns.length ? talk.turns[0].text.trim().slice(0, 40) || say("truncatedTitle") : say("new");
}

/** The messages that a column sends for the turn at `end`: what its own model said before, or the
 * first column's answer where it was not asked. `leftOut`: how many of the oldest turns stay out. */
function messagesOf(talk, end, column, leftOut) {
  const messages = talk.system.trim() ? [{ role: "system", content: talk.system.trim() }] : [];
  for (const turn of talk.turns.slice(leftOut, end)) {
    const answer = turn.answers[column] || turn.answers[0];
    messages.push({ role: "user", content: turn.text });
    if (answer && answer.text) messages.push({ role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: talk.turns[end].text }];
}

/** The conversation to read. */
function asMarkdown(talk) {
  const parts = [`# ${titleOf(talk)}`];
  if (talk.system.trim()) parts.push(`**${say("system")}**: ${talk.system.trim()}`);
  for (const turn of talk.turns) {
    parts.push(`## ${say("user")}`, turn.text);
    for (const answer of turn.answers) {
      parts.push(`## ${answer.model}`);
      if (answer.thought) parts.push(answer.thought.replace(/^/gm, "> "));
      parts.push(answer.text);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

/** The conversation for programs. `conversations` has a form that MiniLLM trains on. */
function asJson(talk) {
  const columns = Math.max(...talk.turns.map((turn) => turn.answers.length));
  const conversations = Array.from({ length: columns }, (_, column) => {
    const messages = messagesOf(talk, talk.turns.length - 1, column, 0);
    const last = talk.turns[talk.turns.length - 1].answers[column];
    return last && last.text ? [...messages, { role: "assistant", content: last.text }] : messages;
  });
  const [first, compared] = conversations; // JSON leaves `compared` out where there is none
  const time = new Date(talk.time).toISOString();
  const all = { title: titleOf(talk), time, conversations: first, compared, turns: talk.turns };
  return `${JSON.stringify(all, null, 2)}\n`;
}
