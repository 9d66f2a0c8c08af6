"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tests, bars, words, suites, machines, details, summary } = data;
  const count = tests.name.length;
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  // Everything becomes text; nothing of a test is ever markup.
  const make = (tag, look, text) => {
    const element = document.createElement(tag);
    if (look) element.className = look;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const asked = new URLSearchParams(location.hash.slice(1));

  const ORDER = ["failed", "timed-out", "infrastructure-error", "flaky", "quarantined", "passed", "skipped"];
  const SAID = { "timed-out": "timed out", "infrastructure-error": "errors" };
  const said = (word) => SAID[word] || word;
  const rank = words.map((word) => (ORDER.indexOf(word) + ORDER.length) % ORDER.length);
  const wordOf = (test) => words[tests.word[test]];
  const BAD = new Set(["failed", "timed-out", "infrastructure-error"]);
  const many = (number, one, more) => `${number.toLocaleString("en")} ${number === 1 ? one : more}`;

  function span(us) {
    if (us < 1000) return us > 0 ? "<1 ms" : "0 ms";
    if (us < 1e6) return `${Math.round(us / 1000)} ms`;
    if (us < 6e7) return `${(us / 1e6).toFixed(us < 1e7 ? 2 : 1)} s`;
    const minutes = Math.floor(us / 6e7);
    return minutes < 60 ? `${minutes} min ${Math.round((us % 6e7) / 1e6)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
    return `${bytes < 10 && unit ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
  }
  const nameOf = (test) => {
    const name = make("span", "name");
    if (suites.length > 1) name.append(make("small", "", `${suites[tests.suite[test]]}::`));
    name.append(tests.name[test]);
    name.title = `${suites[tests.suite[test]]}::${tests.name[test]}`;
    return name;
  };

  // ---- colours --------------------------------------------------------------------------------------------------
  const THEMES = ["auto", "light", "dark"];
  let theme = asked.get("theme") || "auto";
  try { theme = asked.get("theme") || localStorage.getItem("testyard-theme") || "auto"; } catch { /* a page from a file may have no storage */ }
  let tones = {};
  function paint() {
    if (!THEMES.includes(theme)) theme = "auto";
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    $("theme").textContent = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" }[theme];
    const style = getComputedStyle(root);
    const tone = (name) => style.getPropertyValue(`--${name}`).trim();
    tones = {
      passed: tone("passed"), failed: tone("failed"), "timed-out": tone("timed"), flaky: tone("flaky"), skipped: tone("skipped"),
      "infrastructure-error": tone("error"), quarantined: tone("quarantined"), edge: tone("edge"), dim: tone("dim"), text: tone("text"), soft: tone("soft"), accent: tone("accent"),
    };
  }
  $("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("testyard-theme", theme); } catch { /* as above */ }
    paint(); draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint(); draw(); });

  // ---- summary --------------------------------------------------------------------------------------------------
  const totals = {};
  for (let test = 0; test < count; test += 1) totals[wordOf(test)] = (totals[wordOf(test)] || 0) + 1;
  const bad = [];
  for (let test = 0; test < count; test += 1) if (BAD.has(wordOf(test))) bad.push(test);

  function showSummary() {
    const code = summary.exit_code;
    const [look, sign] = code === 0 ? ["passed", "✓"] : code === 69 || code === 70 ? ["error", "!"] : code === 77 ? ["", "–"] : ["failed", "✗"];
    $("verdict").className = `verdict ${look}`;
    $("verdict").textContent = sign;
    $("title").textContent = suites.length > 3 ? `${suites.length} suites` : suites.join(", ");
    const facts = [new Date(data.started_ms).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }), `took ${span(summary.duration_us)}`, `${data.jobs} at once`];
    for (const tree of data.trees.slice(0, 3)) if (tree.tree) facts.push(`tree ${tree.tree.slice(0, 12)}${data.trees.length > 1 ? ` (${tree.suite})` : ""}`);
    $("facts").append(...facts.map((fact) => make("span", "", fact)));
    const tiles = $("tiles");
    const tile = (number, label, tone) => {
      const box = make("div", `tile tone-${tone}${number === "0" ? " none" : ""}`);
      box.append(make("i"), make("b", "", number), make("span", "", label));
      tiles.append(box);
    };
    const total = (word) => (totals[word] || 0).toLocaleString("en");
    tile(count.toLocaleString("en"), "tests", "plain");
    tile(total("passed"), "passed", "passed");
    tile(total("failed"), "failed", "failed");
    if (totals["timed-out"]) tile(total("timed-out"), "timed out", "timed-out");
    if (totals.quarantined) tile(total("quarantined"), "quarantined", "quarantined");
    tile(total("flaky"), "flaky", "flaky");
    tile(total("skipped"), "skipped", "skipped");
    tile(total("infrastructure-error"), "errors", "infrastructure-error");
    const proportion = make("div", "proportion");
    for (const word of ORDER) {
      if (!totals[word]) continue;
      const part = make("div", `tone-${word}`);
      part.style.flexGrow = totals[word];
      part.style.background = "var(--tone)";
      part.title = `${totals[word]} ${said(word)}`;
      proportion.append(part);
    }
    tiles.after(proportion);
    const notices = [...data.warnings];
    if (!data.complete) notices.unshift(`The run did not come to its end: ${many(data.planned - count, "test has", "tests have")} no result.${data.unfinished.length ? ` Running then: ${data.unfinished.slice(0, 10).join(", ")}` : ""}`);
    else if (summary.interrupted) notices.unshift("The run was interrupted.");
    if (summary.source_changed) notices.push(`The source changed while ${many(summary.source_changed, "test", "tests")} ran.`);
    $("notices").append(...notices.slice(0, 20).map((notice) => make("div", "card notice", notice)));
    $("notices").hidden = notices.length === 0;
    $("footer").append(make("span", "", `run ${data.run}`), make("span", "", "made by Testyard"));
  }

  // ---- one test -------------------------------------------------------------------------------------------------
  function facts(test) {
    const about = details[test] || {};
    const list = make("dl");
    const fact = (name, value) => { if (value) list.append(make("dt", "", name), make("dd", "", value)); };
    fact("took", span(tests.duration_us[test]));
    if (tests.cpu_us[test]) fact("processor", span(tests.cpu_us[test]));
    if (tests.memory[test]) fact("memory", size(tests.memory[test]));
    fact("where", about.environment);
    fact("owner", about.owner);
    fact("tags", (about.tags || []).join(", "));
    if (about.attempts) about.attempts.forEach((attempt, place) => fact(`attempt ${place + 1}`, attempt));
    for (const note of about.notes || []) fact("note", note);
    for (const hint of about.hints || []) fact("hint", hint);
    return list;
  }
  function logs(test) {
    const about = details[test] || {};
    const all = [];
    for (const log of about.logs || []) {
      const head = make("div", "stream");
      head.append(make("span", "", log.stream), make("span", "", size(log.bytes)));
      all.push(head, make("pre", "", log.text));
    }
    if (about.changes) {
      const text = make("pre");
      for (const line of about.changes.split("\n")) {
        const look = { "+": "added", "-": "deleted", "~": "changed" }[line[0]];
        text.append(make("span", look || "", `${line}\n`));
      }
      const head = make("div", "stream");
      head.append(make("span", "", "what it changed in the file system"));
      all.push(head, text);
    }
    if (!all.length && BAD.has(wordOf(test))) all.push(make("p", "empty", "no output"));
    return all;
  }
  const badge = (test) => make("span", `badge tone-${wordOf(test)}`, wordOf(test).replace("-", " "));

  const FIRST_FAILURES = 10;
  const MOST_FAILURES = 100;
  function failureBoxes(from, until) {
    bad.slice(from, until).forEach((test, place) => {
      const box = make("details", "failure");
      const head = make("summary");
      head.append(badge(test), nameOf(test), make("span", "detail", (details[test] || {}).detail || ""), make("span", "value", span(tests.duration_us[test])));
      box.append(head);
      // A log is made when it is looked at: thousands of lines cost nothing until then.
      const fill = () => {
        if (box.open && box.childElementCount === 1) {
          const body = make("div", "body");
          body.append(facts(test), ...logs(test));
          box.append(body);
        }
      };
      box.addEventListener("toggle", fill);
      box.open = from + place < 2 && bad.length <= FIRST_FAILURES;
      fill();
      $("failure-list").append(box);
    });
  }
  function showFailures() {
    if (!bad.length) return;
    $("failures").hidden = false;
    $("failure-count").textContent = bad.length.toLocaleString("en");
    failureBoxes(0, FIRST_FAILURES);
    if (bad.length <= FIRST_FAILURES) return;
    const more = make("button", "more", `${Math.min(bad.length, MOST_FAILURES) - FIRST_FAILURES} more`);
    more.addEventListener("click", () => { more.remove(); failureBoxes(FIRST_FAILURES, MOST_FAILURES); });
    const all = make("button", "more", `${bad.length.toLocaleString("en")} in the list`);
    all.addEventListener("click", () => {
      chosen.clear();
      for (const word of BAD) if (totals[word]) chosen.add(word);
      apply();
      $("tests").scrollIntoView({ behavior: "smooth" });
    });
    $("failure-more").append(more, all);
  }

  // ---- rankings -------------------------------------------------------------------------------------------------
  function ranking(id, order, value, tone, nothing) {
    if (!order.length) $(id).append(make("li", "empty", nothing));
    const most = order.length ? value(order[0]).number : 1;
    for (const test of order) {
      const { number, text } = value(test);
      const line = make("li", `tone-${tone(test)}`);
      const mark = make("i");
      mark.style.width = `${Math.max(1, (100 * number) / Math.max(1, most))}%`;
      line.append(nameOf(test), make("span", "value", text), mark);
      line.addEventListener("click", () => choose(test, true));
      $(id).append(line);
    }
  }
  function top(number, keep, key) {
    const all = [];
    for (let test = 0; test < count; test += 1) if (keep(test)) all.push(test);
    return all.sort((a, b) => key(b) - key(a)).slice(0, number);
  }

  // ---- timeline -------------------------------------------------------------------------------------------------
  // Lanes: for each machine its workers, in order.
  const lanes = [];
  const laneOf = new Map();
  {
    const seen = new Set();
    for (let bar = 0; bar < bars.test.length; bar += 1) seen.add(bars.machine[bar] * 1e6 + bars.lane[bar]);
    for (const key of [...seen].sort((a, b) => a - b)) {
      laneOf.set(key, lanes.length);
      lanes.push({ machine: Math.floor(key / 1e6), lane: key % 1e6 });
    }
  }
  const placeOf = bars.test.map((_, bar) => laneOf.get(bars.machine[bar] * 1e6 + bars.lane[bar]));
  let longest = summary.duration_us / 1000;
  for (let bar = 0; bar < bars.test.length; bar += 1) longest = Math.max(longest, bars.start_ms[bar] + bars.duration_us[bar] / 1000);
  longest = Math.max(longest, 1);
  let view = [0, longest];
  const AXIS = 22;
  const HEAD = 20;
  const thick = lanes.length > 48 ? 8 : lanes.length > 16 ? 12 : 18;

  function surface(id, height) {
    const canvas = $(id);
    const width = canvas.parentElement.clientWidth;
    const scale = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.clearRect(0, 0, width, height);
    pen.font = "11px system-ui, sans-serif";
    return { pen, width: canvas.clientWidth || width };
  }
  const yOf = [];
  let drawnHeight = 0;
  {
    let y = AXIS;
    lanes.forEach((lane, place) => {
      if (machines.length > 1 && (place === 0 || lanes[place - 1].machine !== lane.machine)) y += HEAD;
      yOf.push(y);
      y += thick + 2;
    });
    drawnHeight = y + 2;
  }
  const timeText = (ms, step) => (ms === 0 ? "0" : view[1] >= 120000 ? `${+(ms / 60000).toFixed(step < 60000 ? 1 : 0)} min` : view[1] >= 1000 ? `${+(ms / 1000).toFixed(step < 100 ? 2 : step < 1000 ? 1 : 0)} s` : `${+ms.toFixed(1)} ms`);
  function ticks(pen, width, height, labels) {
    const [from, to] = view;
    const rough = (to - from) / Math.max(2, width / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
      const x = Math.round(((time - from) / (to - from)) * width) + 0.5;
      pen.strokeStyle = tones.edge;
      pen.beginPath(); pen.moveTo(x, labels ? AXIS - 4 : 0); pen.lineTo(x, height); pen.stroke();
      if (labels) {
        pen.fillStyle = tones.dim;
        const text = timeText(time, step);
        const wide = pen.measureText(text).width;
        pen.fillText(text, Math.min(Math.max(0, x - wide / 2), width - wide), 12);
      }
    }
  }
  let marked = -1;
  function drawLanes() {
    const { pen, width } = surface("lanes-canvas", drawnHeight);
    ticks(pen, width, drawnHeight, true);
    pen.fillStyle = tones.dim;
    lanes.forEach((lane, place) => {
      if (machines.length > 1 && (place === 0 || lanes[place - 1].machine !== lane.machine)) {
        pen.fillStyle = tones.text;
        pen.fillText(machines[lane.machine], 0, yOf[place] - 6);
      }
    });
    const [from, to] = view;
    const scale = width / (to - from);
    const late = [];
    const block = (bar) => {
      const start = bars.start_ms[bar];
      const length = bars.duration_us[bar] / 1000;
      if (start > to || start + length < from) return;
      const x = (start - from) * scale;
      const wide = Math.max(1.5, length * scale - 0.7);
      pen.fillStyle = tones[words[bars.word[bar]]] || tones.accent;
      pen.globalAlpha = marked >= 0 && bars.test[bar] !== marked ? 0.45 : 0.9;
      pen.beginPath();
      if (wide > 6) pen.roundRect(x, yOf[placeOf[bar]], wide, thick, 3); else pen.rect(x, yOf[placeOf[bar]], wide, thick);
      pen.fill();
      if (wide > 46 && thick >= 12) {
        pen.globalAlpha = 1;
        pen.save();
        pen.beginPath(); pen.rect(Math.max(0, x), yOf[placeOf[bar]], Math.min(wide, width - x) - 4, thick); pen.clip();
        pen.fillStyle = root.dataset.theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches) ? "#0f1216" : "#ffffff";
        pen.fillText(tests.name[bars.test[bar]], Math.max(0, x) + 6, yOf[placeOf[bar]] + thick / 2 + 4);
        pen.restore();
      }
    };
    for (let bar = 0; bar < bars.test.length; bar += 1) if (words[bars.word[bar]] === "passed") block(bar); else late.push(bar);
    // What did not pass is never hidden behind what did.
    late.forEach(block);
    pen.globalAlpha = 1;
  }
  function curve(values) {
    const BUCKETS = 400;
    const sums = new Float64Array(BUCKETS);
    const [from, to] = view;
    const width = (to - from) / BUCKETS;
    const last = new Map();
    for (let bar = 0; bar < bars.test.length; bar += 1) last.set(bars.test[bar], bar);
    for (const [test, bar] of last) {
      const length = Math.max(bars.duration_us[bar] / 1000, 0.01);
      const value = values(test, length);
      if (!value) continue;
      const start = bars.start_ms[bar] - from;
      const end = start + length;
      const first = Math.max(0, Math.floor(start / width));
      const final = Math.min(BUCKETS - 1, Math.floor(end / width));
      for (let bucket = first; bucket <= final; bucket += 1) {
        const part = Math.min(end, (bucket + 1) * width) - Math.max(start, bucket * width);
        if (part > 0) sums[bucket] += (value * part) / width;
      }
    }
    return sums;
  }
  function drawCurve(id, label, sums, tone, text) {
    const HEIGHT = 86;
    const { pen, width } = surface(id, HEIGHT);
    let most = 0;
    for (const sum of sums) most = Math.max(most, sum);
    ticks(pen, width, HEIGHT, false);
    $(label).textContent = most > 0 ? `at most ${text(most)}` : "not known";
    if (!most) return;
    const x = (bucket) => (bucket / (sums.length - 1)) * width;
    const y = (sum) => HEIGHT - 2 - (sum / most) * (HEIGHT - 8);
    pen.beginPath();
    pen.moveTo(0, HEIGHT);
    sums.forEach((sum, bucket) => pen.lineTo(x(bucket), y(sum)));
    pen.lineTo(width, HEIGHT);
    pen.closePath();
    pen.fillStyle = tone; pen.globalAlpha = 0.16; pen.fill(); pen.globalAlpha = 1;
    pen.beginPath();
    sums.forEach((sum, bucket) => (bucket ? pen.lineTo(x(bucket), y(sum)) : pen.moveTo(x(bucket), y(sum))));
    pen.strokeStyle = tone; pen.lineWidth = 1.5; pen.stroke();
  }
  function draw() {
    drawLanes();
    drawCurve("cpu-canvas", "cpu-most", curve((test, length) => tests.cpu_us[test] / 1000 / length), tones.accent, (most) => most.toFixed(most < 10 ? 1 : 0));
    drawCurve("memory-canvas", "memory-most", curve((test) => tests.memory[test]), tones["infrastructure-error"], size);
  }
  function barAt(event) {
    const box = $("lanes-canvas").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const time = view[0] + (x / box.width) * (view[1] - view[0]);
    const slack = (3 / box.width) * (view[1] - view[0]);
    let found = -1;
    for (let bar = 0; bar < bars.test.length; bar += 1) {
      const top = yOf[placeOf[bar]];
      if (y < top || y > top + thick + 1) continue;
      const off = Math.max(bars.start_ms[bar] - time, time - bars.start_ms[bar] - bars.duration_us[bar] / 1000, 0);
      if (off <= slack && (found < 0 || words[bars.word[bar]] !== "passed")) found = bar;
    }
    return { bar: found, time };
  }
  function attendTimeline() {
    const canvas = $("lanes-canvas");
    let pressed = null;
    canvas.addEventListener("pointerdown", (event) => { pressed = barAt(event).time; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      const { bar, time } = barAt(event);
      const tip = $("tip");
      if (pressed !== null && Math.abs(time - pressed) > (view[1] - view[0]) / 100) {
        drawLanes();
        const pen = canvas.getContext("2d");
        const x = (at) => ((at - view[0]) / (view[1] - view[0])) * canvas.clientWidth;
        pen.fillStyle = tones.accent; pen.globalAlpha = 0.15;
        pen.fillRect(Math.min(x(pressed), x(time)), 0, Math.abs(x(time) - x(pressed)), drawnHeight);
        pen.globalAlpha = 1;
      }
      tip.hidden = bar < 0;
      if (bar < 0) return;
      const test = bars.test[bar];
      tip.replaceChildren(make("b", "", `${suites[tests.suite[test]]}::${tests.name[test]}`), `${words[bars.word[bar]].replace("-", " ")} in ${span(bars.duration_us[bar])}, worker ${bars.lane[bar]} on ${machines[bars.machine[bar]]}`);
      tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
    });
    canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
    canvas.addEventListener("pointerup", (event) => {
      const { bar, time } = barAt(event);
      const from = pressed;
      pressed = null;
      if (from !== null && Math.abs(time - from) > (view[1] - view[0]) / 100) {
        view = [Math.max(0, Math.min(from, time)), Math.min(longest, Math.max(from, time))];
        $("unzoom").hidden = false;
        draw();
      } else if (bar >= 0) choose(bars.test[bar], true);
    });
    const whole = () => { view = [0, longest]; $("unzoom").hidden = true; draw(); };
    canvas.addEventListener("dblclick", whole);
    $("unzoom").addEventListener("click", whole);
    const used = [...new Set(bars.word)].sort((a, b) => rank[a] - rank[b]);
    $("legend").append(...used.map((word) => make("span", `tone-${words[word]}`, words[word].replace("-", " "))));
    $("lanes").textContent = `${many(machines.length, "machine", "machines")}, ${many(lanes.length, "worker", "workers")}`;
  }

  // ---- the list -------------------------------------------------------------------------------------------------
  const ROW = 34;
  const lower = tests.name.map((name, test) => `${suites[tests.suite[test]]}::${name}`.toLowerCase());
  const lowerSuites = suites.map((suite) => suite.toLowerCase());
  const chosen = new Set();
  let shown = [];
  let open = -1;
  const matchers = {
    suite: (value) => (test) => lowerSuites[tests.suite[test]].includes(value),
    tag: (value) => (test) => ((details[test] || {}).tags || []).some((tag) => tag.toLowerCase() === value),
    owner: (value) => (test) => ((details[test] || {}).owner || "").toLowerCase().includes(value),
    result: (value) => (test) => wordOf(test).startsWith(value),
    status: (value) => (test) => wordOf(test).startsWith(value),
  };
  function matcherOf(text) {
    const all = text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
      const colon = word.indexOf(":");
      const key = colon > 0 && word[colon + 1] !== ":" ? word.slice(0, colon) : "";
      if (Object.hasOwn(matchers, key)) return matchers[key](word.slice(colon + 1));
      if (word[0] === "-" && word.length > 1) return (test) => !lower[test].includes(word.slice(1));
      return (test) => lower[test].includes(word);
    });
    return (test) => all.every((match) => match(test));
  }
  const orders = {
    worst: (a, b) => rank[tests.word[a]] - rank[tests.word[b]] || a - b,
    slow: (a, b) => tests.duration_us[b] - tests.duration_us[a] || a - b,
    name: (a, b) => (lower[a] < lower[b] ? -1 : lower[a] > lower[b] ? 1 : a - b),
    plan: (a, b) => a - b,
  };
  const sorted = {};
  function inOrder(order) {
    sorted[order] = sorted[order] || Array.from({ length: count }, (_, test) => test).sort(orders[order]);
    return sorted[order];
  }
  let slowest = 1;
  for (const took of tests.duration_us) slowest = Math.max(slowest, took);

  function apply() {
    const begun = performance.now();
    const match = matcherOf($("filter").value);
    shown = inOrder($("order").value).filter((test) => (!chosen.size || chosen.has(wordOf(test))) && match(test));
    $("matches").textContent = shown.length === count ? count.toLocaleString("en") : `${shown.length.toLocaleString("en")} of ${count.toLocaleString("en")}`;
    for (const chip of $("chips").children) chip.setAttribute("aria-pressed", String(chosen.has(chip.dataset.word)));
    $("all").style.height = `${shown.length * ROW}px`;
    $("list").scrollTop = 0;
    first = -1;
    rows();
    // Asking for the layout makes the browser do all of it before the clock is read.
    root.dataset.height = String($("all").offsetHeight);
    root.dataset.filterMs = (performance.now() - begun).toFixed(2);
    root.dataset.matches = String(shown.length);
  }
  let first = -1;
  function rows() {
    const list = $("list");
    const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
    if (from === first) return;
    first = from;
    const until = Math.min(shown.length, from + Math.ceil(list.clientHeight / ROW) + 12);
    const made = [];
    for (let place = from; place < until; place += 1) {
      const test = shown[place];
      const row = make("div", `row tone-${wordOf(test)}${test === open ? " chosen" : ""}`);
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(test === open));
      row.dataset.test = test;
      row.append(make("span", "dot"), nameOf(test));
      if (tests.attempts[test] > 1) row.append(make("span", "again", `${tests.attempts[test]} attempts`));
      if (wordOf(test) !== "passed") row.append(badge(test));
      const share = make("span", "share");
      const part = make("i");
      part.style.width = `${(100 * tests.duration_us[test]) / slowest}%`;
      share.append(part);
      row.append(share, make("span", "value", span(tests.duration_us[test])));
      made.push(row);
    }
    if (!shown.length) made.push(make("p", "empty", "no test matches"));
    $("rows").style.transform = `translateY(${from * ROW}px)`;
    $("rows").replaceChildren(...made);
    root.dataset.rows = String(made.length);
  }
  function choose(test, scroll) {
    open = test;
    marked = test;
    const panel = $("details");
    $("split").classList.toggle("open", test >= 0);
    panel.hidden = test < 0;
    if (test >= 0) {
      const close = make("button", "close", "✕");
      close.setAttribute("aria-label", "Close");
      close.addEventListener("click", () => choose(-1, false));
      const about = details[test] || {};
      panel.replaceChildren(close, make("h3", "", tests.name[test]), badge(test));
      if (about.detail) panel.append(make("span", "", ` ${about.detail}`));
      panel.append(facts(test), ...logs(test));
      panel.scrollTop = 0;
      const place = shown.indexOf(test);
      if (scroll) {
        if (place >= 0) $("list").scrollTop = Math.max(0, place * ROW - 120);
        $("tests").scrollIntoView({ block: "nearest" });
      }
    }
    first = -1;
    rows();
    drawLanes();
  }
  function attendList() {
    for (const word of ORDER.filter((one) => totals[one])) {
      const chip = make("button", `chip tone-${word}`, `${said(word)} ${totals[word].toLocaleString("en")}`);
      chip.type = "button";
      chip.dataset.word = word;
      chip.addEventListener("click", () => { if (!chosen.delete(word)) chosen.add(word); apply(); });
      $("chips").append(chip);
    }
    let due = 0;
    $("filter").addEventListener("input", () => { cancelAnimationFrame(due); due = requestAnimationFrame(apply); });
    $("order").addEventListener("change", apply);
    $("list").addEventListener("scroll", rows, { passive: true });
    $("list").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) choose(Number(row.dataset.test), false);
    });
    $("list").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
      if (event.key === "Escape") choose(-1, false);
      if (!step || !shown.length) return;
      event.preventDefault();
      const place = Math.min(shown.length - 1, Math.max(0, shown.indexOf(open) + step));
      choose(shown[place], true);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && document.activeElement !== $("filter")) { event.preventDefault(); $("filter").focus(); }
      if (event.key === "Escape" && open >= 0) choose(-1, false);
    });
  }

  paint();
  showSummary();
  attendList();
  showFailures();
  attendTimeline();
  ranking("slowest", top(8, (test) => tests.duration_us[test] > 0, (test) => tests.duration_us[test]), (test) => ({ number: tests.duration_us[test], text: span(tests.duration_us[test]) }), () => "plain", "nothing ran");
  ranking("flakiest", top(8, (test) => tests.attempts[test] > 1, (test) => tests.attempts[test]), (test) => ({ number: tests.attempts[test], text: `${tests.attempts[test]} attempts, ${wordOf(test).replace("-", " ")}` }), wordOf, "each test had one result at its first attempt");
  $("filter").value = asked.get("filter") || "";
  if (Object.hasOwn(orders, asked.get("order") || "")) $("order").value = asked.get("order");
  for (const word of (asked.get("result") || "").split(",")) if (totals[word]) chosen.add(word);
  apply();
  draw();
  if (asked.has("test")) {
    const test = lower.indexOf(asked.get("test").toLowerCase());
    if (test >= 0) choose(test, true);
  }
  let resized = 0;
  addEventListener("resize", () => { cancelAnimationFrame(resized); resized = requestAnimationFrame(() => { draw(); first = -1; rows(); }); });
  root.dataset.readyMs = performance.now().toFixed(1);
})();
