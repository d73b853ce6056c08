// A table of which only the rows in sight are in the document: thousands scroll as ten do. All rows are equally high.

const SPARE = 6; // rows above and below those in sight

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export class Table {
  // columns: {key, title, of(item) to sort by, make(td, row), draw(td, item), right}; row.item is what a row shows now.
  constructor(place, { caption, columns, key, empty, sort }) {
    this.place = place;
    this.columns = columns;
    this.key = key;
    this.sort = sort;
    this.items = [];
    this.rows = new Map();
    this.spare = [];
    this.asked = false;
    this.head = element("tr");
    for (const column of columns) this.head.append(this.header(column));
    this.above = element("tr", { class: "space", "aria-hidden": "true" }, element("td"));
    this.below = element("tr", { class: "space", "aria-hidden": "true" }, element("td"));
    this.body = element("tbody", {}, this.above, this.below);
    this.table = element("table", {}, element("caption", { class: "hidden" }, caption), element("thead", {}, this.head), this.body);
    this.none = empty;
    this.empty = element("p", { class: "empty" }, empty);
    place.append(this.table, this.empty);
    place.addEventListener("scroll", () => this.later(), { passive: true });
    new ResizeObserver(() => {
      this.high = 0;
      this.later();
    }).observe(place);
    this.mark();
  }

  header(column) {
    const cell = element("th", { scope: "col", class: `c-${column.key}${column.right ? " right" : ""}` });
    if (!column.of) {
      cell.append(element("span", { class: "hidden" }, column.title));
      return cell;
    }
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      const [by, down] = this.sort;
      this.sortBy(column.key, by === column.key ? !down : false);
    });
    cell.append(button);
    return cell;
  }

  sortBy(key, down) {
    this.sort = [key, down];
    this.mark();
    this.arrange();
  }

  mark() {
    const [by, down] = this.sort;
    this.columns.forEach((column, index) => {
      const cell = this.head.children[index];
      if (column.key === by) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  // none: what stands there when these are none.
  show(items, none = this.none) {
    this.items = items;
    put(this.empty, none);
    this.arrange();
  }

  arrange() {
    const [by, down] = this.sort;
    const of = this.columns.find((column) => column.key === by).of;
    const turn = down ? -1 : 1;
    const keyed = this.items.map((item) => [of(item) ?? "", item]);
    keyed.sort((a, b) => (a[0] < b[0] ? -turn : a[0] > b[0] ? turn : 0));
    this.items = keyed.map((pair) => pair[1]);
    this.later();
  }

  later() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.draw();
    });
  }

  draw() {
    const high = this.high || (this.high = parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--row")));
    const count = this.items.length;
    this.empty.hidden = count > 0;
    this.table.hidden = count === 0;
    this.table.setAttribute("aria-rowcount", count + 1);
    const first = Math.max(0, Math.floor(this.place.scrollTop / high) - SPARE);
    const last = Math.min(count, Math.ceil((this.place.scrollTop + this.place.clientHeight) / high) + SPARE);
    this.above.firstChild.style.height = `${first * high}px`;
    this.below.firstChild.style.height = `${Math.max(0, count - last) * high}px`;
    const seen = new Map();
    for (let index = first; index < last; index++) seen.set(this.key(this.items[index]), this.items[index]);
    for (const [key, row] of this.rows) {
      if (!seen.has(key)) {
        if (row.contains(document.activeElement)) this.place.focus({ preventScroll: true }); // rather than to the page's begin
        row.remove();
        this.rows.delete(key);
        this.spare.push(row);
      }
    }
    let before = this.above;
    let index = first;
    for (const [key, item] of seen) {
      let row = this.rows.get(key);
      if (!row) this.rows.set(key, (row = this.spare.pop() ?? this.make()));
      row.item = item;
      if (before.nextSibling !== row) {
        const focused = row.contains(document.activeElement) ? document.activeElement : null;
        before.after(row);
        if (focused) focused.focus({ preventScroll: true });
      }
      row.setAttribute("aria-rowindex", index + 2);
      this.columns.forEach((column, number) => column.draw(row.children[number], item));
      if (this.decorate) this.decorate(row, item);
      before = row;
      index += 1;
    }
  }

  make() {
    const row = element("tr");
    for (const column of this.columns) {
      const cell = element("td", { class: `c-${column.key}${column.right ? " right" : ""}` });
      if (column.make) column.make(cell, row);
      row.append(cell);
    }
    return row;
  }
}
