const button = document.getElementById('fold');
const folds = document.querySelectorAll('details.code');
button.hidden = folds.length === 0;
button.addEventListener('click', () => {
  const open = button.getAttribute('aria-pressed') !== 'true';
  folds.forEach((fold) => { fold.open = open; });
  button.setAttribute('aria-pressed', String(open));
  button.textContent = open ? 'Hide all code' : 'Show all code';
});
