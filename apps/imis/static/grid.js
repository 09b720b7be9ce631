// The image's own voxel grid: NIfTI header, voxel index <-> patient mm, planes, and masks in the same order of voxels.

const HEADER_BYTES = 352;

export class Grid {
  constructor(nifti) {
    const view = new DataView(nifti);
    this.header = nifti.slice(0, HEADER_BYTES);
    this.shape = [1, 2, 3].map(n => Math.max(1, view.getInt16(40 + 2 * n, true)));
    this.affine = [0, 1, 2].map(r => [0, 1, 2, 3].map(c => view.getFloat32(280 + 16 * r + 4 * c, true)));
    this.inverse = inverse(this.affine.map(row => row.slice(0, 3)));
    this.spacing = [0, 1, 2].map(c => Math.hypot(...this.affine.map(row => row[c])));
    this.strides = [1, this.shape[0], this.shape[0] * this.shape[1]];
    this.numVoxels = this.strides[2] * this.shape[2];
  }

  toMm(voxel) {
    return this.affine.map(row => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
  }

  toVoxel(mm) {
    const d = mm.slice(0, 3).map((v, r) => v - this.affine[r][3]);
    return this.inverse.map(row => row[0] * d[0] + row[1] * d[1] + row[2] * d[2]);
  }

  contains(voxel) {
    return voxel.every((v, a) => v >= 0 && v < this.shape[a]);
  }

  // The voxel axis that runs most nearly along the patient's direction 0 (left-right), 1 (front-back) or 2 (feet-head).
  axisAlong(direction) {
    const along = [0, 1, 2].map(a => Math.abs(this.affine[direction][a]) / this.spacing[a]);
    return along.indexOf(Math.max(...along));
  }

  // Calls back with the index of every voxel of one slice.
  eachInSlice(axis, slice, callback) {
    const [x, y] = [0, 1, 2].filter(a => a !== axis);
    for (let row = 0; row < this.shape[y]; row++) {
      let at = slice * this.strides[axis] + row * this.strides[y];
      for (let column = 0; column < this.shape[x]; column++, at += this.strides[x]) callback(at);
    }
  }

  // Values uint8 in this grid -> NIfTI with this geometry.
  nifti(values) {
    const bytes = new Uint8Array(HEADER_BYTES + this.numVoxels);
    bytes.set(new Uint8Array(this.header));
    bytes.set(values, HEADER_BYTES);
    const view = new DataView(bytes.buffer);
    view.setInt16(70, 2, true);      // uint8
    view.setInt16(72, 8, true);
    view.setFloat32(112, 1, true);   // slope
    view.setFloat32(116, 0, true);   // intercept
    view.setFloat32(124, 0, true);   // display limits
    view.setFloat32(128, 0, true);
    return bytes.buffer;
  }
}

function inverse(m) {
  const cofactor = (r, c) => {
    const [r0, r1] = [(r + 1) % 3, (r + 2) % 3], [c0, c1] = [(c + 1) % 3, (c + 2) % 3];
    return m[r0][c0] * m[r1][c1] - m[r0][c1] * m[r1][c0];
  };
  const determinant = m[0][0] * cofactor(0, 0) + m[0][1] * cofactor(0, 1) + m[0][2] * cofactor(0, 2);
  return [0, 1, 2].map(r => [0, 1, 2].map(c => cofactor(c, r) / determinant));
}
