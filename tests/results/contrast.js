// The contrast of every piece of text, and of every line and marker of a chart, with what lies behind it: two lists of
// [ratio, what]. A colour is drawn on a canvas to be read back, whatever the notation it is computed in.
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 1;
const context = canvas.getContext("2d", { willReadFrequently: true });

function behind(element) {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
  return layers;
}
function luminance(colours) {
  context.clearRect(0, 0, 1, 1);
  for (const colour of colours) {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
  }
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(element, colour) {
  const layers = behind(element);
  const pair = [luminance(layers), luminance([...layers, colour])];
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}

const texts = [], marks = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.getClientRects().length || element.closest(".skip")) continue;
  const style = getComputedStyle(element);
  const colour = element.closest("svg") ? style.fill : style.color;
  texts.push([contrast(element, colour), walker.currentNode.data.trim()]);
}
for (const shape of document.querySelectorAll("svg .line, svg .mark, svg.bar rect")) {
  const style = getComputedStyle(shape);
  marks.push([contrast(shape.closest("svg"), shape.matches("rect") ? style.fill : style.stroke), shape.outerHTML.slice(0, 80)]);
}
return [texts, marks];
