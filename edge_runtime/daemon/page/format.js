// Numbers as people read them.

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const units = ["kB", "MB", "GB"];
  let value = count / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function seconds(value) {
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 9.95 ? 2 : 1)} s`;
}

export const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < 0.0995 ? 1 : 0)} %`;

export const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// "2.5 times" below ten, whole times above.
export const times = (ratio) => `${ratio < 10 ? ratio.toFixed(1) : Math.round(ratio)} times`;

// A grid as the daemon writes it, "TxHxW" in patches.
export function grid(text) {
  const [t, h, w] = text.split("x").map(Number);
  return { t, h, w };
}
