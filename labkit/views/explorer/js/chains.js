/** The chains of a page: what the table sorts and filters by, derived from the columns that Python packed. */

import { EPSILON } from "./core.js";

export const MOST_STEPS = 12;

/** How the form was kept where nothing is wrong with it: by labkit's form, by another program's rule, by ranked windows. */
export const READ = ["ok", "a span", "window"];

/** The columns as Python packed them, and what the table sorts and filters by. */
export class Chains {
  constructor(page) {
    this.page = page;
    this.columns = page.columns;
    this.names = page.names;
    this.moments = page.moments;
    this.terms = page.terms;
    /** Labels of several models whose predictions are compared with those of the first; none of a run's stages. */
    this.sources = page.sources ?? [];
    this.reference = this.sources[0] ?? "base";
    this.left = page.left_out ?? null;
    if (this.left) this.spots = new Map(this.left.places.map((place, i) => [place, i]));
    const count = this.columns.text.length;
    this.count = count;
    const column = () => new Float64Array(count);
    this.iou = column();
    this.gain = column();
    this.worse = column();
    this.anchors = column();
    this.total = column();
    this.delta = column();
    this.lost = column();
    this.answer = column();
    /** Whether anybody has said of a query when it happens: without that there is neither IoU nor reward. */
    this.told = this.moments.some((moment) => moment.windows.length);
    this.compared = this.moments.some((moment) => moment.base !== null);
    for (let i = 0; i < count; i++) this.derive(i);
    this.groups = new Map();
    this.byMoment = new Map();
    for (let i = 0; i < count; i++) {
      const { stage, run, step, moment } = this.columns;
      push(this.groups, `${run[i]} ${stage[i]} ${step[i]} ${moment[i]}`, i);
      push(this.byMoment, moment[i], i);
    }
    this.keys = new Map();
    this.orders = new Map();
    this.lowered = [];
  }

  /** What a chain was paid by, by term; null where that is not known. */
  weights(i) {
    const which = this.columns.weighed[i];
    return which ? this.page.weights[which - 1] : null;
  }

  /** Whether a step came closer to the truth, fell back, or did neither by the least gain of a step. */
  way(before, after) {
    const least = this.page.least_gain - EPSILON;
    return after - before >= least ? "▲" : before - after >= least ? "▼" : "=";
  }

  derive(i) {
    const ious = this.columns.ious[i];
    const anchors = this.columns.anchors[i].length;
    const answer = !this.isTold(i) ? NaN : this.columns.answer[i] ? ious[ious.length - 1] : 0;
    this.answer[i] = this.columns.answer[i]?.[0] ?? NaN;
    this.anchors[i] = anchors;
    this.iou[i] = answer;
    this.gain[i] = anchors ? answer - ious[0] : NaN;
    this.lost[i] = Math.max(0, ...ious.slice(0, MOST_STEPS)) - answer;
    for (let k = 1; k < ious.length; k++) if (this.way(ious[k - 1], ious[k]) === "▼") this.worse[i]++;
    this.total[i] = this.columns.total[i] ?? NaN;
    const base = this.moments[this.columns.moment[i]].base;
    this.delta[i] = base === null || this.name("stage", i) === this.sources[0] ? NaN : answer - base;
  }

  /** The index of a chain among all chains, of which the page may hold a subset; and back, -1 for one that is not here. */
  globalIndex = (i) => this.left?.places[i] ?? i;
  localIndex = (place) => (this.left ? (this.spots.get(place) ?? -1) : place);
  isTold = (i) => this.moment(i).windows.length > 0;
  /** A chain among those of its prompt. Whoever asks without knowing the truth gets the greedy chain as the first. */
  sampleName = (i) => (this.isTold(i) || this.columns.sample[i] ? `#${this.columns.sample[i]}` : "greedy");
  moment = (i) => this.moments[this.columns.moment[i]];
  name = (column, i) => this.names[column][this.columns[column][i]];
  group = (i) => {
    const { stage, run, step, moment } = this.columns;
    return this.groups.get(`${run[i]} ${stage[i]} ${step[i]} ${moment[i]}`);
  };

