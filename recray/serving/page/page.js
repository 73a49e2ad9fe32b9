// The page: a visitor rates films, or looks at a user of the data; lists come from /v1. Where the
// model reads the order of a history, films are clicked in a row and the list is what comes next.
// No library. Text enters the document as text nodes only.

const $ = (id) => document.getElementById(id);
const K = 10;
const BEGIN = 6; // films offered to somebody who has rated nothing
const ENOUGH = 5; // ratings from which those are no longer offered

const state = {
  models: [], // what GET /v1/models says, the first one in charge
  scale: [1, 5],
  ratings: new Map(), // item -> {film, stars}, newest last
  inOrder: false, // whether the model reads the order: films are clicked, and have no stars
  saveAs: null, // the id under which ratings are sent to the log; null sends none
  mode: "you",
  user: null,
  genres: new Set(),
  key: sessionStorage.getItem("recray-key") || "",
};
const links = new Map(); // item -> {imdb, tmdb}
const running = {}; // one request at a time for each part of the page

// ------------------------------------------------------------------------------- elements

const there = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");

function h(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...there(children));
  return node;
}

const show = (id, visible = true) => { $(id).hidden = !visible; };
const fill = (place, ...children) => (typeof place === "string" ? $(place) : place).replaceChildren(...there(children));
const words = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const short = (number) => (Math.abs(number) >= 100 ? number.toFixed(0) : number.toFixed(4));

// As spoken() of recray/titles.py: articles in front, those of further titles in brackets too.
const ARTICLE = /(^|\()([^()]+), (the|a|an|le|la|les|l'|un|une|der|die|das|ein|eine|el|los|las|il|lo|gli|de|het|den|o|os)(?=\s*(?:\(|\)|$))/gi;
function titleOf(film) {
  const plain = film.title.replace(/\s*\(\d{4}\)\s*$/, "");
  return plain.replace(ARTICLE, (_, before, rest, article) => before + (article.endsWith("'") ? article : `${article} `) + rest.trim()) || film.title;
}

// -------------------------------------------------------------------------------- service

class Trouble extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

async function ask(part, path, body, tries = 2, method = body ? "POST" : "GET") {
  running[part]?.abort();
  const control = (running[part] = new AbortController());
  const headers = {};
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  if (body) headers["content-type"] = "application/json";
  const options = { headers, signal: control.signal, method, body: body && JSON.stringify(body) };
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(0, "away", "The service does not answer. It may be starting, or the network is down.");
  }
  const answer = await reply.json().catch(() => null);
  if (control.signal.aborted) throw new DOMException("newer request", "AbortError");
  if (reply.ok && answer) return answer;
  const { code = "http_error", message = `The service answered ${reply.status}.` } = answer?.error || {};
  if ((reply.status === 429 || reply.status === 503) && tries > 1) {
    const wait = Math.min(5, Number(reply.headers.get("retry-after")) || 1);
    await new Promise((later) => setTimeout(later, 1000 * wait));
    if (!control.signal.aborted) return ask(part, path, body, tries - 1, method);
    throw new DOMException("newer request", "AbortError");
  }
  throw new Trouble(reply.status, code, message);
}

/** Do something with the service; what goes wrong is shown at `place`, with a way on. */
async function attempt(place, work, again) {
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Trouble)) throw error;
    if (error.status === 401 || error.status === 403) return askForKey(error);
    if (place === "lists") {
      $("lists").className = "lists";
      $("said").textContent = "";
    }
    fill(place, trouble(error, again));
  }
}

function trouble(error, again) {
  const titles = { 0: "No connection", 404: "Not found", 429: "Too fast", 500: "Something broke", 503: "Busy", 504: "That took too long" };
  const text = error.status === 500 ? "That was not your doing. The service has written down what happened." : error.message;
  return h("div", { class: "trouble", role: "alert" },
    h("b", {}, titles[error.status] || "That did not work"),
    h("p", {}, text[0].toUpperCase() + text.slice(1)),
    again && h("button", { type: "button", class: "quiet", onclick: again }, "Try again"));
}

function askForKey(error) {
  show("door");
  show("sides", false);
  if (error.status === 403) $("door-text").textContent = "That key is not known here. Check that you copied all of it.";
  $("key").focus();
}

const ghosts = (n, kind = "") => Array.from({ length: n }, () => h("div", { class: `ghost ${kind}`, "aria-hidden": "true" }));

/** Skeletons where there is nothing yet; what is there already only fades. */
function waiting(place, n, kind) {
  const node = typeof place === "string" ? $(place) : place;
  if (!node.querySelector(".row, .pick")) fill(node, ghosts(n, kind));
  else node.classList.add("stale");
  return () => node.classList.remove("stale");
}

