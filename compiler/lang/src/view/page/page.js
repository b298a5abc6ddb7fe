(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const $ = id => document.getElementById(id), root = document.documentElement, NS = 'http://www.w3.org/2000/svg';
  const canvas = $('canvas'), view = $('view'), stage = $('stage'), details = $('details');
  const {tenth, path, sheet, NODE, FRAME} = Place;
  const frameOf = f => $('f' + f), nodeOf = n => $('n' + n);
  const child = (el, name) => [...el.children].find(c => c.classList.contains(name));
  const at = (el, x, y) => el.setAttribute('transform', `translate(${tenth(x)} ${tenth(y)})`);
  const set = (el, attributes) => { for (const k in attributes) el.setAttribute(k, attributes[k]); };
  root.classList.add('live');

  // ---- drawing -------------------------------------------------------------------------------------------------
  function draw() {
    Place.all(data);
    data.frames.forEach((frame, f) => {
      const el = frameOf(f), open = child(el, 'open'), shut = child(el, 'closed'), placed = frame.placed;
      el.classList.toggle('shut', frame.closed);
      if (f > 0) {
        open.toggleAttribute('display', false);
        open.style.display = frame.closed ? 'none' : '';
        shut.toggleAttribute('display', false);
        shut.style.display = frame.closed ? '' : 'none';
        el.setAttribute('aria-expanded', String(!frame.closed));
        for (const box of open.children) {
          if (box.classList.contains('box')) set(box, {width: placed.width, height: placed.height});
          if (box.classList.contains('stack')) box.setAttribute('d', sheet(placed.width, placed.height, Number(box.dataset.shift)));
        }
        const head = child(open, 'head');
        head.querySelector('.count').setAttribute('x', tenth(placed.width - 10));
      }
      frame.items.forEach(([kind, id], i) => {
        if (kind !== NODE && kind !== FRAME) return;
        const el = kind === NODE ? nodeOf(id) : frameOf(id);
        at(el, placed.x[i] - placed.rooms[i].width / 2, placed.y[i]);
      });
      for (const wire of child(open, 'wires').children) {
        const v = Number(wire.dataset.v);
        let line = '', tips = '';
        frame.links.forEach((link, k) => {
          if (link[4] !== v) return;
          const route = placed.routes[k], [kind, id] = frame.items[link[2]];
          line += path(route);
          if (kind === NODE || (kind === FRAME && data.frames[id].closed)) {
            const x = tenth(route.to[0]), y = tenth(route.to[1]);
            tips += `M${x} ${y}L${tenth(x - 3.5)} ${tenth(y - 7)}H${tenth(x + 3.5)}Z`;
          }
        });
        wire.children[0].setAttribute('d', line);
        wire.children[1].setAttribute('d', tips);
        const label = frame.labels.find(l => l[2] === v);
        if (label && wire.children[2]) {
          const [item, port, , , side] = label, room = placed.rooms[item], [kind, id] = frame.items[item];
          const below = kind === FRAME && data.frames[id].stack ? 18 : 12;
          set(wire.children[2], {x: tenth(placed.x[item] + room.bottoms[port] + 5 * side), y: tenth(placed.y[item] + room.height + below)});
        }
      }
    });
    root.dataset.drawn = data.frames.length + ' ' + data.nodes.length;
  }

  function toggle(f, closed) {
    if (f === 0 || data.frames[f].closed === closed) return;
    // What was clicked stays where it is.
    const before = frameOf(f).getBoundingClientRect();
    data.frames[f].closed = closed;
    draw();
    const after = frameOf(f).getBoundingClientRect();
    place.x += before.left + before.width / 2 - after.left - after.width / 2;
    place.y += before.top - after.top;
    move();
  }

  // ---- moving --------------------------------------------------------------------------------------------------
  const place = {x: 0, y: 0, k: 1};
  const still = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
  function move(smooth) {
    view.classList.toggle('smooth', Boolean(smooth) && !still);
    view.style.transform = `translate(${place.x}px, ${place.y}px) scale(${place.k})`;
    $('scale').textContent = Math.round(place.k * 100) + '%';
  }
  function zoom(factor, x, y, smooth) {
    const box = stage.getBoundingClientRect(), px = x === undefined ? box.width / 2 : x - box.left, py = y === undefined ? box.height / 2 : y - box.top;
    const k = Math.min(6, Math.max(0.04, place.k * factor));
    place.x = px - (px - place.x) * (k / place.k);
    place.y = py - (py - place.y) * (k / place.k);
    place.k = k;
    move(smooth);
  }
  // All of it when that can be read, else its full width from the top.
  function fit(smooth, whole) {
    const {width, height} = data.frames[0].placed, w = stage.clientWidth - 32, h = stage.clientHeight - 32;
    const all = Math.min(w / width, h / height, 1.25), wide = Math.min(w / width, 1);
    place.k = whole || all > 0.62 ? all : wide;
    place.x = (stage.clientWidth - width * place.k) / 2;
    place.y = height * place.k < h ? (stage.clientHeight - height * place.k) / 2 : 16;
    move(smooth);
  }
  function centre(el, least) {
    const k = Math.max(place.k, least || 0), seen = el.getBoundingClientRect(), box = stage.getBoundingClientRect();
    const x = (seen.left + seen.width / 2 - box.left - place.x) / place.k, y = (seen.top + Math.min(seen.height, 300) / 2 - box.top - place.y) / place.k;
    place.k = k;
    place.x = box.width / 2 - x * k;
    place.y = box.height / 2 - y * k;
    move(true);
  }

  let drag = null;
  stage.addEventListener('pointerdown', e => {
    if (e.button !== 0 || e.target.closest('text, aside, footer, button')) return;
    drag = {x: e.clientX - place.x, y: e.clientY - place.y, moved: false, id: e.pointerId};
  });
  stage.addEventListener('pointermove', e => {
    if (!drag || e.pointerId !== drag.id) return;
    const x = e.clientX - drag.x, y = e.clientY - drag.y;
    if (!drag.moved && Math.hypot(x - place.x, y - place.y) < 4) return;
    if (!drag.moved) { drag.moved = true; stage.setPointerCapture(e.pointerId); stage.classList.add('dragging'); }
    place.x = x;
    place.y = y;
    move();
  });
  const drop = () => { stage.classList.remove('dragging'); setTimeout(() => { drag = null; }); };
  stage.addEventListener('pointerup', drop);
  stage.addEventListener('pointercancel', drop);
  stage.addEventListener('wheel', e => {
    if (e.target.closest('aside')) return;
    e.preventDefault();
    const step = e.deltaMode === 1 ? e.deltaY * 16 : e.deltaY;
    if (e.shiftKey && !e.ctrlKey) { place.x -= step; move(); return; }
    zoom(Math.exp(-Math.max(-120, Math.min(120, step)) * 0.0022), e.clientX, e.clientY);
  }, {passive: false});

  // ---- selection -----------------------------------------------------------------------------------------------
  let selected = null;
  const element = (tag, text, cls) => { const el = document.createElement(tag); if (text !== undefined) el.textContent = text; if (cls) el.className = cls; return el; };
  function tell(kind, id) {
    const part = kind === 'n' ? data.nodes[id] : data.frames[id];
    details.replaceChildren();
    const shut = element('button', '×', 'close');
    shut.setAttribute('aria-label', 'Close details');
    shut.addEventListener('click', () => select(null));
    details.append(shut, element('h2', part.name), element('p', kind === 'n' ? part.kind : 'module', 'what ' + (part.kind || '')));
    const list = element('dl');
    for (const [name, value] of part.about) list.append(element('dt', name), element('dd', value, name === 'equation' || name === 'path' ? 'code' : ''));
    if (kind === 'n' && part.text.length) list.append(element('dt', 'does'), element('dd', part.text.join('\n')));
    details.append(list);
    if (kind === 'n' && part.weights.length) {
      const table = element('table'), head = element('tr');
      for (const h of ['weight', 'type', 'parameters', 'bytes']) head.append(element('th', h));
      table.append(head);
      for (const row of part.weights) { const tr = element('tr'); row.forEach(c => tr.append(element('td', c))); table.append(tr); }
      details.append(element('h3', 'Weights'), table);
    }
    if (kind === 'n') {
      for (const [title, ids] of [['Reads', data.values.filter(v => v.to.includes(id)).map(v => [v.from, v.type])],
        ['Read by', data.values.filter(v => v.from === id).flatMap(v => v.to.map(t => [t, v.type]))]]) {
        if (!ids.length) continue;
        const ul = element('ul');
        for (const [other, type] of ids) {
          const li = element('li'), link = element('button', data.nodes[other].name, 'link');
          link.addEventListener('click', () => go('n', other));
          li.append(link, element('span', ' ' + type, 'code'));
          ul.append(li);
        }
        details.append(element('h3', title), ul);
      }
    }
    details.hidden = false;
  }
  function select(el) {
    document.querySelectorAll('.selected, .lit').forEach(e => e.classList.remove('selected', 'lit'));
    selected = el;
    if (!el) { details.hidden = true; return; }
    el.classList.add('selected');
    const kind = el.id[0], id = Number(el.id.slice(1));
    tell(kind, id);
    if (kind === 'n') light(id);
  }
  function light(n) {
    data.values.forEach((v, i) => {
      if (v.from === n || v.to.includes(n)) document.querySelectorAll(`.wire[data-v="${i}"]`).forEach(w => w.classList.add('lit'));
    });
  }
  // Opens what a part lies in, moves there and selects it.
  function go(kind, id) {
    let changed = false, f = kind === 'n' ? data.nodes[id].frame : data.frames[id].parent;
    for (; f !== null && f !== undefined; f = data.frames[f].parent) if (data.frames[f].closed) { data.frames[f].closed = false; changed = true; }
    if (changed) draw();
    const el = kind === 'n' ? nodeOf(id) : frameOf(id);
    select(el);
    centre(el, 0.8);
    el.focus({preventScroll: true});
  }
  const partAt = e => { const el = e.target.closest('.node, .frame'); return el && el.id !== 'f0' ? el : null; };
  const onHead = e => e.target.closest('.head, .closed') !== null;
  canvas.addEventListener('click', e => {
    if (drag && drag.moved) return;
    if (String(window.getSelection())) return;
    const el = partAt(e);
    if (el && el.id[0] === 'f' && onHead(e)) toggle(Number(el.id.slice(1)), !data.frames[Number(el.id.slice(1))].closed);
    select(el);
  });
  canvas.addEventListener('pointerover', e => {
    const el = e.target.closest('.node');
    document.querySelectorAll('.near').forEach(w => w.classList.remove('near'));
    if (!el) return;
    const n = Number(el.id.slice(1));
    data.values.forEach((v, i) => {
      if (v.from === n || v.to.includes(n)) document.querySelectorAll(`.wire[data-v="${i}"]`).forEach(w => w.classList.add('near'));
    });
  });

  // ---- search --------------------------------------------------------------------------------------------------
  const query = $('query'), found = $('found');
  let hits = [], current = -1;
  const text = part => [part.name, ...part.about.map(r => r[1]), ...(part.text || []), ...(part.weights || []).map(w => w[0] + ' ' + w[1])].join('\n').toLowerCase();
  const index = [...data.frames.map((f, i) => ['f', i, text(f)]).slice(1), ...data.nodes.map((n, i) => ['n', i, text(n)])];
  function search() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    document.querySelectorAll('.hit').forEach(e => e.classList.remove('hit'));
    hits = words.length ? index.filter(([, , t]) => words.every(w => t.includes(w))) : [];
    current = -1;
    for (const [kind, id] of hits) {
      $(kind + id).classList.add('hit');
      // What is hidden shows where it is.
      for (let f = kind === 'n' ? data.nodes[id].frame : data.frames[id].parent; f; f = data.frames[f].parent) if (data.frames[f].closed) frameOf(f).classList.add('hit');
    }
    found.textContent = words.length ? (hits.length ? hits.length + ' found' : 'nothing') : '';
    root.classList.toggle('searching', words.length > 0);
  }
  function next(step) {
    if (!hits.length) return;
    current = (current + step + hits.length) % hits.length;
    go(hits[current][0], hits[current][1]);
    query.focus();
    found.textContent = `${current + 1} of ${hits.length}`;
  }
  query.addEventListener('input', search);
  $('search').addEventListener('submit', e => { e.preventDefault(); next(1); });

  // ---- tools and keys ------------------------------------------------------------------------------------------
  const every = closed => { data.frames.forEach((f, i) => { if (i) f.closed = closed; }); draw(); fit(true); };
  const theme = () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : window.matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
  };
  const tools = {smaller: () => zoom(1 / 1.3, undefined, undefined, true), larger: () => zoom(1.3, undefined, undefined, true), fit: () => fit(true, true),
    shut: () => every(true), open: () => every(false), theme};
  for (const id in tools) $(id).addEventListener('click', tools[id]);
  const keys = {'+': tools.larger, '=': tools.larger, '-': tools.smaller, '0': tools.fit, 'c': tools.shut, 'o': tools.open, 't': theme,
    'n': () => next(1), 'N': () => next(-1), '/': () => query.focus(),
    ArrowLeft: () => { place.x += 60; move(); }, ArrowRight: () => { place.x -= 60; move(); },
    ArrowUp: () => { place.y += 60; move(); }, ArrowDown: () => { place.y -= 60; move(); }};
  document.addEventListener('keydown', e => {
    if (e.key === 'Escape') { query.value = ''; search(); select(null); document.activeElement.blur(); return; }
    if (e.target === query) { if (e.key === 'Enter' && e.shiftKey) { e.preventDefault(); next(-1); } return; }
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const part = e.target.closest && e.target.closest('.node, .frame');
    if (part && part.id !== 'f0' && (e.key === 'Enter' || e.key === ' ')) {
      e.preventDefault();
      if (part.id[0] === 'f') toggle(Number(part.id.slice(1)), !data.frames[Number(part.id.slice(1))].closed);
      select(part);
      return;
    }
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  });
  stage.addEventListener('focusin', e => {
    const part = e.target.closest('.node, .frame');
    if (!part || !part.matches(':focus-visible')) return;
    const seen = part.getBoundingClientRect(), box = stage.getBoundingClientRect();
    if (seen.top < box.top || seen.left < box.left || seen.bottom > box.bottom || seen.right > box.right) centre(part, 0.5);
    stage.scrollTo(0, 0);
  });
  window.addEventListener('resize', () => fit(false));

  draw();
  fit(false);
  // A page can be opened at a part: page.html#layers.0.self_attn
  const wanted = decodeURIComponent(location.hash.slice(1));
  const named = wanted && index.find(([kind, id]) => (kind === 'n' ? data.nodes : data.frames)[id].about.some(r => r[0] === 'path' && r[1] === wanted));
  if (named) go(named[0], named[1]);
  root.dataset.ready = 'yes';
})();
