// The page around the cards: progress and tools above, prompt, comment and buttons; and what is shown without a task.

function draw() {
  draft.dirty = false;
  menu = null;
  if (view.projects.length && view.project) remember(device, "project", view.project.id);
  if (view.kind === "task") drawTask();
  else drawEmpty();
  drawDot();
  drawPanel();
}

function drawTask() {
  const saved = view.draft ?? {};
  const count = view.completions.length;
  state = {
    uuid: newId(),
    ranks: saved.ranks ?? Array(count).fill(null),
    ratings: saved.ratings ?? Array(count).fill(null),
    tags: saved.tags ?? Array.from({ length: count }, () => []),
    strength: saved.strength ?? null,
    allBad: saved.all_bad ?? false,
    comment: saved.comment ?? "",
    rewrite: saved.rewrite ?? "",
    rewriteFrom: "",
    order: saved.order ?? Array.from({ length: count }, (_, index) => index),
    active: 0,
    tagging: null,
    differences: null,
    spent: 0,
    since: performance.now(),
  };
  const [first] = state.order;
  const roomy = question() !== "pairwise" && highest() <= 5 && columns() < 4; // a card's buttons fit beside its name
  const list = make("div", { className: roomy ? "cards roomy" : "cards", role: "list", ariaLabel: TEXTS.completions });
  list.style.setProperty("--columns", columns());
  list.style.setProperty("--rows", Math.ceil(count / columns()));
  list.append(...state.order.map(makeCard));
  const task = [makePrompt(), list, ...(question() === "pairwise" ? [makeScale()] : []), makeRewrite(), makeActions()];
  drawFrame(makeTop(), ...task);
  sizes.disconnect();
  for (const index of state.order) {
    fill(index);
    drawTags(index);
    sizes.observe(cardOf(index).querySelector(".card-text"));
  }
  showRewrite(Boolean(state.rewrite));
  grow(part(".comment"));
  drawState();
  mark(nextUnanswered(first) ?? first, true);
  if (view.draft && !correcting()) note(TEXTS.draftBack);
  if (!correcting()) readAhead();
  if (root.getBoundingClientRect().top < 0) window.scrollTo(0, narrow() ? root.getBoundingClientRect().top + window.scrollY : 0);
}

function drawFrame(top, ...content) {
  root.replaceChildren(
    top,
    make("div", { className: "rank-body" }, make("div", { className: "rank-main" }, ...content), make("aside", { className: "side", tabIndex: -1, hidden: true })),
    live,
  );
}

// ---------------------------------------------------------------- above

function makeTop() {
  const { progress, projects, project } = view;
  const top = make("div", { className: "rank-top" });
  if (projects.length > 1) {
    const chooser = make("select", { className: "projects", ariaLabel: TEXTS.project, onchange: () => chooseProject(Number(chooser.value)) });
    chooser.append(...projects.map(({ id, name }) => make("option", { value: id, selected: id === project.id }, name)));
    top.append(chooser);
  }
  if (progress) {
    const numbers = [];
    if (progress.total) numbers.push(TEXTS.progress(progress.done, progress.total, progress.today));
    if (progress.skipped) numbers.push(TEXTS.skipped(progress.skipped));
    const soFar = sessionSoFar();
    if (soFar) numbers.push(TEXTS.session(soFar.count, TEXTS.seconds(soFar.median)));
    if (view.qualification) numbers.push(TEXTS.qualification(view.qualification.done, view.qualification.needed));
    top.append(
      make("p", { className: "progress-text" }, numbers.join(" · ")),
      make("progress", { value: progress.done, max: Math.max(progress.total, 1), ariaLabel: TEXTS.progressBar }),
    );
  }
  const tools = make("div", { className: "tools" }, button(TEXTS.undo, undo, { className: "quiet undo", disabled: !view.can_undo }));
  if (project) {
    for (const name of ["history", "guidelines"]) {
      tools.append(button(PANELS[name].title, () => togglePanel(name), { className: `quiet ${name}`, ariaExpanded: "false" }));
    }
  }
  if (onTask()) tools.append(button(TEXTS.raw, toggleRaw, { className: "quiet raw", ariaPressed: String(raw) }));
  tools.append(button(TEXTS.keys, () => togglePanel("keys"), { className: "quiet keys", ariaExpanded: "false" }));
  top.append(tools);
  if (!correcting()) return top;
  const note = make("div", { className: "correcting" }, make("p", {}, TEXTS.changing(moment(view.said_at))), button(TEXTS.back, load, { className: "back" }));
  return make("div", { className: "rank-tops" }, top, note);
}

