"""What the figures draw against the records they were drawn from, the files they become, and the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from synthetic_records import make_record, write_run

from trainer import plots
from trainer.plotting import evaluation, style
from trainer.plotting.case import _thin_maximum, case
from trainer.plotting.curves import mean_curve, normalised, read_series, typical
from trainer.plotting.token_page import _DARK, _LIGHT, LEVELS, _ramp, shown_token, token_page
from trainer.plotting.training import series_of, smoothed, training
from trainer.plotting.words import words
from trainer.records.record_files import read_records

HOSTILE = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</span></div></body>",
    "&amp;",
    "&lt;b&gt;",
    "<!--",
    "<0xE2>",
    "\ufffd",
    "\x00",
    "\x1b[31m",
    "\u202eabc",
    "\ud83d",
    "\r\n",
    "\t",
    "",
    "日本",
    "</script><script>document.title='owned'</script>",
]


def records(scale: float = 1.0, problems: int = 8, **options) -> list[dict]:
    """Right answers start at entropy .8 and fall, wrong ones stay: two samples per problem."""
    made = []
    for i in range(problems):
        for sample in (0, 1):
            n = int(scale * (20 + 5 * i + 3 * sample))
            right = (i + sample) % 3 != 0
            entropies = np.linspace(0.8, 0.1 if right else 0.8, n) + 0.01 * i
            made.append(make_record(f"p{i}", sample, correct=right, entropies=entropies.tolist(), **options))
    return made


def run_plots(*arguments) -> int:
    return plots.main(plots.parser().parse_args([str(argument) for argument in arguments]))


# ------------------------------------------------------------------------------------------------------------ numbers
def test_normalised_curve_runs_from_the_first_token_to_the_last():
    assert normalised([3.0]).tolist() == [3.0] * 101
    assert np.isnan(normalised([])).all()
    two = normalised([0.0, 1.0])
    assert two[0] == 0
    assert two[-1] == 1
    assert two[25] == pytest.approx(0.25)
    many = normalised(np.arange(201))
    assert many.tolist() == pytest.approx(list(range(0, 201, 2)))


def test_mean_curve_is_the_mean_over_responses_and_its_band_that_of_problems(tmp_path):
    random = np.random.default_rng(0)
    made = []
    for i in range(80):
        level = random.uniform(0.2, 1.0)  # the problem's own; both samples share it
        made += [make_record(f"p{i:02}", s, entropies=[level] * 7) for s in (0, 1)]
    (series,) = read_series([("r", write_run(tmp_path, made))])
    mean, low, high = mean_curve(series, np.full(160, True))
    levels = np.array([record["teca"][-1] for record in made])
    assert mean == pytest.approx(np.full(101, levels.mean()))
    # 80 independent problems, not 160 responses.
    half = 1.96 * levels.std() / np.sqrt(80)
    assert high[50] - mean[50] == pytest.approx(half, rel=0.12)
    assert mean[50] - low[50] == pytest.approx(half, rel=0.12)


def test_band_needs_three_problems(tmp_path):
    (series,) = read_series([("r", write_run(tmp_path, records(problems=2)))])
    mean, low, _ = mean_curve(series, series.correct)
    assert not np.isnan(mean).any()
    assert np.isnan(low).all()


def test_typical_is_the_right_answer_of_median_length(tmp_path):
    made = [make_record(f"p{n}", length=n, correct=n % 2 == 0) for n in (2, 3, 4, 5, 6, 90)]
    (series,) = read_series([("r", write_run(tmp_path / "a", made))])
    assert typical(series) == ("p4", 0)
    (series,) = read_series([("r", write_run(tmp_path / "b", [{**r, "is_correct": False} for r in made[:3]]))])
    assert typical(series) == ("p3", 0)


def test_moving_mean_is_that_of_a_loop():
    values = np.random.default_rng(1).normal(size=23)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(23)]
    assert smoothed(values, 7) == pytest.approx(expected)
    assert smoothed(values, 1) is values


def test_log_series_takes_the_first_name_there_and_skips_what_is_absent():
    log = [{"step": 1, "b": 2.0}, {"step": 2, "eval_b": 9.0}, {"step": 3, "b": None}, {"step": 4, "b": 5.0, "c": 1.0}]
    steps, values = series_of(log, ("a", "b", "c"))
    assert (steps.tolist(), values.tolist()) == ([1, 4], [2, 5])
    assert len(series_of(log, ("nowhere",))[0]) == 0


def test_thinning_keeps_every_peak():
    values = np.zeros(16_384)
    values[[5, 7000, 16_383]] = [1.0, 2.0, 3.0]
    steps, peaks = _thin_maximum(values)
    assert len(peaks) <= 1500
    assert sorted(peaks[peaks > 0]) == [1.0, 2.0, 3.0]
    assert abs(steps[peaks == 2.0][0] - 7001) < 12


# ------------------------------------------------------------------------------------------------------------ figures
def lines(axis) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axis.lines}


def test_figures_draw_the_records(tmp_path):
    made = records() + records(0.5, method="cod") + records(2.0, benchmark="aime24")
    series = read_series([("r", write_run(tmp_path, made))])
    curves = {(s.benchmark, s.method): s for s in series}
    with style.style():
        first, second = evaluation.mean_teca(series).axes
        assert [axis.get_title(loc="left") for axis in (first, second)] == ["GSM8K", "AIME24"]
        thinking = [normalised(r["teca"]) for r in made if (r["benchmark"], r["method"]) == ("gsm8k", "thinking")]
        assert lines(first)["w/ thinking"] == pytest.approx(np.mean(thinking, axis=0), abs=1e-6)
        assert set(lines(second)) == {"w/ thinking"}

        apart = evaluation.right_against_wrong(series).axes[0]
        right = [normalised(r["teca"]) for r in made[:16] if r["is_correct"]]
        assert lines(apart)["right"] == pytest.approx(np.mean(right, axis=0), abs=1e-6)
        assert lines(apart)["right"][-1] < lines(apart)["wrong"][-1]
        counts = f"{len(right)} right, {16 - len(right)} wrong"
        assert apart.get_title(loc="left") == f"GSM8K, w/ thinking\n{counts}"

        lengths = evaluation.histogram(series, "length").axes[0]
        for stairs in lengths.patches:
            assert stairs.get_data().values.sum() == pytest.approx(1)
        means = sorted(float(line.get_segments()[0][0][0]) for line in lengths.collections)
        assert means == pytest.approx(sorted(curves["gsm8k", m].length.mean() for m in ("thinking", "cod")))


def test_several_runs_get_a_colour_each_and_a_row_per_method(tmp_path):
    a = write_run(tmp_path / "a", records() + records(0.5, method="cod"))
    b = write_run(tmp_path / "b", records(0.7))
    with style.style():
        panels = evaluation.mean_teca(read_series([("a", a), ("b", b)])).axes
    assert [axis.get_title(loc="left") for axis in panels] == ["GSM8K, w/ thinking", "GSM8K, CoD"]
    assert [set(lines(axis)) for axis in panels] == [{"a", "b"}, {"a"}]
    assert len({line.get_color() for line in panels[0].lines}) == 2


def test_lengths_of_many_policies_stand_on_lines_of_their_own_and_the_limit_is_drawn_where_it_is_reached(tmp_path):
    runs = [(name, write_run(tmp_path / name, records())) for name in "abcd"]
    series = read_series(runs)
    longest = int(series[0].length.max())
    with style.style():
        axis = evaluation.histogram(series, "length", limits=dict.fromkeys("abcd", longest)).axes[0]
        few = evaluation.histogram(series[:2], "length", limits={"a": longest + 1}).axes[0]
    bases = [float(np.min(stairs.get_data().baseline)) for stairs in axis.patches[::2]]
    tallest = max(float((stairs.get_data().values - stairs.get_data().baseline).max()) for stairs in axis.patches)
    assert np.diff(bases) == pytest.approx([-1.1 * tallest] * 3)
    assert bases[-1] == 0
    assert [line.get_xdata()[0] for line in axis.lines] == [longest]
    assert axis.get_xlabel().endswith("dotted: limit)")
    assert not few.lines
    assert {float(np.min(stairs.get_data().baseline)) for stairs in few.patches} == {0.0}


def test_case_has_entropy_and_teca_on_one_scale():
    record = make_record("p", entropies=[1.0, 3.0, 0.5])
    with style.style():
        made = case([("before", record), ("after", make_record("p", entropies=[0.2]))])
    left, below = made.axes
    bars = left.collections[0].get_segments()
    assert [segment[1].tolist() for segment in bars] == [[1, 1.0], [2, 3.0], [3, 0.5]]
    assert left.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert left.lines[0].get_ydata() == pytest.approx([1.0, 2.0, 1.5])
    assert left.get_ylim() == below.get_ylim() == pytest.approx((0, 1.05 * 3))
    assert left.get_title(loc="left") == "before: 3 tokens, right, last TECA 1.500"


def training_log(steps: int) -> list[dict]:
    return [
        {
            "step": s,
            "reward": 1 + s / 100,
            "teca": 0.5 - s / 200,
            "completions/mean_length": 80.0 - s,
            "completions/min_length": 20.0,
            "completions/max_length": 100.0 + s,
            "completions/clipped_ratio": 0.1,
            "padding_alarm": float(s == 7),
        }
        for s in range(1, steps + 1)
    ]


def test_training_curves_draw_the_log_and_name_what_it_lacks():
    with style.style():
        made, absent = training([("run", training_log(12))])
    assert absent == ["Accuracy"]
    by_title = {axis.get_title(loc="left"): axis for axis in made.axes}
    assert by_title["Mean length"].lines[0].get_ydata().tolist() == [80.0 - s for s in range(1, 13)]
    extremes = by_title["Shortest, longest (dashed)"].lines
    assert [line.get_ydata()[0] for line in extremes] == [20.0, 101.0]
    alarm = by_title["TECA at the last token"].lines[-1]
    assert (alarm.get_xdata(), alarm.get_ydata()) == ([7], pytest.approx([0.465]))
    second, _ = training([("b", training_log(3))], order=["a", "b"])
    assert second.axes[0].lines[0].get_color() == style.COLOURS[1]
    third, _ = training([("b, training", training_log(3))], order=["a", "b", "b, training"])
    assert third.axes[0].lines[0].get_color() == style.COLOURS[1]
    with pytest.raises(ValueError, match="the log holds none of"):
        training([("run", [{"step": 1, "loss": 0.5}])])


def test_ticks_are_whole_steps_and_a_long_legend_stays_inside_the_figure():
    logs = [(f"a reward of some length, seed {i}", training_log(9)) for i in range(6)]
    with style.style():
        made, _ = training(logs)
        made.draw_without_rendering()
    assert all(tick == int(tick) for axis in made.axes for tick in axis.get_xticks())
    (legend,) = made.legends
    box, whole = legend.get_window_extent(), made.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


def test_style_does_not_outlive_its_block():
    before = dict(matplotlib.rcParams)
    with style.style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert dict(matplotlib.rcParams) == before


def test_labels_from_outside_are_shown_as_they_are():
    assert style.label("a$b_1^2$") == "a$b_1^2$"
    assert style.label("日\n") == "\\u65e5\\n"
    assert len(style.label("x" * 100)) == 40


# -------------------------------------------------------------------------------------------------------------- files
def test_program_writes_every_figure_in_every_format(tmp_path, capsys):
    a = write_run(tmp_path / "a", records())
    b = write_run(tmp_path / "b$_", records(0.5))
    (b / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in training_log(30)))
    assert run_plots(a, b, "--output", tmp_path / "out") == 0
    names = ["case-gsm8k-thinking-p4", "lengths", "teca-last", "teca-mean", "teca-right-wrong", "training"]
    names += ["words-gsm8k-thinking-p4"]
    pages = ["tokens-gsm8k-thinking-p4-a.html", "tokens-gsm8k-thinking-p4-b.html"]
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == sorted([f"{name}.{ext}" for name in names for ext in ("png", "svg", "pdf")] + pages)
    output = capsys.readouterr()
    assert len(output.out.split()) == len(made)
    assert "not drawn: Accuracy" in output.err
    for name in names:
        pixels = imread(tmp_path / "out" / f"{name}.png")[..., :3]
        assert pixels.shape[0] > 200
        assert 0.005 < (pixels < 0.9).any(axis=-1).mean() < 0.6, f"{name} is blank or black"
        pdf = (tmp_path / "out" / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf  # fonttype 42: TrueType
        svg = (tmp_path / "out" / f"{name}.svg").read_text()
        assert "font-family" not in svg
        assert not re.search(r"""(href|src)=["'](?!#)""", svg)


