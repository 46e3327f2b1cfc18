// The page: conversations kept in this browser, answers streamed from the API. Nothing is ever interpreted as HTML: every node is
// made here, and every text is put in as text.

const $ = (id) => document.getElementById(id);
const STORE = "nanochat";
const EXAMPLES = ["Hello! Who are you?", "How many r are in strawberry?", "What is 1234 + 4321?"];
const DEFAULTS = { temperature: 0.6, topK: 50, maxTokens: 512, system: "", key: "", theme: "" };

const deleted = new Set(); // ids, in this tab
let state = load();
let model = null;
let running = null; // {controller, talk} of the answer that is on its way

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE)) ?? {};
    const talks = Array.isArray(kept.talks) ? kept.talks.filter((talk) => talk && Array.isArray(talk.messages)) : [];
    return { talks, current: kept.current ?? null, settings: { ...DEFAULTS, ...kept.settings } };
  } catch {
    return { talks: [], current: null, settings: { ...DEFAULTS } };
  }
}

// Another tab may have kept conversations since: what it has and this one lacks stays, unless it was deleted here.
function join() {
  const mine = new Set(state.talks.map((talk) => talk.id));
  state.talks.push(...load().talks.filter((talk) => !mine.has(talk.id) && !deleted.has(talk.id)));
}

function keep() {
  join();
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    note("This browser keeps no more: delete some conversations.");
  }
}

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, action] of Object.entries(value)) made.addEventListener(event, action);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const note = (text) => { $("note").textContent = text; };

// ---- Markdown, as nodes ----

const INLINE = /(`{1,3})(?!`)([^]{0,2000}?[^`])\1(?!`)|\*\*(?=\S)([^]+?\S)\*\*|(?<![\w*])\*(?=\S)([^*]*[^\s*])\*(?!\*)|\[([^\]\n]+)\]\(([^()\s]+)\)|~~(?=\S)([^~]+)~~/;

function inline(text) {
  const out = [];
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    out.push(text.slice(0, found.index));
    const [whole, , code, strong, emphasis, label, address, struck] = found;
    if (code != null) out.push(node("code", {}, code.trim()));
    else if (strong != null) out.push(node("strong", {}, ...inline(strong)));
    else if (emphasis != null) out.push(node("em", {}, ...inline(emphasis)));
    else if (struck != null) out.push(node("s", {}, ...inline(struck)));
    else out.push(/^https?:\/\//i.test(address) ? node("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" }, ...inline(label)) : whole);
  }
  return [...out, text].filter((piece) => piece !== "");
}

