"""The page's one style sheet: light and dark, wide and narrow, screen and paper."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--paper:#fdfcf9;--raise:#f4f2ec;--ink:#1b1c1e;--quiet:#5b5f66;
--line:#d5d1c7;--accent:#0b5cad;--soft:#dfe9f4;--sans:system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif;--serif:ui-serif,"Iowan Old Style",
"Palatino Linotype",Palatino,Charter,"Source Serif 4",Georgia,"Noto Serif","Liberation Serif",serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace}
@media (prefers-color-scheme:dark){:root{--paper:#15171a;--raise:#1e2125;--ink:#e9e7e2;
--quiet:#a3a8b0;--line:#3a3f46;--accent:#7cb8f2;--soft:#1d3145}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:none;text-size-adjust:none}
body{margin:0;background:var(--paper);color:var(--ink);font:17px/1.55 var(--serif);
overflow-wrap:break-word}
main{max-width:55rem;margin:0 auto;padding:2.25rem 1.25rem 4rem}
header p,footer,figcaption,table,dt,.unit,.sample,.key,.facts,.foot{font-family:var(--sans)}
header{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.25rem 1.5rem;
border-bottom:1px solid var(--line);padding-bottom:.7rem;font-size:.85rem;color:var(--quiet)}
header p{margin:0}
header b{color:var(--ink);font-weight:600}
h1{font-size:clamp(1.65rem,4.6vw,2.5rem);line-height:1.18;font-weight:600;margin:.35rem 0 .8rem;
letter-spacing:-.012em;text-wrap:balance}
h2{font-size:1.28rem;line-height:1.3;font-weight:600;margin:3rem 0 .7rem;padding-top:.9rem;
border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:42rem}
header+h1{margin-top:2.2rem}
.stamp{display:inline-flex;align-items:center;gap:.5rem;margin:2.2rem 0 0;
font:600 .82rem/1 var(--sans);letter-spacing:.07em;text-transform:uppercase;
border:1.5px solid var(--ink);border-radius:3px;padding:.5rem .7rem}
.stamp.shown{border-color:var(--accent);background:var(--accent);color:var(--paper)}
.lead{font-size:1.06rem}
p.small{font:.84rem/1.5 var(--sans);color:var(--quiet);max-width:44rem}
.sample{margin:0 0 1.4rem;padding:.55rem .8rem;border:1px dashed var(--ink);font-size:.88rem;
max-width:none}
.number{display:flex;flex-wrap:wrap;align-items:baseline;gap:.15rem 1.6rem;margin:.2rem 0 .5rem}
.number b{font-family:var(--sans);font-size:clamp(1.75rem,6.4vw,3.2rem);line-height:1.1;
font-weight:600;color:var(--accent);
letter-spacing:-.02em;font-variant-numeric:lining-nums;white-space:nowrap}
.number .unit{font-size:1.05rem;color:var(--quiet);white-space:nowrap}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:1px;padding:0;
margin:1.6rem 0 0;background:var(--line);border:1px solid var(--line);list-style:none}
.facts li{background:var(--paper);padding:.75rem .9rem;font-size:.84rem;line-height:1.4;
color:var(--quiet)}
.facts b{display:block;font-size:1.18rem;line-height:1.35;font-weight:600;color:var(--ink);
font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.5rem 1.4rem;margin:1rem 0}
dt{font-size:.84rem;line-height:1.7;color:var(--quiet)}
dd{margin:0;min-width:0}
code{font:.8em/1.5 var(--mono);overflow-wrap:anywhere}
figure{margin:1.5rem 0 0}
figcaption{font-size:.84rem;line-height:1.5;color:var(--quiet);margin-top:.7rem;max-width:44rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg.small{display:none}
svg text{font:13px var(--sans);fill:var(--ink);font-variant-numeric:tabular-nums}
svg .tick,svg .name,svg .levelname{font-size:12px;fill:var(--quiet)}
svg .name{font-weight:600}
svg .end{text-anchor:end}
svg .middle{text-anchor:middle}
svg .quiet{fill:var(--quiet)}
svg .strong{font-weight:600}
svg .axis{stroke:var(--ink);stroke-width:1;fill:none}
svg .grid{stroke:var(--line);stroke-width:.75}
svg .level{stroke:var(--quiet);stroke-width:1;stroke-dasharray:2 4}
svg line.asked{stroke:var(--accent);stroke-width:1.5;stroke-dasharray:7 4}
svg text.asked{fill:var(--accent);font-weight:600}
svg .seen{stroke:var(--ink);stroke-width:1.5}
svg .stem,svg .leader{stroke:var(--quiet);stroke-width:.9}
svg .whisker{stroke:var(--quiet);stroke-width:1;opacity:.7}
svg .bell{fill:var(--line);stroke:var(--quiet);stroke-width:1}
svg .dot{stroke:var(--paper);stroke-width:1.25}
svg .dot.ink{fill:var(--ink)}
svg .dot.frame{fill:none;stroke:var(--ink);stroke-width:1.75}
svg .dot.accent{fill:var(--accent)}
svg .dot.hollow{fill:var(--paper);stroke:var(--ink);stroke-width:1.75}
svg .dot.ring{fill:none;stroke:var(--accent);stroke-width:1.75}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.3rem;font-size:.84rem;color:var(--quiet);
margin:.4rem 0 0;padding:0;list-style:none}
.key li{display:flex;align-items:center;gap:.4rem}
.key svg{width:20px;height:20px;flex:none}
table{border-collapse:collapse;font-size:.84rem;line-height:1.4;margin:1rem 0;
font-variant-numeric:tabular-nums;width:100%}
th,td{text-align:right;vertical-align:top;padding:.5rem .55rem;border-bottom:1px solid var(--line)}
thead th{font-weight:600;color:var(--quiet);vertical-align:bottom;
border-bottom:1px solid var(--ink);line-height:1.25}
tbody th{font-weight:600;text-align:left;max-width:15rem}
th:first-child,td:first-child{padding-left:0}
th:last-child,td:last-child{padding-right:0}
td{white-space:nowrap}
td.left,th.left{text-align:left}
td.left{white-space:normal}
td.verdict{white-space:nowrap;font-weight:600;text-align:left}
td small,th small{display:block;color:var(--quiet);font-weight:400;font-size:.9em}
tr.main th,tr.main td{background:var(--soft)}
tr.main th:first-child{padding-left:.5rem}
tr.main td:last-child{padding-right:.5rem}
tr.failed td{text-align:left}
ul.plain{padding-left:1.1rem;max-width:42rem}
ul.plain li{margin:.35rem 0}
.callout{border-left:3px solid var(--accent);padding:.1rem 0 .1rem 1rem;margin:1.1rem 0}
.digests{display:grid;grid-template-columns:1fr 12.5rem;gap:1.5rem;align-items:start}
.digests dl{margin-top:0}
.qr{background:#fff;padding:14px;border:1px solid var(--line)}
.qrbox{font:.78rem/1.45 var(--sans);color:var(--quiet)}
.qr .qrline{stroke:#000}
.foot{font-size:.8rem;color:var(--quiet);border-top:1px solid var(--line);margin-top:3rem;
padding-top:.8rem}
@media (max-width:700px){
body{font-size:16px}
main{padding-top:1.25rem}
svg.large{display:none}
svg.small{display:block}
figure>svg{max-width:440px}
dl{display:block}
dt{margin-top:.7rem}
.digests{display:block}
.qrbox{max-width:15rem;margin-top:1.5rem}
.facts{grid-template-columns:1fr}
table,tbody,tr,td,tbody th{display:block;min-width:0;max-width:none}
thead{position:absolute;clip-path:inset(50%);height:1px;width:1px;overflow:hidden}
tr{border-bottom:1px solid var(--ink);padding:.6rem 0}
tbody th{border:0;padding:.15rem 0;font-size:1rem}
tr.main{background:var(--soft);padding:.6rem .7rem;margin:0 -.7rem}
tr.main th,tr.main td{background:none}
tr.main th:first-child{padding-left:0}
tr.main td:last-child{padding-right:0}
td,td.verdict{display:flex;justify-content:space-between;gap:1rem;border:0;padding:.15rem 0;
text-align:right;white-space:normal}
td::before{content:attr(data-label);color:var(--quiet);font-weight:400;text-align:left;flex:none}
tr.failed td{display:block}
}
@media print{
:root{--paper:#fff;--raise:#fff;--ink:#000;--quiet:#444;--line:#bbb;--accent:#0b5cad;--soft:#eef3f9;
color-scheme:light}
@page{margin:16mm 15mm}
table,figcaption,p.small,.facts li,dt{font-size:8.5pt}
dl{break-inside:avoid}
body{font-size:10.5pt}
main{max-width:none;padding:0}
figure>svg{max-width:170mm}
svg.large{display:block}
svg.small{display:none}
h2{margin-top:1.6rem;break-after:avoid}
figure,tr,.facts,.digests,.number{break-inside:avoid}
.stamp.shown{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
