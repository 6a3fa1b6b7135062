'use strict';
// The review of one patient's cells. The page's data stand in #data; nothing is asked of the network.
// First the figures (the formulas of cblc.patient), then the state, then what is drawn, then keys and mouse.

const data = JSON.parse(document.getElementById('data').textContent);
const NOT_A_CELL = 'not a cell';
const UNCOUNTED_FLAGS = { split: 'part of a cell', edge: 'cut by an edge' };
const codes = new Map(data.codes.map((code) => [code.code, code]));
const categories = new Map(data.categories.map((category) => [category.name, category]));
const find = (id) => document.getElementById(id);

// ---------------------------------------------------------------- figures

function logGamma(x) {
  // Lanczos' series with g = 607/128 (Godfrey 2001), good to 1e-15
  const series = [0.99999999999999709182, 57.156235665862923517, -59.597960355475491248,
    14.136097974741747174, -0.49191381609762019978, 0.33994649984811888699e-4, 0.46523628927048575665e-4,
    -0.98374475304879564677e-4, 0.15808870322491248884e-3, -0.21026444172410488319e-3,
    0.21743961811521264320e-3, -0.16431810653676389022e-3, 0.84418223983852743293e-4,
    -0.26190838401581408670e-4, 0.36899182659531622704e-5];
  const shifted = x + 607 / 128 - 0.5;
  let sum = series[0];
  for (let k = 1; k < series.length; k += 1) sum += series[k] / (x - 1 + k);
  return 0.5 * Math.log(2 * Math.PI) + Math.log(sum) - shifted + (x - 0.5) * Math.log(shifted);
}

function betaFraction(x, a, b) {
  // the continued fraction of the incomplete beta function, by Lentz' method (Press et al. 2007, 6.4)
  const tiny = 1e-300;
  const away = (value) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / away(1 - (a + b) * x / (a + 1));
  let fraction = d;
  for (let m = 1; m < 10000; m += 1) {
    const even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away(1 + even * d);
    c = away(1 + even / c);
    fraction *= d * c;
    const odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away(1 + odd * d);
    c = away(1 + odd / c);
    fraction *= d * c;
    if (Math.abs(d * c - 1) < 1e-16) break;
  }
  return fraction;
}

function betaShare(x, a, b) {
  // the regularized incomplete beta function
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  const front = Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * betaFraction(x, a, b) / a;
  return 1 - front * betaFraction(1 - x, b, a) / b;
}

