// One thing to segment: its prompts in the order they were made, its mask, and the way back.

export const COLOURS = [[255, 99, 71], [64, 196, 255], [255, 214, 64], [120, 224, 120], [214, 120, 255], [255, 160, 64]];

export class Target {
  constructor(name, number, grid) {
    this.name = name;
    this.colour = COLOURS[number % COLOURS.length];
    this.grid = grid;
    this.mask = new Uint8Array(grid.numVoxels);
    this.steps = [];
    this.told = '';
  }

  get numVoxels() {
    return this.mask.reduce((sum, value) => sum + value, 0);
  }

  on(axis, slice) {
    return this.steps.filter(step => step.axis === axis && step.slice === slice);
  }

  // The prompts of one slice as the server takes them.
  prompt(axis, slice, next = []) {
    const steps = [...this.on(axis, slice), ...next], clicks = steps.filter(step => step.kind === 'click');
    const last = kind => steps.findLast(step => step.kind === kind);
    const asked = { slice, foreground: clicks.filter(c => c.isInside).map(c => c.voxel), background: clicks.filter(c => !c.isInside).map(c => c.voxel) };
    const box = last('box'), text = last('text');
    if (box) asked.box = [0, 1, 2].filter(a => a !== axis).map(a => Math.min(box.from[a], box.to[a]))
      .concat([0, 1, 2].filter(a => a !== axis).map(a => Math.max(box.from[a], box.to[a])));
    if (text) asked.text = text.text;
    return asked;
  }

  // All prompted slices of an axis, for propagation.
  anchors(axis) {
    const slices = new Set(this.steps.filter(s => s.axis === axis && s.slice !== undefined).map(s => s.slice));
    return [...slices].map(slice => this.prompt(axis, slice));
  }

  // Remembers a step together with what it changed, so that undo needs no server.
  apply(step, values) {
    step.toldBefore = this.told;
    step.before = step.slice === undefined ? this.mask : this.sliceValues(step.axis, step.slice);
    this.steps.push(step);
    if (step.slice === undefined) this.mask = values.map(value => (value ? 1 : 0));
    else this.grid.eachInSlice(step.axis, step.slice, at => { this.mask[at] = values[at] ? 1 : 0; });
  }

  undo() {
    const step = this.steps.pop();
    if (!step) return;
    this.told = step.toldBefore;
    if (step.slice === undefined) { this.mask = step.before; return; }
    let n = 0;
    this.grid.eachInSlice(step.axis, step.slice, at => { this.mask[at] = step.before[n++]; });
  }

  sliceValues(axis, slice) {
    const values = [];
    this.grid.eachInSlice(axis, slice, at => values.push(this.mask[at]));
    return Uint8Array.from(values);
  }
}
