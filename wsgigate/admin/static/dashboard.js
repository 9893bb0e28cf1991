// The dashboard: asks the admin API every two seconds, and shows what it answers.

import { Away, Rejected, change, get, signIn, signOut, signedIn } from "./api.js";
import { Chart } from "./charts.js";
import { Table, byId, el, setAttribute, setText, strip } from "./dom.js";
import { age, ago, clock, count, latency, percent, rate, spans, stamp } from "./figures.js";
import { Model } from "./model.js";

const EVERY = 2_000;
const LONGEST = 30_000;

const model = new Model();
let timer = null;
let polling = false;
let session = 0;
let failures = 0;
let awaySince = null;

// The tables.

const both = (...texts) => texts.filter((text) => text && text !== "–").join(", ");

const figures = [
  { title: "Requests/s", numeric: true, text: (row) => rate(row.rate) },
  { title: "Success", numeric: true, text: (row) => percent(row.success),
    tone: (row) => (row.success === null || row.success === undefined ? "" : row.success < 0.99 ? "bad" : row.success < 0.999 ? "warn" : "good") },
  { title: "p50", numeric: true, text: (row) => latency(row.p50) },
  { title: "p95", numeric: true, text: (row) => latency(row.p95) },
  { title: "p99", numeric: true, text: (row) => latency(row.p99) },
];