function betaQuantile(p, a, b) {
  let low = 0;
  let high = 1;
  for (let step = 0; step < 200 && high - low > 1e-16 * high; step += 1) {
    const middle = (low + high) / 2;
    if (betaShare(middle, a, b) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function tQuantile(df, level) {
  // of Student's t, for the two-sided interval of a level: t^2/(df + t^2) is beta(1/2, df/2)
  const share = betaQuantile(level, 0.5, Math.max(df, 1) / 2);
  return Math.sqrt(Math.max(df, 1) * share / (1 - share));
}

function exactInterval(count, n, level) {
  // Clopper and Pearson 1934
  if (!(n > 0)) return [NaN, NaN];
  const tail = (1 - level) / 2;
  const low = count === 0 ? 0 : betaQuantile(tail, count, n - count + 1);
  const high = count === n ? 1 : betaQuantile(1 - tail, count + 1, n - count);
  return [low, high];
}

function designEffect(calls, fields, doubt, settings) {
  // how much less than independent cells the count is worth, as cblc.patient.design_effects
  const n = calls.length;
  const nCalls = calls.reduce((sum, call) => sum + call, 0);
  const sizes = new Map();
  const hits = new Map();
  calls.forEach((call, k) => {
    sizes.set(fields[k], (sizes.get(fields[k]) || 0) + 1);
    hits.set(fields[k], (hits.get(fields[k]) || 0) + call);
  });
  let between = 0;
  let squares = 0;
  sizes.forEach((size, field) => {
    between += (hits.get(field) - nCalls / n * size) ** 2;
    squares += size ** 2;
  });
  const nFields = sizes.size;
  const shrunk = (nCalls + 0.5) / (n + 1);
  const binomial = shrunk * (1 - shrunk) / n;
  const clustering = nFields > 1 ? nFields / (nFields - 1) * between / n ** 2 / binomial : 1;
  let effect = Math.max(clustering, 1 + (squares / n - 1) * settings.icc);
  if (nFields >= settings.few_fields) {
    const shaky = tQuantile(nFields - 1, settings.level) / tQuantile(n - 1, settings.level);
    effect = Math.max(clustering, 1) * shaky ** 2;
  }
  return Math.max(1, effect + doubt / n ** 2 / binomial);
}

function shareWithInterval(cells, call, probability, settings) {
  const n = cells.length;
  if (n === 0) return { ratio: NaN, low: NaN, high: NaN, n: 0, count: 0 };
  const calls = cells.map((cell) => (cell[call] ? 1 : 0));
  const count = calls.reduce((sum, one) => sum + one, 0);
  const knows = cells.every((cell) => cell[probability] !== null);
  const doubt = knows ? cells.reduce((sum, { [probability]: p }) => sum + p * (1 - p), 0) : 0;
  const effect = designEffect(calls, cells.map((cell) => cell.field), doubt, settings);
  const [low, high] = exactInterval(count / effect, n / effect, settings.level);
  return { ratio: count / n, low, high, n, count };
}

function bandOf(ratio) {
  if (Number.isNaN(ratio)) return 'no cells';
  return data.bands[data.thresholds.filter((threshold) => threshold <= ratio).length];
}

function settled(cell, entry) {
  // what a cell counts as once a person has spoken, as cblc.pages.corrections.settle
  const now = { field: cell.field, counted: cell.counted, why: cell.why, category: cell.category,
    cblc: cell.cblc, who: cell.who, p_cblc: cell.p_cblc, p_who: cell.p_who };
  const word = entry ? entry.after : null;
  if (word === NOT_A_CELL) {
    now.why = NOT_A_CELL;
  } else if (word !== null) {
    const code = codes.get(word);
    now.category = code ? code.category : word;
    now.cblc = code ? code.cblc : cell.cblc;
    now.who = code ? code.who : categories.get(word).who;
    now.p_cblc = now.cblc ? 1 : 0;
    now.p_who = now.who ? 1 : 0;
    now.why = (code && code.why) || (cell.place === 'inside' ? '' : cell.place);
  }
  const flag = (entry ? entry.flags : []).find((name) => name in UNCOUNTED_FLAGS);
  if (flag) now.why = UNCOUNTED_FLAGS[flag];
  if (word !== null || flag) now.counted = now.why === '';
  return now;
}

function figuresOf(entries) {
  const all = data.cells.map((cell) => settled(cell, entries.get(cell.id)));
  const counted = all.filter((cell) => cell.counted);
  const who = shareWithInterval(counted, 'who', 'p_who', data.settings);
  const cblc = shareWithInterval(counted, 'cblc', 'p_cblc', data.settings);
  const crossed = data.thresholds.filter((threshold) => who.low < threshold && threshold <= who.high);
  return { who, cblc, band: bandOf(who.ratio), crossed };
}

// ---------------------------------------------------------------- state

const storageName = `cblc-review:${data.run}`;
const keysName = `cblc-review-keys:${data.vocabulary}`;
let entries = new Map();        // cell id -> {after, flags, note, at, reviewer, seq, settles}
let history = [];               // every word, in order: {seq, at, reviewer, cell_id, from, to}
let undoable = [];              // batches: arrays of [cell id, entry before]
let keys = new Map();           // key -> code
let current = 0;                // place in `visible`
let visible = [];               // positions of cells, in the order shown
let picked = new Set();         // positions of cells chosen in the grid
let anchor = null;              // the cell last clicked in the grid
let view = 'one';
let keeps = true;               // does the browser keep what is done
let exportedAt = 0;             // history's length when it was last exported
let lastTime = 0;
let seq = 0;
let showsOutline = true;
const isEmbedded = window.parent !== window;
let planned = null;             // positions of cells that a plan asks for

function notice(text) {
  if ([...find('notices').children].some((line) => line.dataset.text === text)) return;
  const line = document.createElement('p');
  line.dataset.text = text;
  line.append(text);
  const close = document.createElement('button');
  close.textContent = 'Close';
  close.addEventListener('click', () => line.remove());
  line.append(close);
  find('notices').append(line);
}

function stored(name) {
  try {
    return window.localStorage.getItem(name);
  } catch (error) {
    keeps = false;
    return null;
  }
}

function store(name, text) {
  try {
    window.localStorage.setItem(name, text);
  } catch (error) {
    keeps = false;
  }
  warnIfForgetful();
}

function warnIfForgetful() {
  const text = 'This browser keeps nothing: export your corrections before you close the page.';
  if (!keeps && !isEmbedded) notice(text);
}

function save() {
  store(storageName, JSON.stringify({ reviewer: find('reviewer').value, entries: [...entries], history }));
  tell();
}

function tell() {
  // in a notebook, the notebook keeps what was said
  if (!isEmbedded) return;
  window.parent.postMessage({ kind: 'cblc-corrections', text: JSON.stringify(correctionsOf(), null, 1) }, '*');
  exportedAt = history.length;
}

function told(event) {
  const isOurs = isEmbedded && event.source === window.parent && event.data && event.data.kind === 'cblc-take-in';
  if (isOurs) takeIn(String(event.data.text));
}

function isEntry(id, entry) {
  const known = data.cells.some((cell) => cell.id === id);
  const word = entry && entry.after;
  const isWord = word === null || word === NOT_A_CELL || codes.has(word) || categories.has(word);
  return known && isWord && Array.isArray(entry.flags) && typeof entry.note === 'string';
}

function restore() {
  const text = stored(storageName);
  warnIfForgetful();
  if (text === null) return;
  try {
    const kept = JSON.parse(text);
    if (!kept.entries.every(([id, entry]) => isEntry(id, entry))) throw new Error('unknown cells or codes');
    entries = new Map(kept.entries);
    history = kept.history;
    find('reviewer').value = kept.reviewer;
    seq = history.reduce((most, line) => Math.max(most, line.seq), 0);
    exportedAt = history.length;
  } catch (error) {
    store(`${storageName}:damaged`, text);
    notice('What this browser had kept could not be read; it is put aside, and the review begins anew.');
  }
}

function now() {
  const time = Date.now();
  if (time < lastTime) notice("The computer's clock ran backwards; the order of your words is kept.");
  lastTime = time;
  return new Date(time).toISOString();
}

function blank() {
  return { after: null, flags: [], note: '', at: '', reviewer: '', seq: 0, settles: false };
}

function isReviewed(entry) {
  return Boolean(entry) && (entry.after !== null || entry.flags.length > 0);
}

function change(positions, alter) {
  // change the entries of some cells; one batch is undone at once
  const at = now();
  const batch = [];
  positions.forEach((position) => {
    const cell = data.cells[position];
    const before = entries.get(cell.id);
    const after = { ...(before || blank()), ...alter(cell, before || blank()) };
    seq += 1;
    Object.assign(after, { at, seq, reviewer: find('reviewer').value, settles: cell.id in data.disputes });
    batch.push([cell.id, before]);
    entries.set(cell.id, after);
    history.push({ seq, at, reviewer: after.reviewer, cell_id: cell.id, from: before ? before.after : null,
      to: after.after, flags: after.flags });
  });
  undoable.push(batch);
  save();
  refresh(positions);
}

function undo() {
  const batch = undoable.pop();
  if (!batch) return;
  const positions = [];
  batch.forEach(([id, before]) => {
    const undone = entries.get(id);
    if (before) entries.set(id, before);
    else entries.delete(id);
    seq += 1;
    history.push({ seq, at: now(), reviewer: find('reviewer').value, cell_id: id, from: undone.after,
      to: before ? before.after : null, undo: true });
    positions.push(data.cells.findIndex((cell) => cell.id === id));
  });
  save();
  refresh(positions);
  if (view === 'one' && visible.includes(positions[0])) go(visible.indexOf(positions[0]));
}

function agreed(cell) {
  // the model's own word as a code, where there is one
  if (cell.why === 'no nucleus' || cell.category === 'artefact') return NOT_A_CELL;
  if (cell.leaf !== null && codes.has(cell.leaf)) return cell.leaf;
  return cell.category !== null && categories.has(cell.category) ? cell.category : null;
}

function targets() {
  if (view === 'grid') return [...picked];
  return visible.length ? [visible[current]] : [];
}

function say(word) {
  const positions = targets();
  if (!positions.length) return;
  const silent = positions.filter((position) => word === undefined && agreed(data.cells[position]) === null);
  if (silent.length) notice('The model has no name for this cell; give it a code.');
  const spoken = positions.filter((position) => !silent.includes(position));
  if (!spoken.length) return;
  change(spoken, (cell) => ({ after: word === undefined ? agreed(cell) : word }));
  if (view === 'one') step(1);
}

function flag(name) {
  const positions = targets();
  if (!positions.length) return;
  const all = positions.every((position) => {
    const entry = entries.get(data.cells[position].id);
    return entry && entry.flags.includes(name);
  });
  change(positions, (cell, entry) => {
    const others = entry.flags.filter((other) => other !== name);
    return { flags: all ? others : [...others, name] };
  });
}

// ---------------------------------------------------------------- drawing

const SVG = 'http://www.w3.org/2000/svg';

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  element.append(...children);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  return element;
}

function percent(share) {
  return Number.isNaN(share) ? '–' : `${(100 * share).toFixed(1)} %`;
}

function colorOf(category) {
  return categories.has(category) ? categories.get(category).color : '#8a8a8a';
}

function wordOf(cell) {
  const entry = entries.get(cell.id);
  if (entry && entry.after !== null) return entry.after;
  return cell.leaf || cell.category || 'not named';
}

function meaningOf(word) {
  if (codes.has(word)) return codes.get(word).meaning;
  return categories.has(word) ? categories.get(word).meaning : '';
}

function whyNoFigure(n) {
  // the rule of cblc.ratio.adequacy: too few cells, or what no count of cells mends
  const { least_cells: least, reasons } = data.silence;
  if (n < least) return `${n} counted, at least ${least} are needed`;
  return reasons.length ? reasons[0] : '';
}

function drawRatios(figures, isSilent) {
  ['who', 'cblc'].forEach((name) => {
    const { ratio, low, high } = figures[name];
    const isKnown = !isSilent && !Number.isNaN(ratio);
    find(name).textContent = isKnown ? percent(ratio) : '–';
    find(`${name}-interval`).textContent = isKnown ? `${percent(low)} to ${percent(high)}` : '';
  });
  const { who, cblc } = modelAlone;
  const isShown = !whyNoFigure(who.n);
  find('before').textContent = isShown ? `model alone: WHO ${percent(who.ratio)}, CBLC ${percent(cblc.ratio)}` : '';
}

function drawBand(figures, silence) {
  const band = find('band');
  const lines = figures.crossed.map((threshold) => `${100 * threshold} %`).join(', ');
  band.textContent = silence ? 'not countable' : figures.band;
  band.style.background = (!silence && data.band_colors[data.bands.indexOf(figures.band)]) || '#ddd';
  const undecided = lines ? `undecided about ${lines}` : '';
  find('crossed').textContent = silence || undecided;
  band.parentElement.hidden = data.silence.quiet && !silence;
}

function drawFigures() {
  const figures = figuresOf(entries);
  const silence = whyNoFigure(figures.who.n);
  drawRatios(figures, silence !== '');
  drawBand(figures, silence);
  find('figures').classList.toggle('quiet', data.silence.quiet);
  find('counted').textContent = figures.who.n;
  const done = data.cells.filter((cell) => isReviewed(entries.get(cell.id))).length;
  find('bar').max = Math.max(1, data.cells.length);
  find('bar').value = done;
  find('done').textContent = `${done} of ${data.cells.length} cells reviewed`;
}

function outlineOf(cell, attributes) {
  return draw('polygon', { points: cell.outline.map((point) => point.join(',')).join(' '), ...attributes });
}

function drawPicture(cell) {
  const svg = find('picture');
  const [x, y, side] = cell.box;
  svg.setAttribute('viewBox', `${x} ${y} ${side} ${side}`);
  svg.setAttribute('aria-label', `Cell ${cell.id} with its neighborhood`);
  svg.replaceChildren(draw('image', { href: cell.uri, x, y, width: side, height: side }));
  if (!showsOutline) return;
  const rim = { fill: 'none', 'vector-effect': 'non-scaling-stroke', 'stroke-linejoin': 'round' };
  svg.append(outlineOf(cell, { ...rim, stroke: '#fff', 'stroke-width': 3.5, opacity: 0.75 }));
  svg.append(outlineOf(cell, { ...rim, stroke: colorOf(cell.category), 'stroke-width': 1.75 }));
}

function drawBest(cell) {
  const rows = cell.best.map(([category, p]) => {
    const bar = make('span', {});
    bar.style.width = `${100 * p}%`;
    bar.style.background = colorOf(category);
    const isFiner = category === cell.category && cell.leaf !== null && cell.leaf !== category;
    const meaning = isFiner ? `${cell.leaf}, ${meaningOf(cell.leaf)}` : meaningOf(category);
    const name = make('span', {}, make('b', {}, category), ` ${meaning}`);
    return make('div', { class: 'guess' }, name, make('span', { class: 'meter' }, bar),
      make('span', { class: 'p' }, `${Math.round(100 * p)} %`));
  });
  find('best').replaceChildren(...rows);
}

function cropOf(cell) {
  return make('span', { class: 'crop' }, make('img', { src: cell.uri, alt: '', loading: 'lazy' }));
}

function drawReferences(cell) {
  const othersOf = (category) => (data.references[category] || [])
    .filter((position) => data.cells[position] !== cell).slice(0, 3);
  const groups = cell.best.filter(([category]) => othersOf(category).length).map(([category]) => {
    const others = othersOf(category);
    const row = make('div', { class: 'row' }, ...others.map((position) => {
      const other = data.cells[position];
      const label = `Open cell ${other.id}, named ${other.category}`;
      const button = make('button', { 'aria-label': label, title: label }, cropOf(other));
      button.addEventListener('click', () => open(position));
      return button;
    }));
    return make('div', {}, make('h3', {}, `This smear's clearest ${category}, by the model`), row);
  });
  find('references').replaceChildren(...groups);
}

function drawAttribution(position) {
  // what speaks for the model's name, where it was asked
  const shown = (data.attributions || {})[position];
  find('attribution').hidden = !shown;
  if (!shown) return;
  find('attribution-picture').setAttribute('src', shown.uri);
  find('attribution-picture').setAttribute('alt', shown.text);
  find('attribution-text').textContent = `${shown.text}: where the model looks, not whether it is right.`;
}

function codeButton(code, press) {
  const key = [...keys].find(([, name]) => name === code.code);
  const label = `${code.code}, ${code.meaning}`;
  const button = make('button', { class: 'code', 'data-code': code.code, title: label, 'aria-label': label },
    make('span', {}, code.code));
  if (key) button.append(make('kbd', {}, key[0]));
  button.style.setProperty('--color', colorOf(code.category));
  button.addEventListener('click', press);
  return button;
}

function drawCodes(place, press) {
  const lineages = [...new Set(data.codes.map((code) => code.lineage))];
  place.replaceChildren(...lineages.map((lineage) => {
    const own = data.codes.filter((code) => code.lineage === lineage);
    const buttons = own.map((code) => codeButton(code, () => press(code.code)));
    return make('div', { class: 'lineage' }, make('span', { class: 'soft' }, lineage),
      make('div', {}, ...buttons));
  }));
}

function drawWord(cell) {
  const entry = entries.get(cell.id);
  const state = settled(cell, entry);
  const named = (word) => [word, meaningOf(word)].filter((part) => part).join(' ');
  const model = cell.leaf || cell.category || 'no name';
  let text = `Model: ${named(model)}`;
  if (entry && entry.after !== null) text = `You: ${named(entry.after)} (model: ${model})`;
  if (!state.counted) text += `; not counted: ${state.why}`;
  const disputed = data.disputes[cell.id];
  if (disputed && !(entry && entry.after !== null)) {
    text += `; reviewers differ: ${disputed.map(([name, word]) => `${name} ${word}`).join(', ')}`;
  }
  find('word').textContent = text;
  document.querySelectorAll('#codes .code').forEach((button) => {
    const code = button.dataset.code;
    button.setAttribute('aria-pressed', String(Boolean(entry) && entry.after === code));
    button.classList.toggle('guessed', cell.best.some(([category]) => category === code));
  });
  document.querySelectorAll('[data-flag]').forEach((button) => {
    button.setAttribute('aria-pressed', String(Boolean(entry) && entry.flags.includes(button.dataset.flag)));
  });
  find('note').value = entry ? entry.note : '';
}

function drawOne() {
  const isEmpty = visible.length === 0;
  find('place').textContent = isEmpty ? 'No cell of this choice.' : '';
  if (isEmpty) {
    ['picture', 'best', 'references'].forEach((id) => find(id).replaceChildren());
    ['reason', 'word'].forEach((id) => { find(id).textContent = ''; });
    find('attribution').hidden = true;
    return;
  }
  const cell = data.cells[visible[current]];
  drawPicture(cell);
  drawBest(cell);
  drawReferences(cell);
  drawAttribution(visible[current]);
  drawWord(cell);
  find('reason').textContent = cell.reason;
  find('place').textContent = `${current + 1} of ${visible.length} · ${data.fields[cell.field].id}`;
}

const watcher = new IntersectionObserver((seen) => seen.forEach((one) => {
  if (!one.isIntersecting) return;
  watcher.unobserve(one.target);
  one.target.firstChild.replaceChildren(make('img', { src: data.cells[one.target.dataset.at].uri, alt: '' }));
}), { rootMargin: '300px' });

function drawTile(tile, position) {
  const cell = data.cells[position];
  const state = settled(cell, entries.get(cell.id));
  const word = wordOf(cell);
  const is = isReviewed(entries.get(cell.id));
  tile.style.setProperty('--color', colorOf(state.category));
  tile.className = `tile${state.counted ? '' : ' out'}${is ? ' done' : ''}`;
  tile.classList.toggle('current', visible[current] === position);
  tile.setAttribute('aria-selected', String(picked.has(position)));
  tile.setAttribute('aria-label', `${cell.id}, ${word}${is ? ', reviewed' : ''}`);
  const p = cell.best.length ? `${Math.round(100 * cell.best[0][1])}` : '';
  tile.lastChild.replaceChildren(make('b', {}, word), make('span', { class: 'soft' }, p));
}

function drawGrid() {
  watcher.disconnect();
  const tiles = visible.map((position) => {
    const tile = make('div', { role: 'option', 'data-at': position },
      make('span', { class: 'crop' }), make('div', { class: 'label' }));
    drawTile(tile, position);
    watcher.observe(tile);
    return tile;
  });
  find('grid').replaceChildren(...tiles);
  drawChosen();
}

function drawChosen() {
  find('chosen').textContent = picked.size ? `${picked.size} chosen.` : '';
}

function drawPicked() {
  [...find('grid').children].forEach((tile) => {
    if (tile.dataset.at) tile.setAttribute('aria-selected', String(picked.has(Number(tile.dataset.at))));
  });
  drawChosen();
}

function drawField() {
  const chosen = find('field').value;
  const at = chosen === '' ? (visible.length ? data.cells[visible[current]].field : 0) : Number(chosen);
  const field = data.fields[at];
  const svg = find('field-picture');
  svg.replaceChildren();
  find('field-name').textContent = field ? `${field.id}: click a cell to open it` : 'No field.';
  if (!field) return;
  svg.setAttribute('viewBox', `0 0 ${field.width} ${field.height}`);
  if (field.uri) svg.append(draw('image', { href: field.uri, width: field.width, height: field.height }));
  data.cells.forEach((cell, position) => {
    if (cell.field !== at) return;
    const state = settled(cell, entries.get(cell.id));
    const shape = outlineOf(cell, { class: `cell${state.counted ? '' : ' out'}`, tabindex: 0, role: 'button',
      'aria-label': `Open cell ${cell.id}, ${wordOf(cell)}`, stroke: colorOf(state.category) });
    shape.addEventListener('click', () => open(position));
    shape.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter') return;
      event.stopPropagation();
      open(position);
    });
    svg.append(shape);
  });
}

