// What the page asks of the gateway: requests with the token, conditional on what is known already.
//
// The token is in memory, in this module alone. It leaves it in the field Authorization only; a person
// may keep it until the tab is closed, which is what sessionStorage does. It is never in a URL, which
// logs and histories keep, and never in localStorage.

const KEPT = "wsgigate.token";

/** The gateway answered, and not with what was asked for. */
export class Rejected extends Error {
  constructor(status, message, document) {
    super(message);
    this.status = status;
    this.document = document;
  }
}

/** No answer: the gateway, or the way to it, is down. */
export class Away extends Error {}

let token = readKept();
const known = new Map();

function readKept() {
  try {
    return sessionStorage.getItem(KEPT) ?? "";
  } catch {
    return "";
  }
}

function writeKept(value) {
  try {
    if (value) sessionStorage.setItem(KEPT, value);
    else sessionStorage.removeItem(KEPT);
  } catch {
    // a browser may forbid storage; then the token is in memory only
  }
}

export const signedIn = () => token !== "";

export function signIn(value, keep) {
  token = value;
  known.clear();
  writeKept(keep ? value : "");
}

export function signOut() {
  token = "";
  known.clear();
  writeKept("");
}

async function send(path, options) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 10_000);
  const headers = { Accept: "application/json", ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  try {
    const response = await fetch(path, {
      ...options,
      headers,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
      signal: stop.signal,
    });
    return [response, response.status === 304 ? "" : await response.text()];
  } catch {
    throw new Away("The gateway does not answer.");
  } finally {
    clearTimeout(timer);
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function rejected(response, document) {
  const said = document?.detail ?? document?.message ?? document?.title ?? document?.error;
  const text = typeof said === "string" ? said : `The gateway answered ${response.status}.`;
  return new Rejected(response.status, text, document);
}

/**
 * Return the document at *path*, relative to the page; the one at hand while it has not changed.
 *
 * @throws {Rejected} The gateway answered with an error.
 * @throws {Away} It did not answer.
 */
export async function get(path) {
  const before = known.get(path);
  const asked = token;
  const headers = before ? { "If-None-Match": before.tag } : {};
  const [response, text] = await send(path, { headers });
  if (response.status === 304 && before) return before.document;
  const document = read(text);
  if (!response.ok) {
    // a proxy in front of a gateway that is restarting answers for it
    if ([502, 503, 504].includes(response.status) && document === null) {
      throw new Away("The gateway does not answer.");
    }
    throw rejected(response, document);
  }
  const tag = response.headers.get("ETag");
  if (tag && asked === token) known.set(path, { tag, document });
  return document;
}

/** Return whether the gateway has an endpoint at *path* that this caller may read, and its document. */
export async function getIfThere(path) {
  try {
    return await get(path);
  } catch (error) {
    if (error instanceof Rejected && [403, 404, 405, 503].includes(error.status)) return null;
    throw error;
  }
}

/**
 * Change something; return the document of the answer.
 *
 * @throws {Rejected} The gateway answered with an error.
 * @throws {Away} It did not answer: whether it was changed is unknown.
 */
export async function change(method, path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const [response, text] = await send(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const document = read(text);
  if (!response.ok) throw rejected(response, document);
  return document;
}

/** A part of a path, such as the name of a service. */
export const part = encodeURIComponent;
