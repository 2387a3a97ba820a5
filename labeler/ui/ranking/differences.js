// Word by word, what one card has and another has not: the longest common subsequence of their words.

const MAX_CELLS = 16_000_000; // of the table: 32 MB, some hundred milliseconds

/** Words with the space after them, in any script. */
function words(text) {
  const found = [];
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)) {
    if (found.length && !segment.trim()) found[found.length - 1] += segment;
    else found.push(segment);
  }
  return found;
}

/** Runs of [kind, text], kind "same", "ins" (only in `here`) or "del" (only in `there`); null where both are too long. */
function differences(there, here) {
  const [a, b] = [words(there), words(here)];
  const same = (i, j) => a[i].trim() === b[j].trim();
  let head = 0;
  while (head < a.length && head < b.length && same(head, head)) head += 1;
  let [m, n] = [a.length, b.length];
  while (m > head && n > head && same(m - 1, n - 1)) [m, n] = [m - 1, n - 1];

  // table[i][j]: length of the longest common subsequence of a[i..m) and b[j..n)
  const width = n - head + 1;
  if ((m - head + 1) * width > MAX_CELLS) return null;
  const table = new Uint16Array((m - head + 1) * width);
  const at = (i, j) => (i - head) * width + (j - head);
  for (let i = m - 1; i >= head; i -= 1) {
    for (let j = n - 1; j >= head; j -= 1) {
      table[at(i, j)] = same(i, j) ? table[at(i + 1, j + 1)] + 1 : Math.max(table[at(i + 1, j)], table[at(i, j + 1)]);
    }
  }

  const runs = [];
  const add = (kind, text) => {
    if (runs.at(-1)?.[0] === kind) runs.at(-1)[1] += text;
    else runs.push([kind, text]);
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    const inTable = i >= head && j >= head && i <= m && j <= n;
    if (i < a.length && j < b.length && same(i, j)) {
      add("same", b[j]);
      [i, j] = [i + 1, j + 1];
    } else if (j >= n || (i < m && inTable && table[at(i + 1, j)] >= table[at(i, j + 1)])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return runs;
}

/** Show what the marked card has beside the best one, or beside the one before it; or stop doing so. */
function toggleDifferences(index) {
  const shown = state.differences;
  state.differences = shown?.index === index ? null : { index, other: comparedWith(index) };
  if (shown) fill(shown.index);
  if (state.differences) fill(index);
  for (const card of cards()) {
    card.querySelector(".differences").ariaPressed = String(state.differences?.index === Number(card.dataset.index));
  }
}

function comparedWith(index) {
  const best = bestCard();
  if (best !== null && best !== index) return best;
  const at = state.order.indexOf(index);
  return state.order[at === 0 ? 1 : at - 1];
}

/** The inside of a card that is compared. Text only: nothing of it is HTML. */
function drawDifferences(other, index) {
  const runs = differences(view.completions[other].text, view.completions[index].text);
  const note = runs === null ? TEXTS.differencesTooLong : TEXTS.differencesNote(letter(other));
  const marks = (runs ?? [["same", view.completions[index].text]]).map(([kind, text]) =>
    kind === "same" ? text : make(kind, { textContent: text }),
  );
  return [make("p", { className: "differences-note" }, note), make("div", { className: "differences-text", dir: "auto" }, ...marks)];
}
