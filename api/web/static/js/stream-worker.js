// The shared worker that holds the stream of all windows.
import { Hub } from "./hub.js";

const hub = new Hub();

addEventListener("connect", ({ ports: [port] }) => {
  let follower = null;
  port.onmessage = ({ data }) => {
    if (follower) hub.remove(follower);
    follower = data && { ...data, send: (message) => port.postMessage(message) };
    if (follower) hub.add(follower);
  };
});
