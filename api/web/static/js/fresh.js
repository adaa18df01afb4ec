// Tables that are fetched again now and then: nobody sends hints about them.
import { sendForms } from "./actions.js";
import { refresh } from "./page.js";

setInterval(() => {
  if (document.visibilityState === "visible") refresh(location.href).catch(console.debug);
}, 5000);
sendForms({ done: () => refresh(location.href) });