function lines(text) {
  const out = [];
  text.split("\n").forEach((line, number) => { if (number) out.push(node("br")); out.push(...inline(line)); });
  return out;
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;

const DEEPEST = 16; // lists and quotations within one another; what goes deeper is shown as it was written

function list(rows, level = 0) {
  const ordered = /\d/.test(ITEM.exec(rows[0])[2]);
  const made = node(ordered ? "ol" : "ul", ordered ? { start: parseInt(ITEM.exec(rows[0])[2], 10) } : {});
  const indent = ITEM.exec(rows[0])[1].length;
  for (let at = 0; at < rows.length;) {
    const [, , , text] = ITEM.exec(rows[at]) ?? [, , , rows[at].trim()];
    const inner = [];
    for (at += 1; at < rows.length && !((ITEM.exec(rows[at])?.[1].length ?? Infinity) <= indent); at += 1) inner.push(rows[at]);
    const nested = level < DEEPEST ? inner.findIndex((row) => ITEM.test(row)) : -1;
    const own = [text, ...inner.slice(0, nested < 0 ? undefined : nested).map((row) => row.trim())].join("\n");
    made.append(node("li", {}, ...lines(own), nested < 0 ? null : list(inner.slice(nested), level + 1)));
  }
  return made;
}

const cells = (row) => row.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(rows) {
  const row = (tag, text) => node("tr", {}, ...cells(text).map((cell) => node(tag, {}, ...inline(cell))));
  return node("table", {}, node("thead", {}, row("th", rows[0])), node("tbody", {}, ...rows.slice(2).map((text) => row("td", text))));
}

function codeBlock(code, language) {
  const button = node("button", { type: "button", class: "copy", "aria-label": "Copy the code", on: { click: (event) => copied(event.target, code) } }, "Copy");
  return node("div", { class: "code" }, node("pre", {}, node("code", language ? { "data-language": language } : {}, code)), button);
}

function markdown(text, level = 0) {
  if (level > DEEPEST) return [node("p", {}, text)];
  const out = [];
  const rows = text.split("\n");
  const isBlock = (row) => /^\s*(```|#{1,6}\s|>|(-{3,}|\*{3,})\s*$)/.test(row) || ITEM.test(row);
  for (let at = 0; at < rows.length;) {
    const row = rows[at];
    const take = (more) => { const from = at; at += 1; while (at < rows.length && more(rows[at])) at += 1; return rows.slice(from, at); };
    const fence = /^\s*(`{3,})\s*([\w+-]*)/.exec(row);
    if (!row.trim()) at += 1;
    else if (fence) {
      const code = take((next) => !next.trim().startsWith(fence[1])).slice(1);
      at += 1;
      out.push(codeBlock(code.join("\n"), fence[2]));
    } else if (/^#{1,6}\s/.test(row)) {
      const [, marks, title] = /^(#+)\s+(.*)$/.exec(row) ?? [, "#", row];
      out.push(node(`h${Math.min(6, marks.length + 1)}`, {}, ...inline(title)));
      at += 1;
    } else if (/^\s*(-{3,}|\*{3,})\s*$/.test(row)) { out.push(node("hr")); at += 1; }
    else if (/^\s*>/.test(row)) out.push(node("blockquote", {}, ...markdown(take((next) => /^\s*>/.test(next)).map((one) => one.replace(/^\s*> ?/, "")).join("\n"), level + 1)));
    else if (ITEM.test(row)) out.push(list(take((next) => next.trim() && (ITEM.test(next) || /^\s{2,}/.test(next)))));
    else if (row.includes("|") && /^[\s:|-]+$/.test(rows[at + 1] ?? "") && rows[at + 1].includes("-")) out.push(table(take((next) => next.includes("|") || /^[\s:|-]+$/.test(next))));
    else out.push(node("p", {}, ...lines(take((next) => next.trim() && !isBlock(next)).join("\n"))));
  }
  return out;
}

function asMarkdown(text) {
  try {
    return markdown(text);
  } catch { // too deep for this browser
    return [node("p", {}, text)];
  }
}

// ---- Conversations ----

const current = () => state.talks.find((talk) => talk.id === state.current) ?? null;
const words = (content) => (typeof content === "string" ? content : content.filter((part) => part.type === "text").map((part) => part.text).join(""));
const titleOf = (talk) => words(talk.messages[0]?.content ?? "").trim().slice(0, 60) || "New conversation";

function begin() {
  stop();
  state.current = null;
  keep();
  draw();
  $("question").focus();
}

function open(id) {
  stop();
  state.current = id;
  keep();
  draw();
  side(false);
}

function remove(talk) {
  if (running?.talk === talk) stop();
  deleted.add(talk.id);
  state.talks = state.talks.filter((other) => other !== talk);
  if (state.current === talk.id) state.current = null;
  keep();
  draw();
}

// ---- Drawing ----

function drawList() {
  $("list").replaceChildren(...state.talks.map((talk) => node("li", {},
    node("button", { type: "button", class: "title", "aria-current": String(talk.id === state.current), on: { click: () => open(talk.id) } }, titleOf(talk)),
    node("button", { type: "button", "aria-label": `Delete the conversation ${titleOf(talk)}`, on: { click: () => remove(talk) } }, "×"))));
}

function draw() {
  drawList();
  const talk = current();
  const shown = talk?.messages.map((message, at) => draw1(talk, message, at)) ?? [];
  $("messages").replaceChildren(...(shown.length ? shown : [empty()]));
  bottom();
}

function empty() {
  const ask = (text) => node("button", { type: "button", on: { click: () => send(null, text) } }, text);
  return node("li", { class: "empty" }, node("p", {}, "Ask something."), node("div", {}, ...EXAMPLES.map(ask)));
}

function draw1(talk, message, at) {
  const body = node("div", { class: "body" });
  const tools = node("div", { class: "tools" });
  const item = node("li", { class: message.role, "aria-label": message.role === "user" ? "You" : "The model" }, body, tools);
  fill(body, message);
  const button = (label, action) => node("button", { type: "button", on: { click: action } }, label);
  tools.append(button("Copy", (event) => copied(event.target, words(message.content))));
  if (message.role === "user") tools.append(button("Edit", () => edit(talk, at, item)));
  else if (at === talk.messages.length - 1) tools.append(button("Regenerate", () => again(talk)));
  return item;
}

function fill(body, message) {
  if (message.role === "user") { body.textContent = message.content; return; }
  const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
  const out = [];
  for (let at = 0; at < parts.length; at += 1) {
    if (parts[at].type === "text") { out.push(...asMarkdown(parts[at].text)); continue; }
    const call = parts[at].type === "python" ? parts[at].text : "";
    if (call && parts[at + 1]?.type === "python_output") at += 1;
    const said = parts[at].type === "python_output" ? parts[at].text : "";
    out.push(node("details", { class: "tool" }, node("summary", {}, "Calculator"), node("pre", {}, node("code", {}, said ? `${call} = ${said}` : call))));
  }
  if (message.error) out.push(node("p", { class: "failed" }, message.error));
  if (message.stopped) out.push(node("p", { class: "failed" }, "Stopped."));
  body.replaceChildren(...out);
}

const atBottom = () => $("talk").scrollHeight - $("talk").scrollTop - $("talk").clientHeight < 80;
const bottom = () => { $("talk").scrollTop = $("talk").scrollHeight; };

async function copied(button, text) {
  const done = await (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(() => true, () => false);
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function edit(talk, at, item) {
  stop();
  const text = node("textarea", { class: "edit", rows: "3", "aria-label": "Edit your message" });
  text.value = talk.messages[at].content;
  const done = () => {
    const question = text.value.trim();
    if (!question) return;
    talk.messages = talk.messages.slice(0, at);
    send(talk, question);
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); done(); }
    if (event.key === "Escape") draw();
  });
  item.replaceChildren(text, node("div", { class: "tools" },
    node("button", { type: "button", on: { click: done } }, "Send again"), node("button", { type: "button", on: { click: draw } }, "Cancel")));
  text.focus();
}

