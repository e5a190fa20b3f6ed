/** The frames of clips: WebP sprite sheets, decoded on demand. */

import { bytes, many } from "./core.js";

const KEPT_SHEETS = 8;

/**
 * Sheets by key, decoded when they are needed; the last few stay decoded.
 *
 * `ask(key)` promises the sheet of a clip that is not stored; without it there is nobody to ask.
 */
export class Clips {
  constructor(stored, ask = null) {
    this.stored = stored;
    this.ask = ask;
    this.decoded = new Map();
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

  close() {
    for (const clip of this.decoded.values()) clip.then((each) => each.bitmap.close()).catch(() => {});
    this.decoded.clear();
  }
}