const tables = {
  routes: new Table(byId("routes"), {
    caption: "Routes",
    key: (row) => row.name,
    empty: "No route is configured, or none matches the search.",
    columns: [
      { title: "Route", text: (row) => row.name },
      { title: "Path", text: (row) => row.path },
      { title: "Service", text: (row) => row.service },
      ...figures,
    ],
  }),
  services: new Table(byId("services"), {
    caption: "Services",
    key: (row) => row.name,
    empty: "No service is configured, or none matches the search.",
    columns: [
      { title: "Service", text: (row) => row.name },
      { title: "State", text: (row) => row.state, tone: (row) => row.tone },
      { title: "Healthy instances", numeric: true, text: (row) => `${count(row.healthy)} of ${count(row.total)}` },
      ...figures,
      { title: "Reason", wide: true, text: (row) => row.reason },
    ],
  }),
  instances: new Table(byId("instances"), {
    caption: "Instances",
    key: (row) => `${row.service} ${row.address}`,
    empty: "No instance is known, or none matches the search.",
    columns: [
      { title: "Instance", text: (row) => row.address },
      { title: "Service", text: (row) => row.service },
      { title: "State", text: (row) => row.state, tone: (row) => row.tone },
      { title: "In flight", numeric: true, text: (row) => count(row.inFlight) },
      { title: "Weight", numeric: true, text: (row) => count(row.weight) },
      ...figures.slice(0, 4),
      { title: "Version", text: (row) => row.version },
      { title: "Heartbeat", text: (row) => (row.heartbeat ? ago(row.heartbeat, model.now) : "–") },
      { title: "Last check", wide: true, text: (row) => both(row.checked ? ago(row.checked, model.now) : "", row.reason) },
      { title: "Actions", actions: (row) => instanceActions(row) },
    ],
  }),
  circuits: new Table(byId("circuits"), {
    caption: "Circuit breakers",
    key: (row) => row.name,
    empty: "No service has a circuit breaker.",
    columns: [
      { title: "Service", text: (row) => row.name },
      { title: "State", text: (row) => (row.forced ? `${row.state}, forced` : row.state), tone: (row) => circuitTone(row.state) },
      { title: "Since", text: (row) => (row.since ? ago(row.since, model.now) : "–") },
      { title: "Until", text: (row) => (row.until ? clock(row.until) : "–") },
      { title: "Failures in a row", numeric: true, text: (row) => count(row.failures) },
      { title: "Last failure", text: (row) => (row.lastFailure ? ago(row.lastFailure, model.now) : "–") },
      { title: "Reason", wide: true, text: (row) => row.reason },
      { title: "Actions", actions: (row) => circuitActions(row) },
    ],
  }),
  policies: new Table(byId("policies"), {
    caption: "Decisions by policy, per second",
    key: (row) => row.name,
    empty: "No limiter has decided about a request in the last minute.",
    columns: [
      { title: "Policy", text: (row) => row.name },
      { title: "Allowed/s", numeric: true, text: (row) => rate(row.allowed) },
      { title: "Rejected/s", numeric: true, text: (row) => rate(row.rejected), tone: (row) => (row.rejected > 0 ? "warn" : "") },
      { title: "Observed/s", numeric: true, text: (row) => rate(row.observed) },
      { title: "Exempt/s", numeric: true, text: (row) => rate(row.exempt) },
      { title: "Store failed/s", numeric: true, text: (row) => rate(row.failed), tone: (row) => (row.failed > 0 ? "bad" : "") },
    ],
  }),
  standing: new Table(byId("standing"), {
    caption: "What the caller has left",
    key: (row) => `${row.policy}\n${row.key}\n${row.name}`,
    empty: "Enter a policy and a caller to see what is left of the quotas, and to clear them.",
    columns: [
      { title: "Caller", text: (row) => row.caller },
      { title: "Policy", text: (row) => row.policy },
      { title: "Quota", text: (row) => both(row.name, row.plan) },
      { title: "Left", numeric: true, text: (row) => `${count(row.remaining)} of ${count(row.limit)}`,
        tone: (row) => (row.remaining > 0 ? "" : "warn") },
      { title: "Whole again in", text: (row) => age(row.resetAfter) },
      { title: "Actions", actions: (row) => limitActions(row) },
    ],
  }),
  errors: new Table(byId("errors"), {
    caption: "Recent errors, newest first",
    key: (row) => row.id,
    empty: "No error is recorded, or none matches the request id.",
    columns: [
      { title: "Time", text: (row) => stamp(row.time) },
      { title: "Status", text: (row) => row.status, tone: (row) => (row.status >= 500 ? "bad" : "warn") },
      { title: "Request", actions: (row) => [{ label: row.requestId || "Show", title: `Show the record of request ${row.requestId}`, run: () => showRecord(row) }] },
      { title: "Route", text: (row) => row.route },
      { title: "Service", text: (row) => row.service },
      { title: "Instance", text: (row) => row.instance },
      { title: "Reason", wide: true, text: (row) => row.reason },
    ],
  }),
  registry: new Table(byId("registry"), {
    caption: "Registered instances",
    key: (row) => `${row.service} ${row.id}`,
    empty: "No instance is registered.",
    columns: [
      { title: "Instance", text: (row) => row.id },
      { title: "Service", text: (row) => row.service },
      { title: "Address", text: (row) => row.url },
      { title: "Status", text: (row) => row.status, tone: (row) => (row.status === "UP" ? "good" : "warn") },
      { title: "Version", text: (row) => row.version },
      { title: "Heartbeat", text: (row) => (row.heartbeat ? ago(row.heartbeat, model.now) : "–") },
    ],
  }),
  workers: new Table(byId("workers"), {
    caption: "Workers",
    key: (row) => row.name,
    empty: "The gateway does not report its workers.",
    columns: [
      { title: "Worker", text: (row) => row.name },
      { title: "Process", numeric: true, text: (row) => row.pid },
      { title: "Age", text: (row) => (row.started ? age(model.now - row.started) : "–") },
      { title: "Version", text: (row) => row.version },
      { title: "Configuration", text: (row) => row.config },
    ],
  }),
  maintenance: new Table(byId("maintenance"), {
    caption: "Maintenance",
    key: (row) => row.scope,
    empty: "Maintenance is not configured.",
    columns: [
      { title: "Scope", text: (row) => row.scope },
      { title: "State", text: (row) => (row.since ? "out of service" : "in service"), tone: (row) => (row.since ? "warn" : "good") },
      { title: "Since", text: (row) => (row.since ? ago(row.since, model.now) : "–") },
      { title: "Until", text: (row) => (row.until ? stamp(row.until) : "–") },
      { title: "Message", wide: true, text: (row) => row.message },
      { title: "Actions", actions: (row) => maintenanceActions(row) },
    ],
  }),
};

