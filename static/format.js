// Sizes and times for people, as the server writes them.

export function formatBytes(bytes) {
  const units = ["bytes", "KB", "MB", "GB"];
  let power = 0;
  while (bytes >= 1024 && power < 3) {
    bytes /= 1024;
    power += 1;
  }
  return `${power && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[power]}`;
}

/** A length of time: "12 s", "3 min", "2 h". */
export function formatSpan(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}
