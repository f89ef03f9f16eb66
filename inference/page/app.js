// All around the conversation: settings, languages, the key, panels and buttons.

// --- choices --------------------------------------------------------------------------------------

function showModels() {
  const options = () => models.map((id) => el("option", { value: id }, modelName(id)));
  const pick = (select, wanted, otherwise) => {
    select.replaceChildren(...(models.length ? options() : [el("option", { value: "" }, say("noModels"))]));
    select.value = models.includes(wanted) ? wanted : otherwise || "";
  };
  pick($("weights"), recall("weights", ""), models[0]);
  const other = models.find((id) => id !== $("weights").value) || models[0];
  pick($("weights-b"), recall("weights-b", ""), other);
  comparing = recall("compare", false) && models.length > 1;
  $("compare").disabled = models.length < 2;
  $("compare").title = say(models.length < 2 ? "compareNone" : "compare");
}

function showSettings() {
  for (const [place, more] of [["basic", undefined], ["further", 1]])
    $(place).replaceChildren(...SETTINGS.filter((row) => row.more === more).map(settingElement));
}

function settingElement(row) {
  const [title, help] = row[language];
  const id = `set-${row.name}`;
  const set = (value) => {
    settings = { ...settings, [row.name]: value };
    kept.set("settings", JSON.stringify(settings));
  };
  const head = el("div", { class: "head" }, el("label", { for: id }, title));
  const root = el("div", { class: "setting" }, head);
  if (row.choices) {
    const select = el("select", { id, onchange: () => set(select.value) });
    for (const [value, [chinese, english]] of Object.entries(row.choices))
      select.append(el("option", { value }, language === "zh" ? chinese : english));
    select.value = setting(row);
    head.append(select);
  } else if (row.lines) {
    const area = el("textarea", { id, rows: "2", oninput: () => set(area.value) });
    area.value = setting(row);
    root.append(area);
  } else {
    const limits = { min: `${row.min}`, max: `${row.max}`, step: `${row.step}` };
    const number = el("input", { id, type: "number", ...limits, inputmode: "decimal" });
    number.value = setting(row) ?? "";
    const slide = row.slide && el("input", { type: "range", "aria-label": title, ...limits });
    const changed = (text) => {
      const given = Math.min(row.max, Math.max(row.min, Number(text)));
      const empty = row.name === "max_tokens" ? null : row.value;
      const value = text === "" ? empty : row.step === 1 ? Math.round(given) : given;
      set(value);
      number.value = value ?? "";
      if (slide) slide.value = value;
    };
    number.addEventListener("change", () => changed(number.value));
    head.append(number);
    if (slide) {
      slide.value = setting(row);
      slide.addEventListener("input", () => changed(slide.value));
      root.append(slide);
    }
  }
  root.append(el("small", {}, help));
  return root;
}

function showLanguage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-t], [data-t-title], [data-t-label], [data-t-placeholder]").forEach((node) => {
    const { t, tTitle, tLabel, tPlaceholder } = node.dataset;
    if (t) node.textContent = say(t);
    if (tTitle) node.title = say(tTitle);
    if (tTitle || tLabel) node.setAttribute("aria-label", say(tTitle || tLabel));
    if (tPlaceholder) node.placeholder = say(tPlaceholder);
  });
  $("examples").replaceChildren(
    ...EXAMPLES.map(([text, meaning]) => {
      const button = el("button", { type: "button", onclick: () => ask(text) }, text);
      if (language === "en") button.append(el("small", {}, meaning));
      return button;
    }),
  );
  showTheme();
  showModels();
  showSettings();
  showHistory();
  showTalk();
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function showTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
  $("theme-name").textContent = WORDS[language].themes[theme];
}

/** A text field as high as its text. */
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

// --- the key --------------------------------------------------------------------------------------

let keyAsked = null; // both columns wait for the same answer

/** Asks for the server's key. Returns whether there is one to try. */
function askForKey(wrong) {
  keyAsked =
    keyAsked ||
    new Promise((given) => {
      $("key-text").textContent = say(wrong ? "keyWrong" : "keyText");
      $("key").value = "";
      $("key-dialog").returnValue = "";
      $("key-dialog").showModal();
      $("key-dialog").onclose = () => {
        keyAsked = null;
        given($("key-dialog").returnValue === "given");
      };
    });
  return keyAsked;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("key").value) return;
  tab.set("key", $("key").value);
  $("key-dialog").close("given");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close(""));