function circuitTone(state) {
  return { closed: "good", "half-open": "warn", open: "bad" }[state] ?? "";
}

// The charts.

const charts = [
  [new Chart(byId("charts"), {
    title: "Success rate",
    lines: [{ title: "Success", color: "--line-1" }],
    format: percent,
    range: (_, low) => [Math.min(low ?? 1, 0.99), 1],
  }), ["success"]],
  [new Chart(byId("charts"), {
    title: "Requests per second",
    lines: [{ title: "Requests", color: "--line-1" }, { title: "Errors", color: "--line-3", dash: [6, 4] }],
    format: rate,
    range: (_, low, high) => [0, Math.max(1, 1.1 * (high ?? 1))],
  }), ["rate", "errors"]],
  [new Chart(byId("charts"), {
    title: "Latency",
    lines: [
      { title: "p50", color: "--line-1" },
      { title: "p95", color: "--line-2", dash: [8, 4] },
      { title: "p99", color: "--line-3", dash: [3, 3] },
    ],
    format: latency,
    range: (_, low, high) => [0, Math.max(0.01, 1.1 * (high ?? 0.01))],
  }), ["p50", "p95", "p99"]],
];

// What may be changed.

const DURATIONS = [["", "until it is changed back"], ["5m", "5 minutes"], ["30m", "30 minutes"], ["2h", "2 hours"]];

function instanceActions(row) {
  if (!model.writes) return [];
  const set = (label, state, text) => ({
    label,
    title: `${label} ${row.address} of ${row.service}`,
    run: () => act({
      title: `${label} ${row.address}?`,
      text,
      yes: label,
      lasts: state !== "active",
      run: (lasts) => model.setInstance(row, state, lasts),
      done: `${row.address} of ${row.service} is ${state} now.`,
    }),
  });
  if (["drained", "ejected"].includes(row.override)) {
    return [set("Activate", "active", "The gateway sends it requests again, as far as its health checks allow.")];
  }
  return [
    set("Drain", "drained", `Requests in flight are finished; new ones go to other instances of ${row.service}.`),
    set("Eject", "ejected", `No more requests are sent to it, also none of its sticky sessions. Use this for an instance that does harm.`),
  ];
}

function circuitActions(row) {
  if (!model.writes) return [];
  const force = (label, state, text) => ({
    label,
    title: `${label} the circuit breaker of ${row.name}`,
    run: () => act({
      title: `${label} the circuit breaker of ${row.name}?`,
      text,
      yes: label,
      lasts: state !== "auto",
      run: (lasts) => model.setCircuit(row, state, lasts),
      done: state === "auto"
        ? `The circuit breaker of ${row.name} decides by itself again.`
        : `The circuit breaker of ${row.name} is held ${state}.`,
    }),
  });
  const reset = {
    label: "Reset",
    title: `Reset the circuit breaker of ${row.name}`,
    run: () => act({
      title: `Reset the circuit breaker of ${row.name}?`,
      text: `It is closed in all workers and its failures are forgotten: requests to ${row.name} are forwarded again. It opens again if they fail.`,
      yes: "Reset",
      run: () => model.resetCircuit(row),
      done: `The circuit breaker of ${row.name} is closed.`,
    }),
  };
  if (row.forced) {
    return [force("Release", "auto", "It opens and closes by the results of requests again.")];
  }
  return [
    reset,
    force("Hold open", "open", `Requests to ${row.name} are rejected with 503, or answered by its fallback, without being forwarded.`),
    force("Hold closed", "closed", `Requests to ${row.name} are forwarded however many fail.`),
  ];
}

function limitActions(row) {
  if (!model.writes) return [];
  return [{
    label: "Clear",
    title: `Clear the use of ${row.caller} by the policy ${row.policy}`,
    run: () => act({
      title: `Clear the limit of ${row.caller}?`,
      text: `What this caller has used of the policy ${row.policy} is forgotten: it has its whole quota again.`,
      yes: "Clear",
      run: async () => {
        await model.clearLimit(row.policy, row.key);
        await model.look(row.policy, row.caller);
      },
      done: `${row.caller} has its whole quota of ${row.policy} again.`,
    }),
  }];
}

