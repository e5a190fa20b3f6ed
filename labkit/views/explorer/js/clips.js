/** The frames of clips: WebP sprite sheets, decoded on demand; and where their videos are. */

import { bytes, many } from "./core.js";

const KEPT_SHEETS = 8;
// Videos that came as bytes, which are not asked for again.
const KEPT_FILMS = 2;

/**
 * Sheets by key, decoded when they are needed; the last few stay decoded.
 *
 * `ask(key)` promises the sheet of a clip that is not stored; without it there is nobody to ask. `films` say where the videos lie that
 * came along with a page, and `askFilm(key, whole)` promises that of another.
 */
export class Clips {
  constructor(stored, { ask = null, films = {}, askFilm = null } = {}) {
    Object.assign(this, { stored, ask, films, askFilm });
    this.decoded = new Map();
    /** The last videos that came as bytes, by key: {src, start}. */
    this.held = new Map();
    /** Hears how much of a promised clip is made. */
    this.onShare = () => {};
  }

  has = (key) => Boolean(this.stored[key]);

  /** @returns {Promise<{bitmap: ImageBitmap, frames: number, columns: number, width: number, height: number, step: number}>} */
  get(key) {
    const found = this.decoded.get(key);
    this.decoded.delete(key);
    const promise = found ?? this.decode(key);
    this.decoded.set(key, promise);
    promise.catch(() => this.decoded.delete(key));
    for (const [old, clip] of this.decoded) {
      if (this.decoded.size <= KEPT_SHEETS) break;
      this.decoded.delete(old);
      clip.then((each) => each.bitmap.close()).catch(() => {});
    }
    return promise;
  }

  async decode(key) {
    const clip = this.stored[key] ?? (await this.ask?.(key));
    if (!clip) throw new Error(`This page holds the frames of ${many(Object.keys(this.stored).length, "clip")}, not of this one.`);
    if (clip.error) throw new Error(clip.error);
    this.stored[key] = clip;
    const bitmap = await createImageBitmap(new Blob([bytes(clip.sheet)], { type: "image/webp" }));
    return { ...clip, bitmap };
  }

  /** How much of a clip is made that was asked for. */
  share(key, share) {
    this.onShare(this.decoded.get(key), share);
  }

  /** Where the video of a clip is: {src, start}, or null where nobody knows; `whole`: as bytes, since its server failed. */
  async film(key, whole) {
    if (this.held.has(key)) return this.held.get(key);
    const film = this.films[key] ?? (await this.askFilm?.(key, whole));
    if (!film || film.why) return null;
    if (!film.bytes) return film;
    if (!this.held.has(key)) this.held.set(key, { src: URL.createObjectURL(new Blob([bytes(film.bytes)])), start: film.start });
    for (const [old, { src }] of this.held) {
      if (this.held.size <= KEPT_FILMS) break;
      this.held.delete(old);
      URL.revokeObjectURL(src);
    }
    return this.held.get(key);
  }

  /** What stands in the place of frames that the kernel was asked for. */
  get waiting() {
    const held = many(Object.keys(this.stored).length, "clip");
    return `These frames are not stored here, and the kernel was asked for them. It answers once no cell is running; without a kernel, only ${held} can be seen.`;
  }

  close() {
    for (const { src } of this.held.values()) URL.revokeObjectURL(src);
    for (const clip of this.decoded.values()) clip.then((each) => each.bitmap.close()).catch(() => {});
    this.decoded.clear();
  }
}
