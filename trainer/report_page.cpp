#include "trainer/report_page.h"

namespace shardtune::trainer {

const std::string_view kReportStyle = R"(
:root { color-scheme: light dark; --page: #f7f8fa; --card: #fff; --text: #1c2330; --dim: #5d6675;
  --line: #dfe3ea; --warn: #9a5b00;
  --main: #2f6db5; --second: #c8553d; --linears: #3b74bd; --attention: #d0603f; --head: #3f9463;
  --adapters: #dca032; --other: #8d94a1; --optimizer: #7f62b8; --communication: #bb4f8e;
  --units: #2c9fa6; --data: #9ba535; --idle: #c6cbd4; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2028; --text: #e4e8ef;
  --dim: #98a2b3; --line: #313946; --warn: #e5b567;
  --main: #6aa5ea; --second: #ec8268; --linears: #5590da; --attention: #dd7658; --head: #57ad7b;
  --adapters: #dfae4f; --other: #7c8493; --optimizer: #9c82d4; --communication: #cf6fa6;
  --units: #45b3ba; --data: #b0ba52; --idle: #4a525f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 28px 0 10px; }
p { margin: 4px 0; color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px;
  margin-top: 16px; }
.tile, figure, .card, details { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
.tile { padding: 9px 12px; min-width: 0; }
.tile b { display: block; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: 13px; }
.charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
figure { margin: 0; padding: 10px 12px 8px; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: baseline; min-height: 23px; }
output { margin-left: auto; color: var(--dim); font-size: 13px; font-variant-numeric: tabular-nums; }
.wide output { flex-basis: 100%; min-height: 19px; margin: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 13px; color: var(--dim); }
.key::before { content: ""; display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 5px; background: var(--c); }
.plot { position: relative; height: 190px; margin: 6px 18px 24px 62px; touch-action: pan-y; }
.wide .plot { height: 240px; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot span { position: absolute; color: var(--dim); font-size: 12px; line-height: 14px;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.y { right: calc(100% + 8px); transform: translateY(-50%); }
.x { top: calc(100% + 6px); transform: translateX(-50%); }
.cursor { display: none; position: absolute; top: 0; bottom: 0; width: 1px; background: var(--dim); }
path { vector-effect: non-scaling-stroke; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.line { stroke: var(--c); stroke-width: 1.8; fill: none; stroke-linejoin: round; }
.dot { stroke-width: 7; stroke-linecap: round; }
.band { fill: var(--c); opacity: .22; stroke: none; }
.area { fill: var(--c); stroke: var(--card); stroke-width: .6; }
.main { --c: var(--main); } .second { --c: var(--second); }
.linears { --c: var(--linears); } .attention { --c: var(--attention); } .head { --c: var(--head); }
.adapters { --c: var(--adapters); } .other { --c: var(--other); }
.optimizer { --c: var(--optimizer); } .communication { --c: var(--communication); }
.units { --c: var(--units); } .data { --c: var(--data); } .idle { --c: var(--idle); }
.card { padding: 10px 12px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 8px; font-weight: 400; white-space: nowrap; }
th { color: var(--dim); font-size: 13px; } td:first-child, th:first-child { text-align: left; }
tr + tr td { border-top: 1px solid var(--line); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 10px;
  align-items: center; font-size: 13px; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 18px; border-radius: 4px; overflow: hidden; background: var(--line); }
.bar i { background: var(--c); }
pre { margin: 0; padding: 10px 12px; overflow: auto; max-height: 480px;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
details { margin-top: 10px; } summary { padding: 8px 12px; cursor: pointer; }
.warnings { color: var(--warn); white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 14px 10px 32px; } .plot { margin-left: 54px; height: 165px; }
  .tiles { grid-template-columns: repeat(2, 1fr); } figure { padding: 9px 10px 6px; }
  .wide output { min-height: 60px; } }
)";

const std::string_view kReportScript = R"(
for (const figure of document.querySelectorAll("figure")) {
  const plot = figure.querySelector(".plot"), output = figure.querySelector("output");
  const cursor = figure.querySelector(".cursor");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (xs[middle] < x) low = middle + 1; else high = middle;
    }
    return low > 0 && x - xs[low - 1] < xs[low] - x ? low - 1 : low;
  };
  const show = event => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = data.low + share * (data.high - data.low);
    let step = null;
    const texts = [];
    for (const series of data.series) {
      if (series.x.length === 0) continue;
      const i = nearest(series.x, x);
      if (step === null) step = series.x[i];
      texts.push(data.series.length > 1 ? series.name + " " + series.y[i] : series.y[i]);
    }
    output.textContent = "step " + step + ": " + texts.join(", ");
    cursor.style.display = "block";
    cursor.style.left = (100 * (step - data.low) / (data.high - data.low)) + "%";
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    output.textContent = "";
    cursor.style.display = "none";
  });
}
)";

}  // namespace shardtune::trainer