function drawView() {
  ['one', 'grid', 'field'].forEach((name) => {
    find(`tab-${name}`).setAttribute('aria-selected', String(view === name));
    find(name === 'one' ? 'one' : `${name}-view`).hidden = view !== name;
  });
  ({ one: drawOne, grid: drawGrid, field: drawField })[view]();
}

function refresh(positions) {
  drawFigures();
  if (view !== 'grid') {
    drawView();
    return;
  }
  const tiles = new Map([...find('grid').children].map((tile) => [Number(tile.dataset.at), tile]));
  positions.forEach((position) => tiles.has(position) && drawTile(tiles.get(position), position));
}

// ---------------------------------------------------------------- which cells, in which order

function plannedCells() {
  // the places behind #cells=, as a plan's link gives them; null where there is none
  const given = /^#cells=([\d,]+)$/.exec(window.location.hash);
  if (!given) return null;
  const places = given[1].split(',').map(Number).filter((place) => place < data.cells.length);
  return places.length ? [...new Set(places)] : null;
}

function takePlan() {
  // show the planned cells alone, in the plan's order
  planned = plannedCells();
  find('show').querySelector('[value=planned]').hidden = planned === null;
  if (planned !== null) {
    find('show').value = 'planned';
    notice(`${planned.length} planned cells are shown; “Show: all cells” gives the others.`);
  } else if (find('show').value === 'planned') {
    find('show').value = '';
  }
}

