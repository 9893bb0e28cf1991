// Numbers and times as text. Everything here is pure.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const NONE = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : NONE);

/** A rate per second: "12", "0.25". */
export const rate = (value) =>
  known(value) ? (value >= 100 ? whole.format(value) : exact.format(value)) : NONE;

/** A share of 1 as per cent. One that is not whole never reads as 100 % or as 0 %. */
export function percent(value) {
  if (!known(value)) return NONE;
  const text = (100 * value).toFixed(2);
  if (text === "100.00" && value < 1) return "99.99 %";
  if (text === "0.00" && value > 0) return "0.01 %";
  return `${text.replace(/\.?0+$/, "")} %`;
}

/** Seconds as a duration of a request: "850 µs", "12.3 ms", "1.2 s". */
export function latency(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 0.001) return `${whole.format(1e6 * seconds)} µs`;
  if (seconds < 1) return `${exact.format(1e3 * seconds)} ms`;
  return `${exact.format(seconds)} s`;
}

/** Seconds as an age: "3 s", "5 min", "2 h 10 min", "4 d". */
export function age(seconds) {
  if (!known(seconds)) return NONE;
  const full = Math.max(0, Math.round(seconds));
  if (full < 120) return `${full} s`;
  const minutes = Math.floor(full / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

/** Unix seconds, or a time in ISO 8601, as Unix seconds; null for what is no time. */
export function moment(value) {
  if (known(value)) return value;
  if (typeof value !== "string") return null;
  const read = Date.parse(value);
  return Number.isNaN(read) ? null : read / 1000;
}

/** A time as the clock of the reader: "14:03:07". */
export function clock(value) {
  const seconds = moment(value);
  if (seconds === null) return NONE;
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}

/** A time with its day: "2026-11-30 14:03:07". */
export function stamp(value) {
  const seconds = moment(value);
  if (seconds === null) return NONE;
  const date = new Date(1000 * seconds);
  const two = (part) => String(part).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${date.toLocaleTimeString("en-GB")}`;
}

/** How long ago a time is, by the clock of the gateway. */
export function ago(value, now) {
  const seconds = moment(value);
  return seconds === null ? NONE : `${age(now - seconds)} ago`;
}

/**
 * Join the samples of *states* to spans: `[start, end, state]`.
 *
 * @param {number[]} times - When each was taken, in Unix seconds; each lasts until the next one.
 * @param {(string|null)[]} states - The states; null where none is known.
 * @param {number} longest - The longest time that one sample stands for, in seconds.
 */
export function spans(times, states, longest) {
  const joined = [];
  times.forEach((time, place) => {
    const state = states[place];
    if (state === null || state === undefined) return;
    const end = Math.min(times[place + 1] ?? time + longest, time + longest);
    const last = joined.at(-1);
    if (last && last[2] === state && last[1] >= time) last[1] = end;
    else joined.push([time, end, state]);
  });
  return joined;
}
