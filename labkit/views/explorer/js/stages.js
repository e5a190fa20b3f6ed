/** How a stage of training is marked: the colours and shapes of labkit/views/figures/style.py. */

import { h, safeText, svg } from "./core.js";

const STAGE_LOOKS = {
  base: ["#8a919b", "M6 2.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 1 0 0-7.6M6 4a2 2 0 1 1 0 4 2 2 0 1 1 0-4"],
  harvester: ["#8a919b", "M2.5 2.5h7v7h-7zM4.3 4.3h3.4v3.4H4.3z"],
  grpo: ["#4aa5dd", "M2.5 2.5h7v7h-7z"],
  distill: ["#c4689f", "M2 3.4 3.4 2 6 4.6 8.6 2 10 3.4 7.4 6 10 8.6 8.6 10 6 7.4 3.4 10 2 8.6 4.6 6z"],
  sft: ["#dd8800", "M6 1 11 6 6 11 1 6z"],
  grpo_final: ["#2563b8", "M6 2.2a3.8 3.8 0 1 0 0 7.6 3.8 3.8 0 1 0 0-7.6"],
};
// Of other runs and models, in the order in which a page names them.
const OTHER_LOOKS = [
  ["#7b62c9", "M6 1.5 11 10H1z"],
  ["#0f8f9c", "M1 2h10L6 10.5z"],
  ["#c2334d", "M4 1h4v3h3v4H8v3H4V8H1V4h3z"],
  ["#8a7a1f", "M1.5 4.2 6 1l4.5 3.2-1.7 5.6H3.2z"],
  ["#a0622d", "M1 3.5h10v5H1z"],
  ["#b4559a", "M6 .8 7.6 4.4l3.9.4-2.9 2.6.9 3.8L6 9.2l-3.5 2 .9-3.8L.5 4.8l3.9-.4z"],
];
const others = new Map();

function look(stage) {
  if (Object.hasOwn(STAGE_LOOKS, stage)) return STAGE_LOOKS[stage];
  if (!others.has(stage)) others.set(stage, OTHER_LOOKS[others.size % OTHER_LOOKS.length]);
  return others.get(stage);
}

function stageMark(stage) {
  const [color, path] = look(stage);
  const mark = svg("svg", { viewBox: "0 0 12 12", class: "lk-mark", "aria-hidden": "true" });
  mark.append(svg("path", { d: path, fill: color, "fill-rule": "evenodd" }));
  return mark;
}

export const stageName = (stage) => [stageMark(stage), h("span", {}, safeText(stage || "chains"))];