def test_words_stand_under_their_entropies(tmp_path):
    """The two responses of docs/figures/before-after.svg: one explores, one does not."""
    root = Path(__file__).parents[2] / "bench" / "results" / "tiny" / "one-problem"
    found = [(label, next(iter(read_records(root / name)))) for label, name in (("a", "before"), ("b", "after-CER"))]
    with style.style():
        made = words(found)
    for axis, (label, record) in zip(made.axes, found, strict=True):
        assert [bar.get_height() for bar in axis.patches] == record["token_entropies"]
        assert [text.get_text() for text in axis.get_xticklabels()] == [token.strip() for token in record["tokens"]]
        assert list(axis.lines[0].get_ydata()) == record["teca"]
        said = f"{label}: {record['response_length']} tokens, right, TECA {record['teca'][-1]:.2f}"
        assert axis.get_title(loc="left") == said
    before, after = made.axes
    assert before.get_xlim() == after.get_xlim()
    assert before.get_ylim() == after.get_ylim()
    highest = max(zip(found[0][1]["token_entropies"], found[0][1]["tokens"], strict=True))
    assert highest[1].strip() == "maybe"  # where it begins to explore


def test_words_are_left_out_where_they_could_not_be_read(tmp_path):
    long = write_run(tmp_path / "r", [make_record("p", entropies=[0.5] * 101)])
    assert run_plots(long, "--output", tmp_path / "out", "--format", "svg") == 0
    assert not list((tmp_path / "out").glob("words-*"))