// --- panels and buttons ---------------------------------------------------------------------------

const isNarrow = () => matchMedia("(max-width: 960px)").matches;

function showPanel(name, shown) {
  document.body.classList.toggle(`show-${name}`, shown);
  document.querySelector("main").inert = shown && isNarrow(); // the keyboard stays in the panel
  $(name === "history" ? "menu" : "tune").setAttribute("aria-expanded", shown);
}

/** Closes what lies over the conversation. Returns whether there was anything. */
function closePanels() {
  const detail = !$("detail").hidden;
  const menu = $("export").open;
  hideDetail();
  $("export").open = false;
  const over = isNarrow() && ["history", "settings"].filter((name) => document.body.classList.contains(`show-${name}`));
  if (!over || !over.length) return detail || menu;
  over.forEach((name) => showPanel(name, false));
  $(over[0] === "history" ? "menu" : "tune").focus();
  return true;
}

/** Enter, but not the Enter that ends the spelling of a Chinese word. */
const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;

const choose = (name, value) => kept.set(name, JSON.stringify(value));

const buttons = {
  new: () => openTalk(newTalk().id),
  stop,
  retry,
  menu: () => {
    showPanel("history", true);
    $("new").focus();
  },
  tune: () => {
    const shown = !document.body.classList.contains("show-settings");
    showPanel("settings", shown);
    if (!isNarrow()) choose("panel", shown);
    else $("close-settings").focus();
  },
  "close-settings": closePanels,
  shade: closePanels,
  tokens: () => {
    tokensShown = !tokensShown;
    choose("tokens", tokensShown);
    hideDetail();
    views.forEach((view) => ((view.shown = 0), view.update()));
    showButtons();
    const bare = talk.turns.length && !talk.turns[talk.turns.length - 1].answers.some((answer) => answer.tokens.length);
    if (tokensShown && bare && !running.has(talk.id)) notify(say("noToken"));
  },
  compare: () => {
    comparing = !comparing;
    choose("compare", comparing);
    document.body.classList.toggle("comparing", comparing);
    showButtons();
  },
  language: () => {
    language = language === "zh" ? "en" : "zh";
    choose("language", language);
    showLanguage();
  },
  theme: () => {
    theme = { auto: "light", light: "dark", dark: "auto" }[theme];
    choose("theme", theme);
    showTheme();
  },
  reset: () => {
    settings = {};
    kept.remove("settings");
    showSettings();
  },
  "export-markdown": () => exported("md", "text/markdown", asMarkdown),
  "export-json": () => exported("json", "application/json", asJson),
};
Object.entries(buttons).forEach(([id, click]) => $(id).addEventListener("click", click));

function exported(ending, kind, write) {
  closePanels();
  if (!talk.turns.length) return notify(say("exportNothing"));
  const name = titleOf(talk).replace(/[\\/:*?"<>|\s.]+/g, "_");
  download(`${name}.${ending}`, kind, write(talk));
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask($("prompt").value);
});
$("prompt").addEventListener("input", () => {
  grow($("prompt"));
  showButtons();
});
$("prompt").addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !$("prompt").value && talk.turns.length) {
    event.preventDefault();
    editQuestion(talk.turns.length - 1);
  }
});
$("system").addEventListener("input", () => {
  talk.system = $("system").value;
  grow($("system"));
});
$("system").addEventListener("change", () => keepTalk(talk));
for (const name of ["weights", "weights-b"]) $(name).addEventListener("change", () => choose(name, $(name).value));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("key-dialog").open && !closePanels()) stop();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".token, #detail")) hideDetail();
  if (!event.target.closest("#export")) $("export").open = false;
});
$("log").addEventListener("scroll", hideDetail);
addEventListener("resize", () => {
  hideDetail();
  if (!isNarrow()) document.querySelector("main").inert = false;
});
addEventListener("storage", showHistory); // another tab has changed it
addEventListener("pagehide", () => running.has(talk.id) && keepTalk(talk));
dark.addEventListener("change", showTheme);

// --- the beginning --------------------------------------------------------------------------------

function start() {
  document.querySelectorAll("[data-icon]").forEach((node) => node.prepend(icon(node.dataset.icon)));
  showPanel("settings", recall("panel", innerWidth > 1500) && !isNarrow());
  talk = recall(`talk.${tab.get("talk")}`, null) || talk;
  settle(talk);
  showLanguage();
  scrollDown();
  if (!isNarrow()) $("prompt").focus();
  loadModels();
}

start();
