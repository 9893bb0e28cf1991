// Elements of the page. Values become text nodes and nothing else: no string is ever parsed as markup,
// so a hostile name of a service, a request id or a reason is shown as it is.

/**
 * Make an element.
 *
 * @param {string} tag - Its name.
 * @param {object} attributes - Attributes; one that is null or false is left out. `on` has listeners.
 * @param {...(Node|string|number)} children - Nodes, or what becomes a text node.
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Set the text of an element, if it is another: a screen reader announces what changes. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set or remove an attribute, if it is another. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === "") element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * A table whose rows are kept by key: what has the focus keeps it while the values change.
 *
 * A column has a `title` and either `text(row)`, or `actions(row)`: a list of `{label, title, run}`.
 * `tone(row)` is "good", "warn", "bad" or "" and never the only sign of a state; `numeric` aligns it;
 * `wide` lets long texts wrap. The first column is the header of its row.
 */
export class Table {
  constructor(place, { caption, columns, key, empty }) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = el("tbody");
    const titles = columns.map((column) =>
      el("th", { scope: "col", class: column.numeric ? "number" : null }, column.title),
    );
    this.empty = el("p", { class: "empty" }, empty);
    this.frame = el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", {}, el("caption", { class: "hidden" }, caption),
        el("thead", {}, el("tr", {}, ...titles)), this.body),
    );
    place.append(this.frame, this.empty);
  }

  /** Show *data*; with *shows*, only the rows for which it returns true. */
  update(data, shows = () => true) {
    const seen = new Set();
    let last = null;
    for (const row of data) {
      if (!shows(row)) continue;
      const key = this.key(row);
      if (seen.has(key)) continue;
      seen.add(key);
      const kept = this.rows.get(key) ?? this.#add(key);
      kept.data = row;
      this.columns.forEach((column, place) => this.#fill(kept, column, kept.cells[place]));
      const next = last === null ? this.body.firstChild : last.nextSibling;
      if (next !== kept.element) this.body.insertBefore(kept.element, next);
      last = kept.element;
    }
    for (const [key, kept] of this.rows) {
      if (!seen.has(key)) {
        kept.element.remove();
        this.rows.delete(key);
      }
    }
    this.frame.hidden = seen.size === 0;
    this.empty.hidden = seen.size > 0;
  }

  #add(key) {
    const cells = this.columns.map((column, place) => {
      const classes = [column.numeric && "number", column.wide && "wide"].filter(Boolean).join(" ");
      return place === 0
        ? el("th", { scope: "row", class: classes || null })
        : el("td", { class: classes || null });
    });
    const kept = { cells, element: el("tr", {}, ...cells), data: null };
    this.rows.set(key, kept);
    return kept;
  }

  #fill(kept, column, cell) {
    if (column.actions) {
      this.#fillActions(kept, column, cell);
      return;
    }
    const text = column.text(kept.data);
    setText(cell, text === null || text === undefined || text === "" ? "–" : String(text));
    if (column.tone) setAttribute(cell, "data-tone", column.tone(kept.data));
  }

  #fillActions(kept, column, cell) {
    const wanted = column.actions(kept.data);
    const labels = wanted.map((action) => action.label).join("\n");
    if (cell.dataset.labels !== labels) {
      cell.dataset.labels = labels;
      cell.replaceChildren(
        ...wanted.map(({ label }) =>
          el("button", { type: "button", on: { click: () => this.#act(kept, column, label) } }, label),
        ),
      );
    }
    wanted.forEach((action, place) => setAttribute(cell.children[place], "aria-label", action.title));
  }

  #act(kept, column, label) {
    // what the button does is read now: the row has changed since it was made
    column.actions(kept.data).find((action) => action.label === label)?.run();
  }
}

const SVG = "http://www.w3.org/2000/svg";

/** Draw states over time as a strip: *spans* are `[start, end, state]`, between *from* and *to*. */
export function strip(place, spans, from, to, label) {
  const width = Math.max(1, to - from);
  const drawn = document.createElementNS(SVG, "svg");
  for (const [name, value] of [["viewBox", "0 0 1000 10"], ["preserveAspectRatio", "none"],
    ["role", "img"], ["aria-label", label], ["class", "strip"]]) {
    drawn.setAttribute(name, value);
  }
  for (const [start, end, state] of spans) {
    const left = (1000 * (Math.max(start, from) - from)) / width;
    const right = (1000 * (Math.min(end, to) - from)) / width;
    if (right <= left) continue;
    const box = document.createElementNS(SVG, "rect");
    for (const [name, value] of [["x", left], ["y", 0], ["width", right - left], ["height", 10],
      ["data-state", state]]) {
      box.setAttribute(name, String(value));
    }
    drawn.append(box);
  }
  place.replaceChildren(drawn);
}