// ---------------------------------------------------------------------------------- stars

/** Whether a scale, its lowest and highest rating, is one of stars. */
const isOfStars = ([low, high]) => low !== high && low >= 0 && high <= 10;

function scale() {
  const [low, high] = state.scale;
  if (low === high) return { of: 1, step: 1, value: () => high, places: (value) => (value === null ? 0 : 1) };
  if (!isOfStars(state.scale)) { // five of them from end to end
    const value = (n) => low + ((n - 1) * (high - low)) / 4;
    return { of: 5, step: 1, value, places: (v) => (v === null ? 0 : 1 + (4 * (v - low)) / (high - low)) };
  }
  const step = low % 1 ? 0.5 : 1;
  return { of: Math.ceil(high), step, value: (n) => Math.max(low, n), places: (v) => v || 0 };
}

/** A rating in a sentence: a star follows it only where the scale is one of stars. */
const given = (value, digits = 2) => `${digits < 2 ? value.toFixed(digits) : Number(value.toFixed(digits))}${isOfStars(state.scale) ? "\u2009★" : ""}`;
const said = (value) => (state.scale[0] === state.scale[1] ? "liked" : `${Number(value.toFixed(2))} of ${state.scale[1]}`);

function starsOf(film, onrate, name = "Rate") {
  const { of, step, value, places } = scale();
  const now = () => state.ratings.get(film.item)?.stars ?? null;
  const node = h("div", {
    class: "stars", role: "slider", tabindex: "0", "--of": of, "aria-label": `${name} ${titleOf(film)}`,
    "aria-valuemin": 0, "aria-valuemax": of, "data-item": film.item, title: "Click, or arrow keys and digits; Delete takes it back",
  });
  const paint = (at, hint) => {
    node.style.setProperty("--part", at / of);
    node.classList.toggle("hint", Boolean(hint));
  };
  node.refresh = () => {
    const at = places(now());
    paint(at);
    node.setAttribute("aria-valuenow", at);
    node.setAttribute("aria-valuetext", now() === null ? "not rated" : said(now()));
  };
  const at = (event) => {
    const box = node.getBoundingClientRect();
    const part = Math.min(1, Math.max(0.001, (event.clientX - box.left) / box.width));
    return Math.ceil((part * of) / step) * step;
  };
  node.addEventListener("pointermove", (event) => event.pointerType === "mouse" && paint(at(event), true));
  node.addEventListener("pointerleave", () => node.refresh());
  node.addEventListener("click", (event) => onrate(film, value(at(event))));
  node.addEventListener("keydown", (event) => {
    const up = { ArrowRight: step, ArrowUp: step, ArrowLeft: -step, ArrowDown: -step }[event.key];
    const from = places(now());
    if (up) onrate(film, value(Math.min(of, Math.max(step, from + up))), true);
    else if (event.key === "Home" || event.key === "End") onrate(film, value(event.key === "Home" ? step : of), true);
    else if (/^[1-9]$/.test(event.key) && Number(event.key) <= of) onrate(film, value(Number(event.key)));
    else if (["Delete", "Backspace", "0"].includes(event.key)) onrate(film, null);
    else return;
    event.preventDefault();
  });
  node.refresh();
  return node;
}

/** A film taken or not: a click puts it at the end of the history, the next one takes it back. */
function takenOf(film) {
  const taken = () => state.ratings.has(film.item);
  const node = h("button", { type: "button", class: "quiet taken", "data-item": film.item, onclick: () => rate(film, taken() ? null : state.scale[1]) });
  node.refresh = () => {
    node.setAttribute("aria-pressed", taken());
    node.setAttribute("aria-label", `Watched ${titleOf(film)}`);
    node.textContent = taken() ? "✓ Watched" : "Watched";
  };
  node.refresh();
  return node;
}

const mark = (film) => (state.inOrder ? takenOf(film) : starsOf(film, rate));

const stillStars = (value) => h("span", { class: "stars still", role: "img", "--of": scale().of, "--part": scale().places(value) / scale().of, "aria-label": said(value) });

// ---------------------------------------------------------------------------------- films

const factsOf = (film) => [film.year, film.genres.slice(0, 3).join(", ")].filter(Boolean).join(" · ");
const nameOf = (film) => h("button", { type: "button", class: "name", onclick: () => openFilm(film) }, titleOf(film));

