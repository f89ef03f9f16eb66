// Requests to the server that sent this page, in OpenAI's protocol.

/** A refusal (its status and code), or a failure: status 0 where no whole answer came. */
class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** What the user reads. */
  shown(model) {
    const known = WORDS[language].errors;
    const text = known[this.code] || known[this.status];
    return text ? fill(text, { m: model }) : this.message || String(this.status);
  }
}

/** The response to a request. Asks for the key as often as the server wants one. */
async function request(path, body, signal) {
  for (;;) {
    const key = tab.get("key");
    const options = { method: body ? "POST" : "GET", headers: {}, body: body && JSON.stringify(body), signal };
    if (body) options.headers["Content-Type"] = "application/json";
    if (key) options.headers.Authorization = `Bearer ${key}`;
    let response;
    try {
      response = await fetch(path, options);
    } catch (error) {
      throw error.name === "AbortError" ? error : new Refusal(0, "", error.message);
    }
    if (response.ok) return response;
    if (response.status === 401 && (tab.get("key") !== key || (await askForKey(Boolean(key))))) continue;
    const told = await response.json().catch(() => ({}));
    const error = told.error || {};
    throw new Refusal(response.status, error.code, error.message);
  }
}

/** The objects of a stream of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (let done = false; !done; ) {
    const read = await reader.read();
    done = read.done;
    rest += decoder.decode(read.value, { stream: !done });
    const lines = rest.split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // comments keep the connection alive
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/** Streams one answer: `got(delta, tokens)` for each piece. Returns why it ended. */
async function streamAnswer(body, signal, got) {
  const asked = { ...body, stream: true, logprobs: true, top_logprobs: 5 };
  const response = await request("v1/chat/completions", asked, signal);
  let reason = null;
  try {
    for await (const event of events(response)) {
      if (event.error) throw new Refusal(response.status, event.error.code, event.error.message);
      const choice = (event.choices || [])[0];
      if (!choice) continue;
      got(choice.delta || {}, ((choice.logprobs || {}).content || []).map(token));
      reason = choice.finish_reason || reason;
    }
  } catch (error) {
    throw error.name === "AbortError" || error instanceof Refusal ? error : new Refusal(0, "cut", error.message);
  }
  if (!reason) throw new Refusal(0, "cut", "");
  return reason;
}

const whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A text from its bytes, or null if they begin or end inside a character. */
function decoded(bytes) {
  try {
    return whole.decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}

/** A token as we keep it: `t` text, `b` bytes if they are no whole text, `p` log-probability,
 * `top` the likeliest as [text, log-probability]. */
function token(sent) {
  const t = sent.bytes ? decoded(sent.bytes) : sent.token;
  const top = (sent.top_logprobs || []).map((other) => [nameOf(other), round(other.logprob)]);
  return { t: t ?? nameOf(sent), p: round(sent.logprob), top, ...(t === null && { b: sent.bytes }) };
}

/** What a token is called where it stands alone: its text, or its bytes as \xe4\xbd. */
function nameOf(sent) {
  const bytes = sent.bytes || [];
  if (!bytes.length) return sent.token;
  return decoded(bytes) ?? bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
}

function round(logprob) {
  return Math.round(Math.max(logprob, -9999) * 1000) / 1000;
}
