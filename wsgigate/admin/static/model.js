// What the page knows of the gateway: the documents of the admin API as rows of the page's tables.

import { change, get, getIfThere, part } from "./api.js";
import { ago, clock, count, moment, percent } from "./figures.js";

const HOUR = 3600;
const SELDOM = 10_000;
const NO_HISTORY = { times: [], series: {}, circuits: {}, inFlight: [], interval: 5, recent: { series: {}, decisions: {} } };

/** Show a member whatever its type is: an unexpected one is shown, and breaks nothing. */
const text = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));

const list = (value) => (Array.isArray(value) ? value : []);
const pairs = (value) => (value && typeof value === "object" ? Object.entries(value) : []);

export class Model {
  constructor() {
    this.clear();
  }

  /** Forget everything, as after signing out. */
  clear() {
    this.role = "";
    this.kept = new Map();
    this.now = Date.now() / 1000;
    this.gateway = {};
    this.total = { success: null };
    this.routes = [];
    this.services = [];
    this.instances = [];
    this.circuits = [];
    this.policies = [];
    this.standing = [];
    this.errors = [];
    this.registered = [];
    this.workers = [];
    this.maintenance = [];
    this.registryFacts = [];
    this.store = [];
    this.configFacts = [];
    this.configText = "";
    this.hasErrors = false;
    this.hasRegistry = false;
    this.alerts = [];
    this.forgetHistory();
  }

  forgetHistory() {
    // a service may be named as a member of every object is, such as "constructor"
    this.history = { ...structuredClone(NO_HISTORY), circuits: Object.create(null) };
    this.of = "";
  }

  get writes() {
    return this.role === "admin";
  }

  /**
   * Read what has changed, and the history of the series *of*.
   *
   * @throws {Rejected|Away} As get().
   */
  async refresh(of) {
    this.role = (await this.#seldom("session", get)).role;
    // which endpoints there are depends on the configuration
    const { paths } = await this.#seldom("openapi.json", get);
    const there = (path, read = getIfThere) => (`/${path}` in paths ? read(path) : null);
    const seldom = (path) => this.#seldom(path);
    const [overview, instances, health, circuits, errors, workers, maintenance, routes, config, registered] =
      await Promise.all([
        get("overview"),
        get("instances"),
        get("health"),
        there("circuit-breakers"),
        there("errors"),
        there("workers", seldom),
        there("maintenance", seldom),
        this.#seldom("routes", get),
        there("config", seldom),
        there("registered", seldom),
        this.#readHistory(of),
      ]);
    this.now = moment(health.gateway?.timestamp) ?? Date.now() / 1000;
    this.gateway = {
      name: overview.gateway?.name,
      version: overview.gateway?.version,
      status: health.gateway?.status,
      uptime: this.now - (moment(overview.gateway?.started) ?? this.now),
    };
    const recent = (key) => this.history.recent.series[key] ?? {};
    this.total = { success: null, ...recent("gateway") };
    this.routes = list(routes.routes).map((each) => ({
      ...recent(`route:${each.name}`),
      name: text(each.name),
      path: text(each.host) + text(each.path) + (each.exact ? "" : "…"),
      service: text(each.service),
    }));
    this.instances = list(instances.instances).map((each) => instanceRow(each, recent));
    this.services = pairs(health.services).map(([name, status]) => this.#serviceRow(name, status, recent));
    this.circuits = pairs(circuits?.circuitBreakers).map(([name, each]) => circuitRow(name, each));
    this.policies = pairs(this.history.recent.decisions).map(([name, made]) => ({
      name,
      allowed: made.allowed ?? 0,
      rejected: made.rejected ?? 0,
      observed: made.observed ?? 0,
      exempt: made.exempt ?? 0,
      failed: made.store_failed ?? 0,
    }));
    this.hasErrors = errors !== null;
    this.errors = list(errors?.errors).map((each, number) => errorRow(each, number));
    this.registered = list(registered?.instances).map((each) => ({ ...each, heartbeat: each.renewed }));
    const leases = new Map(this.registered.map((each) => [`${each.service} ${each.url}`, each]));
    for (const row of this.instances) {
      const lease = leases.get(`${row.service} ${row.url}`);
      if (lease) Object.assign(row, { version: text(lease.version), heartbeat: lease.heartbeat });
    }
    this.workers = list(workers?.workers).map((each) => ({
      name: text(each.worker),
      pid: text(each.pid),
      started: moment(each.started),
      version: text(each.version),
      config: text(each.config).slice(0, 12),
    }));
    this.maintenance = maintenanceRows(maintenance);
    this.hasRegistry = registered !== null;
    this.registryFacts = registered === null ? [] : registryFacts(registered);
    this.store = pairs(overview.store).map(([name, value]) => [name, text(value), name === "error" ? "bad" : ""]);
    this.configFacts = [
      ["File", text(config?.file ?? overview.config?.file) || "–"],
      ["Hash", text(overview.config?.hash)],
      ["In force", `since ${clock(overview.config?.loaded)}, ${ago(overview.config?.loaded, this.now)}`],
    ];
    this.configText = config ? JSON.stringify(config.configuration, null, 2) : "";
    this.alerts = list(overview.problems).map((each) => [text(each), overview.state === "error" ? "bad" : "warn"]);
  }

  /** Read what changes seldom: again after ten seconds, and after each change. */
  async #seldom(path, read = getIfThere) {
    const kept = this.kept.get(path);
    if (kept && Date.now() - kept.at < SELDOM) return kept.document;
    const document = await read(path);
    this.kept.set(path, { document, at: Date.now() });
    return document;
  }

  /** Read everything again with the next refresh: something was changed. */
  expire() {
    this.kept.clear();
  }

  #serviceRow(name, status, recent) {
    const own = this.instances.filter((each) => each.service === name);
    const healthy = own.filter((each) => each.tone === "good").length;
    const off = status?.maintenance;
    const fine = status?.healthy === true;
    return {
      ...recent(`service:${name}`),
      name,
      healthy,
      total: own.length,
      state: off ? "maintenance" : fine ? "healthy" : "unhealthy",
      tone: off ? "warn" : fine ? "good" : "bad",
      reason: text(status?.error ?? off?.message),
    };
  }