function elsewhere(film) {
  const own = links.get(film.item) || {};
  const link = (href, text) => h("a", { href, target: "_blank", rel: "noopener noreferrer", "aria-label": `${titleOf(film)} on ${text}` }, text);
  return [
    own.imdb && link(`https://www.imdb.com/title/${encodeURIComponent(own.imdb)}/`, "IMDb"),
    own.tmdb && link(`https://www.themoviedb.org/movie/${encodeURIComponent(own.tmdb)}`, "TMDB"),
  ].filter(Boolean);
}

/** Learn the ids elsewhere of films that are about to be shown; the list does not wait for it. */
async function learnLinks(part, films, place) {
  const items = [...new Set(films.map((film) => film.item))].filter((item) => !links.has(item));
  if (items.length) {
    try {
      const answer = await ask(`links-${part}`, "v1/items:batch", { items });
      for (const film of answer.items) links.set(film.item, film);
    } catch (error) {
      if (!(error instanceof Trouble) && error.name !== "AbortError") throw error;
      return; // the films are there without them
    }
  }
  const byItem = new Map(films.map((film) => [String(film.item), film]));
  for (const node of place.querySelectorAll("[data-links]")) {
    const film = byItem.get(node.dataset.links);
    if (film) fill(node, elsewhere(film));
  }
}

const row = (film, ...more) => h("li", { class: "row" },
  h("div", { class: "what" }, nameOf(film), h("span", { class: "facts" }, factsOf(film) && h("span", {}, factsOf(film)), h("span", { class: "links", "data-links": film.item }))), ...more);

// -------------------------------------------------------------------------------- ratings

const saved = () => `recray:${state.models[0].dataset}`;

function remember() {
  try {
    const kept = { ratings: [...state.ratings.values()], saveAs: state.saveAs };
    localStorage.setItem(saved(), JSON.stringify(kept));
  } catch { /* a browser that keeps nothing still rates */ }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(saved())) || {};
    const [low, high] = state.scale;
    for (const { film, stars } of kept.ratings || []) {
      if (stars >= low && stars <= high) state.ratings.set(film.item, { film, stars });
    }
    if (state.models[0].keeps_ratings && !state.inOrder) state.saveAs = kept.saveAs || null;
  } catch { /* nothing that can be read: begin anew */ }
}

let settle;
const sending = new Map(); // by film: rating another one does not stop it
/** Take a rating; arrow keys pass through values that nobody means, so those wait a moment. */
function rate(film, stars, passing = false) {
  const focused = document.activeElement?.closest("[data-item]")?.dataset.item === String(film.item);
  if (stars === null || state.inOrder) state.ratings.delete(film.item); // what comes again comes last
  if (stars !== null) state.ratings.set(film.item, { film: plainFilm(film), stars });
  remember();
  for (const node of document.querySelectorAll("[data-item]")) node.refresh();
  drawMine();
  clearTimeout(settle);
  clearTimeout(sending.get(film.item));
  const wait = passing ? 700 : 0;
  sending.set(film.item, setTimeout(() => {
    if (state.saveAs !== null) send(film, stars);
  }, wait));
  settle = setTimeout(async () => {
    await recommend();
    // The film has left the list under the reader's fingers: follow it to their ratings.
    if (focused && document.activeElement === document.body) {
      $("mine-list").querySelector(`[data-item="${CSS.escape(String(film.item))}"]`)?.focus();
    }
  }, wait);
}

const plainFilm = ({ item, title, year, genres }) => ({ item, title, year, genres });

function drawMine() {
  const mine = [...state.ratings.values()].reverse();
  show("mine", mine.length > 0);
  $("mine-title").textContent = state.inOrder ? `Your history (${mine.length})` : `Your ratings (${mine.length})`;
  const held = document.activeElement?.closest("#mine-list [data-item]")?.dataset.item;
  const again = (film) => film.item !== mine[0].film.item && h("button", { type: "button", class: "quiet", "aria-label": `Watched ${titleOf(film)} again`, onclick: () => rate(film, state.scale[1]) }, "Again");
  const gone = (film) => {
    const node = h("button", { type: "button", class: "gone", "data-item": state.inOrder && film.item, "aria-label": `Take back ${titleOf(film)}`, onclick: () => rate(film, null) }, "×");
    node.refresh = () => {}; // it stands for the film where there are no stars
    return node;
  };
  fill("mine-list", h("ul", {}, mine.map(({ film }) => row(film, state.inOrder ? again(film) : starsOf(film, rate), gone(film)))));
  if (held) $("mine-list").querySelector(`[data-item="${CSS.escape(held)}"]`)?.focus();
  show("begin", mine.length < ENOUGH && !$("search").value.trim());
  drawJump();
  learnLinks("mine", mine.map(({ film }) => film), $("mine-list"));
}