function maintenanceActions(row) {
  if (!model.writes) return [];
  const off = row.since !== null;
  const label = off ? "Put into service" : "Take out of service";
  return [{
    label,
    title: `${label}: ${row.scope}`,
    run: () => act({
      title: `${label}: ${row.scope}?`,
      text: off
        ? "Requests are served again."
        : "Requests are answered with 503 and the page of maintenance, except from the addresses and paths that the configuration exempts.",
      yes: label,
      lasts: !off,
      run: (lasts) => model.setMaintenance(row, !off, lasts),
      done: off ? `${row.scope} is in service.` : `${row.scope} is out of service.`,
    }),
  }];
}

/** Ask for confirmation, carry it out, and show the result. */
async function act({ title, text, yes, lasts = false, run, done }) {
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  byId("confirm-choice").hidden = !lasts;
  byId("confirm-for").replaceChildren(...DURATIONS.map(([value, label]) => el("option", { value }, label)));
  if (!(await asked(byId("confirm")))) return;
  try {
    await run(byId("confirm-for").value);
    showResult(done, "good");
  } catch (error) {
    showResult(error instanceof Away
      ? "The gateway did not answer: whether the change took effect is unknown."
      : `Not done: ${error.message}`, "bad");
    if (error instanceof Rejected && error.status === 401) rejectToken();
  }
  model.expire();
  poll();
}

function asked(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((settle) => {
    dialog.addEventListener("close", () => settle(dialog.returnValue === "yes"), { once: true });
  });
}

function showResult(text, tone) {
  const place = byId("result");
  place.hidden = false;
  setAttribute(place, "data-tone", tone);
  setText(place, `${clock(Date.now() / 1000)} ${text}`);
}

function showRecord(record) {
  byId("record-facts").replaceChildren(
    ...Object.entries(record.all).flatMap(([name, value]) => [
      el("dt", {}, name),
      el("dd", {}, value === null || value === "" ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value)),
    ]),
  );
  byId("record").showModal();
}

// What is shown.

function show() {
  const wanted = byId("search").value.trim().toLowerCase();
  const shows = (...names) => (row) =>
    !wanted || names.some((name) => String(row[name] ?? "").toLowerCase().includes(wanted));
  tables.routes.update(model.routes, shows("name", "path", "service"));
  tables.services.update(model.services, shows("name"));
  tables.instances.update(model.instances, shows("service", "address", "version", "state"));
  tables.circuits.update(model.circuits, shows("name"));
  tables.policies.update(model.policies);
  tables.standing.update(model.standing);
  const id = byId("request-id").value.trim();
  tables.errors.update(model.errors, (row) => !id || String(row.requestId).includes(id) || String(row.traceId ?? "").includes(id));
  tables.registry.update(model.registered, shows("service", "id", "url"));
  tables.workers.update(model.workers);
  tables.maintenance.update(model.maintenance);
  showFound(wanted);
  showTop();
  showTiles();
  showCharts();
  showStrips();
  showFacts();
  showAlerts();
}

function showFound(wanted) {
  const rows = ["routes", "services", "instances"].map((name) => `${tables[name].rows.size} ${name}`);
  setText(byId("found"), wanted ? `Found: ${rows.join(", ")}.` : "");
}

function showTop() {
  const { name, version, status, uptime } = model.gateway;
  setText(byId("name"), name ?? "Gateway");
  document.title = `${name ?? "Gateway"}: dashboard`;
  const pill = byId("status");
  pill.hidden = !status;
  setText(pill, status ?? "");
  setAttribute(pill, "data-tone", { healthy: "good", maintenance: "warn" }[status] ?? "bad");
  setText(byId("facts"), both(version ? `version ${version}` : "", uptime !== undefined ? `up ${age(uptime)}` : "",
    model.role === "viewer" ? "signed in as viewer" : model.role === "admin" ? "signed in as admin" : ""));
}

