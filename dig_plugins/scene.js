// Viewer of a report's structures: drag turns, wheel or pinch zooms once it is clicked, slider and arrows leaf. Loads nothing.
(() => {
  "use strict";
  // Okabe and Ito's colours where an element has no colour of its own that all would know.
  const COLOURS = { 1: "#dfe3e8", 6: "#5b6168", 7: "#0072b2", 8: "#d55e00", 9: "#009e73", 15: "#e69f00", 16: "#d9b800", 17: "#009e73",
    14: "#e69f00", 13: "#b9a5a5", 22: "#9aa4ad", 26: "#c0713a", 28: "#6fae7b", 29: "#c98a5a", 45: "#7d9aa8", 46: "#5f8796", 47: "#b8bec4",
    78: "#a8a8c0", 79: "#e0b64a" };
  const RADII = { 1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57 };
  const OTHER = "#8e6c8a";

  const shade = (hex, f) => {
    const n = parseInt(hex.slice(1), 16), mix = (c) => Math.round(f < 0 ? c * (1 + f) : c + (255 - c) * f);
    return `rgb(${mix(n >> 16)},${mix((n >> 8) & 255)},${mix(n & 255)})`;
  };
  const between = (t) => {
    const a = [0, 114, 178], b = [213, 94, 0], c = a.map((v, i) => Math.round(v + (b[i] - v) * t));
    return "#" + c.map((v) => v.toString(16).padStart(2, "0")).join("");
  };

  function view(figure) {
    const scene = JSON.parse(figure.querySelector("script").textContent);
    const canvas = figure.querySelector("canvas"), slider = figure.querySelector("input"), label = figure.querySelector("output");
    const play = figure.querySelector("button"), pen = canvas.getContext("2d");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let at = 0, zoom = 1, turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], timer = 0;

    let reach = 1;
    for (const f of scene.frames) for (let i = 0; i < f.x.length; i += 3) reach = Math.max(reach, Math.hypot(f.x[i], f.x[i + 1], f.x[i + 2]));

    const rotate = (dx, dy) => {
      const times = (a, b) => [0, 3, 6].flatMap((r) => [0, 1, 2].map((c) => a[r] * b[c] + a[r + 1] * b[c + 3] + a[r + 2] * b[c + 6]));
      const [cy, sy, cx, sx] = [Math.cos(dx), Math.sin(dx), Math.cos(dy), Math.sin(dy)];
      turn = times([1, 0, 0, 0, cx, -sx, 0, sx, cx], times([cy, 0, sy, 0, 1, 0, -sy, 0, cy], turn));
    };
    const place = (x, i) => [0, 3, 6].map((r) => turn[r] * x[i] + turn[r + 1] * x[i + 1] + turn[r + 2] * x[i + 2]);

    function draw() {
      const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
      if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
        canvas.width = Math.round(w * ratio);
        canvas.height = Math.round(h * ratio);
      }
      const f = scene.frames[at], unit = (0.5 * Math.min(w, h) * ratio * zoom) / (reach + (scene.style === "balls" ? 130 : 30)), n = f.z.length;
      const [cx, cy] = [canvas.width / 2, canvas.height / 2];
      const points = f.z.map((z, k) => place(f.x, 3 * k));
      const colour = (k) => (scene.style === "trace" ? between(n > 1 ? k / (n - 1) : 0) : COLOURS[f.z[k]] || OTHER);
      const fog = (z) => 0.55 * Math.min(1, Math.max(0, 0.5 - z / (2 * reach)));
      const things = [];
      if (scene.style !== "trace")
        points.forEach((p, k) => {
          const r = (RADII[f.z[k]] || 1.3) * (scene.style === "balls" ? 85 : 36);
          things.push([p[2], () => ball(p, r, colour(k))]);
        });
      if (scene.style !== "balls")
        for (let k = 0; k < f.b.length; k += 2) {
          const [i, j] = [f.b[k], f.b[k + 1]], a = points[i], b = points[j], m = a.map((v, q) => (v + b[q]) / 2);
          things.push([(a[2] + m[2]) / 2 - 1, () => stick(a, m, colour(i))], [(b[2] + m[2]) / 2 - 1, () => stick(m, b, colour(j))]);
        }
      if (f.cell) box(f, things);
      pen.clearRect(0, 0, canvas.width, canvas.height);
      pen.lineCap = "round";
      things.sort((a, b) => a[0] - b[0]).forEach((thing) => thing[1]());

      function ball(p, radius, hex) {
        const [x, y, r] = [cx + p[0] * unit, cy - p[1] * unit, Math.max(1.5, radius * unit)];
        const g = pen.createRadialGradient(x - r / 3, y - r / 3, r / 10, x, y, r), far = fog(p[2]);
        g.addColorStop(0, shade(hex, 0.55 + 0.4 * far));
        g.addColorStop(1, shade(hex, far > 0.3 ? far - 0.3 : far - 0.2));
        pen.fillStyle = g;
        pen.beginPath();
        pen.arc(x, y, r, 0, 7);
        pen.fill();
        pen.lineWidth = ratio * 0.6;
        pen.strokeStyle = shade(hex, -0.45 + far);
        pen.stroke();
      }
      function stick(a, b, hex) {
        line(a, b, (scene.style === "trace" ? 70 : 26) * unit, shade(hex, fog((a[2] + b[2]) / 2)));
      }
      function line(a, b, width, style) {
        pen.lineWidth = Math.max(ratio, width);
        pen.strokeStyle = style;
        pen.beginPath();
        pen.moveTo(cx + a[0] * unit, cy - a[1] * unit);
        pen.lineTo(cx + b[0] * unit, cy - b[1] * unit);
        pen.stroke();
      }
      function box(f, things) {
        const corner = (i, j, k) => place([0, 1, 2].map((q) => f.origin[q] + i * f.cell[q] + j * f.cell[3 + q] + k * f.cell[6 + q]), 0);
        for (const [u, v] of [[0, 0], [0, 1], [1, 0], [1, 1]])
          for (const [a, b] of [[[0, u, v], [1, u, v]], [[u, 0, v], [u, 1, v]], [[u, v, 0], [u, v, 1]]]) {
            const [p, q] = [corner(...a), corner(...b)];
            things.push([(p[2] + q[2]) / 2, () => line(p, q, 0, "#8a929b")]);
          }
      }
      label.textContent = `${at + 1} of ${scene.frames.length}: ${f.label}`;
      slider.value = at;
    }

    const show = (k) => { at = (k + scene.frames.length) % scene.frames.length; draw(); };
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    slider.max = scene.frames.length - 1;
    slider.addEventListener("input", () => { stop(); show(+slider.value); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      timer = setInterval(() => show(at + 1), still ? 1500 : 400);
      play.textContent = "Stop";
    });
    if (scene.frames.length < 2) slider.hidden = play.hidden = true;
    const held = new Map();
    canvas.addEventListener("pointerdown", (e) => { held.set(e.pointerId, e); canvas.setPointerCapture(e.pointerId); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => held.delete(e.pointerId));
    canvas.addEventListener("pointermove", (e) => {
      const before = held.get(e.pointerId);
      if (!before) return;
      const other = [...held.values()].find((o) => o.pointerId !== e.pointerId);
      if (other) {
        const apart = (o) => Math.hypot(o.clientX - other.clientX, o.clientY - other.clientY);
        zoom *= apart(e) / Math.max(1, apart(before));
      } else rotate((e.clientX - before.clientX) / 120, (e.clientY - before.clientY) / 120);
      held.set(e.pointerId, e);
      draw();
    });
    // A wheel that only passes over the picture scrolls the page.
    canvas.addEventListener("wheel", (e) => {
      if (document.activeElement !== canvas) return;
      e.preventDefault();
      zoom = Math.min(20, Math.max(0.3, zoom * Math.exp(-e.deltaY / 500)));
      draw();
    }, { passive: false });
    const keys = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    canvas.addEventListener("keydown", (e) => {
      if (keys[e.key]) rotate(...keys[e.key]);
      else if (e.key === "+" || e.key === "-") zoom *= e.key === "+" ? 1.15 : 1 / 1.15;
      else return;
      e.preventDefault();
      draw();
    });
    new ResizeObserver(draw).observe(canvas);
    if (scene.style === "balls") rotate(0, -1.2); // a surface from its side, z up
    else rotate(0.35, 0.25);
    draw();
  }

  for (const figure of document.querySelectorAll("figure.scene")) {
    figure.hidden = false;
    view(figure);
  }
})();
