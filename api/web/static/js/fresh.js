// Refreshes tables every few seconds, for pages without a stream.
import { sendForms } from "./actions.js";
import { refresh } from "./page.js";

setInterval(() => {
  if (document.visibilityState === "visible") refresh(location.href).catch(console.debug);
}, 5000);
sendForms({ done: () => refresh(location.href) });
