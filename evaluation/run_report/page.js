// Language, light or dark, and the costs that follow from what is entered. No request leaves the page.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");

function setLanguage(language) {
  root.dataset.lang = language;
  root.lang = language === "zh" ? "zh-CN" : "en";
  document.getElementById("language").textContent = language === "zh" ? "English" : "中文";
}

function entered(name) {
  const value = parseFloat(document.getElementById(name).value);
  return Number.isFinite(value) ? value : 0;
}

function showCosts() {
  const rent = entered("rent"), watts = entered("watts"), price = entered("kwh");
  for (const row of document.querySelectorAll(".costs tr[data-seconds]")) {
    const hours = parseFloat(row.dataset.seconds) / 3600;
    const energy = hours * watts / 1000, cost = hours * rent + energy * price;
    row.querySelector(".energy").textContent = energy > 0 ? energy.toPrecision(3) : "–";
    row.querySelector(".cost").textContent = cost > 0 ? cost.toPrecision(3) : "–";
  }
}

document.getElementById("language").onclick = () => setLanguage(root.dataset.lang === "zh" ? "en" : "zh");
document.getElementById("theme").onclick = () => {
  const now = root.dataset.theme || (dark.matches ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
};
for (const input of document.querySelectorAll(".prices input")) input.oninput = showCosts;
document.querySelector(".prices").onsubmit = (event) => event.preventDefault();
if (!navigator.language.startsWith("zh")) setLanguage("en");
showCosts();