function isShown(cell) {
  const entry = entries.get(cell.id);
  const state = settled(cell, entry);
  const show = find('show').value;
  const is = { '': true, open: !isReviewed(entry), done: isReviewed(entry), uncounted: !state.counted,
    changed: Boolean(entry) && entry.after !== null && entry.after !== agreed(cell),
    planned: true, disputed: cell.id in data.disputes };
  const category = find('category').value;
  const field = find('field').value;
  return is[show] && (category === '' || state.category === category)
    && (field === '' || cell.field === Number(field));
}

function choose() {
  const here = visible[current];
  const names = data.categories.map((category) => category.name);
  const rank = (cell) => names.indexOf(settled(cell, entries.get(cell.id)).category);
  const certainty = (cell) => (cell.best.length ? cell.best[0][1] : 0);
  const ways = { queue: () => 0, field: (a, b) => a.field - b.field, category: (a, b) => rank(a) - rank(b),
    p: (a, b) => certainty(a) - certainty(b), size: (a, b) => b.box[2] - a.box[2] };
  const way = ways[find('order').value];
  const queue = find('show').value === 'planned' ? planned : data.queue;
  visible = queue.filter((position) => isShown(data.cells[position]));
  visible.sort((a, b) => way(data.cells[a], data.cells[b]));
  picked = new Set([...picked].filter((position) => visible.includes(position)));
  current = Math.max(0, visible.indexOf(here));
  drawView();
}

