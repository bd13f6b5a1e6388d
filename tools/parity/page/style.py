"""The page's CSS: one column, readable in light and dark, nothing fetched from anywhere."""

from __future__ import annotations

# The two sides' colours, of equal weight on white and on black; the figures use them too.
SUBJECT, AGAINST = "#3f83d6", "#e0862c"
GOOD, BAD, NEUTRAL = "#2e9e5b", "#d64545", "#808080"
OUTPUT_COLOURS = ("#3f83d6", "#2e9e5b", "#a860c9", "#c9a227", "#3aa6a6", "#c96f8b")

CSS = """
:root {
  color-scheme: light dark;
  --ink: #1c2430; --soft: #5c6878; --line: #dde2e9; --paper: #f5f6f8; --card: #ffffff; --stripe: #f7f8fa;
  --good: #1f7a45; --bad: #c03636; --good-back: #e5f4ea; --bad-back: #fbe9e8; --accent: #2f6fbe;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e8ef; --soft: #9aa6b5; --line: #333c49; --paper: #14181e; --card: #1c222a; --stripe: #202730;
    --good: #62c98b; --bad: #f08784; --good-back: #183326; --bad-back: #3d2022; --accent: #7db2ee;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 28px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 2px; }
h2 { font-size: 19px; margin: 0 0 4px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 4px 0 10px; max-width: 100ch; }
.figure { white-space: nowrap; }
.soft { color: var(--soft); }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 18px;
}
nav { margin: 12px 0 0; font-size: 14px; }
nav a { color: var(--accent); text-decoration: none; margin-right: 16px; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.verdict { display: inline-block; padding: 3px 12px; border-radius: 999px; font-weight: 650; font-size: 14px; }
.pass { color: var(--good); } .fail { color: var(--bad); font-weight: 650; }
.verdict.pass { background: var(--good-back); } .verdict.fail { background: var(--bad-back); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; border-bottom-width: 2px; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--stripe); }
th.number, td.number { text-align: right; white-space: nowrap; }
td.break { overflow-wrap: anywhere; }
th.side { text-align: center; border-left: 1px solid var(--line); }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px; }
figure { margin: 14px 0 6px; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; max-width: 110ch; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 18px; margin-top: 12px; }
.pictures figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.pair img { width: 100%; height: auto; display: block; border-radius: 4px; image-rendering: auto; }
.scale { display: flex; align-items: center; gap: 8px; font-size: 12px; color: var(--soft); margin-top: 6px; }
.scale i { flex: 1; height: 8px; border-radius: 4px; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
code { font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
dl { display: grid; grid-template-columns: minmax(120px, 200px) 1fr; gap: 2px 14px; font-size: 13.5px; margin: 6px 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 900px) {
  table { font-size: 12px; } th, td { padding: 4px 6px; } thead th, th.number { white-space: normal; }
}
@media (max-width: 640px) {
  body { padding: 16px 10px; } section { padding: 14px; } .pair { grid-template-columns: 1fr; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""
