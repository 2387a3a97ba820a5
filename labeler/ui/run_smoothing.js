// The slider for run_curves.js: kept in this browser, and the same in every tab of the page.

const KEY = 'run-smoothing';

function show() {
  const weight = Number(localStorage.getItem(KEY) || 0);
  element.querySelector('input').value = weight;
  element.querySelector('output').value = weight ? weight.toFixed(2) : 'off';
}

element.addEventListener('input', event => {
  localStorage.setItem(KEY, event.target.value);
  document.dispatchEvent(new Event(KEY));
});
document.addEventListener(KEY, function follow() {
  if (element.isConnected) show();
  else document.removeEventListener(KEY, follow);
});
show();