function showTiles() {
  const now = model.total;
  const healthy = model.instances.filter((row) => row.tone === "good").length;
  const open = model.circuits.filter((row) => row.state !== "closed").length;
  const tiles = [
    ["Success rate", percent(now.success), now.success !== null && now.success < 0.99 ? "bad" : ""],
    ["Requests/s", rate(now.rate), ""],
    ["p50", latency(now.p50), ""],
    ["p95", latency(now.p95), ""],
    ["p99", latency(now.p99), ""],
    ["In flight", count(model.inFlight), ""],
    ["Healthy instances", `${healthy} of ${model.instances.length}`, healthy < model.instances.length ? "bad" : ""],
    ["Breakers not closed", `${open} of ${model.circuits.length}`, open ? "bad" : ""],
  ];
  const place = byId("tiles");
  if (place.children.length !== tiles.length) {
    place.replaceChildren(...tiles.map(([title]) => el("div", {}, el("dt", {}, title), el("dd", {}))));
  }
  tiles.forEach(([, text, tone], number) => {
    const value = place.children[number].lastElementChild;
    setText(value, text);
    setAttribute(value, "data-tone", tone);
  });
}

function showChoices() {
  const select = byId("of");
  const wanted = [["gateway", "all requests"],
    ...model.routes.map((row) => [`route:${row.name}`, `route ${row.name}`]),
    ...model.services.map((row) => [`service:${row.name}`, `service ${row.name}`])];
  const same = wanted.length === select.options.length && wanted.every(([value], n) => select.options[n].value === value);
  if (same) return;
  const chosen = select.value || "gateway";
  select.replaceChildren(...wanted.map(([value, label]) => el("option", { value }, label)));
  select.value = wanted.some(([value]) => value === chosen) ? chosen : "gateway";
}

function showCharts() {
  showChoices();
  const span = Number(byId("range").value);
  const columns = model.columns(byId("of").value || "gateway", span);
  for (const [chart, names] of charts) {
    chart.update([columns.times, ...names.map((name) => columns[name] ?? columns.times.map(() => null))], model.now - span, model.now);
  }
}

function showStrips() {
  const place = byId("strips");
  const span = Number(byId("range").value);
  const names = model.circuits.map((row) => row.name);
  if (place.dataset.names !== JSON.stringify(names)) {
    place.dataset.names = JSON.stringify(names);
    place.replaceChildren(...names.map((name) => el("div", { class: "strip-row" }, el("span", {}, name), el("div", {}))));
  }
  names.forEach((name, number) => {
    const drawn = spans(model.history.times, model.history.circuits[name] ?? [], 3 * model.history.interval);
    const shown = drawn.filter(([, end]) => end > model.now - span);
    const words = shown.map(([start, end, state]) => `${state} from ${clock(start)} to ${clock(end)}`).join(", ");
    strip(place.children[number].lastElementChild, shown, model.now - span, model.now,
      `Circuit breaker of ${name}: ${words || "no data"}`);
  });
}

function showFacts() {
  facts(byId("registry-facts"), model.registryFacts);
  facts(byId("store"), model.store);
  facts(byId("config-facts"), model.configFacts);
  byId("config").hidden = model.configText === "";
  setText(byId("config-text"), model.configText);
  for (const [name, there] of [["registry", model.hasRegistry], ["errors", model.hasErrors]]) {
    byId(name).hidden = !there;
    document.querySelector(`nav a[href="#${name}"]`).parentElement.hidden = !there;
  }
}

function facts(place, pairs) {
  const names = pairs.map(([name]) => name).join("\n");
  if (place.dataset.names !== names) {
    place.dataset.names = names;
    place.replaceChildren(...pairs.flatMap(([name]) => [el("dt", {}, name), el("dd", {})]));
  }
  pairs.forEach(([, text, tone], number) => {
    const value = place.children[2 * number + 1];
    setText(value, String(text));
    setAttribute(value, "data-tone", tone ?? "");
  });
}

/** Show what needs attention; what is still the same is not announced again. */
function showAlerts() {
  const place = byId("alerts");
  const texts = model.alerts;
  if (place.dataset.texts === JSON.stringify(texts)) return;
  place.dataset.texts = JSON.stringify(texts);
  place.replaceChildren(...texts.map(([text, tone]) => el("p", { class: "banner", "data-tone": tone }, text)));
}

// The polling.

