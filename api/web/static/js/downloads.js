// Saves a chart as a CSV table or a PNG picture.
import { visible } from "./text.js";

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file name of characters that every file system allows. */
function fileName(title, ending) {
  return `${title.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 80) || "chart"}.${ending}`;
}

/** A CSV cell; text that a spreadsheet would run as a formula gets a leading apostrophe. */
function cell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** @param {any[][]} rows the first row holds the column names. */
export function saveTable(title, rows) {
  const text = rows.map((row) => row.map(cell).join(",")).join("\r\n");
  save(new Blob([text, "\r\n"], { type: "text/csv" }), fileName(title, "csv"));
}

/** Save the plot below its title and legend, on the background of the page. */
export function savePicture(title, lines, plot, colour) {
  const scale = devicePixelRatio;
  const source = plot.ctx.canvas;
  const head = 34 * scale;
  const canvas = Object.assign(document.createElement("canvas"), { width: source.width, height: source.height + head });
  const context = canvas.getContext("2d");
  context.fillStyle = colour("--surface");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.textBaseline = "middle";
  context.font = `600 ${13 * scale}px system-ui, sans-serif`;
  context.fillStyle = colour("--text");
  context.fillText(visible(title), 12 * scale, head / 2);
  let x = 12 * scale + context.measureText(visible(title)).width + 18 * scale;
  context.font = `${12 * scale}px system-ui, sans-serif`;
  for (const { label, token, element } of lines) {
    context.fillStyle = colour(token, element);
    context.fillText(visible(label), x, head / 2);
    x += context.measureText(visible(label)).width + 14 * scale;
  }
  context.drawImage(source, 0, head);
  canvas.toBlob((blob) => blob && save(blob, fileName(title, "png")));
}
