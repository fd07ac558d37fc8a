// The page: asks the server for its history, and shows it. No text from the server or the user ever becomes markup.
import { drawCharts, element } from "./charts.js";
import { wirePrompt } from "./prompt.js";
import * as words from "./words.js";

const find = (id) => document.getElementById(id);
const PATIENCE_MS = 5000;

const page = { rows: [], started: null, server: null, port: null, interval: 2, isPaused: false, isConnected: null };
let adminKey = "";
let shownSeconds = 600;
let timer = null;

const announce = (text) => (find("announce").textContent = text);
const charts = drawCharts(find("charts"));

// -- asking ----------------------------------------------------------------------------------------------------------

async function poll() {
  clearTimeout(timer);
  try {
    const after = page.rows.length ? page.rows.at(-1).index : -1;
    const headers = adminKey ? { Authorization: `Bearer ${adminKey}` } : {};
    const response = await fetch(`history?after=${after}`, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.status === 401) return askForKey();
    if (!response.ok) throw new Error(String(response.status));
    take(await response.json());
  } catch {
    lose();
  }
  timer = setTimeout(poll, page.interval * 1000);
}

function take(history) {
  if (page.started !== null && page.started !== history.started) {
    page.rows = []; // another process: its rows are counted anew, and we may have missed the first
    page.started = history.started;
    connected(history);
    poll();
    return;
  }
  page.started = history.started;
  const known = page.rows.length ? page.rows.at(-1).index : -1;
  page.rows.push(...history.rows.filter((row) => row.index > known));
  const oldest = (page.rows.at(-1)?.time ?? 0) - history.window_seconds;
  page.rows = page.rows.filter((row) => row.time > oldest);
  connected(history);
  if (!page.isPaused) show();
}

function connected(history) {
  page.server = history.server;
  page.port = history.port;
  page.interval = history.interval_seconds;
  find("key-form").hidden = true;
  if (page.isConnected === false) announce("Connected again.");
  page.isConnected = true;
  document.body.classList.remove("stale");
  setState(history.server.state);
  // On the admin port the key that shows the numbers is the one that prompts need.
  find("api-key-label").hidden = page.port === "admin";
}

function lose() {
  if (page.isConnected !== false) announce("Disconnected. Trying again.");
  page.isConnected = false;
  document.body.classList.add("stale");
  setState("disconnected");
}

function setState(state) {
  find("state").dataset.state = state;
  find("state-text").textContent = state === "disconnected" ? "disconnected, trying again" : state;
}

function askForKey() {
  const form = find("key-form");
  if (!form.hidden) find("key-error").textContent = "That is not the key.";
  form.hidden = false;
  setState("key needed");
  find("admin-key").focus();
}

// -- showing ---------------------------------------------------------------------------------------------------------

function show() {
  const row = page.rows.at(-1) ?? null;
  const since = (row?.time ?? 0) - shownSeconds;
  const rows = page.rows.filter((each) => each.time >= since);
  find("model").textContent = page.server.model;
  document.title = `SmartSpec: ${page.server.model}`;
  find("sentence").textContent = words.sentence(page.server, row);
  showTiles(row);
  charts.show(rows, shownSeconds);
  showAcceptance(rows);
  showDecisions(rows);
  find("about").textContent = about(page.server);
}

function showTiles(row) {
  const parent = find("tiles");
  const figures = words.tiles(row);
  if (!parent.children.length) {
    for (const [label] of figures) {
      const tile = element("div");
      tile.append(element("dt", "", label), element("dd", "figure"), element("dd", "note"));
      parent.append(tile);
    }
  }
  figures.forEach(([, value, note], index) => {
    const [figure, small] = parent.children[index].querySelectorAll("dd");
    figure.textContent = value;
    small.textContent = note;
  });
}

function showAcceptance(rows) {
  const [drafted, accepted] = [[], []];
  for (const row of rows) {
    row.drafted_by_position.forEach((n, i) => (drafted[i] = (drafted[i] ?? 0) + n));
    row.accepted_by_position.forEach((n, i) => (accepted[i] = (accepted[i] ?? 0) + n));
  }
  const body = find("acceptance");
  while (body.children.length > drafted.length) body.lastChild.remove();
  drafted.forEach((proposed, position) => {
    const share = proposed ? Math.min(1, (accepted[position] ?? 0) / proposed) : 0;
    let line = body.children[position];
    if (!line) {
      line = element("tr");
      const title = element("th", "", String(position + 1));
      title.scope = "row";
      const bar = element("td");
      const inner = element("div", "bar");
      inner.append(element("span"), element("i"));
      bar.append(inner);
      line.append(title, bar, element("td", "number"));
      body.append(line);
    }
    const [figure, bar] = line.querySelectorAll(".bar > *");
    figure.textContent = words.percent(share);
    bar.style.width = `${Math.round(share * 75)}%`;
    line.lastChild.textContent = proposed.toLocaleString("en");
  });
  find("acceptance-empty").hidden = drafted.length > 0;
}

function showDecisions(rows) {
  const groups = [];
  for (const row of rows) {
    if (!row.decision) continue;
    const last = groups.at(-1);
    const key = `${row.decision.requests} ${row.decision.reason}`;
    if (last?.key === key) last.row = row;
    else groups.push({ key, row });
  }
  const items = groups.slice(-8).reverse().map(({ row }) => {
    const [first, second] = words.decision(row);
    const item = element("li");
    const time = element("time", "", words.timeOf(row.time));
    time.dateTime = new Date(row.time * 1000).toISOString();
    const text = element("div", "", first);
    text.append(element("small", "", second));
    item.append(time, text);
    return item;
  });
  find("decisions").replaceChildren(...items);
  find("decisions-empty").hidden = items.length > 0;
}

function about(server) {
  const parts = [`SmartSpec ${server.version}`];
  if (server.policy) parts.push(`policy ${server.policy}, generation ${server.generation}, at most ${server.max_speculative_tokens} tokens`);
  if (server.device) parts.push(`${server.device}, ${server.dtype}`);
  if (server.draft) parts.push(`draft ${server.draft.split("/").at(-1)}`);
  if (server.kv_cache_tokens) parts.push(`cache of ${server.kv_cache_tokens.toLocaleString("en")} tokens`);
  return parts.join(" · ");
}

// -- being told ------------------------------------------------------------------------------------------------------

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  adminKey = find("admin-key").value;
  poll();
});

find("pause").addEventListener("click", (event) => {
  page.isPaused = !page.isPaused;
  event.target.textContent = page.isPaused ? "Go on" : "Pause";
  if (!page.isPaused && page.server) show();
});

for (const choice of document.querySelectorAll("input[name=range]")) {
  choice.addEventListener("change", () => {
    shownSeconds = Number(choice.value);
    if (page.server) show();
  });
}

const theme = find("theme");
const remember = (value) => {
  try {
    localStorage.setItem("theme", value);
  } catch {
    // A browser that keeps nothing: the choice lasts as long as the page.
  }
};
const applyTheme = () => {
  document.documentElement.dataset.theme = theme.value;
  charts.recolour();
};
try {
  theme.value = localStorage.getItem("theme") ?? "";
} catch {
  theme.value = "";
}
theme.addEventListener("change", () => {
  remember(theme.value);
  applyTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", charts.recolour);
applyTheme();

wirePrompt({ keyOf: () => (page.port === "admin" ? adminKey : find("api-key").value), announce });
poll();