async function poll() {
  if (polling || document.hidden || !signedIn()) return;
  polling = true;
  clearTimeout(timer);
  let pause = EVERY;
  const mine = session;
  try {
    await model.refresh(byId("of").value || "gateway");
    if (mine !== session) return;
    failures = 0;
    showConnected();
    show();
  } catch (error) {
    if (mine !== session) return;
    if (error instanceof Rejected && error.status === 401) {
      rejectToken();
    } else if (error instanceof Rejected && error.status === 403) {
      endSession(error.message);
    } else {
      failures += 1;
      pause = Math.min(LONGEST, EVERY * 2 ** Math.min(failures - 1, 10));
      showAway(error, pause);
    }
  } finally {
    polling = false;
    if (mine !== session) {
      // an answer to a token that was signed out meanwhile: nothing of it is shown or kept
      model.clear();
      pause = 0;
    }
    if (signedIn()) timer = setTimeout(poll, pause);
  }
}

function showAway(error, pause) {
  awaySince ??= Date.now() / 1000;
  const why = error instanceof Away || error instanceof Rejected ? error.message : `The page failed: ${error.message}`;
  if (!(error instanceof Away || error instanceof Rejected)) console.warn(error);
  const place = byId("connection");
  place.hidden = false;
  setAttribute(place, "data-tone", "bad");
  setText(place, `${why} What is shown is of ${clock(awaySince)}; trying again every ${age(pause / 1000)}.`);
}

function showConnected() {
  const place = byId("connection");
  if (awaySince === null) return;
  setAttribute(place, "data-tone", "good");
  setText(place, `The gateway answers again, after ${age(Date.now() / 1000 - awaySince)}.`);
  awaySince = null;
  setTimeout(() => {
    if (awaySince === null) place.hidden = true;
  }, 10_000);
}

// Sign-in.

function rejectToken() {
  endSession("The token was rejected.");
}

function endSession(message) {
  session += 1;
  signOut();
  model.clear();
  clearTimeout(timer);
  byId("board").hidden = true;
  byId("sign-out").hidden = true;
  byId("status").hidden = true;
  byId("connection").hidden = true;
  byId("result").hidden = true;
  byId("alerts").replaceChildren();
  byId("alerts").dataset.texts = "";
  for (const dialog of [byId("confirm"), byId("record")]) if (dialog.open) dialog.close();
  setText(byId("facts"), "");
  byId("record-facts").replaceChildren();
  setText(byId("confirm-text"), "");
  show(); // rows of the session before are removed, not hidden alone
  byId("sign-in").hidden = false;
  setText(byId("sign-in-error"), message);
  byId("token").focus();
}

function begin() {
  byId("sign-in").hidden = true;
  byId("board").hidden = false;
  byId("sign-out").hidden = false;
  setText(byId("sign-in-error"), "");
  return poll();
}

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("token");
  const token = field.value.trim();
  field.value = "";
  // a header field has visible ASCII characters only; anything else is no token of this gateway
  if (!/^[!-~]+$/.test(token)) {
    setText(byId("sign-in-error"), "A token has no spaces and no special letters.");
    return;
  }
  signIn(token, byId("keep").checked);
  await begin();
  if (signedIn()) byId("main").focus();
});

byId("sign-out").addEventListener("click", () => endSession(""));

byId("search-form").addEventListener("submit", (event) => event.preventDefault());
byId("record-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const id = byId("request-id").value.trim();
  const found = await model.find(id);
  show();
  if (found) showRecord(found);
  else showResult(`No record of a request with the id ${id}: it succeeded, or it is too old.`, "warn");
});
byId("caller-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await model.look(byId("policy").value.trim(), byId("caller").value.trim());
    show();
  } catch (error) {
    showResult(error.message, "warn");
  }
});
for (const field of ["search", "request-id"]) byId(field).addEventListener("input", show);
byId("of").addEventListener("change", () => {
  model.forgetHistory();
  show();
  poll();
});
byId("range").addEventListener("change", show);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) poll();
});

if (signedIn()) begin();
else {
  byId("sign-in").hidden = false;
  byId("token").focus();
}
