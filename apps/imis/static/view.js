// The picture: one plane of the image with the masks over it (NiiVue), and prompts drawn on a canvas above.

import { Grid } from './grid.js';

const NIIVUE_PLANES = { 2: 0, 1: 1, 0: 2 }; // direction of the normal -> axial, coronal, sagittal

export class View {
  constructor(imageCanvas, marksCanvas) {
    this.marks = marksCanvas;
    this.niivue = new niivue.Niivue({
      backColor: [0, 0, 0, 1], show3Dcrosshair: false, crosshairWidth: 0, isColorbar: false, loadingText: '',
      isOrientationTextVisible: true, isSliceMM: false, isNearestInterpolation: false, isRadiologicalConvention: true,
    });
    this.niivue.attachToCanvas(imageCanvas);
    new ResizeObserver(() => this.drawMarks()).observe(marksCanvas);
    this.direction = 2;
    this.drawn = { steps: [], colour: [255, 255, 255] };
  }

  async load(nifti) {
    this.grid = new Grid(nifti);
    this.values = new Uint8Array(this.grid.numVoxels);
    const volumes = [{ url: 'image.nii', buffer: nifti }, { url: 'mask.nii', buffer: this.grid.nifti(this.values) }];
    const [image, mask] = await Promise.all(volumes.map(v => niivue.NVImage.loadFromUrl({ ...v, name: v.url })));
    while (this.niivue.volumes.length) this.niivue.removeVolumeByIndex(0);
    this.niivue.addVolume(image);
    mask.opacity = 0.5;
    this.niivue.addVolume(mask);
    this.show(2, Math.floor(this.grid.shape[this.grid.axisAlong(2)] / 2));
  }

  get axis() {
    return this.grid.axisAlong(this.direction);
  }

  get numSlices() {
    return this.grid.shape[this.axis];
  }

  show(direction, slice) {
    this.direction = direction;
    this.slice = Math.max(0, Math.min(this.numSlices - 1, slice));
    const centre = this.grid.shape.map(n => (n - 1) / 2);
    centre[this.axis] = this.slice;
    this.niivue.setSliceType(NIIVUE_PLANES[direction]);
    this.niivue.scene.crosshairPos = this.niivue.mm2frac(this.grid.toMm(centre), 0, true);
    this.niivue.drawScene();
    this.drawMarks();
  }

  // targets: later ones lie above.
  paint(targets) {
    this.values.fill(0);
    targets.forEach((target, n) => {
      const mask = target.mask;
      for (let at = 0; at < mask.length; at++) if (mask[at]) this.values[at] = n + 1;
    });
    const overlay = this.niivue.volumes[1], table = [[0, 0, 0], ...targets.map(target => target.colour)];
    overlay.img = this.values;
    overlay.setColormapLabel({
      R: table.map(c => c[0]), G: table.map(c => c[1]), B: table.map(c => c[2]),
      A: table.map((_, n) => (n ? 255 : 0)), I: table.map((_, n) => n), labels: table.map((_, n) => `${n}`),
    });
    this.niivue.updateGLVolume();
    this.drawMarks();
  }

  // A point of the page -> voxel of the slice shown, or null beside the image.
  voxelAt(event) {
    const frame = this.marks.getBoundingClientRect(), scale = this.niivue.uiData.dpr || devicePixelRatio;
    const fraction = this.niivue.canvasPos2frac([(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale]);
    if (fraction[0] < 0) return null;
    const voxel = this.grid.toVoxel([...this.niivue.frac2mm(fraction, 0, true)]).map(Math.round);
    voxel[this.axis] = this.slice;
    return this.grid.contains(voxel) ? voxel : null;
  }

  // A voxel -> where it is on the canvas of marks, in CSS pixels.
  pointOf(voxel) {
    const at = this.niivue.frac2canvasPos(this.niivue.mm2frac(this.grid.toMm(voxel), 0, true));
    const scale = this.niivue.uiData.dpr || devicePixelRatio;
    return at && [at[0] / scale, at[1] / scale];
  }

  mark(steps, colour) {
    this.drawn = { steps, colour };
    this.drawMarks();
  }

  drawMarks() {
    const { marks } = this, scale = devicePixelRatio;
    marks.width = marks.clientWidth * scale;
    marks.height = marks.clientHeight * scale;
    const pen = marks.getContext('2d');
    pen.scale(scale, scale);
    if (!this.grid) return;
    for (const step of this.drawn.steps) {
      if (step.axis !== this.axis || step.slice !== this.slice) continue;
      if (step.kind === 'click') this.drawClick(pen, step);
      if (step.kind === 'box') this.drawBox(pen, step);
    }
  }

  drawClick(pen, { voxel, isInside }) {
    const at = this.pointOf(voxel);
    if (!at) return;
    pen.beginPath();
    pen.arc(...at, 6, 0, 2 * Math.PI);
    pen.fillStyle = isInside ? '#2fbf71' : '#ff4d4d';
    pen.fill();
    pen.lineWidth = 2;
    pen.strokeStyle = '#fff';
    pen.stroke();
    pen.beginPath();
    pen.moveTo(at[0] - 3, at[1]);
    pen.lineTo(at[0] + 3, at[1]);
    if (isInside) { pen.moveTo(at[0], at[1] - 3); pen.lineTo(at[0], at[1] + 3); }
    pen.stroke();
  }

  drawBox(pen, { from, to }) {
    const [a, b] = [this.pointOf(from), this.pointOf(to)];
    if (!a || !b) return;
    pen.lineWidth = 2;
    pen.setLineDash([6, 4]);
    pen.strokeStyle = `rgb(${this.drawn.colour})`;
    pen.strokeRect(Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(a[0] - b[0]), Math.abs(a[1] - b[1]));
    pen.setLineDash([]);
  }
}
