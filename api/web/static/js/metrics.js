// Names of metrics for people: the page has the table of wcl_core/metrics.py.

const TABLE = JSON.parse(document.getElementById("charts")?.dataset.table ?? "{}");

/** The title, one sentence and the unit of a metric; one that is not in the table has its name as title. */
export function factsOf(name) {
  const [title, about, isShare] = isOurs(name) ? TABLE[name] : [name, "", name.endsWith("top1")];
  return { title, about, isShare };
}

/** Whether a metric is one of ours, and not of a plugin. */
export function isOurs(name) {
  return Object.hasOwn(TABLE, name);
}

export function isHardware(name) {
  return name === "train/images_per_second" || name.startsWith("system/");
}
