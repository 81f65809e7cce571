/* A page that was opened as a file may not read others: the search goes without excerpts. */
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

/* What can be scrolled can be reached by the keyboard. */
document.addEventListener('DOMContentLoaded', () => {
  const boxes = document.querySelectorAll('pre, .pst-scrollable-table-container, div.math, .cell_output .output');
  const mark = () => boxes.forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
  mark();
  window.addEventListener('resize', mark);
});