function drawJump() {
  const n = state.ratings.size;
  const you = state.mode === "you";
  show("jump", !listInView && (you ? n > 0 : state.user !== null));
  $("jump").textContent = you ? `${state.inOrder ? words(n, "film", "films") : words(n, "rating", "ratings")} · see what comes next` : `What is recommended to ${state.user}`;
}

let listInView = false; // on a phone the list lies below; a button leads there until it is seen
new IntersectionObserver(([entry]) => { listInView = entry.isIntersecting; drawJump(); }, { rootMargin: "0px 0px -120px" }).observe($("lists"));

/** Offer to send ratings to the log, where the service keeps one. */
function drawKeep() {
  const keeps = state.models[0].keeps_ratings && !state.inOrder; // the log keeps ratings, and a click is none
  show("keep", keeps);
  if (!keeps) return;
  const box = h("input", { type: "checkbox", id: "save", onchange: (event) => save(event.target.checked) });
  box.checked = state.saveAs !== null;
  const text = state.saveAs === null
    ? "Let the next training learn from these ratings"
    : `The next training learns from these ratings; you are user ${state.saveAs}`;
  fill("keep", h("label", { class: "saver" }, box, h("span", {}, text)), h("div", { id: "keep-said", "aria-live": "polite" }));
  $("kept-note").textContent = state.saveAs === null ? "Your ratings stay in this browser." : "Your ratings are kept by this service.";
}

async function save(wanted) {
  // Below 2^53, and far from the ids that data sets number their users with.
  const fresh = 1e12 + Math.floor(Math.random() * 8e15);
  state.saveAs = wanted ? (typeof state.models[0].example_users[0] === "string" ? `visitor-${fresh}` : fresh) : null;
  remember();
  drawKeep();
  if (wanted) for (const { film, stars } of state.ratings.values()) await send(film, stars);
}

async function send(film, stars) {
  if (stars === null) return takeBack(`ratings/${encodeURIComponent(state.saveAs)}/${encodeURIComponent(film.item)}`);
  const body = { user: state.saveAs, item: film.item, rating: stars, key: crypto.getRandomValues(new Uint32Array(4)).join("-") };
  await attempt("keep-said", async () => { await ask(`send-${film.item}`, "v1/ratings", body); fill("keep-said"); }, () => send(film, stars));
}

/** Take back what the service keeps: a rating, or all that were sent. */
async function takeBack(path) {
  await attempt("keep-said", async () => { await ask(`send-${path}`, `v1/${path}`, null, 2, "DELETE"); fill("keep-said"); }, () => takeBack(path));
}

// --------------------------------------------------------------------------------- search

let typing;
function searchSoon() {
  clearTimeout(typing);
  typing = setTimeout(search, 160);
}

async function search() {
  const query = $("search").value.trim();
  show("begin", !query && state.ratings.size < ENOUGH);
  if (!query) {
    running.search?.abort();
    return fill("found");
  }
  const done = waiting("found", 3, "low");
  await attempt("found", async () => {
    const { items } = await ask("search", `v1/items?k=8&query=${encodeURIComponent(query)}`);
    fill("found", items.length
      ? h("ul", { "aria-label": "Films found" }, items.map((film) => row(film, mark(film))))
      : h("p", { class: "hint" }, `No film is called anything like “${query}”. Try fewer words, or another spelling.`));
    learnLinks("found", items, $("found"));
  }, search);
  done();
}

async function begin() {
  fill("begin", ghosts(4, "low"));
  const k = Math.min(BEGIN, state.models[0].items);
  await attempt("begin", async () => {
    const { items } = await ask("begin", "v1/recommendations", { k });
    fill("begin", h("p", { class: "section" }, "Well known, to begin with"), h("ul", { "aria-label": "Well-known films" }, items.map((film) => row(film, mark(film)))));
    learnLinks("begin", items, $("begin"));
  }, begin);
}

// ------------------------------------------------------------------------ recommendations

/** The filters as the service takes them; null while they make no sense. */
function filters() {
  const years = {};
  for (const [id, name] of [["year-from", "year_from"], ["year-to", "year_to"]]) {
    const text = $(id).value.trim();
    if (!text && $(id).validity.valid) continue;
    if (!$(id).validity.valid || !/^\d{1,4}$/.test(text)) return null;
    years[name] = Number(text);
  }
  if (years.year_from > years.year_to) return null;
  return { genres: [...state.genres], ...years };
}

