// The server's answers as promises; an error carries the server's own sentence.

const USER = `page-${crypto.getRandomValues(new Uint32Array(2)).join('')}`;

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.assign('/imis/login');
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  const error = new Error(typeof told.detail === 'string' ? told.detail : `the server answered ${answer.status}`);
  error.isSuperseded = told.code === 'superseded';
  throw error;
}

const query = fields => new URLSearchParams(fields).toString();
const json = async (path, options) => (await ask(path, options)).json();

export const info = () => json('/info/');

export async function studies() {
  const all = await json('/datastore/?output=all');
  const found = Object.entries(all.objects).map(([id, study]) => ({ id, isDone: 'final' in (study.labels ?? {}) }));
  return found.sort((a, b) => a.isDone - b.isDone || a.id.localeCompare(b.id));
}

export const image = async id => (await ask(`/imis/image?${query({ image: id })}`)).arrayBuffer();

export async function infer(image, params) {
  const form = new FormData();
  form.append('params', JSON.stringify({ ...params, client_id: USER }));
  const answer = await (await ask(`/infer/imis?${query({ image })}`, { method: 'POST', body: form })).formData();
  const facts = answer.get('params');
  const values = await nrrdValues(await answer.get('image').arrayBuffer());
  return { facts: JSON.parse(typeof facts === 'string' ? facts : await facts.text()), values };
}

export const startPropagation = (image, params) => json(`/imis/propagate?${query({ image })}`, {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(params) });
export const propagation = job => json(`/imis/propagate/${job}`);
export const stopPropagation = job => json(`/imis/propagate/${job}`, { method: 'DELETE' });
export const propagated = async job => nrrdValues(await (await ask(`/imis/propagate/${job}/mask`)).arrayBuffer());

export async function submit(image, nifti, names) {
  const form = new FormData();
  form.append('params', JSON.stringify({ label_info: names.map((name, n) => ({ name, idx: n + 1 })), client_id: USER }));
  form.append('label', await new Response(stream(nifti, new CompressionStream('gzip'))).blob(), 'label.nii.gz');
  return json(`/datastore/label?${query({ image, tag: 'final' })}`, { method: 'PUT', body: form });
}

// NRRD bytes -> its voxels, uint8 in the order of the file.
export async function nrrdValues(buffer) {
  const bytes = new Uint8Array(buffer);
  let end = 0;
  while (end < bytes.length && !(bytes[end] === 10 && bytes[end + 1] === 10)) end++;
  const header = new TextDecoder().decode(bytes.subarray(0, end)), data = bytes.slice(end + 2);
  if (!/encoding: (gzip|gz)/.test(header)) return data;
  return new Uint8Array(await new Response(stream(data, new DecompressionStream('gzip'))).arrayBuffer());
}

const stream = (data, transform) => new Blob([data]).stream().pipeThrough(transform);
