/** The virtual table of chains: only visible rows are in the document. */

import { clamp, EPSILON, h, safeText, number, percent, CORRECT_IOU, signed, spaced, spans } from "./core.js";
import { READ } from "./chains.js";
import { stageName } from "./stages.js";

const ROW = 30;
const SPARE_ROWS = 5;
const MOST_ROWS = 40;

/** All chains in a list of which only the rows in sight exist. */
export class Table {
  constructor(chains, { onSelect, onSort }) {
    Object.assign(this, { chains, onSelect, onSort });
    this.view = [];
    this.selected = -1;
    this.id = `lk${Math.random().toString(36).slice(2, 8)}`;
    this.build();
  }

  static columns(chains) {
    const columns = [
      { name: "stage", label: chains.sources.length ? "model" : "stage", width: chains.sources.length ? "minmax(96px, .9fr)" : "minmax(86px, .5fr)", cell: (i) => stageName(chains.name("stage", i)) },
      { name: "sample", label: "chain", width: "54px", cell: (i) => [chains.sampleName(i)], off: chains.told },
      { name: "step", label: "step", width: "34px", cell: (i) => [chains.columns.step[i] || "–"], right: true, wide: true },
      { name: "query", label: "query", width: "minmax(120px, 3fr)", cell: (i) => [safeText(chains.moment(i).query)] },
      { name: "anchors", label: "anchors", width: "48px", cell: (i) => [chains.anchors[i]], right: true, down: true },
      { name: "answer", label: "answer", width: "minmax(84px, 1fr)", cell: (i) => [chains.columns.answer[i] ? spans(chains.columns.answer[i]) : "none"], right: true, off: chains.told },
      { name: "iou", label: "IoU", width: "62px", cell: (i) => iouCell(chains.iou[i]), right: true, down: true, off: !chains.told },
      { name: "gain", label: "gain", title: "IoU of the answer less that of the first anchor", width: "46px", cell: (i) => change(chains.gain[i]), right: true, down: true, wide: true, off: !chains.told },
      { name: "delta", label: chains.sources.length ? "vs first" : "vs base", title: `IoU less that of ${safeText(chains.reference)} on the same query`, width: "54px", cell: (i) => change(chains.delta[i]), right: true, down: true, off: !chains.compared },
      { name: "total", label: "reward", width: "50px", cell: (i) => [number(chains.total[i])], right: true, down: true, off: !chains.told },
      { name: "fault", label: "fault", title: "class of failure, or how the form was broken", width: "minmax(62px, .8fr)", cell: (i) => [h("span", { title: chains.meaning(i) }, spaced(chains.fault(i)))], off: !someFault(chains) },
    ];
    const used = columns.filter((column) => !column.off);
    return chains.count < 2 ? used : used.filter((column) => !Table.constant(chains, column.name));
  }

  /** Whether a column says the same of all chains, which is then said once and not in every row. */
  static constant(chains, name) {
    if (name === "query" && chains.told) return false;
    if (["sample", "answer", "iou"].includes(name)) return false;
    const { kind, status } = chains.columns;
    const column = chains[name] ?? chains.columns[name];
    const text = { query: (i) => chains.columns.moment[i], fault: (i) => kind[i] * 64 + status[i] };
    const value = text[name] ?? ((i) => column[i]);
    for (let i = 1; i < chains.count; i++) if (!Object.is(value(i), value(0))) return false;
    return true;
  }

