"""The page's style sheet: light and dark, no fonts or images from elsewhere."""

STYLE = """\
:root {
  --ink: #1c2330; --soft: #5d6778; --line: #e3e7ee; --paper: #fff; --ground: #f5f7fa;
  --float: #9aa5b5; --simulated: #6ea8dc; --deployed: #0f766e; --good: #0f766e; --bad: #b42318;
  --k0: #0f766e; --k1: #3b82c4; --k2: #c98a1b; --k3: #8a5cc2; --k4: #c2526b; --k5: #64748b;
  --heat: #b4321a; --ring: #1c2330;
  --w0: #7c8aa0; --w1: #2f7fc1; --w2: #c98a1b; --w3: #c2526b; --w4: #8a5cc2; --w5: #5f7a2c;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6eaf1; --soft: #97a3b6; --line: #2b3442; --paper: #171d27; --ground: #0f141c;
    --float: #66748a; --simulated: #4b8fcb; --deployed: #2bb3a3; --good: #2bb3a3; --bad: #f0766b;
    --k0: #2bb3a3; --k1: #5b9fdd; --k2: #e0a63f; --k3: #a884dc; --k4: #dd7a90; --k5: #8b99ad;
    --heat: #ff8a5c; --ring: #fff;
    --w0: #75849b; --w1: #4f9fe0; --w2: #e0a63f; --w3: #dd7a90; --w4: #a884dc; --w5: #9dbb5e;
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
figure, .scroll { min-width: 0; }
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
@media (max-width: 640px) {
  section:not(.charts) .label { flex-basis: 110px; }
  main { padding: 24px 10px 60px; }
  section { padding: 16px 14px; }
}
/* drawings */
svg { display: block; font-size: 11px; }
svg text { fill: var(--soft); }
svg .mid { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .title { font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.cell { fill: var(--heat); }
.fixed, .legend .shut { fill: none; stroke: var(--line); stroke-dasharray: 2 2; }
.legend .shut { border: 1px dashed var(--soft); }
.ring { fill: none; stroke: var(--ring); stroke-width: 2; }
.legend .ringed { border: 2px solid var(--ring); border-radius: 0; }
.pick { fill: var(--ring); }
.legend .picked { background: var(--ring); border-radius: 0; height: 6px; }
.legend .ramp {
  width: 90px; margin: 0 2px 0 4px; background: linear-gradient(90deg, transparent, var(--heat));
  border: 1px solid var(--line);
}
.full { fill: none; stroke: var(--soft); stroke-width: .6; }
.w0 { fill: var(--w0); background: var(--w0); } .w1 { fill: var(--w1); background: var(--w1); }
.w2 { fill: var(--w2); background: var(--w2); } .w3 { fill: var(--w3); background: var(--w3); }
.w4 { fill: var(--w4); background: var(--w4); } .w5 { fill: var(--w5); background: var(--w5); }
svg .k5 { fill: var(--k5); }
.curve { fill: none; stroke: var(--k1); stroke-width: 1.5; }
.spot { fill: var(--k1); }
.limit { stroke: var(--bad); stroke-dasharray: 4 4; }
svg .limit-name { fill: var(--bad); }
.mark-uniform { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.mark-chosen { fill: var(--k0); stroke: var(--paper); stroke-width: 2; }
svg .name { font-size: 12px; font-weight: 600; fill: var(--ink); }
.uniform { background: var(--simulated); }
.pairs {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(474px, 100%), 1fr));
  gap: 24px 32px;
}
.pairs .note { margin: 6px 0 0; }
.chosen { background: var(--k0); }
"""