  /** Names what is wrong with a chain: its class of failure, or else how it broke the form. */
  fault(i) {
    const kind = this.name("kind", i);
    const status = this.name("status", i);
    return kind || (READ.includes(status) ? "" : status);
  }

  meaning = (i) => this.page.meanings[this.fault(i)] ?? this.fault(i);

  /** Text of every chain in small letters: what has not been made ahead is made now. */
  get haystack() {
    this.lower(this.count);
    return this.lowered;
  }

  /** Make up to `more` of these texts ready to be searched; whether some are still missing. */
  lower(more) {
    const end = Math.min(this.count, this.lowered.length + more);
    for (let i = this.lowered.length; i < end; i++) {
      const { query, qid, video } = this.moment(i);
      this.lowered.push(`${query}\n${qid}\n${video}\n${this.columns.text[i]}`.toLowerCase());
    }
    return end < this.count;
  }

  /** A number for each chain by which a column sorts; texts become their place in the alphabet. */
  sortKey(name) {
    if (this.keys.has(name)) return this.keys.get(name);
    const text = { query: (i) => this.moment(i).query, fault: (i) => this.fault(i) }[name];
    let key;
    if (text) {
      const texts = Array.from({ length: this.count }, (_, i) => text(i));
      const place = new Map([...new Set(texts)].sort().map((each, at) => [each, at]));
      key = Float64Array.from(texts, (each) => place.get(each));
    } else {
      key = this[name] ?? Float64Array.from(this.columns[name]);
    }
    this.keys.set(name, key);
    return key;
  }

  /** All chains in the order of a column; kept, since a filter leaves the order of the others as it is. */
  ordered({ name, down }) {
    const id = `${name} ${down}`;
    if (this.orders.has(id)) return this.orders.get(id);
    const key = this.sortKey(name);
    const way = down ? -1 : 1;
    const order = Uint32Array.from({ length: this.count }, (_, i) => i).sort((a, b) => {
      const x = key[a];
      const y = key[b];
      if (x === y) return a - b;
      // What has no value stands last, whichever way is up.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? (Number.isNaN(y) ? a - b : 1) : -1;
      return way * (x - y);
    });
    this.orders.set(id, order);
    return order;
  }

  /** Places of the chains that pass a filter, sorted. */
  list(filter, sort) {
    const needle = filter.text.trim().toLowerCase();
    const haystack = needle ? this.haystack : null;
    const at = (column, name) => (name ? this.names[column].indexOf(name) : -1);
    const [stage, status, kind] = [at("stage", filter.stage), at("status", filter.status), at("kind", filter.kind)];
    const columns = this.columns;
    const anchors = filter.anchors === "" ? null : Number(filter.anchors);
    const bounded = filter.low > 0 || filter.high < 1;
    const kept = [];
    for (const i of this.ordered(sort)) {
      if (filter.chosen && !filter.chosen.has(i)) continue;
      if (filter.stage && columns.stage[i] !== stage) continue;
      if (filter.status && columns.status[i] !== status) continue;
      if (filter.kind && columns.kind[i] !== kind) continue;
      if (anchors !== null && (anchors === 4 ? this.anchors[i] < 4 : this.anchors[i] !== anchors)) continue;
      if (bounded && !(this.iou[i] >= filter.low - EPSILON && this.iou[i] <= filter.high + EPSILON)) continue;
      if (filter.regress && !REGRESSIONS[filter.regress].holds(this, i)) continue;
      if (needle && !haystack[i].includes(needle)) continue;
      kept.push(i);
    }
    return kept;
  }
}

function push(map, key, value) {
  const found = map.get(key);
  if (found) found.push(value);
  else map.set(key, [value]);
}

export const REGRESSIONS = {
  step: { label: "a step got worse", holds: (chains, i) => chains.worse[i] > 0 },
  answer: { label: "answer below best anchor", holds: (chains, i) => chains.lost[i] > EPSILON },
  base: { label: "answer below", reference: true, holds: (chains, i) => chains.delta[i] < -EPSILON },
};
