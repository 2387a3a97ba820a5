// The page around the conversation, and the looks at an answer that is being written.

const box = make("textarea", { rows: 1, placeholder: "Your message. Enter sends it.", "aria-label": "Message" });
const touch = window.matchMedia("(pointer: coarse)");

function drawPage() {
  const conversation = make("select", { id: "chat-conversation", onchange: switchTo });
  root.replaceChildren(
    make(
      "div",
      { className: "chat-top" },
      field("Conversation", conversation),
      field("Talk to", make("select", { id: "chat-checkpoint" })),
      button("New conversation", startNew, { id: "chat-new" }),
    ),
    make("div", { id: "chat-log", role: "region", tabIndex: 0, "aria-label": "Conversation" }),
    make("p", { id: "chat-status", role: "status" }),
    make(
      "div",
      { className: "chat-input" },
      make("div", { id: "chat-box" }, box),
      button("Send", send, { id: "chat-send", className: "primary" }),
      button("Stop", stop, { id: "chat-stop", className: "danger", hidden: true }),
    ),
    settingsFold(),
    conversationFold(),
  );
}

box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch.matches) return;
  event.preventDefault();
  if (!part("#chat-send").hidden) send();
});
box.addEventListener("input", () => {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight + 2, 240)}px`;
});

/** Draw a whole answer of the server's: lists and the conversation. False where there is none. */
async function open(answering) {
  const answer = await answering;
  if (!answer) return false;
  lists = { ...lists, ...answer };
  drawKnobs();
  drawPresets();
  fill(part("#chat-checkpoint"), lists.checkpoints);
  fill(part("#chat-reward"), [NO_REWARD, ...lists.rewards]);
  const before = shown?.id;
  show(answer.conversation);
  if (shown && shown.id !== before) {
    restore(shown.settings);
    drawTurns(); // with the scores of the reward model that was restored
  }
  return true;
}

/** Do something that answers with the conversation as it is then. */
async function act(name, data) {
  if (part("#chat-log").dataset.busy) return false; // a double click
  part("#chat-log").dataset.busy = "yes";
  const answer = await call(name, data);
  delete part("#chat-log").dataset.busy;
  if (!answer) return false;
  say("");
  show(answer.conversation);
  return true;
}

function show(conversation) {
  shown = conversation;
  const list = [...lists.conversations];
  const fresh = { id: "", name: list.length ? "New conversation" : "None yet" };
  fill(part("#chat-conversation"), shown ? list : [fresh, ...list], shown?.id ?? "");
  part("#chat-manage").hidden = !shown;
  part("#chat-title").value = shown?.title ?? "";
  part("#chat-export").href = `conversations/${shown?.id}`;
  const writing = Boolean(shown?.writing);
  part("#chat-send").hidden = writing;
  part("#chat-stop").hidden = !writing;
  root.classList.toggle("writing", writing);
  drawTurns();
  if (shown?.problem) say(shown.problem);
  looking += 1;
  if (writing) look(looking);
}

/** Look at the answer again and again until it has ended, or something else is shown. */
async function look(series) {
  const conversation_id = shown.id;
  while (element.isConnected) {
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? RETRY_MS : LOOK_MS));
    if (series !== looking) return;
    const answer = await call("chat_look", { conversation_id });
    if (series !== looking) return;
    if (!answer) {
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      continue;
    }
    say("");
    if (answer.conversation) return show(answer.conversation);
    drawLive(answer.turn);
  }
}

async function send() {
  const text = box.value;
  if (!text.trim()) return say("Write a message first.", "info");
  if (!lists.knobs) return refresh(); // the app did not answer when the page came
  const button = part("#chat-send");
  if (button.disabled) return; // a double click
  button.disabled = true;
  say("");
  const sent = await open(call("chat_ask", { conversation_id: shown?.id ?? null, text, settings: settings() }));
  button.disabled = false;
  if (!sent || box.value !== text) return; // what was refused stays in the box
  box.value = "";
  box.style.height = "auto";
}

const stop = () => shown && act("chat_stop", { conversation_id: shown.id });

function startNew() {
  say("");
  show(null);
  box.focus();
}

function switchTo({ target }) {
  say("");
  if (target.value) open(call("chat_open", { conversation_id: Number(target.value) }));
}

/** The tab came into view: what other pages did meanwhile is shown, and new checkpoints can be chosen. */
async function refresh() {
  if (shown?.writing) return; // it is being looked at already
  const fresh = lists.knobs && !shown; // somebody is about to begin a new one
  const answer = await call("chat_open", shown ? { conversation_id: shown.id } : {});
  if (answer) await open(fresh ? { ...answer, conversation: null } : answer);
  else if (shown) startNew(); // deleted elsewhere
}

drawPage();
new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && visible() && !part(".editing")) refresh();
}).observe(root);