// ---- Asking ----

function stop() { running?.controller.abort(); }

function again(talk) {
  const question = talk.messages.at(-2)?.content;
  talk.messages = talk.messages.slice(0, -2);
  send(talk, question);
}

function send(talk, question) {
  stop();
  if (!talk) {
    talk = { id: crypto.randomUUID?.() ?? String(Date.now() + Math.random()), messages: [] };
    state.talks.unshift(talk);
    state.current = talk.id;
  }
  talk.messages.push({ role: "user", content: question });
  const message = { role: "assistant", content: [] };
  talk.messages.push(message);
  keep();
  draw();
  answer(talk, message);
}

function append(message, type, text) {
  const last = message.content.at(-1);
  if (last?.type === type) last.text += text;
  else message.content.push({ type, text });
}

// What the model is told of the conversation: turns that were answered, and the last question.
function history(talk) {
  const out = [];
  const { messages } = talk;
  for (let at = 0; at + 1 < messages.length - 2; at += 2) {
    const parts = messages[at + 1].content.filter((part) => part.text);
    if (parts.length) out.push({ role: "user", content: messages[at].content }, { role: "assistant", content: parts });
  }
  const system = state.settings.system.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...out, { role: "user", content: messages.at(-2).content }];
}

async function answer(talk, message) {
  const controller = new AbortController();
  const mine = { controller, talk };
  running = mine;
  busy(true);
  const started = performance.now();
  let tokens = 0;
  let leftOut = 0;
  let due = 0;
  const show = () => {
    due = 0;
    if (state.current !== talk.id) return;
    const body = $("messages").lastElementChild?.querySelector(".body");
    if (!body) return;
    const follow = atBottom();
    fill(body, message);
    body.classList.toggle("cursor", running === mine);
    if (follow) bottom();
  };
  try {
    const { temperature, topK, maxTokens } = state.settings;
    const reply = await request("/v1/chat/completions", {
      method: "POST",
      signal: controller.signal,
      body: JSON.stringify({
        model: model ?? "", messages: history(talk), temperature, top_k: topK, max_tokens: maxTokens, truncation: "auto",
        stream: true, stream_options: { include_usage: true },
      }),
    });
    for await (const event of events(reply.body)) {
      if (event.error) throw new Error(event.error.message);
      tokens = event.usage?.completion_tokens ?? tokens;
      leftOut = event.truncated?.messages_left_out ?? leftOut;
      const delta = event.choices?.[0]?.delta ?? {};
      for (const part of delta.parts ?? (delta.content ? [{ type: "text", text: delta.content }] : [])) append(message, part.type, part.text);
      due ||= requestAnimationFrame(show);
    }
    const seconds = (performance.now() - started) / 1000;
    const said = [`${tokens} tokens, ${(tokens / seconds).toFixed(1)} a second`];
    if (leftOut) said.push(`the first ${leftOut} messages no longer fit and were left out`);
    if (running === mine) note(tokens ? said.join("; ") : "");
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else message.error = error.message;
  } finally {
    cancelAnimationFrame(due);
    if (running === mine) { running = null; busy(false); }
    keep();
    if (state.current === talk.id && !document.querySelector(".edit")) draw();
  }
}

