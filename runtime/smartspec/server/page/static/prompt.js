// The box to try a prompt: streams an answer and shows, token by token, who proposed it. Text is only ever text.
import { element } from "./charts.js";
import * as words from "./words.js";

const find = (id) => document.getElementById(id);

/** Wire the form. *keyOf* gives the key to send; *announce* speaks to screen readers. */
export function wirePrompt({ keyOf, announce }) {
  const [form, send, stop] = [find("try"), find("send"), find("stop")];
  let running = null;
  stop.addEventListener("click", () => running?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running?.abort();
    const mine = (running = new AbortController());
    send.disabled = true;
    stop.disabled = false;
    find("try-error").textContent = "";
    const answer = new Answer();
    try {
      await stream(request(), keyOf(), mine.signal, (choice) => answer.add(choice));
      announce(`Answer complete. ${answer.summary()}`);
    } catch (error) {
      if (error.name === "AbortError") announce(`Stopped. ${answer.summary()}`);
      else find("try-error").textContent = error.message;
    } finally {
      answer.end();
      send.disabled = false;
      stop.disabled = true;
    }
  });
}

function request() {
  const [mode, tokens] = find("mode").value.split(":");
  const isChat = find("kind").value === "chat";
  const prompt = find("prompt").value;
  const schema = find("schema").value.trim();
  return {
    path: isChat ? "v1/chat/completions" : "v1/completions",
    body: {
      ...(isChat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: find("max-tokens").valueAsNumber,
      temperature: find("temperature").valueAsNumber,
      stream: true,
      ...(schema ? { structured_outputs: { json: schema } } : {}),
      speculation: { mode, ...(tokens ? { max_tokens: Number(tokens) } : {}), explain: true },
    },
  };
}

/** Send, and give each choice of each event to *take*. Raises an Error with a message for people. */
async function stream({ path, body }, key, signal, take) {
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (!response.ok) throw new Error(await refusal(response));
  let rest = "";
  for await (const text of texts(response.body.pipeThrough(new TextDecoderStream()))) {
    const events = (rest + text).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      chunk.choices.forEach(take);
    }
  }
  throw new Error("The answer ended early: the connection was lost.");
}

/** What a stream brings; not every browser can iterate over one. */
async function* texts(readable) {
  const reader = readable.getReader();
  for (;;) {
    let next;
    try {
      next = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The answer ended early: the connection was lost.");
    }
    if (next.done) return;
    yield next.value;
  }
}

async function refusal(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not an error object of ours: the status must do.
  }
  if (response.status === 401) return "This server wants a key: type yours into the field above.";
  const after = response.headers.get("Retry-After");
  return after ? `${message} (try again in ${after} s)` : message;
}

/** What has come of an answer. */
class Answer {
  constructor() {
    this.began = performance.now();
    this.first = this.last = null;
    this.tokens = this.steps = 0;
    this.by = { draft: 0, lookup: 0, grammar: 0, target: 0 };
    this.region = find("answer");
    this.bars = find("steps");
    this.region.replaceChildren();
    this.bars.replaceChildren();
    find("answer-summary").textContent = "";
  }

  add(choice) {
    for (const step of choice.speculation?.steps ?? []) this.addStep(step);
  }

  addStep({ proposer, accepted, tokens }) {
    this.last = performance.now();
    this.first ??= this.last;
    this.steps += 1;
    const bar = element("span");
    const isNearEnd = this.region.scrollHeight - this.region.scrollTop - this.region.clientHeight < 40;
    tokens.forEach((text, index) => {
      // What is copied looks alike, from the prompt or from a client's prediction; what a grammar forces is no copy.
      const name = index >= accepted ? "target" : proposer === "prediction" ? "lookup" : proposer;
      this.by[name] += 1;
      this.tokens += 1;
      bar.append(element("i", `by-${name}`));
      const token = element("span", `t by-${name}${index === 0 ? " first" : ""}`, text);
      token.title = `step ${this.steps}: ${name}`;
      this.region.append(token);
    });
    this.bars.append(bar);
    if (isNearEnd) this.region.scrollTop = this.region.scrollHeight;
    find("answer-summary").textContent = this.summary();
  }

  summary() {
    if (!this.steps) return "No tokens came.";
    const seconds = (this.last - this.first) / 1000;
    const rate = this.tokens > 1 && seconds > 0 ? `, ${words.number((this.tokens - 1) / seconds)} tokens a second` : "";
    const by = Object.entries(this.by).filter(([, tokens]) => tokens).map(([name, tokens]) => `${tokens} by ${name}`);
    return (
      `${words.count(this.tokens, "token")} in ${words.count(this.steps, "step")}: ` +
      `${words.number(this.tokens / this.steps)} tokens per step (${by.join(", ")}). ` +
      `First token after ${words.seconds((this.first - this.began) / 1000)}${rate}.`
    );
  }

  end() {
    find("answer-summary").textContent = this.summary();
  }
}