const hasFilters = () => state.models[0].genres.length > 0 || Boolean(state.models[0].years);

function filtersChanged() {
  const wanted = filters();
  $("year-wrong").textContent = "Years run from the earlier to the later, such as 1990 to 1999.";
  show("year-wrong", wanted === null);
  if (wanted === null) return;
  const { genres, year_from: from, year_to: to } = wanted;
  const span = from && to ? `${from} to ${to}` : from ? `from ${from}` : to ? `to ${to}` : "";
  const text = [genres.join(" or "), span].filter(Boolean).join(", ");
  $("filter-count").textContent = text;
  show("unfilter", Boolean(text));
  recommend();
}

function unfilter() {
  state.genres.clear();
  for (const chip of $("genres").children) chip.setAttribute("aria-pressed", "false");
  $("year-from").value = $("year-to").value = "";
  filtersChanged();
}

const EXPLAIN = {
  model: "from what the model learned of this user",
  fold_in: { you: "worked out just now from your ratings", user: "worked out just now from this user’s ratings" },
  popular: "nothing is known of this user, so this is what many have rated",
};

/** One list of each model that is loaded, for the visitor's ratings or for a user. */
async function recommend() {
  const you = state.mode === "you";
  const what = state.inOrder ? "Next" : "Recommended";
  $("recommended-title").textContent = you || state.user === null ? `${what} for you` : `${what} for user ${state.user}`;
  const empty = you ? !state.ratings.size : state.user === null;
  show("filters", !empty && hasFilters());
  if (empty) return nothingYet(you);
  const wanted = filters();
  if (wanted === null) return;
  const done = waiting("lists", 5);
  await attempt("lists", async () => {
    const answers = await Promise.all(state.models.map((model, place) => list(model, place, wanted, you)));
    draw(answers, you);
  }, state.models.length > 1 ? start : recommend); // one of two may have been replaced meanwhile
  done();
}

function list(model, place, wanted, you) {
  const k = Math.min(K, model.items);
  const which = state.models.length > 1 ? { model: model.model_version } : {};
  if (you) {
    const ratings = [...state.ratings.values()].map(({ film, stars }) => (state.inOrder ? { item: film.item } : { item: film.item, rating: stars }));
    return ask(`list-${place}`, "v1/recommendations", { ratings, k, explain: true, ...wanted, ...which });
  }
  const query = new URLSearchParams({ k, explain: "true", ...which });
  for (const genre of wanted.genres) query.append("genres", genre);
  for (const name of ["year_from", "year_to"]) if (wanted[name]) query.set(name, wanted[name]);
  return ask(`list-${place}`, `v1/users/${encodeURIComponent(state.user)}/recommendations?${query}`);
}

function nothingYet(you) {
  for (const place of state.models.keys()) running[`list-${place}`]?.abort();
  $("said").textContent = "";
  $("lists").className = "lists";
  const step = (n, text) => h("li", {}, h("span", { class: "badge" }, n), text);
  fill("lists", h("div", { class: "empty" }, you
    ? [h("b", {}, "Your list appears here"), `It changes with every film you ${state.inOrder ? "click" : "rate"}.`,
       h("ol", { class: "steps" }, step(1, state.inOrder ? "Click films in the order you watched them" : "Give stars to a film you know"), step(2, "Read why each film was chosen"), step(3, "Click a title for films like it"))]
    : [h("b", {}, "Pick a user"), "See what they rated highest beside what the model would show them."]));
}

function draw(answers, you) {
  const two = answers.length > 1;
  $("lists").className = two ? "lists two" : "lists";
  const source = answers[0].source;
  const last = you && state.inOrder && source !== "popular" && [...state.ratings.values()].at(-1);
  const how = last ? `what comes next after ${titleOf(last.film)}` : EXPLAIN[source]?.[you ? "you" : "user"] || EXPLAIN[source] || "";
  const n = answers[0].items.length;
  const shared = two ? overlap(answers) : "";
  $("said").textContent = two ? shared : n ? `${words(n, "film", "films")}, ${how}` : "";
  fill("lists", answers.map((answer, place) => {
    const model = state.models[place];
    const head = two && h("div", { class: "arm" }, h("h3", {}, h("span", { class: "badge" }, "AB"[place]), model.preset, h("span", { class: "version" }, model.model_version)));
    const body = answer.items.length
      ? h("ol", { "aria-label": two ? `Recommended by ${model.preset}` : "Recommended films" }, answer.items.map((film, at) => pick(film, at, answer, model, you, two && answers[1 - place], place)))
      : h("div", { class: "empty" }, h("b", {}, "No film is left"), "No film passes these filters that has not been rated already.");
    return h("div", {}, head, body);
  }));
  learnLinks("lists", answers.flatMap((answer) => answer.items), $("lists"));
}

