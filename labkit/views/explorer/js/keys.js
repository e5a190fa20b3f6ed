/** Keyboard shortcuts. */

export const SCRUB_HINT = [["space", "play"], ["←", ""], ["→", "frames"]];
export const HINT = [...SCRUB_HINT, ["[", ""], ["]", "anchors"], ["?", "keys"]];

/** Every key: what the browser calls it, how it is shown, what it does. */
export const KEYS = [
  [["ArrowDown", "j"], "↓ j", "next chain", (x) => x.move(1)],
  [["ArrowUp", "k"], "↑ k", "chain before", (x) => x.move(-1)],
  [["PageDown"], "PgDn", "ten chains on", (x) => x.move(10)],
  [["PageUp"], "PgUp", "ten chains back", (x) => x.move(-10)],
  [["ArrowRight"], "→", "one frame on; with Shift five", (x, event) => x.player.step(event.shiftKey ? 5 : 1)],
  [["ArrowLeft"], "←", "one frame back; with Shift five", (x, event) => x.player.step(event.shiftKey ? -5 : -1)],
  [["Home"], "Home", "start of the clip", (x) => x.player.setTime(0)],
  [["End"], "End", "end of the clip", (x) => x.player.setTime(x.player.duration)],
  [[" "], "Space", "play or pause", (x) => x.player.toggle()],
  [["<"], "<", "play slower", (x) => x.player.faster(-1)],
  [[">"], ">", "play faster", (x) => x.player.faster(1)],
  [["m"], "m", "the video's sound on or off", (x) => x.player.film.setMuted(!x.player.film.video.muted)],
  [["]"], "]", "next anchor, then the answer", (x) => x.walk(1)],
  [["["], "[", "anchor before", (x) => x.walk(-1)],
  [["Enter"], "Enter", "play the anchor, the answer or the truth", (x) => x.playStep()],
  [["a"], "a", "go to the answer", (x) => x.answer()],
  [["t"], "t", "go to the truth", (x) => x.truth()],
  [["1"], "1", "view: chain", (x) => x.show("chain")],
  [["2"], "2", "view: group, all chains of this prompt", (x) => x.show("group")],
  [["3"], "3", "view: this query through the stages", (x) => x.show("stages")],
  [["/"], "/", "type a filter; Esc leaves it", (x) => x.fields.text.focus()],
  [["0"], "0", "lift all filters", (x) => x.clear()],
  [["s"], "s", "sort by the next column", (x) => x.nextSort()],
  [["r"], "r", "reverse the order", (x) => x.sortBy(x.sort.name)],
  [["?"], "?", "these keys", (x) => x.dialog.showModal()],
];

export const SCRUB_KEYS = KEYS.filter(([keys]) => [" ", "ArrowRight", "ArrowLeft", "Home", "End", "<", ">", "m"].includes(keys[0]));
