// The page: asks /predict as one types, and shows scores, verdict and the words that made the score.
"use strict";

const SCORE_AFTER_MS = 120; // of quiet
const SPANS_AFTER_MS = 400; // later, because they cost many texts
const SAY_AFTER_MS = 1200; // to screen readers
const LINES_A_REQUEST = 50;
const MAX_LINES = 1000;
const MAX_KEPT = 5000;
const EXAMPLES = {
  "Friendly": "Thank you, that was a really helpful answer!",
  "Rude praise": "Holy shit, that goal was amazing, well done mate",
  "Insult": "You are such an idiot, nobody wants to read this.",
  "Threat": "I know where you live and I will kill you.",
  "Disguised": "what an 1d10t, just s h u t u p",
  "Criticism": "I disagree: the second source does not support this claim.",
};
const SAMPLE_LINES = Object.values(EXAMPLES).join("\n");
const ACTIONS = { block: "Block", review: "Review", allow: "Allow" };
const ICONS = {
  allow: "M4 13.5 L10.5 20 L22 7",
  review: "M2 13 C6 5.5 20 5.5 24 13 C20 20.5 6 20.5 2 13 Z M13 9.6 a3.4 3.4 0 1 0 .01 0 Z",
  block: "M8.4 2.5 H17.6 L23.5 8.4 V17.6 L17.6 23.5 H8.4 L2.5 17.6 V8.4 Z M8 13 H18",
};

const $ = (id) => document.getElementById(id);
const text = $("text");
let models = [], policies = {}, key = "";
let spans = [], spansOf = "", label = null; // what is highlighted, and for which label alone
let last = null; // the result shown
let answered = null; // the text that spans were found of
let sort = { by: null, down: true };
let rows = [];
const kept = new Map(); // results of lines

// --- talking to the gateway

class Refused extends Error {
  constructor(status, message, after) { super(message); this.status = status; this.after = after; }
}

async function ask(path, body, signal) {
  const headers = key ? { "x-goog-api-key": key } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { ...headers, "content-type": "application/json" } });
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The gateway does not answer.", 2);
  }
  const answer = await reply.json().catch(() => null);
  if (reply.ok && answer) return answer;
  throw new Refused(reply.status, answer?.error?.message || `The gateway answered ${reply.status}.`, Number(reply.headers.get("retry-after")) || 2);
}

let retry;
function failed(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  if ([401, 403].includes(error.status)) {
    $("key-form").hidden = false;
    if (key) tell(error.message);
    return;
  }
  const comes = [0, 429, 503].includes(error.status);
  tell(error.message + (comes ? ` Trying again in ${error.after} s.` : ""));
  clearTimeout(retry);
  if (comes) retry = setTimeout(again, error.after * 1000);
}
function tell(message) {
  $("problem").textContent = message || "";
  $("problem").hidden = !message;
}

const question = (texts, more) => ({
  texts, ...($("model").value && { model: $("model").value }), ...($("policy").value && { policy: $("policy").value }), ...more,
});

// --- one comment

const timers = {}, flights = {};
function later(name, ms, run) {
  clearTimeout(timers[name]);
  flights[name]?.abort();
  const flight = flights[name] = new AbortController();
  timers[name] = setTimeout(() => run(flight.signal), ms);
}
function cancel(...names) {
  for (const name of names) { clearTimeout(timers[name]); flights[name]?.abort(); }
}

function update(soon) {
  answered = null;
  cancel("score", "spans", "lines", "say");
  clearTimeout(retry);
  const lines = mode() === "lines";
  document.body.classList.toggle("lines", lines);
  document.querySelector(".columns").classList.toggle("alone", lines);
  $("one").hidden = lines;
  offerLines();
  $("many").hidden = !lines;
  $("write-title").textContent = lines ? "Comments, one per line" : "Comment";
  text.placeholder = lines ? "Paste comments, one per line …" : "Type or paste a comment …";
  if (lines) { spans = []; mark(); later("lines", soon ? 0 : SPANS_AFTER_MS, scoreLines); return; }
  if (!text.value.trim()) { spans = []; last = null; mark(); showNothing(); return; }
  mark();
  later("score", soon ? 0 : SCORE_AFTER_MS, score);
  later("spans", soon ? 0 : SPANS_AFTER_MS, findSpans);
}

