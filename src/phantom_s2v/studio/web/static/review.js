// The player of reviews: every position is a frame's number, and a seek goes to the middle of the frame, so that rounding of times
// never shows its neighbor. Frame, other version, wipe and place stand in the address.
(() => {
  const root = document.getElementById("review");
  if (!root) return checklist();
  const all = [...root.querySelectorAll("video")], main = all[0];
  const last = Number(root.dataset.frames) - 1, fps = Number(root.dataset.fps);
  const byId = (id) => document.getElementById(id);
  const scrubber = byId("scrubber"), marks = byId("marks"), screens = byId("screens");
  const address = new URL(location.href), where = root.querySelector(".where");
  let frame = 0, writing = 0;

  const within = (value) => Math.min(last, Math.max(0, Math.round(Number(value) || 0)));

  function show(number) {
    frame = number;
    byId("frame").textContent = number;
    scrubber.value = number;
    scrubber.setAttribute("aria-valuetext", `${number} / ${last}`);
    byId("comment-frame").value = number;
    byId("with-frame").value = number;
    for (const each of root.querySelectorAll(".at")) each.textContent = number;
    for (const each of root.querySelectorAll(".comments li")) {
      const link = each.querySelector("[data-frame]");
      each.classList.toggle("now", !!link && Number(link.dataset.frame) === number);
    }
    pins();
    clearTimeout(writing);
    writing = setTimeout(() => write("frame", number), 150);
  }

  function write(name, value) {
    if (value === null) address.searchParams.delete(name);
    else address.searchParams.set(name, value);
    history.replaceState(null, "", address);
  }

  // Another version may have another rate or fewer frames: it shows the frame of the same number.
  function seek(number) {
    for (const each of all) {
      each.pause();
      const own = Math.min(number, Number(each.dataset.frames) - 1);
      each.currentTime = (own + 0.5) / Number(each.dataset.fps);
    }
    show(number);
  }

  function play() {
    if (!main.paused) return seek(frame);
    if (frame >= last) for (const each of all) each.currentTime = 0;
    for (const each of all) each.play();
  }

  function follow(_, shown) {
    if (!main.paused) {
      show(within(shown.mediaTime * fps));
      for (const each of all.slice(1)) {
        const wanted = main.currentTime * fps / Number(each.dataset.fps);
        if (Math.abs(each.currentTime - wanted) > 1.5 / fps) each.currentTime = wanted;
      }
    }
    main.requestVideoFrameCallback(follow);
  }
  main.requestVideoFrameCallback(follow);
  const button = byId("play");
  main.addEventListener("play", () => { button.textContent = button.dataset.pause; });
  main.addEventListener("pause", () => { button.textContent = button.dataset.play; });
  main.addEventListener("ended", () => seek(last));

  byId("back").addEventListener("click", () => seek(within(frame - 1)));
  byId("forward").addEventListener("click", () => seek(within(frame + 1)));
  button.addEventListener("click", play);
  scrubber.addEventListener("input", () => seek(within(scrubber.value)));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input:not([type=checkbox])") && event.target !== scrubber;
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") seek(within(frame + (event.key === "ArrowLeft" ? -1 : 1)));
    else if (event.key === " " && !event.target.matches("button, a, input")) play();
    else if (event.key === "c") byId("text").focus();
    else return;
    event.preventDefault();
  });

  // Marks on the scrubber and links of comments jump to their frame.
  for (const mark of marks.querySelectorAll("a")) mark.style.left = `${100 * Number(mark.dataset.frame) / Math.max(1, last)}%`;
  for (const link of root.querySelectorAll("a[data-frame]")) {
    link.addEventListener("click", (event) => {
      if (!link.closest(".marks")) event.preventDefault();
      seek(within(link.dataset.frame));
    });
  }

  // Places: those of comments on the frame that is shown, and the one being chosen.
  const screen = root.querySelector("[data-screen=this]"), x = byId("x"), y = byId("y");
  function pin(left, top) {
    const made = document.createElement("span");
    made.className = "pin";
    made.style.left = `${100 * left}%`;
    made.style.top = `${100 * top}%`;
    screen.append(made);
  }
  function pins() {
    for (const old of screen.querySelectorAll(".pin")) old.remove();
    for (const link of root.querySelectorAll(".comments [data-x]")) {
      if (Number(link.dataset.frame) === frame) pin(Number(link.dataset.x), Number(link.dataset.y));
    }
    if (where.querySelector("[value=place]").checked) pin(x.value / 1000, y.value / 1000);
  }
  screen.addEventListener("click", (event) => {
    const box = screen.getBoundingClientRect();
    x.value = Math.round(1000 * (event.clientX - box.left) / box.width);
    y.value = Math.round(1000 * (event.clientY - box.top) / box.height);
    where.querySelector("[value=place]").checked = true;
    if (!main.paused) seek(frame);
    pins();
  });
  where.addEventListener("input", pins);

  // One version over the other.
  const wipe = byId("wipe"), on = byId("wipe-on");
  if (on) {
    const set = () => {
      screens.classList.toggle("wiped", on.checked);
      byId("wipe-place").hidden = !on.checked;
      screens.style.setProperty("--wipe", `${wipe.value}%`);
      write("wipe", on.checked ? wipe.value : null);
    };
    if (address.searchParams.has("wipe")) {
      on.checked = true;
      wipe.value = address.searchParams.get("wipe");
    }
    on.addEventListener("change", set);
    wipe.addEventListener("input", set);
    set();
  }
  byId("with").addEventListener("change", (event) => event.target.form.requestSubmit());

  const first = within(address.searchParams.get("frame"));
  if (main.readyState >= 1) seek(first);
  else main.addEventListener("loadedmetadata", () => seek(first), { once: true });
  for (const each of all.slice(1)) each.addEventListener("loadedmetadata", () => seek(frame), { once: true });

  // What is left of the checklist, and a way to it.
  function checklist() {
    const left = document.getElementById("left");
    for (const video of document.querySelectorAll(".sign video")) video.controls = video.loop = true;
    if (!left) return;
    const items = [...document.querySelectorAll(".item")];
    const count = () => {
      const open = items.filter((item) => !item.querySelector("input[type=radio]:checked"));
      left.replaceChildren();
      if (!open.length) return void (left.textContent = left.dataset.done);
      const jump = document.createElement("a");
      jump.href = "#";
      jump.textContent = `${open.length} ${left.dataset.words} ${open[0].querySelector("legend").textContent}`;
      jump.addEventListener("click", (event) => {
        event.preventDefault();
        open[0].querySelector("input").focus();
      });
      left.append(jump);
    };
    document.addEventListener("change", count);
    count();
  }
})();
