// Smoothing: over each curve its exponential moving average, corrected for its start (arXiv:1412.6980, section 3).
// Points are already in pixels; an average of pixels is the pixel of the average. The slider is beside the curves.

const KEY = 'run-smoothing';

function smoothed(points, weight) {
  let mean = 0;
  let total = 0;
  return points.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    total = weight * total + (1 - weight);
    return `${x},${(mean / total).toFixed(1)}`;
  });
}

function draw() {
  const weight = Number(localStorage.getItem(KEY) || 0);
  for (const old of element.querySelectorAll('.smooth')) old.remove();
  for (const line of element.querySelectorAll('polyline.line')) {
    line.classList.toggle('raw', weight > 0);
    if (!weight) continue;
    const points = line.getAttribute('points').split(' ').map(pair => pair.split(',').map(Number));
    const smooth = line.cloneNode();
    smooth.setAttribute('points', smoothed(points, weight).join(' '));
    smooth.classList.replace('line', 'smooth');
    smooth.classList.remove('raw');
    line.after(smooth);
  }
  for (const dot of element.querySelectorAll('.dot')) dot.classList.toggle('raw', weight > 0);
}

document.addEventListener(KEY, function follow() {
  if (element.isConnected) draw();
  else document.removeEventListener(KEY, follow);
});
watch('value', draw);
draw();