async function score(signal) {
  const asked = text.value, start = performance.now();
  try {
    const answer = await ask("predict", question([asked]), signal);
    if (signal.aborted) return;
    tell();
    show(answer.results[0]);
    facts(asked, answer.took_ms, performance.now() - start, answer.results[0]);
  } catch (error) { failed(error, () => update(true)); }
}

async function findSpans(signal) {
  const asked = text.value;
  try {
    const answer = await ask("predict", question([asked], { spans: true }), signal);
    if (signal.aborted) return;
    spans = answer.results[0].spans || [];
    spansOf = asked;
    mark();
    showWords();
    answered = asked;
    later("say", SAY_AFTER_MS, () => { $("said").textContent = sentence(); });
  } catch (error) { failed(error, () => update(true)); }
}

function sentence() {
  if (!last) return "";
  const words = spans.map((span) => text.value.slice(span.begin, span.end));
  return `${$("action").textContent}. ${$("reason").textContent} ${words.length ? `Words that made the score: ${words.join(", ")}.` : ""}`;
}

function facts(asked, took, all, result) {
  const words = (asked.match(/\S+/g) || []).length;
  const parts = [`${words} ${words === 1 ? "word" : "words"}`, `scored in ${ms(took)}, ${ms(all)} round trip`, `${result.model}, version ${result.model_version}`];
  if (result.truncated) parts.push("longer than the model reads: only the beginning was scored");
  $("facts").textContent = parts.join(" · ");
}

function show(result) {
  last = result;
  const { action, title, reason } = verdict(result);
  const box = $("verdict");
  box.dataset.action = action;
  box.querySelector("path").setAttribute("d", ICONS[action] || "");
  $("action").textContent = title;
  $("reason").textContent = reason;
  const thresholds = model(result.model)?.thresholds || {};
  const rules = ticksOf($("policy").value);
  const names = Object.keys(result.scores);
  const bars = $("bars");
  if ([...bars.children].map((li) => li.dataset.label).join() !== names.join()) bars.replaceChildren(...names.map(newBar));
  names.forEach((name, i) => {
    const li = bars.children[i], value = result.scores[name], over = result.flagged.includes(name), at = thresholds[name];
    li.className = over ? "over" : "";
    const bar = li.querySelector(".bar");
    bar.style.setProperty("--score", value);
    bar.setAttribute("aria-valuenow", value.toFixed(2));
    bar.setAttribute("aria-valuetext", value.toFixed(2) + (at === undefined ? "" : `, ${over ? "at or above" : "below"} the threshold of ${at.toFixed(2)}`));
    li.querySelector(".value").textContent = value.toFixed(2);
    const ticks = [...(at === undefined ? [] : [["model", at]]), ...(rules[name] || [])];
    bar.replaceChildren(bar.firstChild, ...ticks.map(([kind, place]) => {
      const tick = element("span", `tick ${kind}`);
      tick.style.setProperty("--at", Math.min(place, 1));
      tick.title = `${kind === "model" ? "the model’s threshold" : `the policy’s ${kind}`}: ${place.toFixed(2)}`;
      return tick;
    }));
  });
  const kinds = new Set(Object.values(rules).flat().map(([kind]) => kind));
  $("legend").replaceChildren(...[["model", "the model’s threshold"], ["review", "policy: review"], ["block", "policy: block"]]
    .filter(([kind]) => kind === "model" ? Object.keys(thresholds).length : kinds.has(kind))
    .map(([kind, says]) => { const item = element("span"), icon = element("i"); icon.append(element("span", `tick ${kind}`)); item.append(icon, says); return item; }));
  bars.classList.toggle("empty", Boolean(result.empty));
  showWords();
}

function newBar(name) {
  const li = element("li");
  li.dataset.label = name;
  const button = element("button", "", spoken(name));
  button.type = "button";
  button.title = `Highlight what made the score for ${spoken(name)}`;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => { label = label === name ? null : name; pressed(); mark(); showWords(); });
  const bar = element("div", "bar");
  bar.setAttribute("role", "meter");
  bar.setAttribute("aria-label", spoken(name));
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "1");
  bar.append(element("div", "fill"));
  li.append(button, bar, element("span", "value"));
  return li;
}
function pressed() {
  for (const li of $("bars").children) li.querySelector("button").setAttribute("aria-pressed", String(li.dataset.label === label));
}

