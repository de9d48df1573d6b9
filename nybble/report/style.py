"""The page's style sheet: light and dark, no fonts or images from elsewhere."""

STYLE = """\
:root {
  --ink: #1c2330; --soft: #5d6778; --line: #e3e7ee; --paper: #fff; --ground: #f5f7fa;
  --float: #9aa5b5; --simulated: #6ea8dc; --deployed: #0f766e; --good: #0f766e; --bad: #b42318;
  --k0: #0f766e; --k1: #3b82c4; --k2: #c98a1b; --k3: #8a5cc2; --k4: #c2526b; --k5: #64748b;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaf1; --soft: #97a3b6; --line: #2b3442; --paper: #171d27; --ground: #0f141c;
    --float: #66748a; --simulated: #4b8fcb; --deployed: #2bb3a3; --good: #2bb3a3; --bad: #f0766b;
    --k0: #2bb3a3; --k1: #5b9fdd; --k2: #e0a63f; --k3: #a884dc; --k4: #dd7a90; --k5: #8b99ad;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
header { margin-bottom: 28px; }
header p {
  margin: 0; color: var(--soft); letter-spacing: .06em; text-transform: uppercase;
  font-size: 12px;
}
h1 { margin: 2px 0 12px; font-size: 32px; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 4px; font-size: 18px; }
.note { margin: 0 0 16px; color: var(--soft); }
section {
  background: var(--paper); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-bottom: 20px;
}
.chip {
  display: inline-block; border: 1px solid currentColor; border-radius: 99px;
  padding: 2px 12px; margin-right: 8px; font-size: 13px; font-weight: 600;
}
.good { color: var(--good); }
.bad { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 32px; }
figure { margin: 0; }
figcaption { font-weight: 600; margin-bottom: 10px; }
small { color: var(--soft); font-weight: 400; }
.bar { display: flex; align-items: center; gap: 10px; margin: 5px 0; font-size: 13px; }
.label {
  flex: 0 0 84px; color: var(--soft); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap;
}
section:not(.charts) .label { flex-basis: 240px; }
.track { flex: 1; height: 14px; }
.fill {
  display: block; height: 100%; min-width: 2px; border-radius: 0 4px 4px 0;
  background: var(--k0);
}
.value {
  flex: 0 0 72px; text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}
.charts .value { flex-basis: 112px; text-align: left; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; margin-bottom: 8px; }
.float { background: var(--float); }
.simulated { background: var(--simulated); }
.deployed { background: var(--deployed); }
.k0 { background: var(--k0); } .k1 { background: var(--k1); } .k2 { background: var(--k2); }
.k3 { background: var(--k3); } .k4 { background: var(--k4); } .k5 { background: var(--k5); }
.strip {
  display: flex; gap: 2px; height: 20px; border-radius: 6px; overflow: hidden;
  margin-bottom: 10px;
}
.strip span { display: block; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 18px;
  padding: 0; font-size: 13px;
}
.legend i {
  display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th, td { padding: 6px 14px 6px 0; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dl {
  display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 6px 24px;
  margin: 0; font-size: 13px;
}
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { section:not(.charts) .label { flex-basis: 110px; } }
"""
