// Draws every chart of the page; each says so on its element, or says why it could not.
const specs = JSON.parse(document.getElementById("specs").textContent);
const config = {
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor",
    tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.12, domainOpacity: 0.4,
    tickOpacity: 0.4, labelOpacity: 0.8, titleFontWeight: "normal", titleOpacity: 0.8,
    labelFontSize: 11, titleFontSize: 11,
  },
};
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const options = { renderer: "svg", actions: false, config, tooltip: { theme: dark ? "dark" : "light" } };
for (const element of document.querySelectorAll(".chart")) {
  vegaEmbed(element, specs[Number(element.dataset.chart)], options).then(
    () => { element.dataset.drawn = "yes"; },
    (error) => { element.dataset.drawn = "no"; element.textContent = String(error); },
  );
}