function showNothing() {
  const m = model($("model").value) || models.find((each) => each.active);
  const names = m?.labels || [];
  if (names.length) {
    show({ scores: Object.fromEntries(names.map((name) => [name, 0])), flagged: [], model: m.name, empty: true });
    last = null;
    for (const value of document.querySelectorAll(".bars .value")) value.textContent = "–";
  }
  $("verdict").dataset.action = "none";
  $("action").textContent = "Nothing to score yet";
  $("reason").textContent = "The verdict and the scores appear as you type.";
  $("facts").textContent = "";
  $("said").textContent = "";
  showWords();
}

function verdict(result) {
  const decision = result.decision;
  if (decision && ACTIONS[decision.action]) {
    const fired = decision.action !== "allow";
    const reason = fired ? `${capital(rule(decision.rule))}, by the policy “${decision.policy}”` : `No rule of the policy “${decision.policy}” applies`;
    return { action: decision.action, title: ACTIONS[decision.action], reason };
  }
  const names = result.flagged.map(spoken);
  return names.length
    ? { action: "block", title: "Flagged", reason: capital(names.join(", ")) + " at or above the model’s threshold" }
    : { action: "allow", title: "Not flagged", reason: "Every score is below the model’s threshold" };
}
const rule = (says) => says.replaceAll(">=", "≥").replace(/\b[a-z]+(?:_[a-z]+)+\b/g, spoken);

function ticksOf(name) { // rules of one label alone are marks on its bar; the lowest of each action
  const found = {};
  for (const each of policies[name]?.rules || []) {
    const [[action, thresholds]] = Object.entries(each), names = Object.keys(thresholds);
    if (names.length !== 1 || action === "allow") continue;
    (found[names[0]] ||= []).push([action, thresholds[names[0]]]);
  }
  return found;
}

// --- highlights

const strength = (span) => label === null ? Math.max(...Object.values(span.scores)) : span.scores[label] ?? 0;
const shown = () => spans.filter((span) => strength(span) >= 0.5);

function mark() {
  follow();
  const parts = [];
  let at = 0;
  for (const span of shown()) {
    parts.push(text.value.slice(at, span.begin));
    const piece = element("mark", "", text.value.slice(span.begin, span.end));
    piece.style.setProperty("--strength", (0.14 + 0.3 * Math.max(0, strength(span) - 0.5) * 2).toFixed(2));
    parts.push(piece);
    at = span.end;
  }
  $("marks").replaceChildren(...parts, text.value.slice(at) + "\u200b"); // which keeps the last, empty line open
}

// Keep highlights where they belong while the text changes; the next answer puts them right.
function follow() {
  const now = text.value, before = spansOf;
  if (now === before) return;
  const least = Math.min(now.length, before.length);
  let head = 0, tail = 0;
  while (head < least && now[head] === before[head]) head++;
  while (tail < least - head && now[now.length - 1 - tail] === before[before.length - 1 - tail]) tail++;
  const shift = now.length - before.length;
  spans = spans.flatMap((span) =>
    span.end <= head ? [span] : span.begin >= before.length - tail ? [{ ...span, begin: span.begin + shift, end: span.end + shift }] : []);
  spansOf = now;
}

function showWords() {
  const words = $("words"), found = last ? shown() : [];
  if (!found.length) {
    words.textContent = !last ? "They are marked in the text, too." : label === null ? "None stands out." : `None stands out for ${spoken(label)}.`;
    return;
  }
  const seen = new Map();
  for (const span of found) {
    const says = text.value.slice(span.begin, span.end), [name] = Object.entries(span.scores).sort((a, b) => b[1] - a[1])[0];
    if (!seen.has(says)) seen.set(says, label ?? name);
  }
  words.replaceChildren(...[...seen].map(([says, name]) => {
    const chip = element("span", "chip", says);
    chip.append(element("small", "", spoken(name)));
    return chip;
  }));
}

// --- many lines

