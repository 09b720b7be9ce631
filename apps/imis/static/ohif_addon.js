// A panel above MONAI Label's own in OHIF: box, clicks, text, propagate, submit. The server adds it to OHIF's
// app-config.js; it uses the services that the shipped OHIF leaves in window, and is plain JavaScript without a build.
(() => {
  // OHIF's panel asks port 8000 of this host unless this cookie says where the server is: right here.
  document.cookie = `MONAILABEL_SERVER_URL=${escape(`${location.origin}/`)}; path=/; SameSite=Strict`;

  const SEGMENTATION = '1', MODELS = { slice: 'imis', volume: 'imis_propagate' };
  const BOX = 'RectangleROI', CLICK = 'ProbeMONAILabel';
  const tools = () => window.cornerstoneTools, services = () => window.services;
  const $ = name => document.querySelector(`#imis-${name}`);
  const say = text => { $('message').textContent = text; };
  const guarded = action => () => Promise.resolve().then(action).catch(error => say(error.message));

  function viewport() {
    const grid = services().viewportGridService.getState(), active = grid.viewports.get(grid.activeViewportId);
    const image = services().cornerstoneViewportService.getViewportInfo(active.viewportId).viewportData.data[0].volume.imageData;
    const series = services().displaySetService.getDisplaySetByUID(active.displaySetInstanceUIDs[0]).SeriesInstanceUID;
    return { id: active.viewportId, group: active.viewportOptions.toolGroupId, image, series };
  }

  const annotations = tool => tools().annotation.state.getAllAnnotations().filter(a => a.metadata.toolName === tool);
  const labelmap = () => services().segmentationService.getLabelmapVolume(SEGMENTATION).voxelManager;
  function segments() {
    const found = services().segmentationService.getSegmentations()[0] ?? {};
    return Object.values(found.config?.segments ?? found.segments ?? {}).filter(Boolean);
  }

  function activate(tool) {
    const group = tools().ToolGroupManager.getToolGroup(viewport().group);
    if (!group.hasTool(tool)) {
      try { tools().addTool(tools()[`${tool}Tool`]); } catch { /* it was added before */ }
      group.addTool(tool);
    }
    const active = group.getActivePrimaryMouseButtonTool();
    if (active) group.setToolPassive(active);
    group.setToolActive(tool, { bindings: [{ mouseButton: 1 }] });
  }

  // The drawn boxes' corners as Slicer's roi: i0, i1, j0, j1, k0, k1; the last box drawn counts.
  function roi(image) {
    const last = annotations(BOX).at(-1);
    if (!last) return undefined;
    const corners = last.data.handles.points.map(p => image.worldToIndex(p)), size = image.getDimensions();
    const kept = (value, axis) => Math.max(0, Math.min(size[axis] - 1, Math.round(value)));
    return [0, 1, 2].flatMap(a => [kept(Math.min(...corners.map(c => c[a])), a), kept(Math.max(...corners.map(c => c[a])), a)]);
  }

  // The axis that a flat box, or else the clicks' viewport, looks along.
  function axisOf(box, image) {
    if (box) return [2, 1, 0].find(a => box[2 * a] === box[2 * a + 1]) ?? 2;
    const normal = services().cornerstoneViewportService.getCornerstoneViewport(viewport().id).getCamera().viewPlaneNormal;
    const direction = image.getDirection();
    const along = [0, 1, 2].map(a => Math.abs([0, 1, 2].reduce((sum, r) => sum + normal[r] * direction[3 * a + r], 0)));
    return along.indexOf(Math.max(...along));
  }

  function prompts(segment) {
    const { image } = viewport(), box = roi(image), text = $('text').value.trim();
    const clicks = annotations(CLICK).map(a => image.worldToIndex(a.data.handles.points[0]).map(Math.round));
    const axis = axisOf(box, image), asked = { label: segment.label, axis, client_id: 'ohif', result_extension: '.nrrd' };
    if (box) asked.roi = box;
    if (text) asked.text = text;
    if (clicks.length && $('clicks').checked) asked.foreground = clicks;
    if (text && !box && !asked.foreground) {
      const shown = services().cornerstoneViewportService.getCornerstoneViewport(viewport().id).getCamera().focalPoint;
      asked.slice = Math.round(image.worldToIndex(shown)[axis]);
    }
    return asked;
  }

  async function values(answer) {
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `error ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
    let end = 0;
    while (!(bytes[end] === 10 && bytes[end + 1] === 10)) end++;
    const data = bytes.slice(end + 2);
    if (!/encoding: gz/.test(new TextDecoder().decode(bytes.subarray(0, end)))) return data;
    return new Uint8Array(await new Response(new Blob([data]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());
  }

  async function run(model) {
    const segment = segments().find(s => s.label === $('label').value), form = new FormData(), start = performance.now();
    form.append('params', JSON.stringify(prompts(segment)));
    say('running …');
    const query = new URLSearchParams({ image: viewport().series, output: 'image' });
    const mask = await values(await fetch(`/infer/${model}?${query}`, { method: 'POST', body: form }));
    const shown = labelmap(), before = shown.getCompleteScalarDataArray(), after = new Uint8Array(before.length);
    const own = segment.segmentIndex;
    let count = 0;
    for (let at = 0; at < after.length; at++) {
      const isFree = !before[at] || before[at] === own;
      after[at] = mask[at] && isFree ? own : before[at] === own ? 0 : before[at];
      count += after[at] === own;
    }
    shown.setCompleteScalarDataArray(after);
    window.cornerstone.triggerEvent(window.cornerstone.eventTarget, tools().Enums.Events.SEGMENTATION_DATA_MODIFIED, { segmentationId: SEGMENTATION });
    say(`${segment.label}: ${count} voxels, ${Math.round(performance.now() - start)} ms`);
  }

  async function submit() {
    const mask = Uint8Array.from(labelmap().getCompleteScalarDataArray()), used = new Set(mask), form = new FormData();
    const info = segments().filter(s => used.has(s.segmentIndex)).map(s => ({ name: s.label, idx: s.segmentIndex, color: s.color }));
    if (!info.length) throw new Error('nothing to submit yet');
    form.append('params', JSON.stringify({ label_info: info, client_id: 'ohif' }));
    form.append('label', new Blob([mask]), 'label.bin');
    say('saving …');
    const query = new URLSearchParams({ tag: 'final', image: viewport().series });
    const answer = await fetch(`/datastore/label?${query}`, { method: 'PUT', body: form });
    if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail ?? `error ${answer.status}`);
    const { archive } = await answer.json(), isThere = !archive || archive.state === 'stored';
    say(`submitted: ${info.map(s => s.name).join(', ')}${isThere ? '' : `; kept, not in the PACS yet: ${archive.reason}`}`);
  }

  function clear() {
    annotations(BOX).forEach(a => tools().annotation.state.removeAnnotation(a.annotationUID));
    services().cornerstoneViewportService.getRenderingEngine().render();
    $('text').value = '';
    say('');
  }

  const STYLE = `#imis { color: #fff; font-size: 13px; margin: 8px; padding: 8px; border: 1px solid #3a3f99; border-radius: 6px }
    #imis > * { margin: 4px 0 } #imis .imis-row { display: flex; gap: 6px; align-items: center }
    #imis select, #imis input[type=text] { flex: 1; min-width: 0; color: #fff; background: #041c4a; border: 1px solid #3a3f99; border-radius: 4px; padding: 3px 6px }
    #imis button { flex: 1; background: #5acce6; color: #041c4a; border-radius: 4px; padding: 4px 8px } #imis #imis-submit { background: #2fbf71 }`;

  async function mount(panel) {
    const info = await (await fetch('/info/')).json(), element = document.createElement('div');
    element.id = 'imis';
    element.innerHTML = `<style>${STYLE}</style><b>IMIS-Net: box, text, volume</b>
      <div class=imis-row>Segment <select id=imis-label></select></div>
      <div class=imis-row><button id=imis-box>▭ Box</button><button id=imis-clear>Clear</button></div>
      <div class=imis-row><input type=text id=imis-text placeholder="Text, e.g. spleen" list=imis-names><datalist id=imis-names></datalist></div>
      <label class=imis-row><input type=checkbox id=imis-clicks checked> with my clicks</label>
      <div class=imis-row><button id=imis-run>Run</button><button id=imis-propagate>Propagate</button></div>
      <div class=imis-row><button id=imis-submit>Submit label</button></div><div id=imis-message></div>`;
    panel.prepend(element);
    const names = Object.values(info.models[MODELS.slice].labels);
    $('names').replaceChildren(...names.map(name => new Option(name, name)));
    $('label').replaceChildren(...segments().map(segment => new Option(segment.label, segment.label)));
    $('box').onclick = guarded(() => { activate(BOX); say('drag a box around the target'); });
    $('clear').onclick = guarded(clear);
    $('run').onclick = guarded(() => run(MODELS.slice));
    $('propagate').onclick = guarded(() => run(MODELS.volume));
    $('submit').onclick = guarded(submit);
  }

  let isMounting = false;
  setInterval(() => {
    const panel = document.querySelector('.monaiLabelPanel');
    if (!panel || document.getElementById('imis') || isMounting || !segments().length) return;
    isMounting = true;
    mount(panel).finally(() => { isMounting = false; });
  }, 500);
})();
