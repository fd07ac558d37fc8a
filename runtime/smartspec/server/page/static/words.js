// Numbers and states in words. Everything here is pure: values in, text out.

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minutes = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

/** A number with as many digits as a person reads. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 0 : size >= 10 ? 1 : 2 });
}

/** Seconds as ms or s. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 0.9995 ? `${number(value * 1000)} ms` : `${number(value)} s`;
}

/** A share from 0 to 1 as per cent. */
export function percent(value) {
  return value === null || value === undefined ? "–" : `${Math.round(value * 100)} %`;
}

export const timeOf = (unixSeconds) => clock.format(new Date(unixSeconds * 1000));
export const minuteOf = (unixSeconds) => minutes.format(new Date(unixSeconds * 1000));

/** "1 request", "3 requests". */
export const count = (value, what) => `${number(value)} ${what}${value === 1 ? "" : "s"}`;

const total = (byProposer) => Object.values(byProposer).reduce((sum, k) => sum + k, 0);
const NAMES = { draft: "the draft model", lookup: "prompt lookup" };

/** What the server is doing, as one or two sentences. */
export function sentence(server, row) {
  if (!row) return server.state === "loading" ? "The model is loading." : "Waiting for the first numbers.";
  if (server.state === "draining") return `Leaving: ${count(row.running, "request")} still running, new ones are refused.`;
  if (!row.running && !row.waiting && !row.decision) return "Idle: no requests.";
  const waiting = row.waiting ? `, ${number(row.waiting)} waiting` : "";
  const load = `Serving ${count(row.running, "request")}${waiting}, ${number(row.tokens_per_second)} tokens a second.`;
  const k = total(row.k_by_proposer);
  if (!row.decision || !k) return `${load} Not speculating: ${row.decision ? row.decision.reason : "no step yet"}.`;
  const by = Object.entries(row.k_by_proposer).map(([name, value]) => `${number(value)} from ${NAMES[name] ?? name}`);
  return `${load} Proposing ${number(k)} tokens per request and step (${by.join(", ")}); ${number(row.tokens_per_step)} come out of each step.`;
}

/** The figures of the tiles: label, value, and what follows it in small. */
export function tiles(row) {
  const k = row ? total(row.k_by_proposer) : null;
  return [
    ["Tokens per second", number(row?.tokens_per_second), ""],
    ["Running", number(row?.running), row?.waiting ? `+ ${number(row.waiting)} waiting` : "none waiting"],
    ["Tokens per step", number(row?.tokens_per_step), row?.tokens_per_step ? `${number(k)} proposed` : ""],
    ["First token", seconds(row?.ttft?.p50), row?.ttft ? `p95 ${seconds(row.ttft.p95)}` : ""],
    ["Time per token", seconds(row?.tpot?.p50), row?.tpot ? `p95 ${seconds(row.tpot.p95)}` : ""],
    ["Cache in use", percent(row?.kv_cache_usage), ""],
  ];
}

/** A decision as a line, and what became of it as a second one. */
export function decision(row) {
  const made = row.decision;
  const reason = made.reason || "no reason given";
  const first = `${count(made.requests, "request")}: ${reason}`;
  const foreseen = `foreseen ${seconds(made.predicted_seconds)} for ${count(made.predicted_tokens, "token")}`;
  return [first, `${foreseen}; took ${seconds(made.measured_seconds)} for ${number(made.kept_tokens)}`];
}

/** A series of values as a sentence: now, lowest, highest. */
export function spread(values, format) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (!known.length) return "no values yet";
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return low === high ? `steady at ${format(low)}` : `from ${format(low)} to ${format(high)}`;
}