function go(place) {
  current = Math.min(Math.max(place, 0), Math.max(visible.length - 1, 0));
  drawView();
}

function step(by) {
  if (by > 0 && current === visible.length - 1) notice('That was the last cell of this choice.');
  go(current + by);
}

function open(position) {
  if (!visible.includes(position)) {
    ['show', 'category', 'field'].forEach((id) => { find(id).value = ''; });
    choose();
  }
  current = visible.indexOf(position);
  turn('one');
}

function turn(name) {
  view = view === name && name !== 'one' ? 'one' : name;
  drawView();
}

// ---------------------------------------------------------------- files

function asFile(text, name, type) {
  const link = make('a', { href: `data:${type};charset=utf-8,${encodeURIComponent(text)}`, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  exportedAt = history.length;
}

function correctionsOf() {
  const list = data.cells.filter((cell) => entries.has(cell.id)).map((cell) => {
    const entry = entries.get(cell.id);
    return { cell_id: cell.id, before: agreed(cell), ...entry };
  });
  const figures = figuresOf(entries);
  return { format: 'cblc-corrections/1', run: data.run, model: data.model, patient_id: data.patient,
    reviewer: find('reviewer').value, exported_at: now(), disclaimer: data.disclaimer,
    figures, corrections: list.filter((entry) => entry.after !== null || entry.flags.length || entry.note),
    history };
}

function exportJson() {
  asFile(JSON.stringify(correctionsOf(), null, 1), 'corrections.json', 'application/json');
}

function guarded(value) {
  // a spreadsheet must show a text, not run it
  const text = String(value === null ? '' : value);
  const plain = /^'*[=+\-@\t\r\n]./s.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
}

function correctionsCsv() {
  const columns = ['cell_id', 'image_id', 'before', 'after', 'flags', 'note', 'reviewer', 'at'];
  const fieldOf = new Map(data.cells.map((cell) => [cell.id, data.fields[cell.field].id]));
  const lines = correctionsOf().corrections.map((entry) => {
    const row = { ...entry, image_id: fieldOf.get(entry.cell_id), flags: entry.flags.join(' ') };
    return columns.map((column) => guarded(row[column])).join(',');
  });
  return [columns.join(','), ...lines, ''].join('\n');
}

function takeIn(text) {
  // go on from an exported file: all of it or nothing
  let given;
  try {
    given = JSON.parse(text);
  } catch (error) {
    notice('The file is no whole JSON; nothing is changed.');
    return;
  }
  if (!given || given.format !== 'cblc-corrections/1' || !Array.isArray(given.corrections)) {
    notice('The file holds no corrections; nothing is changed.');
    return;
  }
  if (given.run !== data.run) {
    notice('These corrections are of another run; nothing is changed.');
    return;
  }
  const taken = given.corrections.map(({ cell_id: id, before, ...entry }) => [id, { ...blank(), ...entry }]);
  if (!taken.every(([id, entry]) => isEntry(id, entry))) {
    notice('The file names cells or codes that are not here; nothing is changed.');
    return;
  }
  const of = new Map(taken);
  const positions = data.queue.filter((position) => of.has(data.cells[position].id));
  if (!find('reviewer').value) find('reviewer').value = String(given.reviewer || '');
  if (positions.length) change(positions, (cell) => of.get(cell.id));
  notice(`${positions.length} corrections taken in.`);
}

// ---------------------------------------------------------------- keys

let waitsFor = null;            // a code whose key is being changed

function defaultKeys() {
  return new Map(data.codes.filter((code) => code.key).map((code) => [code.key, code.code]));
}

function restoreKeys() {
  keys = defaultKeys();
  try {
    const kept = JSON.parse(stored(keysName));
    if (kept && kept.every(([key, code]) => typeof key === 'string' && codes.has(code))) keys = new Map(kept);
  } catch (error) {
    notice('The keys you had chosen could not be read; they are as at the beginning.');
  }
}

const actions = { Enter: () => say(), x: () => say(NOT_A_CELL), z: undo, ' ': () => step(1),
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), ',': () => flag('merged'), '.': () => flag('split'),
  '-': () => flag('edge'), '/': () => find('note').focus(), O: toggleOutline, G: () => turn('grid'),
  F: () => turn('field'), '?': showHelp, Escape: () => { picked.clear(); drawPicked(); } };

function drawAllCodes() {
  drawCodes(find('codes'), say);
  drawCodes(find('key-list'), (code) => {
    waitsFor = code;
    document.querySelectorAll('#key-list .code').forEach((button) => {
      button.setAttribute('aria-pressed', String(button.dataset.code === code));
    });
  });
}

function changeKey(key) {
  if (key in actions) {
    notice(`The key ${key} has another use.`);
    return;
  }
  keys = new Map([...keys].filter(([old, code]) => code !== waitsFor && old !== key));
  keys.set(key, waitsFor);
  waitsFor = null;
  store(keysName, JSON.stringify([...keys]));
  drawAllCodes();
}

function showHelp() {
  waitsFor = null;
  find('help').showModal();
}

function toggleOutline() {
  showsOutline = !showsOutline;
  find('outline').setAttribute('aria-pressed', String(showsOutline));
  if (view === 'one') drawOne();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    const isUndo = event.key === 'z' && !event.altKey;
    if (isUndo && !event.target.matches('input')) undo();
    return;
  }
  if (find('help').open) {
    if (waitsFor !== null && event.key.length === 1) {
      changeKey(event.key);
      event.preventDefault();
    }
    return;
  }
  if (event.target.matches('input, select')) {
    const ends = event.key === 'Escape' || (event.key === 'Enter' && event.target.matches('input'));
    if (ends) event.target.blur();
    return;
  }
  if ((event.key === ' ' || event.key === 'Enter') && event.target.matches('button')) return;
  if (keys.has(event.key)) say(keys.get(event.key));
  else if (event.key in actions) actions[event.key]();
  else return;
  event.preventDefault();
}