/** Wide texts two by two; short ones in a single row. The style sheet takes fewer where the screen is narrow. */
function columns() {
  const count = view.completions.length;
  const longest = Math.max(...view.completions.map((completion) => completion.text.length));
  if (count <= 3) return count;
  if (count === 4) return longest < 240 ? 4 : 2;
  return 3;
}

function makePrompt() {
  const turns = view.messages.map((message) => {
    const text = make("div", { className: "turn-text", dir: "auto" });
    if (message.html === null) text.textContent = message.text;
    else {
      text.classList.add("markdown");
      text.innerHTML = message.html; // sanitised by the server
    }
    const role = TEXTS.roles[message.role] ?? message.role;
    if (message.role === "system") {
      return make("details", { className: "turn", dataset: { role: "system" } }, make("summary", { className: "turn-role" }, role), text);
    }
    return make("div", { className: "turn", dataset: { role: message.role } }, make("div", { className: "turn-role" }, role), text);
  });
  return make("section", { className: "prompt", ariaLabel: TEXTS.prompt, tabIndex: 0 }, ...turns);
}

// ---------------------------------------------------------------- below

function makeActions() {
  const comment = make("textarea", {
    className: "comment",
    rows: 1,
    maxLength: 10000,
    dir: "auto",
    placeholder: TEXTS.commentHint,
    ariaLabel: TEXTS.comment,
    value: state.comment,
    oninput: () => {
      state.comment = comment.value;
      grow(comment);
      changed();
    },
  });
  const buttons = make(
    "div",
    { className: "action-buttons" },
    make("div", { className: "rank-notice", role: "alert" }),
    make("span", { className: "draft-note" }),
  );
  if (!correcting()) buttons.append(button(TEXTS.skip, askSkip, { className: "skip" }));
  buttons.append(
    button(question() === "pairwise" ? TEXTS.bothBad : TEXTS.allBad, toggleAllBad, { className: "all-bad" }),
    make("button", { type: "button", className: "submit", onclick: submit }, TEXTS.submit, make("kbd", { ariaHidden: "true" }, `${COMMAND} ↵`)),
  );
  const more = make(
    "div",
    { className: "more-buttons" },
    button(TEXTS.rewrite, startRewrite, { className: "quiet rewrite", ariaExpanded: "false" }),
    button(TEXTS.flag, askFlag, { className: "quiet flag" }),
  );
  return make("div", { className: "actions" }, comment, more, buttons);
}

// ---------------------------------------------------------------- without a task

function drawEmpty() {
  state = null;
  const { progress, prompts, reason } = view;
  const lines = [];
  const buttons = [];
  let title = TEXTS.doneTitle;
  const train = !(document.documentElement.dataset.hiddenTabs ?? "").includes("Train"); // set by header.js
  if (reason) {
    title = TEXTS.nothingTitle;
    lines.push(reason === "no project" ? TEXTS.noProject : reason);
  } else if (progress.done) {
    lines.push(`${TEXTS.done(progress.done)} ${train ? TEXTS.doneTrain : TEXTS.doneThanks}`);
    if (train) buttons.push(button(TEXTS.goToTrain, () => openTab("Train")));
    if (progress.skipped) title = TEXTS.doneButSkipped;
  } else if (progress.skipped) {
    title = TEXTS.onlySkipped;
  } else {
    title = prompts ? TEXTS.nothingTitle : TEXTS.noPromptsTitle;
    lines.push(prompts ? TEXTS.nothing : TEXTS.noPrompts);
    if (prompts && train) {
      lines.push(TEXTS.trainOrImport);
      buttons.push(button(TEXTS.goToTrain, () => openTab("Train")));
    }
    buttons.push(button(TEXTS.goToData, () => openTab("Data")));
  }
  if (progress?.skipped) {
    const bringBack = () => go("rank_skipped", { uuid: newId() });
    buttons.push(button(TEXTS.returnSkipped(progress.skipped), bringBack, { className: "return-skipped" }));
  }
  drawFrame(
    makeTop(),
    make(
      "div",
      { className: "rank-empty" },
      make("h2", {}, title),
      ...lines.map((line) => make("p", {}, line)),
      make("div", { className: "rank-notice", role: "alert" }),
      make("div", { className: "empty-buttons" }, ...buttons),
    ),
  );
}

function drawFailure(message) {
  root.replaceChildren(
    make(
      "div",
      { className: "rank-empty" },
      make("p", { className: "rank-notice", role: "alert", dataset: { kind: "error" } }, message),
      button(TEXTS.retry, load),
    ),
  );
}

function openTab(label) {
  // on a small screen some tabs stand in Gradio's overflow menu; the hidden copies are there to be measured only
  const tabs = Array.from(document.querySelectorAll(".tab-wrapper button")).filter((tab) => !tab.closest("[aria-hidden]"));
  tabs.find((tab) => tab.textContent.trim() === label)?.click();
}
