// The page: what the annotator does -> prompts -> masks. Everything else is in server.js, view.js, target.js, grid.js.

import * as server from './server.js';
import { Target } from './target.js';
import { View } from './view.js';

const $ = id => document.getElementById(id);
const DRAG_PX = 5;
const view = new View($('image'), $('marks'));
let study, targets = [], current, job, asking = Promise.resolve();

const say = (text, isBad = false) => { $('message').textContent = text; $('message').classList.toggle('bad', isBad); };
const guarded = action => (...args) => Promise.resolve(action(...args)).catch(error => { if (!error.isSuperseded) say(error.message, true); });

async function open(id) {
  say('opening …');
  [study, targets] = [id, []];
  await view.load(await server.image(id));
  addTarget('target 1');
  const is3d = view.grid.shape.filter(n => n > 1).length === 3;
  for (const tab of $('planes').children) tab.hidden = !is3d && tab.dataset.direction !== '2';
  $('propagate').disabled = !is3d;
  $('propagate').title = is3d ? '' : 'This study is a single slice';
  $('result').textContent = '';
  go(2, Math.floor(view.numSlices / 2));
  say('Click on something');
}

function go(direction, slice) {
  view.show(direction, slice);
  for (const tab of $('planes').children) tab.setAttribute('aria-selected', tab.dataset.direction === String(direction));
  $('slice').max = view.numSlices - 1;
  $('slice').value = view.slice;
  $('slice').disabled = view.numSlices === 1;
  $('position').textContent = `slice ${view.slice + 1} of ${view.numSlices}`;
}

function addTarget(name) {
  if (targets.some(target => target.name === name)) throw new Error(`there is a target ${name} already`);
  current = new Target(name, targets.length, view.grid);
  targets.push(current);
  refresh();
}

function refresh() {
  $('targets').replaceChildren(...targets.map(target => {
    const row = document.createElement('div'), swatch = document.createElement('i'), size = document.createElement('span');
    row.className = 'target';
    row.setAttribute('role', 'option');
    row.setAttribute('aria-selected', target === current);
    swatch.style.background = `rgb(${target.colour})`;
    size.textContent = target.numVoxels ? `${target.numVoxels} voxels` : '';
    row.append(swatch, target.name, size);
    row.onclick = () => { current = target; refresh(); };
    return row;
  }));
  $('undo').disabled = $('clear').disabled = !current.steps.length;
  $('submit').disabled = !targets.some(target => target.numVoxels);
  $('result').textContent = current.told;
  view.mark(current.steps, current.colour);
  view.paint(targets);
}

// One prompt after the other: the server's answer to each holds all before it.
function prompt(step) {
  const target = current, id = study;
  asking = asking.catch(() => 0).then(async () => {
    const given = { axis: view.axis, slice: view.slice, ...step };
    view.mark([...target.steps, given], target.colour);
    const start = performance.now();
    const params = { ...target.prompt(given.axis, given.slice, [given]), axis: given.axis, label: target.name };
    const { facts, values } = await server.infer(id, params).catch(error => { refresh(); throw error; });
    if (id !== study) return;
    target.apply(given, values);
    target.told = `predicted IoU ${facts.iou_prediction.toFixed(2)} · ${Math.round(performance.now() - start)} ms`;
    say('');
    refresh();
  });
  return asking;
}

async function propagate() {
  const target = current, id = study, axis = view.axis, anchors = target.anchors(axis);
  if (!anchors.length) throw new Error('Prompt the target on at least one slice of this plane first');
  const start = performance.now();
  job = (await server.startPropagation(id, { anchors, axis, label: target.name })).id;
  $('progress').hidden = false;
  try {
    const facts = await finished(job);
    if (facts.state === 'cancelled') return say('stopped');
    if (facts.state !== 'done') throw new Error(facts.detail);
    const values = await server.propagated(job);
    if (id !== study) return;
    target.apply({ kind: 'propagation', axis }, values);
    const count = facts.iou_predictions.length, seconds = ((performance.now() - start) / 1000).toFixed(1);
    target.told = count > 1 ? `${count} slices · ${seconds} s` : 'not found on other slices: prompt one more';
    refresh();
    say('');
  } finally {
    $('progress').hidden = true;
  }
}

