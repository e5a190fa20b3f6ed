/** The real video over the sheet's frames: every frame of it at the screen's own resolution, and its sound. */

import { clamp, h, svg } from "./core.js";

// Seconds behind a frame's first moment that are asked for, so that a rounded clock does not show the frame before it.
const BEHIND = 0.001;
// Seconds: a time this near is shown already.
const NEAR = 0.003;
// Milliseconds: what is passed by sooner asks for no video; a seek that takes longer shows the sheet meanwhile.
const SETTLE = 150;
const PATIENCE = 120;
// Milliseconds in which the first frame says when it begins.
const FIRST_FRAME = 500;
const SOUNDS = "labkit-sounds";
const LOUD = "M2 5h3l4-3.4v10.8L5 9H2zM11 4.4a3.6 3.6 0 0 1 0 5.2";
const MUTE = "M2 5h3l4-3.4v10.8L5 9H2zM10.6 5.2l3 3.6M13.6 5.2l-3 3.6";

/**
 * A video that is shown where it can be played: `root.dataset.film` is none or ready, `root.dataset.shows` film or sheet.
 * Its times are those of the sheet: seconds of the clip, whose second 0 is `start` seconds behind the first frame.
 */
export class Film {
  constructor(root, { onReady, onOther }) {
    Object.assign(this, { root, onReady, onOther });
    this.video = h("video", { class: "lk-film", preload: "auto", playsinline: true, disablepictureinpicture: true, tabindex: "-1", "aria-hidden": "true" });
    this.video.addEventListener("loadeddata", () => this.began());
    this.video.addEventListener("seeked", () => this.arrived());
    this.video.addEventListener("error", () => this.failed());
    this.mute = h("button", { type: "button", class: "lk-mute", hidden: true, onclick: () => this.setMuted(!this.video.muted) });
    this.setMuted(false);
    this.others = (event) => event.detail !== this && this.rolls && this.onOther();
    document.addEventListener(SOUNDS, this.others);
    this.time = 0;
    this.forget();
  }

  /** Show the video that `find(whole)` promises as {src, start}, or null; `whole` asks for its bytes where a server failed. */
  load(find, whole = false) {
    this.forget();
    if (!find) return;
    const mine = this.asked;
    this.settling = setTimeout(async () => {
      const source = await find(whole).catch(() => null);
      if (mine !== this.asked || !source) return;
      if (source.beside && !(await this.isThere(source.src))) return;
      if (mine !== this.asked) return;
      Object.assign(this, { start: source.start, source, find });
      // Asked before there is a frame: of one that stands already, nobody would hear.
      this.first = new Promise((tell) => this.video.requestVideoFrameCallback?.((_, frame) => tell(frame.mediaTime)));
      this.video.src = source.src;
    }, SETTLE);
  }

  /** Whether a file lies there, asked in the one way in which a browser does not complain where none does. */
  isThere(src) {
    const probe = h("object", { class: "lk-probe", "aria-hidden": "true", tabindex: "-1" });
    const told = new Promise((tell) => {
      probe.addEventListener("load", () => tell(true));
      probe.addEventListener("error", () => tell(false));
    });
    probe.data = src;
    this.root.append(probe);
    return told.finally(() => probe.remove());
  }

  /** Nothing is shown but the sheet. */
  forget() {
    clearTimeout(this.settling);
    clearTimeout(this.late);
    this.asked = Symbol("video");
    this.ready = false;
    this.source = null;
    this.offset = 0;
    this.mute.hidden = true;
    this.root.dataset.film = "none";
    this.show(false);
    if (this.video.hasAttribute("src")) {
      this.video.removeAttribute("src");
      this.video.load();
    }
  }

  /** A codec that this browser does not know, or an address at which its server has nothing: then the kernel may have it. */
  async failed() {
    const { source, find } = this;
    if (!source) return;
    this.forget();
    if (!source.served) return;
    const mine = this.asked;
    const answer = await fetch(source.src, { method: "HEAD" }).catch(() => null);
    // Another clip may be shown by now.
    if (!answer?.ok && mine === this.asked) this.load(find, true);
  }

  async began() {
    const { video, asked } = this;
    if (this.ready || !this.source) return;
    if (!video.videoWidth) return this.forget(); // sound alone: its pictures are in a codec that this browser does not know
    // Second 0 is where the first frame begins, as for the sheet; sound may begin before it.
    const offset = await Promise.race([this.first, new Promise((tell) => setTimeout(() => tell(0), FIRST_FRAME))]);
    if (asked !== this.asked) return;
    Object.assign(this, { offset, ready: true });
    this.mute.hidden = false;
    this.root.dataset.film = "ready";
    this.onReady(video.videoWidth / video.videoHeight);
  }

  at(time) {
    return clamp(this.offset + this.start + time + BEHIND, 0, Math.max(0, this.video.duration - BEHIND));
  }

  /** Show a second of the clip; until it is there, the sheet is seen. */
  seek(time) {
    this.time = time;
    if (!this.ready || this.video.seeking) return;
    const wanted = this.at(time);
    if (Math.abs(this.video.currentTime - wanted) < NEAR) return this.show(true);
    clearTimeout(this.late);
    this.late = setTimeout(() => this.show(false), PATIENCE);
    this.video.currentTime = wanted;
  }

  arrived() {
    if (!this.ready) return;
    if (this.video.paused && Math.abs(this.video.currentTime - this.at(this.time)) >= NEAR) return this.seek(this.time);
    clearTimeout(this.late);
    this.show(true);
  }

  show(film) {
    this.video.classList.toggle("lk-seen", film);
    this.root.dataset.shows = film ? "film" : "sheet";
  }

  /** Whether the video is the clock. */
  get rolls() {
    return this.ready && !this.video.paused && !this.video.ended;
  }

  get now() {
    return this.video.currentTime - this.offset - this.start;
  }

  /** Play from a second on; a browser that refuses the sound plays without, and one that refuses all shows the sheet. */
  async play(time, speed) {
    if (!this.ready || this.at(time) >= this.video.duration - 2 * BEHIND) return;
    const { video } = this;
    this.time = time;
    if (Math.abs(video.currentTime - this.at(time)) >= NEAR) video.currentTime = this.at(time);
    video.playbackRate = speed;
    document.dispatchEvent(new CustomEvent(SOUNDS, { detail: this }));
    try {
      await video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return; // paused meanwhile
      this.setMuted(true);
      await video.play().catch(() => this.show(false));
    }
  }

  pause() {
    this.video.pause();
  }

  setMuted(muted) {
    this.video.muted = muted;
    this.mute.setAttribute("aria-label", muted ? "sound on" : "sound off");
    this.mute.title = `${muted ? "sound on" : "sound off"} (m)`;
    this.mute.replaceChildren(svg("svg", { viewBox: "0 0 15 14", "aria-hidden": "true" }, svg("path", { d: muted ? MUTE : LOUD })));
  }

  close() {
    document.removeEventListener(SOUNDS, this.others);
    this.forget();
  }
}