def test_same_records_same_bytes(tmp_path):
    series = read_series([("r", write_run(tmp_path, records(problems=4)))])
    for name in ("one", "two"):
        with style.style():
            style.save(evaluation.mean_teca(series), tmp_path, name, style.FORMATS)
    for extension in style.FORMATS:
        assert (tmp_path / f"one.{extension}").read_bytes() == (tmp_path / f"two.{extension}").read_bytes(), extension


def test_cases_can_be_chosen(tmp_path):
    made = [*records(problems=3), make_record("x/../y z", 1, benchmark="math500", method="cod")]
    directory = write_run(tmp_path / "r", made)
    run_plots(
        directory, "--format", "svg", "--case", "gsm8k/thinking/p2/1", "--case", "math500/cod/x/../y z/1",
    )  # fmt: skip
    names = {path.name for path in (directory / "plots").iterdir()}
    assert {"case-gsm8k-thinking-p2.svg", "tokens-math500-cod-x_.._y_z.html"} <= names
    assert "p2, sample 1" in (directory / "plots" / "tokens-gsm8k-thinking-p2.html").read_text()


def test_bad_input_is_named(tmp_path):
    directory = write_run(tmp_path / "r", records(problems=3))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        run_plots(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither records-\*.jsonl nor log.jsonl"):
        run_plots(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected some of png, svg, pdf, got gif"):
        run_plots(directory, "--format", "png,gif")
    with pytest.raises(ValueError, match="--case: expected BENCHMARK/METHOD/ID"):
        run_plots(directory, "--format", "svg", "--case", "p2")
    with pytest.raises(ValueError, match="no response to gsm8k/thinking/p9/0"):
        run_plots(directory, "--format", "svg", "--case", "gsm8k/thinking/p9")


def test_responses_without_tokens_are_passed_over(tmp_path):
    """Curve and histogram of TECA are those of the responses that have tokens; as lengths they count, as 0."""
    wanted = records(problems=3)
    run_plots(write_run(tmp_path / "with", wanted), "--format", "svg", "--output", tmp_path / "figures")
    made = [*wanted, make_record("none", entropies=[], correct=False)]
    run_plots(write_run(tmp_path / "without", made), "--format", "svg", "--output", tmp_path / "others")
    (few,) = read_series([("r", tmp_path / "with")])
    (all_of_them,) = read_series([("r", tmp_path / "without")])
    with style.style():
        drawn, expected = (evaluation.mean_teca([one]).axes[0].lines[0] for one in (all_of_them, few))
        bars, expected_bars = (
            evaluation.histogram([one], "teca").axes[0].patches[0].get_data() for one in (all_of_them, few)
        )
    assert np.isfinite(drawn.get_ydata()).all()
    assert drawn.get_ydata() == pytest.approx(expected.get_ydata())
    assert bars.values == pytest.approx(expected_bars.values)
    assert bars.edges == pytest.approx(expected_bars.edges)
    assert all_of_them.length.tolist() == [*few.length.tolist(), 0]
    names = sorted(path.name for path in (tmp_path / "others").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "figures").iterdir())


# --------------------------------------------------------------------------------------------------------- token page
def hostile_page() -> tuple[dict, str]:
    tokens = ["Low", " middle", " high", *HOSTILE]
    entropies = [0.0, 1.0, 2.0] + [0.3] * len(HOSTILE)
    record = make_record("</title><script>document.title='owned'</script>", entropies=entropies, tokens=tokens)
    record["prompt"] = record["question"] = "<script>document.title='owned'</script>\u202e"
    record["extracted_answer"] = "<img src=x onerror=alert(1)>"
    return record, token_page(record)


class Page(html.parser.HTMLParser):
    """Elements, and the text and title of every span of the response."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.spans: list[tuple[str, str, str]] = []  # class, title, text
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "span" and "title" in dict(attrs):
            self._open = True
            self.spans.append((dict(attrs)["class"], dict(attrs)["title"], ""))

    def handle_endtag(self, tag):
        if tag == "span":
            self._open = False

    def handle_data(self, data):
        if self._open:
            name, title, text = self.spans[-1]
            self.spans[-1] = name, title, text + data


def test_page_has_a_span_per_token_with_its_numbers_and_its_text():
    record, text = hostile_page()
    page = Page(text)
    assert len(page.spans) == len(record["tokens"])
    for i, (_, title, shown) in enumerate(page.spans):
        entropy, teca = record["token_entropies"][i], record["teca"][i]
        assert title == f"token {i + 1}: entropy {entropy:.4f}, TECA {teca:.4f} nats"
        token = record["tokens"][i]
        if token.isprintable() and token and not set(token) & {"\u202e"}:
            assert shown == token
    levels = [int(re.match(r"e(\d+) t\d+$", name).group(1)) for name, _, _ in page.spans[:3]]
    assert levels == [0, round((LEVELS - 1) / 2), LEVELS - 1]


def test_what_tokens_hold_is_never_markup():
    _, text = hostile_page()
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    text.encode("utf-8")  # a lone surrogate would not encode
    assert "\u202e" not in text
    assert "\x00" not in text


def test_control_characters_are_shown():
    assert shown_token("\n") == "<i>\\n</i>\n"
    assert shown_token("a\x00\u202eb") == "a<i>\\x00</i><i>\\u202e</i>b"
    assert shown_token("\ud83d") == "<i>\\ud83d</i>"
    assert shown_token("") == "<i>(empty)</i>"
    assert shown_token("<&\"'") == "&lt;&amp;&quot;&#x27;"


def test_page_allows_its_own_script_only_and_asks_for_nothing():
    _, text = hostile_page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    outside = re.compile(r"""(?:src|href)\s*=\s*["']?(?!data:,)|url\(|@import|https?:""")
    for tag, attributes in Page(text).elements:
        for name, value in attributes.items():
            assert not (name in ("src", "href") and value != "data:,"), (tag, name, value)
    assert not outside.search(re.search(r"<style>(.*?)</style>", text, re.S).group(1))


def test_text_is_readable_on_every_background():
    """WCAG contrast of the text on each of the 16 steps: at least 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ends, text in ((_LIGHT, "#111111"), (_DARK, "#f2f2f2")):
        for background in _ramp(ends[0]):
            bright, dark = sorted((luminance(text), luminance(background)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5, background


def test_page_of_an_empty_response_and_of_a_long_one():
    assert "none (no token)" in token_page(make_record("p", entropies=[]))
    long = token_page(make_record("p", entropies=[0.5] * 16_384))
    assert long.count("<span class=") - 3 >= 16_384 - 3
    assert len(long) < 3_000_000
    assert len(re.search(r"<svg.*?</svg>", long, re.S).group(0)) < 60_000


# ------------------------------------------------------------------------------------------------------------ browser
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium or google-chrome on this machine")


def browse(page: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", "--window-size=1000,800",
            *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip


def requests(log: Path) -> set[str]:
    """Addresses that the page asked the network for, from the browser's net log.

    What the browser asks for itself (its updates) has no origin as initiator; a page from a file has the origin "null".
    """
    found = set()
    for line in log.read_text().splitlines():
        initiator, url = re.search(r'"initiator":"([^"]*)"', line), re.search(r'"url":"([^"]*)"', line)
        if initiator and url and initiator.group(1) != "not an origin":
            found.add(url.group(1))
    return found


@needs_browser
def test_page_runs_in_a_browser_without_error_request_or_injection(tmp_path):
    record, text = hostile_page()
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    seen = browse(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert "CONSOLE" not in seen.stderr, seen.stderr
    dom = Page(seen.stdout)
    title = re.search(r"<title>(.*?)</title>", seen.stdout, re.S).group(1)
    assert title.startswith("GSM8K, w/ thinking: &lt;/title&gt;")
    # The page's own script ran (it numbers the spans), so nothing else was kept from running by accident.
    numbered = [attributes for tag, attributes in dom.elements if tag == "span" and "data-i" in attributes]
    assert len(numbered) == len(record["tokens"])
    assert requests(tmp_path / "net.json") == set()


@needs_browser
def test_the_browser_check_sees_errors_requests_and_injection(tmp_path):
    """The check above, on a page that has all three."""
    page = tmp_path / "page.html"
    page.write_text(
        "<title>x</title><img src='http://127.0.0.1:9/x.png'><script>document.title='owned';undefined_name()</script>"
    )
    seen = browse(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert "undefined_name is not defined" in seen.stderr
    assert "CONSOLE" in seen.stderr
    assert "<title>owned</title>" in seen.stdout
    assert "http://127.0.0.1:9/x.png" in requests(tmp_path / "net.json")


@needs_browser
@pytest.mark.parametrize(("scheme", "ends"), [("1", _LIGHT), ("0", _DARK)], ids=["light", "dark"])
def test_screenshot_shows_each_token_on_its_colour(tmp_path, scheme, ends):
    _, text = hostile_page()
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    browse(page, f"--screenshot={tmp_path / 'shot.png'}", f"--blink-settings=preferredColorScheme={scheme}")
    pixels = (imread(tmp_path / "shot.png")[..., :3] * 255).round().astype(int)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colours, counts = np.unique(packed, return_counts=True)
    found = dict(zip(colours.tolist(), counts.tolist(), strict=True))

    def area(colour: str) -> int:
        return found.get(int(colour[1:], 16), 0)

    entropy, teca = (_ramp(pair) for pair in ends)
    assert area(entropy[0] if scheme == "0" else "#ffffff") > 0.5 * pixels.shape[0] * pixels.shape[1]
    # " middle" is 7 characters and " high" 5, of about 8 x 20 points each, less their glyphs.
    middle, high = area(entropy[round((LEVELS - 1) / 2)]), area(entropy[LEVELS - 1])
    assert middle > 400
    assert high > 300
    assert middle > high
    assert sum(area(colour) > 20 for colour in set(teca)) >= 3  # the line under the tokens changes along the text
