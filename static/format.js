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

/** A moment in a clip: "0:02.5", "1:02:03". */
export function formatClock(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  const rest = (tenths % 600) / 10;
  if (minutes < 60) return `${minutes}:${rest.toFixed(1).padStart(4, "0")}`;
  const [minute, second] = [minutes % 60, Math.floor(rest)].map((part) => String(part).padStart(2, "0"));
  return `${Math.floor(minutes / 60)}:${minute}:${second}`;
}