async function request(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (state.settings.key) headers.Authorization = `Bearer ${state.settings.key}`;
  let reply;
  try {
    reply = await fetch(path, { headers, ...options });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  }
  if (!reply.ok) {
    const body = await reply.json().catch(() => ({}));
    throw new Error(body.error?.message ?? `The server says ${reply.status}.`);
  }
  return reply;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const pieces = held.split("\n\n");
    held = pieces.pop();
    for (const piece of pieces) {
      const data = piece.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("messages").setAttribute("aria-busy", String(is));
  if (is) note("");
}

// ---- What a person does ----

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  grow();
  send(current(), question);
});

function grow() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight + 2}px`;
}

$("question").addEventListener("input", grow);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); }
});
$("stop").addEventListener("click", () => { stop(); $("question").focus(); });
$("new").addEventListener("click", () => { begin(); side(false); });

function side(open) {
  $("side").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", String(open));
}

$("menu").addEventListener("click", (event) => { event.stopPropagation(); side(!$("side").classList.contains("open")); });
$("main").addEventListener("click", () => side(false));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("settings").open) { if ($("side").classList.contains("open")) side(false); else stop(); }
});

const FIELDS = { temperature: ["temperature", Number], "top-k": ["topK", Number], "max-tokens": ["maxTokens", Number], system: ["system", String], key: ["key", String], theme: ["theme", String] };

function settings() {
  for (const [id, [name]] of Object.entries(FIELDS)) $(id).value = state.settings[name];
  $("temperature-value").textContent = state.settings.temperature;
  if (state.settings.theme) document.documentElement.dataset.theme = state.settings.theme;
  else delete document.documentElement.dataset.theme;
}

for (const [id, [name, as]] of Object.entries(FIELDS)) {
  $(id).addEventListener("input", () => {
    if (!$(id).checkValidity() || (as === Number && $(id).value === "")) return;
    state.settings[name] = as($(id).value);
    keep();
    settings();
  });
  if (name === "key") $(id).addEventListener("change", who);
}
$("open-settings").addEventListener("click", () => { settings(); $("settings").showModal(); });
$("forget").addEventListener("click", () => {
  if (!confirm("Delete every conversation that this browser keeps?")) return;
  stop();
  join();
  for (const talk of state.talks) deleted.add(talk.id);
  state.talks = [];
  state.current = null;
  keep();
  draw();
});

async function who() {
  try {
    model = (await (await request("/v1/models")).json()).data[0].id;
    $("name").textContent = model;
    document.title = model;
    note("");
  } catch (error) {
    note(error.message);
  }
}

window.addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  join();
  drawList();
});

who();
settings();
draw();
