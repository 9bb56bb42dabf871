"use strict";
// Shows a run as its coordinator tells it: an update with each change, everything else when it
// is other than before. All text is set as text.

const POLL = 5000;
const $ = (id) => document.getElementById(id);
const { number, percent } = Plots;
const COLUMNS = ["step", "loss", "loss_min", "loss_max", "top1", "lr", "images_per_second", "data_wait", "others_wait"];
const SIGNS = {
  start: "▶", joined: "+", left: "−", lost: "✕", "left-out": "⏸", relayed: "⇄", generation: "◆", recovered: "✓", "went-back": "↩", revoked: "⊘",
  data: "!", finished: "■", failed: "✕",
};
const STATES = {
  waiting: "… waiting for workers", training: "▶ training", finished: "■ finished", failed: "✕ failed",
  unfinished: "‖ its record has no end",
};

let runs = [];
let mayAct = false;
let shown = 0;
let comparing = false;
let source = null;
let timer = 0;
let heard = 0;
let allEvents = false;
const run = { status: null, curve: null, facts: null, configured: false };
let plots = null;

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// Changes text only where it differs, so that a selection or a reader is not disturbed.
function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

async function ask(path, id = shown) {
  const answer = await fetch(`${path}?run=${id}`, { cache: "no-store", signal: AbortSignal.timeout(15000) });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
  return path.endsWith(".json") ? answer.json() : answer.text();
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 10) return seconds.toFixed(seconds < 1 ? 2 : 1) + " s";
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return (seconds / 3600).toFixed(1) + " h";
  return (seconds / 86400).toFixed(1) + " days";
}