function overlap(answers) {
  const other = new Set(answers[1].items.map((film) => film.item));
  const both = answers[0].items.filter((film) => other.has(film.item)).length;
  return `${both} of ${answers[0].items.length} films are in both lists`;
}

function pick(film, at, answer, model, you, other, which) {
  const top = answer.items[0].score;
  const last = Math.min(...answer.items.map((entry) => entry.score));
  const at2 = other ? other.items.findIndex((entry) => entry.item === film.item) : -1;
  return h("li", { class: "pick new" },
    h("span", { class: "rank" }, at + 1),
    h("div", {}, nameOf(film), h("div", { class: "facts" },
      factsOf(film) && h("span", {}, factsOf(film)), h("span", { class: "links", "data-links": film.item }),
      at2 >= 0 && h("span", { class: "badge" }, `${at2 + 1} in ${"BA"[which]}`))),
    value(film, answer, model, top, last),
    why(film, you),
    you && h("div", { class: "rate" }, h("span", { class: "small" }, "Seen it?"), mark(film)));
}

function value(film, answer, model, top, last) {
  if (answer.source === "popular") return h("div", { class: "value" }, words(Math.round(film.score), "rating", "ratings"));
  if (model.scores === "stars") return h("div", { class: "value" }, h("b", {}, film.score.toFixed(1)), ` of ${state.scale[1]}`, h("div", {}, "predicted"));
  // A ranking model's score only orders: shown as strength beside the best of the list.
  const part = top > last ? 0.35 + (0.65 * (film.score - last)) / (top - last) : 1;
  return h("div", { class: "value", title: `score ${film.score.toFixed(3)}; it orders films and is no number of stars` }, "match", h("div", { class: "meter" }, h("i", { "--part": part })));
}

function why(film, you) {
  const reasons = film.why?.items || [];
  if (!reasons.length) return null;
  const who = you ? "you" : "they";
  const named = reasons.slice(0, 2).flatMap((reason, n) => [n ? " and " : "", h("b", {}, titleOf(reason)), " ", !state.inOrder && state.scale[0] !== state.scale[1] && h("span", { class: "given" }, given(Number(reason.rating)))]);
  return h("p", { class: "why" }, `Because ${who} ${state.inOrder ? "watched" : "rated"} `, named);
}

// --------------------------------------------------------------------------- an existing user

function drawExamples() {
  const some = state.models[0].example_users.slice(0, 4);
  fill("examples", h("div", { class: "examples" }, h("span", { class: "small" }, "For example"),
    some.map((user) => h("button", { type: "button", class: "quiet", onclick: () => { $("user").value = user; openUser(); } }, String(user)))));
}

async function openUser() {
  const user = $("user").value.trim();
  if (!user) return;
  state.user = user;
  waiting("history", 4, "low");
  let known = true;
  await attempt("history", async () => {
    try {
      drawHistory(await ask("history", `v1/users/${encodeURIComponent(user)}`));
    } catch (error) {
      if (error.status !== 404) throw error;
      known = false;
      fill("history", h("p", { class: "hint" }, `There is no user ${user} in ${state.models[0].dataset}.`));
    }
  }, openUser);
  if (!known) state.user = null;
  drawJump();
  recommend();
}

function drawHistory(user) {
  const figure = (name, text) => h("div", {}, h("dt", {}, name), h("dd", {}, text));
  const most = user.genres.slice(0, 6);
  fill("history",
    h("dl", { class: "figures" }, figure("ratings", user.ratings.toLocaleString("en")), user.mean_rating !== null && state.scale[0] !== state.scale[1] && figure("on average", given(user.mean_rating, 1))),
    user.ratings ? [] : h("p", { class: "hint" }, "No rating of this user is known."),
    most.length ? [h("p", { class: "section" }, "Mostly"), h("ul", { class: "bars" }, most.map(({ genre, ratings }) =>
      h("li", {}, h("span", {}, genre), h("div", { class: "meter" }, h("i", { "--part": ratings / most[0].ratings })), h("span", {}, ratings))))] : [],
    user.latest.length ? [h("p", { class: "section" }, "Last"), h("ul", { "aria-label": "Last" }, user.latest.map((film) => row(film, stillStars(film.rating))))] : [],
    user.highest.length ? [h("p", { class: "section" }, "Rated highest"), h("ul", { "aria-label": "Rated highest" }, user.highest.map((film) => row(film, stillStars(film.rating))))] : []);
  $("history").classList.remove("stale");
  learnLinks("history", [...user.latest, ...user.highest], $("history"));
}

