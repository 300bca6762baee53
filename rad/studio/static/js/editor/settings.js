/** Settings of the tools; a change is announced by the event "change". */

export const TOOLS = ["brush", "eraser", "rectangle", "lasso", "flood", "hand"];
export const LARGEST_BRUSH = 1000;

export class Settings extends EventTarget {
  /** One of TOOLS. */
  tool = "brush";
  /** Diameter of the brush in image pixels, 1 to LARGEST_BRUSH. */
  size = 40;
  /** 1: hard edge; below: the edge is soft outside this share of the radius. */
  hardness = 1;
  /** Largest difference of a colour channel for the selection by colour, 0 to 255. */
  tolerance = 24;
  /** Whether rectangle, lasso and selection by colour remove from the hole. */
  remove = false;
  /** Whether the pressure of a pen changes the size. */
  pressure = true;
  /** Colour and opacity of the overlay. */
  color = "#ff2e88";
  opacity = 0.5;

  /** @param {Partial<Settings>} values */
  set(values) {
    Object.assign(this, values);
    this.size = Math.min(LARGEST_BRUSH, Math.max(1, Math.round(this.size) || 1));
    this.tolerance = Math.min(255, Math.max(0, Math.round(this.tolerance) || 0));
    this.dispatchEvent(new Event("change"));
  }

  /** @param {boolean} larger */
  step(larger) {
    const size = larger ? Math.max(this.size + 1, this.size * 1.25) : Math.min(this.size - 1, this.size / 1.25);
    this.set({ size });
  }
}