  build() {
    this.columns = Table.columns(this.chains);
    this.header = h("div", { role: "row", "aria-rowindex": 1, class: "lk-row lk-header" });
    for (const column of this.columns) {
      const button = h("button", { type: "button", title: column.title ?? `sort by ${column.label}`, onclick: () => this.onSort(column.name, column.down) }, column.label);
      this.header.append(h("div", { role: "columnheader", class: cellClass(column), "data-column": column.name }, button));
    }
    this.rows = h("div", { class: "lk-rows", role: "rowgroup" });
    this.empty = h("p", { class: "lk-empty", hidden: true }, this.chains.count ? "No chain passes these filters. Press 0 to lift them." : "There are no chains yet.");
    const head = h("div", { role: "rowgroup", class: "lk-head-rows" }, this.header);
    this.node = h("div", { class: "lk-table", role: "grid", tabindex: "0", "aria-label": "chains", "aria-colcount": this.columns.length, onscroll: () => this.paint() }, head, this.rows);
    this.frame = h("div", { class: "lk-table-frame" }, this.node, this.empty);
    this.frame.style.setProperty("--columns", this.columns.map((column) => column.width).join(" "));
    this.frame.style.setProperty("--columns-narrow", this.columns.filter((column) => !column.wide).map((column) => column.width).join(" "));
    this.resized = new ResizeObserver(() => this.paint());
    this.resized.observe(this.node);
  }

  set(view, sort) {
    this.view = view;
    this.node.setAttribute("aria-rowcount", view.length + 1);
    this.rows.style.height = `${view.length * ROW}px`;
    this.empty.hidden = view.length > 0;
    for (const cell of this.header.children) {
      const on = cell.dataset.column === sort.name;
      if (on) cell.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    this.paint();
  }

  /** Pixels of rows in sight, under the header that stays. */
  get height() {
    return this.node.clientHeight - ROW;
  }

  paint() {
    const height = this.height || 400;
    const seen = Math.ceil(height / ROW) + 1;
    const spare = clamp((MOST_ROWS - seen) >> 1, 0, SPARE_ROWS);
    const first = Math.max(0, Math.floor(this.node.scrollTop / ROW) - spare);
    const last = Math.min(this.view.length, first + seen + 2 * spare);
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(at));
    this.rows.replaceChildren(...rows);
    const shown = this.view.indexOf(this.selected);
    if (shown >= first && shown < last) this.node.setAttribute("aria-activedescendant", `${this.id}-${this.selected}`);
    else this.node.removeAttribute("aria-activedescendant");
  }

  row(at) {
    const i = this.view[at];
    const on = i === this.selected;
    const row = h("div", { role: "row", id: `${this.id}-${i}`, class: on ? "lk-row lk-on" : "lk-row", "aria-rowindex": at + 2, "aria-selected": on, "data-index": i, onclick: () => this.onSelect(i) });
    row.style.top = `${at * ROW}px`;
    for (const column of this.columns) row.append(h("div", { role: "gridcell", class: cellClass(column) }, ...column.cell(i)));
    return row;
  }

  select(i, reveal = true) {
    const first = this.selected < 0;
    this.selected = i;
    const at = this.view.indexOf(i);
    const { height } = this;
    if (reveal && at >= 0 && height > 0) {
      const top = at * ROW;
      if (first) this.node.scrollTop = top - height / 2;
      if (top < this.node.scrollTop) this.node.scrollTop = top;
      else if (top + ROW > this.node.scrollTop + height) this.node.scrollTop = top + ROW - height;
    }
    this.paint();
  }

  close() {
    this.resized.disconnect();
  }
}

const cellClass = (column) => ["lk-cell", column.right && "lk-right", column.wide && "lk-wide", `lk-c-${column.name}`].filter(Boolean).join(" ");
const someFault = (chains) => chains.names.kind.some(Boolean) || chains.names.status.some((status) => !READ.includes(status));

function iouCell(iou) {
  if (Number.isNaN(iou)) return ["–"];
  const bar = h("span", { class: iou >= CORRECT_IOU ? "lk-meter" : "lk-meter lk-low", "aria-hidden": "true" });
  bar.style.setProperty("--share", percent(iou));
  return [bar, h("span", {}, number(iou))];
}

function change(value) {
  if (Number.isNaN(value)) return ["–"];
  const way = value > EPSILON ? "lk-up" : value < -EPSILON ? "lk-down" : "";
  return [h("span", { class: way }, Math.abs(value) < 0.005 ? number(0) : signed(value))];
}
