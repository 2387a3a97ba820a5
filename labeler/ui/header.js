// The header's live parts: who is signed in, what is running, and which tabs this person's role does not need.
// Asks /status while the page can be seen.
const POLL_MS = 3000;
const running = element.querySelector(".site-running");
const userName = element.querySelector(".site-user");
const logout = element.querySelector(".site-logout");

const hiding = document.head.appendChild(document.createElement("style"));

function hideTabs(names) {
  const rules = names.map((name) => `#tab-${name.toLowerCase()}-button { display: none !important; }`);
  if (names.length > 2) rules.push(".tab-wrapper .overflow-menu { display: none !important; }"); // the rest fits
  hiding.textContent = rules.join("\n");
  document.documentElement.dataset.hiddenTabs = names.join(" ");
}

function show(text, state) {
  running.textContent = text;
  running.hidden = !text;
  running.dataset.state = state;
}

async function refresh() {
  if (!element.isConnected) return clearInterval(timer);
  if (document.hidden) return;
  try {
    const answer = await fetch("status", { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(10000) });
    if (answer.status === 401) return window.location.reload();
    if (!answer.ok) throw new Error(String(answer.status));
    const status = await answer.json();
    userName.textContent = status.login ? status.user : "";
    logout.hidden = !status.login;
    hideTabs(status.hidden_tabs);
    show(status.running, "running");
  } catch {
    show("The app does not answer. Is it still running?", "lost");
  }
}

const timer = setInterval(refresh, POLL_MS);
document.addEventListener("visibilitychange", refresh);
refresh();