const mode = () => document.querySelector("input[name=mode]:checked").value;
const linesOf = () => text.value.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);

function offerLines() {
  const n = linesOf().length;
  $("split").hidden = mode() === "lines" || n < 2;
  $("split-text").textContent = `These are ${n} lines, scored as one comment.`;
}

async function scoreLines(signal) {
  const all = linesOf(), lines = all.slice(0, MAX_LINES), start = performance.now();
  const way = JSON.stringify([$("model").value, $("policy").value]);
  const missing = [...new Set(lines)].filter((line) => !kept.has(way + line));
  const progress = $("progress");
  let took = 0;
  try {
    for (let i = 0; i < missing.length; i += LINES_A_REQUEST) {
      if (missing.length > LINES_A_REQUEST) {
        progress.max = missing.length; progress.value = i; progress.hidden = false;
      }
      const some = missing.slice(i, i + LINES_A_REQUEST);
      const answer = await ask("predict", question(some), signal);
      if (signal.aborted) return;
      took += answer.took_ms;
      some.forEach((line, j) => kept.set(way + line, answer.results[j]));
      tell();
    }
  } catch (error) { failed(error, () => update(true)); return; } finally { if (!signal.aborted) progress.hidden = true; }
  rows = lines.map((line, i) => ({ number: i + 1, line, result: kept.get(way + line) }));
  while (kept.size > MAX_KEPT) kept.delete(kept.keys().next().value);
  showTable();
  const time = missing.length ? ` Scored ${missing.length} in ${ms(took)}, ${ms(performance.now() - start)} round trip.` : "";
  const rest = all.length > MAX_LINES ? ` Only the first ${MAX_LINES} of ${all.length} lines.` : "";
  const counts = {};
  for (const row of rows) { const { title } = verdict(row.result); counts[title] = (counts[title] || 0) + 1; }
  const bold = (n) => element("b", "", n);
  $("summary").replaceChildren(...(rows.length
    ? [bold(rows.length), rows.length === 1 ? " line: " : " lines: ", ...Object.entries(counts).flatMap(([title, n], i) => [i ? ", " : "", bold(n), " " + title.toLowerCase()]), "." + time + rest]
    : ["Paste some lines above."]));
}

function showTable() {
  const table = $("table"), labels = rows.length ? Object.keys(rows[0].result.scores) : [];
  const columns = [["number", "#"], ["line", "Comment"], ["action", "Verdict"], ...labels.map((name) => [name, capital(spoken(name))])];
  if (!columns.some(([id]) => id === sort.by)) sort.by = null;
  table.tHead.replaceChildren(rows.length ? head(columns) : "");
  const rank = { block: 2, review: 1, allow: 0 };
  const value = (row) => sort.by === "number" ? row.number : sort.by === "line" ? row.line.toLowerCase() : sort.by === "action" ? rank[verdict(row.result).action] : row.result.scores[sort.by];
  let some = rows.filter((row) => !$("only").checked || verdict(row.result).action !== "allow");
  if (sort.by) some = [...some].sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -1 : x > y ? 1 : 0) * (sort.down ? -1 : 1); });
  table.tBodies[0].replaceChildren(...some.map((row) => tableRow(row, labels)));
  for (const [role, selector] of [["table", "table"], ["rowgroup", "thead, tbody"], ["row", "tr"], ["columnheader", "th"], ["cell", "td"]])
    for (const each of table.parentNode.querySelectorAll(selector)) each.setAttribute("role", role); // kept where rows are shown as cards
  $("save").disabled = !rows.length;
}

function head(columns) {
  const tr = element("tr");
  for (const [id, title] of columns) {
    const th = element("th", ["number", "line", "action"].includes(id) && id !== "number" ? "" : "number"), button = element("button", "", title);
    th.scope = "col";
    th.setAttribute("aria-sort", sort.by === id ? (sort.down ? "descending" : "ascending") : "none");
    button.type = "button";
    button.append(element("span", "way"));
    button.addEventListener("click", () => {
      const first = !["number", "line"].includes(id); // of scores and verdicts, the highest come first
      sort = sort.by !== id ? { by: id, down: first } : { by: id, down: !sort.down };
      showTable();
      [...$("table").tHead.querySelectorAll("button")][columns.findIndex(([other]) => other === id)].focus();
    });
    th.append(button);
    tr.append(th);
  }
  return tr;
}