// ---------------------------------------------------------------- the mouse in the grid

function pick(position, event) {
  const isRange = event.shiftKey && visible.includes(anchor);
  if (isRange) {
    const [from, to] = [visible.indexOf(anchor), visible.indexOf(position)].sort((a, b) => a - b);
    visible.slice(from, to + 1).forEach((one) => picked.add(one));
  } else if (event.ctrlKey || event.metaKey || event.pointerType === 'touch') {
    if (picked.has(position)) picked.delete(position);
    else picked.add(position);
  } else {
    picked = new Set([position]);
  }
  anchor = position;
  drawPicked();
}

function dragFrom(start) {
  const grid = find('grid');
  const origin = grid.getBoundingClientRect();
  const [x, y] = [start.clientX - origin.left, start.clientY - origin.top];
  const kept = start.ctrlKey || start.shiftKey || start.metaKey ? [...picked] : [];
  const tiles = [...grid.children].map((tile) => [Number(tile.dataset.at), tile.offsetLeft, tile.offsetTop,
    tile.offsetWidth, tile.offsetHeight]);
  let box = null;
  const move = (event) => {
    const frame = grid.getBoundingClientRect();
    const [x2, y2] = [event.clientX - frame.left, event.clientY - frame.top];
    if (!box && Math.hypot(x2 - x, y2 - y) < 6) return;
    if (!box) grid.append(box = make('div', { id: 'band-box' }));
    const [left, right, top, bottom] = [Math.min(x, x2), Math.max(x, x2), Math.min(y, y2), Math.max(y, y2)];
    Object.assign(box.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`,
      height: `${bottom - top}px` });
    const inside = tiles.filter(([, a, b, w, h]) => a < right && a + w > left && b < bottom && b + h > top);
    picked = new Set([...kept, ...inside.map(([position]) => position)]);
    drawPicked();
  };
  const end = (event) => {
    window.removeEventListener('pointermove', move);
    if (box) box.remove();
    const tile = start.target.closest('.tile');
    if (!box && tile && event.type === 'pointerup') pick(Number(tile.dataset.at), start);
  };
  window.addEventListener('pointermove', move);
  window.addEventListener('pointerup', end, { once: true });
}

// ---------------------------------------------------------------- begin

function fillChoices() {
  const option = (value, text) => make('option', { value }, text);
  find('category').append(option('', 'all'), ...data.categories.map(({ name }) => option(name, name)));
  find('field').append(option('', 'all'), ...data.fields.map((field, at) => option(at, field.id)));
}

function listen() {
  document.addEventListener('keydown', pressed);
  const clicks = { undo, keys: showHelp, agree: () => say(), previous: () => step(-1), next: () => step(1),
    'not-a-cell': () => say(NOT_A_CELL), outline: toggleOutline, 'help-close': () => find('help').close(),
    'tab-one': () => turn('one'), 'tab-grid': () => turn('grid'), 'tab-field': () => turn('field'),
    'export-json': exportJson, 'export-csv': () => asFile(correctionsCsv(), 'corrections.csv', 'text/csv'),
    'keys-reset': () => {
      keys = defaultKeys();
      store(keysName, JSON.stringify([...keys]));
      drawAllCodes();
    } };
  Object.entries(clicks).forEach(([id, act]) => find(id).addEventListener('click', (event) => {
    act();
    event.currentTarget.blur();
  }));
  document.querySelectorAll('[data-flag]').forEach((button) => button.addEventListener('click', () => {
    flag(button.dataset.flag);
    button.blur();
  }));
  ['show', 'category', 'field', 'order'].forEach((id) => find(id).addEventListener('change', (event) => {
    choose();
    event.target.blur();
  }));
  find('reviewer').addEventListener('change', save);
  find('note').addEventListener('change', () => {
    const positions = targets();
    if (positions.length) change(positions, () => ({ note: find('note').value }));
  });
  find('grid').addEventListener('pointerdown', (event) => {
    if (event.button === 0 && event.pointerType !== 'touch') dragFrom(event);
  });
  find('grid').addEventListener('click', (event) => {
    const tile = event.target.closest('.tile');
    if (tile && event.pointerType === 'touch') pick(Number(tile.dataset.at), event);
  });
  find('grid').addEventListener('dblclick', (event) => {
    const tile = event.target.closest('.tile');
    if (tile) open(Number(tile.dataset.at));
  });
  find('import').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) file.text().then(takeIn);
    event.target.value = '';
  });
  window.addEventListener('message', told);
  window.addEventListener('hashchange', () => {
    takePlan();
    choose();
  });
  window.addEventListener('beforeunload', (event) => {
    if (!keeps && history.length > exportedAt) event.preventDefault();
  });
}

const modelAlone = figuresOf(new Map());
restore();
restoreKeys();
fillChoices();
listen();
drawAllCodes();
drawFigures();
takePlan();
choose();