function openTab(mode) {
  state.mode = mode;
  for (const name of ["you", "user"]) {
    const chosen = name === mode;
    $(`tab-${name}`).setAttribute("aria-selected", chosen);
    $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    show(`panel-${name}`, chosen);
  }
  drawJump();
  fill("lists");
  recommend();
}

// -------------------------------------------------------------------------------- windows

function openWindow(id, title, ...content) {
  const shut = h("button", { type: "button", class: "shut", "aria-label": "Close", onclick: () => $(id).close() }, "×");
  fill(id, h("div", { class: "window" }, h("div", { class: "head" }, h("h2", { id: `${id}-title` }, title), shut), ...content));
  if (!$(id).open) $(id).showModal();
  $(id).scrollTop = 0;
}

async function openFilm(film) {
  const facts = h("p", { class: "facts" }, factsOf(film));
  const alike = h("div", { "aria-live": "polite" }, ghosts(4, "low"));
  const own = h("div", { class: "rate" }, h("span", { class: "small" }, state.inOrder ? "Your history" : "Your rating"), mark(film));
  openWindow("film", titleOf(film), facts, own, h("p", { class: "section" }, "Films like it"), alike);
  await attempt(alike, async () => {
    const known = await ask("film", `v1/items/${encodeURIComponent(film.item)}`);
    links.set(film.item, known);
    fill(facts, h("span", {}, [factsOf(known), words(known.ratings, "rating", "ratings")].filter(Boolean).join(" · ")), h("span", { class: "links" }, elsewhere(known)));
    const k = Math.min(8, state.models[0].items - 1);
    if (!known.in_training) return fill(alike, h("p", { class: "hint" }, "The model was not trained on this film, so it knows none like it."));
    const { items } = await ask("alike", `v1/items/${encodeURIComponent(film.item)}/similar?k=${k}`);
    fill(alike, h("ul", { "aria-label": "Similar films" }, items.map((other) => row(other, mark(other)))));
    learnLinks("alike", items, alike);
  }, () => openFilm(film));
}

const NAMES = { ndcg: "NDCG", recall: "Recall", precision: "Precision", hitrate: "Hit rate", mrr: "MRR", map: "MAP", rmse: "RMSE", mae: "MAE", coverage: "Coverage", novelty: "Novelty", gini: "Gini" };
const metricName = (name) => name.replace(/^[a-z]+/, (word) => NAMES[word] || word).replace("@", " at ");

function openModel() {
  openWindow("model", state.models.length > 1 ? "The models that answer" : "The model that answers", state.models.map(modelCard));
}

function modelCard(model, place) {
  const [low, high] = model.rating_range;
  const fact = (name, text) => [h("dt", {}, name), h("dd", {}, text)];
  const made = model.created ? new Date(model.created).toLocaleDateString("en", { dateStyle: "long" }) : "unknown";
  const measured = Object.keys(model.metrics).length > 0;
  return h("section", {},
    state.models.length > 1 && h("h3", { class: "section" }, h("span", { class: "badge" }, "AB"[place]), ` ${model.preset}`),
    h("dl", { class: "about" },
      fact("Data", `${model.dataset}: ${words(model.users, "user", "users")}, ${words(model.items, "film", "films")}`),
      fact("Ratings", low === high ? "what people chose, without stars" : `${low} to ${high}${isOfStars(model.rating_range) ? " stars" : ""}`),
      fact("Model", `${model.model}, preset ${model.preset}; it ${model.scores === "stars" ? "predicts stars" : "orders films"}`),
      fact("Version", h("code", {}, model.model_version)),
      fact("Made", made)),
    measured ? measures(model) : h("p", { class: "hint" }, "This model was not measured: its data has no test split."));
}

