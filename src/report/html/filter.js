(() => {
  const form = document.getElementById("filters");
  const chosen = (id) => document.getElementById(id).value;
  const objects = [...document.querySelectorAll(".object")];
  const apply = () => {
    const [namespace, rule, verdict] = ["namespace", "rule", "verdict"].map(chosen);
    let shown = 0;
    for (const object of objects) {
      const { namespace: of, verdict: is, rules } = object.dataset;
      const fits = (!namespace || of === namespace) && (!verdict || is === verdict) &&
        (!rule || rules.split(" ").includes(rule));
      object.hidden = !fits;
      shown += fits ? 1 : 0;
      for (const finding of object.querySelectorAll("article")) {
        finding.hidden = rule !== "" && finding.dataset.rule !== rule;
      }
    }
    document.getElementById("shown").textContent = `${shown} of ${objects.length} objects`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
