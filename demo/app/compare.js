// Which of two pictures is better: asks the API for pairs and sends votes, each with a token, so that what is
// sent twice counts once. Nothing is chosen before both pictures are seen.
const find = (query) => element.querySelector(query);
const all = (query) => [...element.querySelectorAll(query)];
const SEEN_MS = 250; // the second half of a double click is not meant for the next pair
const TRIES = 40; // about three minutes, in which a server starts again
let pair = null, token = "", shownAt = 0, busy = false, asking = 0;

const newToken = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, "0")).join("");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const say = (words) => { find(".da-status").textContent = words; };
const query = () => `mode=${find(".da-mode").value}&choose=${find(".da-how").value}`;

async function send(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, body ? post : {});
  const told = await answer.json().catch(() => null);
  if (answer.ok) return told;
  const words = typeof told?.detail === "string" ? told.detail : "the app did not understand this request.";
  throw Object.assign(new Error(words), { status: answer.status });
}

async function insist(path, body) {
  for (let n = 1; ; n++) {
    try { return await send(path, body); } catch (error) {
      const again = error.status === undefined || error.status === 429 || error.status === 503;
      if (!again || n === TRIES) throw error;
      say(error.status ? error.message : "The app cannot be reached; trying again …");
      await pause(Math.min(5000, 400 * 2 ** n));
    }
  }
}

function enable(on) {
  busy = !on;
  for (const button of [...all("[data-choice]"), find(".da-skip")]) button.disabled = !on;
}

function count(told) {
  const waits = told.waits ? ` · the training waits for ${told.waits} more` : "";
  find(".da-count").textContent = `${told.votes} vote${told.votes === 1 ? "" : "s"} in · ${told.worth} worth having${waits}`;
  find("progress").value = Math.min(100, (100 * told.votes) / told.worth);
}

async function show(told) {
  const images = all(".da-side img");
  for (const [n, image] of images.entries()) {
    image.src = `/api/picture/${told.pictures[n]}`;
    image.alt = `${"AB"[n]}: ${told.prompt}`;
  }
  await Promise.all(images.map((image) => image.decode()));
  images.forEach((image) => { image.hidden = false; });
  all(".da-side").forEach((side) => side.classList.remove("chosen"));
  find(".da-what").textContent = told.prompt;
  pair = told; token = newToken(); shownAt = performance.now();
  element.querySelector(".da-compare").dataset.showing = told.showing;
  count(told);
  say(told.again ? "Your last vote was taken back: choose again." : "");
  enable(true);
}

async function next() {
  const mine = ++asking;
  enable(false);
  try {
    const told = await insist(`/api/pair?${query()}`);
    if (mine === asking) await show(told);
  } catch (error) {
    if (mine !== asking) return;
    pair = null;
    say(`${error.message || "A picture could not be shown."} Change “What for”, or reload the page to try again.`);
  }
}

async function vote(choice) {
  if (busy || !pair || performance.now() - shownAt < SEEN_MS) return;
  enable(false);
  const seconds = (performance.now() - shownAt) / 1000;
  all(".da-side").forEach((side) => side.classList.toggle("chosen", side.dataset.choice === choice));
  await settle(() => insist("/api/vote", { showing: pair.showing, choice, seconds, token }));
}

async function settle(request) {
  try {
    await request();
    await next();
  } catch (error) {
    if (error.status === 409) { await next(); say(error.message); return; }
    say(`Not saved: ${error.message} Choose again to retry; nothing else is lost.`);
    enable(true);
  }
}

function skip() {
  if (!busy && pair) { enable(false); settle(() => insist("/api/skip", { showing: pair.showing })); }
}

async function undo() {
  if (busy && pair) return;
  enable(false);
  try {
    const told = await insist("/api/undo", { token: newToken() });
    await next();
    if (told.showing === null) say("There is no vote of yours to take back.");
  } catch (error) { say(error.message); enable(Boolean(pair)); }
}

async function ask(event) {
  event.preventDefault();
  const input = find(".da-own input");
  const [mode, choose] = [find(".da-mode").value, find(".da-how").value];
  try {
    await insist("/api/prompt", { prompt: input.value, mode, choose });
    input.value = "";
    say("Drawing your prompt …");
    input.blur();
    await next();
  } catch (error) { say(error.message); }
}

const KEYS = { ArrowLeft: "a", ArrowRight: "b", ArrowDown: "tie", ArrowUp: "both_bad" };
function key(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", key);
  const typing = event.target.closest?.("input, textarea, select, summary, [contenteditable], [role=tab], [role=slider]");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !element.offsetParent) return;
  if (KEYS[event.key]) { event.preventDefault(); vote(KEYS[event.key]); }
  else if (event.key === "z") undo();
}

all("[data-choice]").forEach((button) => button.addEventListener("click", () => vote(button.dataset.choice)));
find(".da-skip").addEventListener("click", skip);
find(".da-undo").addEventListener("click", undo);
find(".da-own").addEventListener("submit", ask);
all(".da-settings select").forEach((choice) => choice.addEventListener("change", () => { choice.blur(); next(); }));
document.addEventListener("keydown", key);
next();