  async #readHistory(of) {
    if (this.of !== of) {
      this.forgetHistory();
      this.of = of;
    }
    const known = this.history;
    const last = known.times.at(-1) ?? 0;
    const read = await getIfThere(`history?since=${last}&of=${part(of)}`);
    if (read === null || this.history !== known || this.of !== of) return;
    // the same document again, or an answer that is late: its samples are known
    const fresh = read.times.findIndex((time) => time > last);
    known.interval = read.interval;
    known.recent = read.recent;
    if (fresh < 0) return;
    const from = known.times.length;
    const rows = read.times.length - fresh;
    const extend = (before, after) => {
      const whole = before ?? new Array(from).fill(null);
      while (whole.length < from) whole.push(null);
      for (let n = 0; n < rows; n += 1) whole.push(after?.[fresh + n] ?? null);
      return whole;
    };
    for (const [name, values] of pairs(read.series[of])) known.series[name] = extend(known.series[name], values);
    const after = Object.assign(Object.create(null), read.circuits);
    for (const name of new Set([...Object.keys(known.circuits), ...Object.keys(after)])) {
      known.circuits[name] = extend(known.circuits[name], after[name]?.map(circuitState));
    }
    known.inFlight = extend(known.inFlight, read.inFlight);
    known.times = [...known.times, ...read.times.slice(fresh)];
    const old = known.times.findIndex((time) => time > known.times.at(-1) - HOUR);
    if (old > 0) {
      for (const values of [known.times, known.inFlight, ...Object.values(known.series), ...Object.values(known.circuits)]) {
        values.splice(0, old);
      }
    }
  }

  get inFlight() {
    return this.history.inFlight.at(-1);
  }

  /** Return the columns of the last *span* seconds. */
  columns(of, span) {
    const { times, series } = this.history;
    const first = Math.max(0, times.findIndex((time) => time > this.now - span));
    const cut = (values) => values.slice(first);
    const found = { times: cut(times) };
    if (of === this.of) for (const [name, values] of Object.entries(series)) found[name] = cut(values);
    return found;
  }

  /** Return the record of the request with *id*, read anew; null without one. */
  async find(id) {
    if (!id) return null;
    const read = await getIfThere("errors");
    this.errors = list(read?.errors).map((each, number) => errorRow(each, number));
    return this.errors.find((each) => each.requestId === id || each.traceId === id) ?? null;
  }

  // What may be changed. Each of these rejects as change() does.

  resetCircuit(row) {
    return change("POST", `circuit-breakers/${part(row.name)}/reset`);
  }

  setCircuit(row, state, lasts) {
    return change("PUT", `circuit-breakers/${part(row.name)}`, { state, ...(lasts ? { for: lasts } : {}) });
  }

  setInstance(row, state, lasts) {
    const path = `services/${part(row.service)}/instances?address=${part(row.url)}`;
    return change("PUT", path, { state, ...(lasts ? { for: lasts } : {}) });
  }

  setMaintenance(row, on, lasts) {
    return change("POST", "maintenance", { on, scope: row.scope, ...(on && lasts ? { for: lasts } : {}) });
  }

  clearLimit(policy, key) {
    return change("DELETE", `limits/${part(policy)}?key=${part(key)}`);
  }

  /** Read what a caller has left. */
  async look(policy, caller) {
    const read = await get(`limits/${part(policy)}?key=${part(caller)}`);
    this.standing = list(read.quotas).map((each) => ({ ...each, policy, caller, key: text(read.key) || caller }));
  }
}

