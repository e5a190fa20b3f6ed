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
const OTHER_LOOK = ["#7b62c9", "M6 1.5 11 10H1z"];

function stageMark(stage) {
  const [color, path] = Object.hasOwn(STAGE_LOOKS, stage) ? STAGE_LOOKS[stage] : OTHER_LOOK;
  const mark = svg("svg", { viewBox: "0 0 12 12", class: "lk-mark", "aria-hidden": "true" });
  mark.append(svg("path", { d: path, fill: color, "fill-rule": "evenodd" }));
  return mark;
}

export const stageName = (stage) => [stageMark(stage), h("span", {}, safeText(stage || "chains"))];
