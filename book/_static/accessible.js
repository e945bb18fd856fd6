// The theme lets the keyboard reach what scrolls sideways, but looks only at what is shown when the page loads or the
// window changes. Code and solutions that are opened later need another look.
(() => {
  const look = () => setTimeout(() => window.dispatchEvent(new Event("resize")), 0);
  document.addEventListener("toggle", look, true);
  document.addEventListener("click", (event) => {
    if (event.target.closest(".toggle-button, .admonition.dropdown > .admonition-title")) look();
  });
})();
