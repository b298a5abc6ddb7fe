'use strict';
// Coordinates of frames, as layout/place.rs makes them: the same sums in the same order. A test compares both.
const Place = (() => {
  const PAD = 14, BESIDE = 26, BESIDE_BEND = 12, BELOW = 24, LABELS = 15, TRACK = 7, STRAIGHT = 2, LANE = 8, ASIDE = [10, 18];
  const NODE = 0, FRAME = 1, BEND = 2, ENTRY = 3, EXIT = 4;
  const max = Math.max, min = Math.min, abs = Math.abs;
  const tenth = v => Math.floor(v * 10 + 0.5) / 10;

  function spread(n, width) {
    const gap = min(26, (width - 16) / (max(n, 2) - 1));
    return Array.from({length: n}, (_, i) => (i - (n - 1) / 2) * gap);
  }

  function room(data, frame, i) {
    const [kind, id] = frame.items[i], tops = frame.tops[i], bottoms = frame.bottoms[i];
    let r;
    if (kind === NODE) {
      const [w, h] = data.nodes[id].size, ports = n => data.nodes[id].sign ? Array(n).fill(0) : spread(n, w);
      r = {width: w, height: h, tops: ports(tops), bottoms: ports(bottoms)};
    } else if (kind === FRAME && data.frames[id].closed) {
      const [w, h] = data.frames[id].size;
      r = {width: w, height: h, tops: spread(tops, w), bottoms: spread(bottoms, w)};
    } else if (kind === FRAME) {
      const inner = data.frames[id], placed = inner.placed;
      const at = k => inner.layers.flat().filter(j => inner.items[j][0] === k).map(j => placed.x[j] - placed.width / 2);
      r = {width: placed.width, height: placed.height, tops: at(ENTRY), bottoms: at(EXIT)};
    } else {
      r = {width: 0, height: 0, tops: Array(tops).fill(0), bottoms: Array(bottoms).fill(0)};
    }
    let left = 0, right = 0;
    for (const [item, port, , width, side] of frame.labels) {
      if (item !== i) continue;
      if (side < 0) left = max(left, width + 8 - r.bottoms[port]);
      else right = max(right, width + 8 + r.bottoms[port]);
    }
    if (kind === FRAME) for (const port of r.tops) { left = max(left, LANE - port); right = max(right, LANE + port); }
    r.labelled = frame.labels.some(l => l[0] === i);
    r.left = max(r.width / 2, left);
    r.right = max(r.width / 2, right);
    return r;
  }

  function place(data, frame) {
    const rooms = frame.items.map((_, i) => room(data, frame, i));
    const x = across(frame, rooms);
    let left = Infinity, right = -Infinity;
    x.forEach((v, i) => { if (frame.aside[i]) return; left = min(left, v - rooms[i].left); right = max(right, v + rooms[i].right); });
    if (!(left <= right)) left = right = 0;
    const width = Math.ceil(max(right - left + 2 * PAD, frame.least));
    const shift = (width - (right - left)) / 2 - left;
    for (let i = 0; i < x.length; i++) {
      const lane = frame.aside[i] || 0;
      x[i] = lane < 0 ? -ASIDE[0] + (lane + 1) * LANE : lane > 0 ? width + ASIDE[1] + (lane - 1) * LANE : x[i] + shift;
    }
    const {y, height, routes} = down(frame, rooms, x);
    frame.placed = {width, height, x, y, routes, rooms};
  }

  function apart(frame, rooms, a, b) {
    const bend = frame.items[a][0] === BEND || frame.items[b][0] === BEND;
    return rooms[a].right + (bend ? BESIDE_BEND : BESIDE) + rooms[b].left;
  }

  function across(frame, rooms) {
    const n = frame.items.length, x = Array(n).fill(0), aside = i => frame.aside[i] || 0;
    const layers = frame.layers.map(layer => layer.filter(i => !aside(i))), count = layers.length, pins = Array(n).fill(null);
    for (const layer of layers) {
      let at = 0;
      layer.forEach((item, i) => { if (i > 0) at += apart(frame, rooms, layer[i - 1], item); x[item] = at; });
      for (const item of layer) x[item] -= at / 2;
    }
    const above = Array.from({length: n}, () => []), below = Array.from({length: n}, () => []);
    for (const [a, ap, b, bp] of frame.links) {
      if (aside(a) || aside(b)) continue;
      const bends = (frame.items[a][0] === BEND) + (frame.items[b][0] === BEND);
      const offset = rooms[a].bottoms[ap] - rooms[b].tops[bp], w = bends === 2 ? 8 : bends === 1 ? 1 : 2;
      above[b].push([a, offset, w]);
      below[a].push([b, -offset, w]);
    }
    const move = (l, side, median) => settle(frame, rooms, layers, pins, x, l, side, median);
    for (let round = 0; round < 20; round++) {
      for (let l = 0; l < count; l++) move(l, above, round >= 12);
      for (let l = count - 1; l >= 0; l--) move(l, below, round >= 12);
    }
    for (let round = 0; round < 2; round++) for (let l = 0; l < count; l++) move(l, above, true);
    for (const column of frame.columns) {
      const middle = column.reduce((s, i) => s + x[i], 0) / column.length;
      for (const i of column) pins[i] = middle;
    }
    for (let round = 0; round < (frame.columns.length ? 2 : 0); round++) {
      for (let l = count - 1; l >= 0; l--) move(l, below, true);
      for (let l = 0; l < count; l++) move(l, above, true);
    }
    for (let round = 0; round < 2; round++) straighten(frame, rooms, layers, x);
    return x;
  }

  function straighten(frame, rooms, layers, x) {
    const beside = frame.items.map(() => [-1, -1]), bend = i => frame.items[i][0] === BEND && !frame.aside[i];
    for (const layer of layers) for (let i = 1; i < layer.length; i++) { beside[layer[i - 1]][1] = layer[i]; beside[layer[i]][0] = layer[i - 1]; }
    for (const first of frame.links) {
      if (!bend(first[2]) || bend(first[0])) continue;
      const chain = [first[2]];
      for (let link; (link = frame.links.find(l => l[0] === chain[chain.length - 1] && bend(l[2])));) chain.push(link[2]);
      let low = -Infinity, high = Infinity;
      for (const b of chain) {
        const [l, r] = beside[b];
        if (l >= 0) low = max(low, x[l] + apart(frame, rooms, l, b));
        if (r >= 0) high = min(high, x[r] - apart(frame, rooms, b, r));
      }
      if (low > high) continue;
      const begins = x[first[0]] + rooms[first[0]].bottoms[first[1]];
      const end = frame.links.find(l => l[0] === chain[chain.length - 1]), ends = end ? x[end[2]] + rooms[end[2]].tops[end[3]] : begins;
      const mean = chain.reduce((s, b) => s + x[b], 0) / chain.length, fits = v => low <= v && v <= high;
      const at = fits(begins) ? begins : fits(ends) ? ends : min(max(mean, low), high);
      for (const b of chain) x[b] = at;
    }
  }

  function settle(frame, rooms, layers, pins, x, layer, side, median) {
    const items = layers[layer], blocks = [], offsets = [];
    let offset = 0;
    items.forEach((item, i) => {
      if (i > 0) offset += apart(frame, rooms, items[i - 1], item);
      offsets.push(offset);
      let [at, weight] = wants(x, item, side, median);
      if (pins[item] !== null) { at = pins[item]; weight = 1e6; } else if (median && frame.items[item][0] === BEND) weight = 0.0001;
      let block = [at - offset, weight, 1];
      while (blocks.length && blocks[blocks.length - 1][0] > block[0]) {
        const last = blocks.pop(), sum = last[1] + block[1];
        block = [(last[0] * last[1] + block[0] * block[1]) / sum, sum, last[2] + block[2]];
      }
      blocks.push(block);
    });
    let i = 0;
    for (const [at, , count] of blocks) for (let k = 0; k < count; k++, i++) x[items[i]] = at + offsets[i];
  }

  function wants(x, item, side, median) {
    const targets = side[item].map(([other, offset, weight]) => [x[other] + offset, weight]);
    if (!targets.length) return [x[item], 0.1];
    const total = targets.reduce((s, t) => s + t[1], 0);
    if (!median) return [targets.reduce((s, t) => s + t[0] * t[1], 0) / total, total];
    targets.sort((a, b) => a[0] - b[0]);
    let sum = 0;
    for (let i = 0; i < targets.length; i++) {
      sum += targets[i][1];
      if (sum * 2 >= total) return [sum * 2 === total && i + 1 < targets.length ? (targets[i][0] + targets[i + 1][0]) / 2 : targets[i][0], total];
    }
    return [x[item], total];
  }

  function down(frame, rooms, x) {
    const y = Array(frame.items.length).fill(0), tracks = Array(frame.links.length).fill(0);
    let at = 0;
    frame.layers.forEach((layer, l) => {
      const border = kind => layer.some(i => frame.items[i][0] === kind);
      if (l === 0 && !border(ENTRY)) at = frame.header + (frame.header > 0 ? 4 : PAD);
      const height = layer.reduce((h, i) => max(h, rooms[i].height), 0);
      for (const i of layer) y[i] = at + (height - rooms[i].height) / 2;
      at += height;
      const here = new Set(layer);
      const below = frame.links.map((_, k) => k).filter(k => here.has(frame.links[k][0]));
      const level = levels(frame, rooms, x, below);
      const count = level.reduce((m, v) => max(m, v + 1), 0);
      let start = at + BELOW / 2 + (below.some(k => rooms[frame.links[k][0]].labelled) ? LABELS : 0);
      if (border(ENTRY)) start = at + frame.header + 2;
      below.forEach((k, i) => { tracks[k] = start + level[i] * TRACK; });
      if (l + 1 < frame.layers.length) at = start + max(count, 1) * TRACK - TRACK + BELOW / 2;
    });
    const last = frame.layers[frame.layers.length - 1] || [];
    const height = Math.ceil(last.some(i => frame.items[i][0] === EXIT) ? at : at + PAD);
    const routes = frame.links.map(([a, ap, b, bp], k) => ({
      from: [x[a] + rooms[a].bottoms[ap], y[a] + rooms[a].height], track: tracks[k], to: [x[b] + rooms[b].tops[bp], y[b]],
    }));
    return {y, height, routes};
  }

  function levels(frame, rooms, x, links) {
    const buses = [], of = [];
    for (const k of links) {
      const [a, ap, b, bp] = frame.links[k], from = x[a] + rooms[a].bottoms[ap], to = x[b] + rooms[b].tops[bp];
      let bus = buses.findIndex(v => v[0] === a && v[1] === ap);
      if (bus < 0) bus = buses.push([a, ap, from, from, from]) - 1;
      buses[bus][3] = min(buses[bus][3], to);
      buses[bus][4] = max(buses[bus][4], to);
      of.push(bus);
    }
    const turns = b => buses[b][4] - buses[b][3] > STRAIGHT, level = Array(buses.length).fill(0);
    for (let round = 0; round < 40; round++) {
      let changed = false;
      for (let a = 0; a < buses.length; a++) for (let b = 0; b < buses.length; b++) {
        if (a === b || !turns(a) || !turns(b)) continue;
        const ends = links.some((k, i) => {
          const [, , t, tp] = frame.links[k];
          return of[i] === b && abs(x[t] + rooms[t].tops[tp] - buses[a][2]) < 3;
        });
        const overlap = buses[a][3] < buses[b][4] + 4 && buses[b][3] < buses[a][4] + 4;
        if (ends && level[b] <= level[a] && level[a] < 12) { level[b] = level[a] + 1; changed = true; }
        else if (overlap && a < b && level[a] === level[b]) { level[b] += 1; changed = true; }
      }
      if (!changed) break;
    }
    return of.map(bus => level[bus]);
  }

  function path({from, track, to}) {
    const x1 = tenth(from[0]), y1 = tenth(from[1]), x2 = tenth(to[0]), y2 = tenth(to[1]), dx = x2 - x1;
    if (abs(dx) < STRAIGHT) return `M${x2} ${y1}V${y2}`;
    const t = tenth(track), r = min(6, abs(dx) / 2, max(t - y1, 0), max(y2 - t, 0)), s = dx > 0 ? r : -r;
    return `M${x1} ${y1}V${tenth(t - r)}Q${x1} ${t} ${tenth(x1 + s)} ${t}H${tenth(x2 - s)}Q${x2} ${t} ${x2} ${tenth(t + r)}V${y2}`;
  }

  // Places all frames, inner ones first: a frame comes after the one around it.
  const all = data => { for (let f = data.frames.length - 1; f >= 0; f--) place(data, data.frames[f]); };
  // The right and lower edges of a sheet behind a box.
  const sheet = (w, h, s) => `M${w} ${s}H${w + s - 10}Q${w + s} ${s} ${w + s} ${s + 10}V${h + s - 10}Q${w + s} ${h + s} ${w + s - 10} ${h + s}H${s + 10}Q${s} ${h + s} ${s} ${h + s - 10}V${h}`;
  return {all, path, sheet, tenth, NODE, FRAME};
})();
