// Charts over time, each with a summary in words and a table of the same figures beside it.

import { el, setAttribute, setText } from "./dom.js";
import { clock } from "./figures.js";

const HEIGHT = 170;
const ROWS = 30;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * A chart of one or more lines.
 *
 * A line has a `title`, `color` (the name of a CSS variable) and, where there are several, `dash`, as
 * color alone distinguishes nothing for some readers.
 */
export class Chart {
  constructor(place, { title, lines, format, range }) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.range = range;
    this.data = [[], ...lines.map(() => [])];
    this.span = [Date.now() / 1000 - 60, Date.now() / 1000];
    this.canvas = el("div", { class: "canvas", "aria-hidden": "true" });
    this.summary = el("p", { class: "summary" });
    this.rows = el("tbody");
    this.details = el(
      "details",
      { on: { toggle: () => this.#fillTable() } },
      el("summary", {}, `Table: ${title}`),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${title}` },
        el("table", {}, el("caption", { class: "hidden" }, `${title}, newest first`),
          el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"),
            ...lines.map((line) => el("th", { scope: "col", class: "number" }, line.title)))),
          this.rows)),
    );
    place.append(el("figure", {}, el("figcaption", {}, el("h3", {}, title), this.summary),
      this.canvas, this.details));
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /**
   * Show *data*: the times in Unix seconds, then the values of each line; null where none is known.
   * The axis is from *from* to *to*.
   */
  update(data, from, to) {
    this.data = data;
    this.span = [from, to];
    if (this.plot) this.plot.setData(data);
    else this.#draw();
    setText(this.summary, this.#inWords());
    this.#fillTable();
  }

  #inWords() {
    const told = this.lines.map((line, place) => {
      const values = this.data[place + 1].filter((value) => value !== null);
      if (!values.length) return `${line.title}: no data`;
      return `${line.title} ${this.format(values.at(-1))}, highest ${this.format(Math.max(...values))}`;
    });
    return told.join("; ");
  }

  #fillTable() {
    if (!this.details.open) return;
    const [times, ...lines] = this.data;
    const rows = [];
    const step = Math.max(1, Math.ceil(times.length / ROWS));
    for (let place = times.length - 1; place >= 0 && rows.length < ROWS; place -= step) {
      rows.push(el("tr", {}, el("th", { scope: "row" }, clock(times[place])),
        ...lines.map((values) => el("td", { class: "number" }, this.format(values[place])))));
    }
    this.rows.replaceChildren(...rows);
  }

  #resize() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    if (this.plot) this.plot.setSize({ width, height: HEIGHT });
    else this.#draw();
  }

  #draw() {
    this.plot?.destroy();
    this.plot = null;
    const width = this.canvas.clientWidth;
    if (!width) return;
    const axis = { stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 },
      ticks: { stroke: color("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    this.plot = new window.uPlot(
      {
        width,
        height: HEIGHT,
        cursor: { drag: { x: false, y: false } },
        scales: { x: { range: () => this.span }, y: { range: this.range } },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map((tick) => clock(tick).slice(0, 5)) },
          { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => this.format(tick)) },
        ],
        series: [
          { label: "Time", value: (_, value) => (value === null ? "–" : clock(value)) },
          ...this.lines.map((line) => ({
            label: line.title,
            stroke: color(line.color),
            width: 2,
            dash: line.dash,
            points: { show: false },
            value: (_, value) => this.format(value),
          })),
        ],
      },
      this.data,
      this.canvas,
    );
    setAttribute(this.canvas, "data-drawn", "yes");
  }
}