function measures(model) {
  const main = model.scores === "stars" && model.metrics.rmse ? "rmse" : Object.keys(model.metrics).find((name) => name.startsWith("ndcg"));
  const others = Object.entries(model.baselines).filter(([, own]) => own[main]);
  const verdicts = Array.isArray(model.verdict) ? model.verdict : model.verdict ? [model.verdict] : [];
  const interval = ({ low, high }) => (low === null || low === undefined ? "" : `${short(low)} to ${short(high)}`);
  return [
    h("p", { class: "section" }, `On ratings kept from training: ${metricName(main)}${main === "rmse" ? ", smaller is better" : ""}`),
    plot([[model.preset, model.metrics[main], true], ...others.map(([name, own]) => [name, own[main], false])]),
    verdicts.flatMap((text) => text.split("\n")).map((text) => h("p", { class: "verdict" }, text)),
    h("p", { class: "section" }, "Everything that was measured"),
    h("div", { class: "scroll", tabindex: "0" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "Measure"), h("th", { class: "n" }, "Value"), h("th", { class: "n" }, "95 % interval"))),
      h("tbody", {}, Object.entries(model.metrics).map(([name, own]) => h("tr", {}, h("td", {}, metricName(name)), h("td", { class: "n" }, short(own.value)), h("td", { class: "n" }, interval(own))))))),
  ];
}

/** Values with their intervals on one axis. */
function plot(rows) {
  const ends = rows.flatMap(([, own]) => [own.low ?? own.value, own.high ?? own.value]);
  const from = Math.min(...ends);
  const width = Math.max(...ends) - from || 1;
  const at = (number) => (number - from) / width;
  return h("ul", { class: "plot" }, rows.map(([name, own, ours]) => h("li", { class: ours ? "own" : "" },
    h("span", {}, name),
    h("div", { class: "track", "aria-hidden": "true" }, h("i", { "--low": at(own.low ?? own.value), "--high": at(own.high ?? own.value) }), h("s", { "--at": at(own.value) })),
    h("span", {}, short(own.value)))));
}

// --------------------------------------------------------------------------------- start

async function start() {
  show("door", false);
  fill("broken", ghosts(2));
  await attempt("broken", async () => {
    state.models = (await ask("start", "v1/models")).models.slice(0, 2);
    fill("broken");
    ready();
  }, start);
}

function ready() {
  const [model] = state.models;
  state.scale = model.rating_range;
  state.inOrder = model.reads_order;
  $("chip").textContent = state.models.map((each) => each.preset).join(" + ");
  $("open-model").disabled = false;
  $("lead").textContent = `A recommender, trained on what ${words(model.users, "person has", "people have")} rated, answers while you rate: ${words(model.items, "film", "films")} to choose from.`;
  if (state.inOrder) {
    $("headline").textContent = "Click a few films. See what comes next, and why.";
    $("tab-you").textContent = "Your history";
    $("lead").textContent = $("lead").textContent.replace("while you rate", "while you click");
    $("kept-note").textContent = "Your history stays in this browser.";
  }
  show("sides");
  show("genres", model.genres.length > 0);
  show("years", Boolean(model.years));
  if (model.years) [$("year-from").placeholder, $("year-to").placeholder] = model.years;
  fill("genres", model.genres.map((name) => h("button", { type: "button", "aria-pressed": "false", onclick: (event) => {
    const wanted = !state.genres.delete(name);
    if (wanted) state.genres.add(name);
    event.target.setAttribute("aria-pressed", wanted);
    filtersChanged();
  } }, name)));
  recall();
  drawKeep();
  drawExamples();
  drawMine();
  begin();
  recommend();
}

$("search").addEventListener("input", searchSoon);
$("search-form").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); search(); });
$("search").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown") return;
  $("panel-you").querySelector("#found [data-item], #begin:not([hidden]) [data-item]")?.focus();
  event.preventDefault();
});
$("forget").addEventListener("click", () => {
  for (const waiting of sending.values()) clearTimeout(waiting);
  state.ratings.clear();
  if (state.saveAs !== null) takeBack(`users/${encodeURIComponent(state.saveAs)}/ratings`);
  remember();
  for (const node of document.querySelectorAll("[data-item]")) node.refresh();
  drawMine();
  recommend();
  $("search").focus();
});
let years;
for (const id of ["year-from", "year-to"]) $(id).addEventListener("input", () => { clearTimeout(years); years = setTimeout(filtersChanged, 350); });
$("unfilter").addEventListener("click", unfilter);
$("open-model").addEventListener("click", openModel);
$("user-form").addEventListener("submit", (event) => { event.preventDefault(); openUser(); });
$("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  sessionStorage.setItem("recray-key", state.key);
  start();
});
for (const [name, other] of [["you", "user"], ["user", "you"]]) {
  $(`tab-${name}`).addEventListener("click", () => openTab(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") { openTab(other); $(`tab-${other}`).focus(); }
  });
}
for (const id of ["film", "model"]) $(id).addEventListener("click", (event) => { if (event.target === $(id)) $(id).close(); });
$("jump").addEventListener("click", (event) => { event.preventDefault(); $("recommended").scrollIntoView(); $("recommended").focus({ preventScroll: true }); });
start();