function moment(unix) {
  const date = new Date(1000 * unix);
  const pad = (n) => String(n).padStart(2, "0");
  const day = (of) => `${of.getFullYear()}-${pad(of.getMonth() + 1)}-${pad(of.getDate())}`;
  const today = day(date) === day(new Date());
  return `${today ? "" : day(date) + " "}${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

// ---- one run

function show() {
  const status = run.status;
  if (!status) return;
  say($("name"), status.name);
  say($("state"), STATES[status.state]);
  $("state").className = "state " + status.state;
  document.title = `${Math.floor((100 * status.step) / Math.max(1, status.steps))} % ${status.name} – Ringleader`;
  const bad = status.state === "failed";
  $("notice").hidden = !bad;
  $("notice").classList.toggle("bad", bad);
  if (bad) say($("notice"), `The run failed: ${status.reason}`);
  $("progress").max = Math.max(1, status.steps);
  $("progress").value = status.step;
  const left = status.seconds_left === null ? "" : `, about ${duration(status.seconds_left)} left`;
  say($("position"), `Step ${status.step.toLocaleString("en")} of ${status.steps.toLocaleString("en")}, epoch ${status.epoch} of ${status.epochs}${left}`);
  const t = status.training ?? {};
  const e = status.evaluation;
  figures([
    ["Training loss", number(t.loss, 4)], ["Training top-1", percent(t.top1)],
    ["Validation top-1", e ? percent(e.top1) : "–"], ["Validation top-5", e ? percent(e.top5) : "–"],
    ["Images/s", number(t.images_per_second)], ["Step", t.step_seconds == null ? "–" : duration(t.step_seconds)],
    ["Learning rate", number(t.learning_rate)], ["Gradient norm", number(t.gradient_norm)],
    ["Ring", status.generation ? `generation ${status.generation}` : "–"], ["Losses survived", String(status.recoveries)],
  ]);
  workers(status.workers, status.state);
  const n = status.skipped_samples;
  say($("skipped-count"), n === 0 ? "None." : `${n.toLocaleString("en")} left out, because they do not decode. The newest:`);
  say($("directory"), `Run directory: ${status.directory}`);
}

function figures(pairs) {
  const list = $("figures");
  if (list.children.length !== pairs.length) {
    list.replaceChildren(...pairs.map(() => {
      const pair = element("div");
      pair.append(element("dt"), element("dd"));
      return pair;
    }));
  }
  pairs.forEach(([name, value], at) => {
    say(list.children[at].children[0], name);
    say(list.children[at].children[1], value);
  });
}

function workers(list, state) {
  const body = $("worker-rows");
  const names = list.map((w) => w.name).join() + mayAct + state;
  if (body.dataset.names !== names) {
    body.dataset.names = names;
    body.replaceChildren(...list.map((worker) => row(worker, state)));
    if (list.length === 0) {
      const none = element("tr");
      const cell = element("td", "No ring yet.");
      cell.colSpan = 8;
      none.append(cell);
      body.append(none);
    }
  }
  list.forEach((worker, at) => {
    const cells = body.children[at].children;
    say(cells[1].children[0], worker.name);
    say(cells[1].children[1], worker.slow ? " ◀ the slow one" : "");
    say(cells[2], [worker.machine, worker.device].filter(Boolean).join(", "));
    say(cells[3], String(worker.shards));
    say(cells[4], worker.step.toLocaleString("en"));
    say(cells[5], number(worker.images_per_second));
    const shares = worker.shares;
    const parts = shares ? [shares.computing, shares.data, shares.others] : [0, 0, 0];
    const [bars, words] = cells[6].children;
    parts.forEach((share, n) => { bars.children[n].style.width = 100 * share + "%"; });
    say(words, shares ? `computing ${pct(parts[0])}, data ${pct(parts[1])}, others ${pct(parts[2])}` : "not known yet");
  });
}

const pct = (share) => Math.round(100 * share) + " %";

function row(worker, state) {
  const made = element("tr");
  const cell = (kind, name) => {
    const td = element("td", undefined, kind);
    if (name) td.dataset.name = name;
    made.append(td);
    return td;
  };
  cell("n", "rank").append(String(worker.rank));
  cell("").append(element("strong"), element("span", "", "slow"));
  cell("machine place");
  cell("n", "shards");
  cell("n", "step");
  cell("n", "images/s");
  const bars = element("div", undefined, "times");
  bars.setAttribute("aria-hidden", "true");
  bars.append(element("span", undefined, "computing"), element("span", undefined, "data"), element("span", undefined, "others"));
  cell("time").append(bars, element("p"));
  const act = cell("act");
  if (mayAct && state === "training") {
    const leave = element("button", "Leave…");
    leave.type = "button";
    leave.setAttribute("aria-label", `Have ${worker.name} leave`);
    leave.addEventListener("click", () => haveLeave(worker.name));
    act.append(leave);
  }
  return made;
}

function curves() {
  const { curve, facts } = run;
  if (!curve || !facts) return;
  if (!plots) {
    plots = {
      loss: Plots.create($("plots"), "Loss", [
        { label: "least of a point", band: true }, { label: "largest of a point", band: true },
        { label: "training", style: 0 }, { label: "validation", style: 1, points: true }], { bands: [[2, 1]] }),
      accuracy: Plots.create($("plots"), "Accuracy", [
        { label: "training top-1", style: 0 }, { label: "validation top-1", style: 1, points: true },
        { label: "validation top-5", style: 2, points: true }], { percent: true }),
      speed: Plots.create($("plots"), "Images per second", [{ label: "all workers", style: 0 }]),
      waits: Plots.create($("plots"), "Time that rank 0 waits", [
        { label: "for data", style: 0 }, { label: "for others", style: 1 }], { percent: true }),
    };
  }
  const c = curve, e = facts.evaluations;
  const join = (left, right) => (e.step.length ? uPlot.join([left, right]) : [...left, ...right.slice(1).map(() => left[0].map(() => null))]);
  // A point that stands for a single step has no range.
  const range = (column) => (c.stride > 1 ? column : column.map(() => null));
  Plots.draw(plots.loss, join([c.step, range(c.loss_min), range(c.loss_max), c.loss], [e.step, e.loss]));
  Plots.draw(plots.accuracy, join([c.step, c.top1], [e.step, e.top1, e.top5]));
  Plots.draw(plots.speed, [c.step, c.images_per_second]);
  Plots.draw(plots.waits, [c.step, c.data_wait, c.others_wait]);
}

function facts() {
  const { events, checkpoints, skipped } = run.facts;
  const newest = [...events].reverse();
  const some = allEvents ? newest : newest.slice(0, 12);
  $("timeline").replaceChildren(...some.map((event) => {
    const item = element("li");
    const time = element("time", moment(event.unix_seconds));
    time.dateTime = new Date(1000 * event.unix_seconds).toISOString();
    item.append(time, element("span", `${SIGNS[event.kind] ?? "·"} ${event.kind}`, "kind " + event.kind), element("span", event.text, "what"),
      element("span", event.seconds === undefined ? "" : duration(event.seconds), "took"));
    return item;
  }));
  $("all-events").hidden = allEvents || newest.length <= some.length;
  say($("all-events"), `Show all ${newest.length}`);
  const stored = [...checkpoints].reverse().map((c) =>
    element("li", `step ${c.step.toLocaleString("en")}, ${moment(c.unix_seconds)}${c.kept ? "" : " (no longer kept)"}`));
  $("checkpoints").replaceChildren(...(stored.length ? stored : [element("li", "None yet.")]));
  $("skipped").replaceChildren(...[...skipped].reverse().slice(0, 20).map((s) => element("li", `${s.sample}: ${s.problem} (step ${s.step})`)));
  predictions();
}

// What the newest evaluation says of a few pictures. A picture that stays is not loaded again.
function predictions() {
  const newest = run.facts.predictions;
  $("predictions").hidden = !newest;
  if (!newest) return;
  const { step, pictures } = newest;
  const right = pictures.filter((p) => p.right).length;
  say($("predictions-when"), `After step ${step.toLocaleString("en")}: ${right} of ${pictures.length} right. Each evaluation shows the same pictures.`);
  const list = $("predictions-list");
  const names = [shown, ...pictures.map((p) => p.picture)].join();
  if (list.dataset.names === names && list.dataset.step === String(step)) return;
  list.dataset.step = step;
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    list.replaceChildren(...pictures.map((p) => {
      const made = element("li");
      const img = element("img");
      img.loading = "lazy";
      img.decoding = "async";
      img.width = img.height = 96;
      img.alt = `A validation picture of class ${p.class}`;
      img.addEventListener("load", () => img.classList.toggle("small", img.naturalWidth < 64));
      img.src = `/picture.png?run=${shown}&picture=${p.picture}`;
      const said = element("div");
      said.append(element("p", undefined, "verdict"), element("p"), element("ol"));
      made.append(img, said);
      return made;
    }));
  }
  pictures.forEach((p, at) => {
    const [verdict, truth, guesses] = list.children[at].children[1].children;
    verdict.className = `verdict ${p.right ? "right" : "wrong"}`;
    say(verdict, p.right ? "✓ right" : "✕ wrong");
    say(truth, `Class: ${p.class}`);
    guesses.replaceChildren(...p.guesses.map((g) => element("li", `${g.class} ${percent(g.probability)}`)));
  });
}

// Takes in an update. What it does not hold is asked for.
async function take(update) {
  heard = Date.now();
  run.status = update.status;
  show();
  const id = shown;
  const { curve } = run;
  const fits = curve && update.curve.revision === curve.revision && update.curve.from <= curve.step.length;
  let drawn = false;
  if (fits) {
    if (update.curve.step.length) {
      for (const name of COLUMNS) curve[name].splice(update.curve.from, Infinity, ...update.curve[name]);
      drawn = true;
    }
  } else {
    const asked = await ask("/curve.json");
    if (id !== shown) return;
    run.curve = asked;
    drawn = true;
  }
  if (!run.facts || run.facts.facts !== update.facts) {
    const asked = await ask("/facts.json");
    if (id !== shown) return;
    run.facts = asked;
    facts();
    drawn = true;
  }
  if (drawn) curves();
}

// ---- hearing of changes

function connected(how) {
  $("connection").classList.remove("lost");
  say($("connection"), how);
}

function lost(problem) {
  const final = run.status && ["finished", "failed"].includes(run.status.state);
  $("connection").classList.toggle("lost", !final);
  const last = heard ? `; last heard at ${moment(heard / 1000)}` : "";
  say($("connection"), final ? "the coordinator has ended: this is how the run ended" : `no connection (${problem})${last}`);
}

function follow() {
  source?.close();
  clearTimeout(timer);
  if (comparing) return poll();
  source = new EventSource(`/events?run=${shown}`);
  source.addEventListener("message", (event) => {
    connected("● live");
    take(JSON.parse(event.data)).catch((e) => lost(e.message));
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) {
      // Too many readers, or no coordinator: ask now and then instead.
      source.close();
      poll();
    } else {
      lost("trying again");
    }
  });
}

async function poll() {
  clearTimeout(timer);
  try {
    if (comparing) {
      await compare();
    } else {
      const [status, curve, now] = await Promise.all([ask("/status.json"), ask("/curve.json"), ask("/facts.json")]);
      Object.assign(run, { status, curve, facts: now });
      heard = Date.now();
      show();
      facts();
      curves();
    }
    connected(`● asks every ${POLL / 1000} s`);
  } catch (e) {
    lost(e.message);
  }
  timer = setTimeout(poll, POLL);
}

// ---- several runs

let compared = null;

async function compare() {
  const all = await Promise.all(runs.map(async ({ id }) => {
    const [status, curve, now] = await Promise.all([ask("/status.json", id), ask("/curve.json", id), ask("/facts.json", id)]);
    return { status, curve, facts: now };
  }));
  heard = Date.now();
  say($("name"), "Runs compared");
  say($("state"), `${all.length} runs`);
  document.title = "Runs compared – Ringleader";
  $("compare-rows").replaceChildren(...all.map(({ status, facts: { evaluations } }, at) => {
    const made = element("tr");
    const best = evaluations.top1.reduce((a, b) => (b !== null && b > a ? b : a), -1);
    const cells = [title(at), STATES[status.state], status.step.toLocaleString("en"), number(status.training?.loss, 4),
      number(status.evaluation?.loss, 4), percent(status.evaluation?.top1), best < 0 ? "–" : percent(best),
      number(status.training?.images_per_second), String(status.workers.length)];
    made.append(...cells.map((text, n) => element(n === 0 ? "th" : "td", text, n > 1 ? "n" : "")));
    made.children[0].scope = "row";
    return made;
  }));
  if (!compared) {
    const lines = (points) => runs.map((r, at) => ({ label: title(at), style: at, points }));
    compared = [
      [Plots.create($("compare-plots"), "Training loss", lines(false)), (r) => [r.curve.step, r.curve.loss]],
      [Plots.create($("compare-plots"), "Validation top-1", lines(true), { percent: true }), (r) => [r.facts.evaluations.step, r.facts.evaluations.top1]],
      [Plots.create($("compare-plots"), "Validation loss", lines(true)), (r) => [r.facts.evaluations.step, r.facts.evaluations.loss]],
      [Plots.create($("compare-plots"), "Images per second", lines(false)), (r) => [r.curve.step, r.curve.images_per_second]],
    ];
  }
  for (const [plot, of] of compared) Plots.draw(plot, uPlot.join(all.map(of)));
}

// Runs of one name are told apart by their directories.
function title(at) {
  const { name, directory } = runs[at];
  return runs.filter((r) => r.name === name).length > 1 ? directory : name;
}

function choose(id, together) {
  shown = id;
  comparing = together;
  Object.assign(run, { status: null, curve: null, facts: null, configured: false });
  $("one").hidden = together;
  $("compare").hidden = !together;
  $("notice").hidden = true;
  $("state").className = "state";
  $("config").open = false;
  for (const button of $("runs").children) button.setAttribute("aria-pressed", String(button.dataset.id === (together ? "all" : String(id))));
  follow();
}

function menu() {
  if (runs.length < 2) return;
  const button = (text, id, together) => {
    const made = element("button", text);
    made.type = "button";
    made.dataset.id = together ? "all" : String(id);
    made.addEventListener("click", () => choose(id, together));
    return made;
  };
  $("runs").replaceChildren(button("All, compared", 0, true), ...runs.map((r, at) => button(title(at), r.id, false)));
  $("runs").hidden = false;
}

// ---- acting

function dialog(head, text, { yes, line } = {}) {
  say($("dialog-head"), head);
  say($("dialog-text"), text);
  $("dialog-line").hidden = $("dialog-copy").hidden = !line;
  say($("dialog-line"), line ?? "");
  $("dialog-yes").hidden = !yes;
  say($("dialog-yes"), yes ?? "");
  say($("dialog-no"), yes ? "Cancel" : "Close");
  say($("dialog-copy"), "Copy");
  return new Promise((resolve) => {
    $("dialog").addEventListener("close", () => resolve($("dialog").returnValue === "yes"), { once: true });
    $("dialog").returnValue = "";
    $("dialog").showModal();
  });
}

async function act(path, body) {
  try {
    const answer = await fetch(path, { method: "POST", body: JSON.stringify(body ?? {}), headers: { "content-type": "application/json" } });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    return await answer.json();
  } catch (e) {
    await dialog("That did not work", e.message);
    return null;
  }
}

async function haveLeave(worker) {
  const text = "It leaves after the step in flight, and the others go on with its shards. The last worker takes a checkpoint first and ends the run.";
  if (!(await dialog(`Have ${worker} leave?`, text, { yes: "Have it leave" }))) return;
  const done = await act("/leave", { worker });
  if (done) await dialog("Done", done.said);
}

$("stop").addEventListener("click", async () => {
  const text = "It ends after the step in flight with a checkpoint, and --resume goes on from there.";
  if (!(await dialog("Stop the run?", text, { yes: "Stop the run" }))) return;
  const done = await act("/stop");
  if (done) await dialog("Done", done.said);
});

$("invite").addEventListener("click", async () => {
  const text = "A token is made that admits workers to this run for 24 hours. Whoever has it gets data and weights.";
  if (!(await dialog("Let another worker join?", text, { yes: "Make a token" }))) return;
  const done = await act("/token");
  if (done) await dialog("Join line", done.said, { line: done.join });
});

$("dialog-copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("dialog-line").textContent);
    say($("dialog-copy"), "Copied");
  } catch {
    getSelection().selectAllChildren($("dialog-line"));
    say($("dialog-copy"), "Selected");
  }
});

$("all-events").addEventListener("click", () => {
  allEvents = true;
  facts();
  $("timeline").tabIndex = -1;
  $("timeline").focus();
});

$("config").addEventListener("toggle", async () => {
  if (!$("config").open || run.configured) return;
  try {
    say($("config-text"), await ask("/config.toml"));
    run.configured = true;
  } catch (e) {
    say($("config-text"), e.message);
  }
});

// ---- start

async function start() {
  try {
    const found = await ask("/runs.json");
    runs = found.runs;
    mayAct = found.may_act;
    $("actions").hidden = !mayAct;
    if (found.live && !mayAct) {
      $("one").append(element("p", "To stop the run or to have a worker leave, open the address that the coordinator printed: it holds the token.", "quiet"));
    }
    menu();
    choose(0, runs.length > 1);
  } catch (e) {
    lost(e.message);
    timer = setTimeout(start, POLL);
  }
}

start();