function tableRow(row, labels) {
  const tr = element("tr"), { action, title, reason } = verdict(row.result);
  const open = element("button", "", row.line);
  open.type = "button";
  open.title = "See this line alone";
  open.addEventListener("click", () => { setMode("one"); put(row.line); });
  const line = element("td", "line");
  line.append(open);
  if (row.result.truncated) line.append(element("span", "cut", " (only its beginning was scored)"));
  const pill = element("span", "pill", title);
  pill.dataset.action = action;
  pill.title = reason;
  const says = element("td");
  says.append(pill);
  const [name, most] = Object.entries(row.result.scores).sort((a, b) => b[1] - a[1])[0];
  tr.append(element("td", "number", row.number), line, says, ...labels.map((each) => {
    const cell = element("td", row.result.flagged.includes(each) ? "number score over" : "number score", row.result.scores[each].toFixed(2));
    cell.style.setProperty("--score", row.result.scores[each].toFixed(3));
    return cell;
  }),
    element("td", "top-label", `${spoken(name)} ${most.toFixed(2)}`));
  return tr;
}

function csv() {
  const labels = Object.keys(rows[0].result.scores);
  const cell = (value) => {
    const plain = String(value), safe = /^[=+\-@\t\r]/.test(plain) && Number.isNaN(Number(plain)) ? `'${plain}` : plain; // no formula for a spreadsheet
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const table = [["text", "verdict", ...labels], ...rows.map((row) => [row.line, verdict(row.result).title.toLowerCase(), ...labels.map((name) => row.result.scores[name])])];
  return table.map((cells) => cells.map(cell).join(",")).join("\r\n") + "\r\n";
}

// --- small parts

function element(tag, classes = "", says) {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (says !== undefined) made.textContent = says;
  return made;
}
const spoken = (name) => name.replaceAll("_", " ");
const capital = (says) => says.charAt(0).toUpperCase() + says.slice(1);
const ms = (value) => value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
const model = (name) => models.find((each) => each.name === name);

function put(says) {
  text.value = says;
  text.focus();
  update(true);
}
function setMode(name) {
  document.querySelector(`input[name=mode][value=${name}]`).checked = true;
}
function options(select, entries, chosen) {
  const before = select.value || chosen;
  select.replaceChildren(...entries.map(([value, says, off, title]) => {
    const option = new Option(says, value, false, value === before);
    option.disabled = Boolean(off);
    if (title) option.title = title;
    return option;
  }));
}

async function start() {
  try {
    const [told, decided] = await Promise.all([ask("models"), ask("policies")]);
    models = told.models;
    policies = decided.policies;
    options($("model"), models.map((each) => [each.name, each.name + (each.ready ? (each.precision ? ` (${each.precision})` : "") : " (not loaded)"), !each.ready]), told.active);
    options($("policy"), [["", "none: the model’s thresholds"], ...Object.entries(policies).map(([name, each]) => [name, name, false, each.description])], policies.standard ? "standard" : "");
    $("key-form").hidden = true;
    tell();
    update(true);
  } catch (error) { failed(error, start); }
}

document.querySelector(".examples").append(...Object.entries(EXAMPLES).map(([name, says]) => {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => put(mode() === "lines" ? (text.value.trim() ? text.value.replace(/\n*$/, "\n") : "") + says : says));
  return button;
}));
text.addEventListener("input", (event) => update(event.inputType === "insertFromPaste"));
$("model").addEventListener("change", () => { label = null; pressed(); spans = []; update(true); });
$("policy").addEventListener("change", () => update(true));
$("only").addEventListener("change", showTable);
$("split-yes").addEventListener("click", () => { setMode("lines"); update(true); text.focus(); });
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key = $("key").value.trim(); start(); });
$("save").addEventListener("click", () => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv;charset=utf-8" }));
  link.download = "scores.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
for (const radio of document.querySelectorAll("input[name=mode]")) {
  radio.addEventListener("change", () => {
    if (mode() === "lines" && !text.value.trim()) text.value = SAMPLE_LINES;
    update(true);
  });
}
start();
