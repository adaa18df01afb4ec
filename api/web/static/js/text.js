// Text from outside: shown with hidden characters as escapes, the same as by `visible_lines` in wcl_core/text.py.
// Scripts show text through this module only; a test of the scripts enforces it.

// Control characters, marks that reorder what is read, line separators, half surrogates, invisible tag characters,
// and what is no character in XML.
const HIDDEN =
  /(?![\n\t])[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff\u{e0000}-\u{e007f}]/gu;

/** Return text in which each character that a reader would not see is an escape; line ends and tabs stay. */
export function visible(text) {
  return String(text).replace(HIDDEN, escape);
}

function escape(character) {
  if (character === "\r") return "\\r";
  const code = character.codePointAt(0);
  const hex = (digits) => code.toString(16).padStart(digits, "0");
  return code < 0x100 ? `\\x${hex(2)}` : code < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`;
}

/** Build an element that shows text. */
export function text(tag, content, className = "") {
  const element = document.createElement(tag);
  element.textContent = visible(content);
  element.className = className;
  return element;
}