async function finished(id) {
  for (;;) {
    const facts = await server.propagation(id);
    $('progress').firstElementChild.value = facts.slices ? facts.done / facts.slices : 0;
    if (!['waiting', 'running'].includes(facts.state)) return facts;
    await new Promise(resolve => setTimeout(resolve, 200));
  }
}

async function submit() {
  const found = targets.filter(target => target.numVoxels), values = new Uint8Array(view.grid.numVoxels);
  found.forEach((target, n) => target.mask.forEach((is, at) => { if (is) values[at] = n + 1; }));
  const { archive } = await server.submit(study, view.grid.nifti(values), found.map(target => target.name));
  const missing = archive && archive.state !== 'stored' ? `; not in the PACS yet: ${archive.reason}` : '';
  say(`✓ saved: ${found.map(target => target.name).join(', ')}${missing}`);
}

let pressed;
$('marks').onpointerdown = event => {
  const voxel = view.voxelAt(event);
  if (voxel) { pressed = { event, voxel }; $('marks').setPointerCapture(event.pointerId); }
};
$('marks').onpointermove = event => {
  const voxel = pressed && view.voxelAt(event);
  if (voxel && isDragged(event)) view.mark([...current.steps, { kind: 'box', from: pressed.voxel, to: voxel, axis: view.axis, slice: view.slice }], current.colour);
};
$('marks').onpointerup = guarded(event => {
  if (!pressed) return;
  const { voxel, event: { shiftKey, button } } = pressed, to = view.voxelAt(event), wasDragged = isDragged(event);
  pressed = undefined;
  if (!wasDragged) return prompt({ kind: 'click', voxel, isInside: button === 0 && !shiftKey });
  if (!to) { refresh(); throw new Error('The box ends outside the image'); }
  return prompt({ kind: 'box', from: voxel, to });
});
const isDragged = event => Math.hypot(event.clientX - pressed.event.clientX, event.clientY - pressed.event.clientY) > DRAG_PX;

$('marks').oncontextmenu = event => event.preventDefault();
$('marks').onwheel = event => { event.preventDefault(); go(view.direction, view.slice + Math.sign(event.deltaY)); };
$('slice').oninput = () => go(view.direction, Number($('slice').value));
$('planes').onclick = ({ target }) => {
  const direction = Number(target.dataset.direction);
  if (target.dataset.direction) go(direction, Math.floor(view.grid.shape[view.grid.axisAlong(direction)] / 2));
};
$('study').onchange = guarded(() => open($('study').value));
$('add').onsubmit = guarded(event => {
  event.preventDefault();
  const name = $('name').value.trim();
  if (name) addTarget(name);
  $('name').value = '';
});
$('ask').onsubmit = guarded(event => {
  event.preventDefault();
  const text = $('text').value.trim();
  return text && prompt({ kind: 'text', text });
});
const undo = () => { current.undo(); refresh(); };
$('undo').onclick = undo;
$('clear').onclick = () => { while (current.steps.length) current.undo(); refresh(); };
$('propagate').onclick = guarded(propagate);
$('cancel').onclick = guarded(() => server.stopPropagation(job));
$('submit').onclick = guarded(submit);
document.onkeydown = event => {
  if (event.target.matches('input')) return;
  if (event.key === 'z' && (event.ctrlKey || event.metaKey)) undo();
  if (event.key === 'ArrowUp') go(view.direction, view.slice + 1);
  if (event.key === 'ArrowDown') go(view.direction, view.slice - 1);
};

await guarded(async () => {
  const [known, found] = await Promise.all([server.info(), server.studies()]);
  $('names').replaceChildren(...Object.values(known.models.imis.labels).map(name => new Option(name, name)));
  $('study').replaceChildren(...found.map(({ id, isDone }) => new Option(isDone ? `${id} ✓` : id, id)));
  if (!found.length) throw new Error('No studies here yet: put images into the study folder');
  await open(found[0].id);
})();
document.body.dataset.ready = 'true';