function instanceRow(each, recent) {
  const health = each.health ?? {};
  const override = each.override;
  const lastCheck = moment(health.lastCheck);
  return {
    ...recent(`instance:${each.service} ${each.url}`),
    service: text(each.service),
    url: text(each.url),
    address: text(each.url).replace(/^https?:\/\//, ""),
    state: override && override.state !== "active" ? text(override.state)
      : each.ejection ? "ejected" : { ok: "healthy", warning: "warning", error: "failing" }[each.state] ?? text(each.state),
    tone: { ok: "good", warning: "warn", error: "bad" }[each.state] ?? "",
    inFlight: each.inFlight,
    weight: override?.weight ?? each.weight,
    override: override?.state ?? "",
    version: "",
    heartbeat: null,
    checked: lastCheck,
    reason: text(each.reason || health.error || (lastCheck ? `status ${text(health.status)}` : "")),
  };
}

/** Return the name of a state as the page shows it: HALF_OPEN is half-open. */
const circuitState = (state) => (state === null || state === undefined ? null : text(state).toLowerCase().replace("_", "-"));

function circuitRow(name, each) {
  return {
    name,
    state: circuitState(each.state),
    forced: Boolean(each.forced) || /forced/i.test(text(each.reason)),
    since: moment(each.since),
    until: moment(each.until),
    failures: each.failureCount,
    lastFailure: moment(each.lastFailureTime),
    reason: text(each.reason),
  };
}

function errorRow(each, number) {
  return {
    id: `${each.time} ${each.request_id} ${number}`,
    time: moment(each.time),
    status: each.status,
    requestId: text(each.request_id),
    traceId: text(each.trace_id),
    route: text(each.route),
    service: text(each.service),
    instance: text(each.instance),
    reason: text(each.reason || each.error),
    all: each,
  };
}

function maintenanceRows(read) {
  const notices = read?.maintenance ?? {};
  return list(read?.scopes).map((scope) => ({
    scope: text(scope),
    since: moment(notices[scope]?.since),
    until: moment(notices[scope]?.until),
    message: text(notices[scope]?.message),
  }));
}

function registryFacts(read) {
  return [
    ["Instances that renew", `${count(read.renewing)} of ${count(read.total)}`],
    ["Threshold", `self-preservation below ${percent(read.threshold)}`],
    ["Self-preservation", read.preserving ? "active: silent instances are kept" : "not active", read.preserving ? "warn" : "good"],
  ];
}
