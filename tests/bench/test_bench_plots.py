"""What bench.plots draws against the numbers it was drawn from: bars, texts, lines; and the files it leaves."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys

import pytest

from bench import plots
from bench.records import Results, Variant, read
from trainer.plotting.style import style


@pytest.fixture(autouse=True)
def _style():
    with style():
        yield


def bars(axis) -> dict[str, float]:
    """Where the bar of each name ends."""
    names = [text.get_text() for text in axis.get_yticklabels()]
    return {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_x() + bar.get_width() for bar in axis.patches}


def lines(axis) -> list[float]:
    """Where the vertical lines stand."""
    return [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() != "-"]


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("file", ["committed", "small_run", "head_run"])
def test_time_bars_limits_and_ratios_are_those_of_the_records(file, request):
    results = read(request.getfixturevalue(file))
    made = plots.figures(results)
    for operation, records in results.operations().items():
        figure = next(f for f in made.values() if f.get_suptitle().startswith(f"{operation}: medians of interleaved"))
        assert results.where in figure.get_suptitle().replace("\n", " ")
        assert len(figure.axes) == len(records)
        for axis, record in zip(figure.axes, records, strict=True):
            assert axis.get_xscale() == "log"
            assert axis.get_title(loc="left").startswith(record.case or operation)
            assert bars(axis) == pytest.approx({v.name: v.seconds for v in record.variants})
            low, high = axis.get_xlim()
            assert all(low < value < high for value in [*bars(axis).values(), *lines(axis)])
            for variant, text in zip(record.variants, texts(axis), strict=False):
                shown = plots.seconds_text(variant.seconds)
                ratio = f", {variant.seconds / record.ours.seconds:.3g}x ours"
                assert text == (shown if variant is record.ours else shown + ratio)
            if record.limit is None:
                assert lines(axis) == []
                continue
            limit, times = record.limit.seconds, record.limit.times
            assert lines(axis) == pytest.approx([limit] if times in (None, 1) else [limit, times * limit])
            assert texts(axis)[len(record.variants)] == (
                f"{record.limit.name} {plots.seconds_text(limit)}; ours {record.ours.seconds / limit:.2f}x"
            )


@pytest.mark.parametrize("file", ["committed", "small_run", "head_run"])
def test_share_is_the_limits_time_over_ours(file, request):
    results = read(request.getfixturevalue(file))
    made = plots.figures(results)
    axes = [axis for name, figure in made.items() if name.startswith(f"{results.name}-share") for axis in figure.axes]
    left_out = plots.fixed_cost_decides(results.records)
    limited = [r for r in results.records if r.limit is not None and r.limit.times is not None and r not in left_out]
    expected = [r.limit.times * r.limit.seconds / r.ours.seconds for r in limited]
    assert [bar.get_width() for axis in axes for bar in axis.patches] == pytest.approx(expected)
    assert [lines(axis) for axis in axes] == [[1.0]] * len(axes)
    written = [text for axis in axes for text in texts(axis)[: len(axis.patches)]]
    for text, share in zip(written, expected, strict=True):
        assert text.startswith(f"{share:.0%}  ")


def test_no_share_is_drawn_where_the_fixed_cost_of_a_call_decides(committed):
    """Reads of 1.2 MB at 0.9 GB/s beside reads of 311 MB at 34 GB/s; one such share was 255%."""
    results = read(committed)
    left_out = plots.fixed_cost_decides(results.records)
    assert {(record.operation, record.case) for record in left_out} == {
        (f"from_logits {way}", f"qwen3, 2 x 151936, {dtype}")
        for way in ("forward", "backward")
        for dtype in ("float32", "bfloat16")
    }
    (panel,) = plots.share_panels(results.records)
    assert "left out: 4 small cases" in plots.figures(results)["cpu-epyc-zen4-share"].get_suptitle()
    assert not [bar for bar in panel.bars if ", 2 x " in bar.name]
    assert len([bar for bar in panel.bars if "llama3" in bar.name]) == 4
    assert max(bar.value for bar in panel.bars) < 1.2
    assert plots.fixed_cost_decides(results.records[:4]) == []


def test_steps_beside_trl_have_memory_and_time(committed):
    results = read(committed)
    memory, time = plots.figures(results)["cpu-epyc-zen4-steps"].axes
    assert bars(memory)["LoRA, float32: CERTrainer"] == pytest.approx(60174336 / 2**20)
    assert bars(memory)["LoRA, float32: TRL"] == pytest.approx(1219301376 / 2**20)
    assert bars(time)["full, bfloat16: TRL"] == pytest.approx(7.660859439998603)
    assert texts(memory)[0].endswith(" MiB")
    assert len(bars(memory)) == len(bars(time)) == 8


def test_memory_ticks_are_powers_of_two(committed):
    (axis, _) = plots.figures(read(committed))["cpu-epyc-zen4-memory-one-GRPO-step-LoRA-frozen-head"].axes
    low, high = axis.get_xlim()
    ticks = [tick for tick in axis.get_xticks() if low <= tick <= high]
    assert len(ticks) >= 3
    assert all(tick.is_integer() and int(tick).bit_count() == 1 for tick in ticks)
    axis.figure.draw_without_rendering()
    shown = [text.get_text() for text in axis.get_xticklabels()]
    assert "1 GiB" in shown or "512 MiB" in shown
    assert not [text for text in shown if "." in text]


def test_rates_are_work_over_time(committed):
    """311,164,928 bytes in 13.53 ms beside one read in 11.67 ms, as published."""
    record = read(committed).operations()["from_logits forward"][0]
    fixed = dataclasses.replace(
        record,
        ours=Variant("cer_ext", 0.0135292),
        limit=dataclasses.replace(record.limit, seconds=0.01166647),
        work=311164928,
    )
    assert plots.share_panels((fixed,))[0].bars[0].text == "86%  23 GB/s of 26.7 GB/s"


def test_entropy_errors_are_drawn_once_a_case_beside_the_promise(head_run):
    results = read(head_run)
    (axis,) = plots.figures(results)["head-entropy-error"].axes
    written = json.loads(head_run.read_text())["benchmarks"][0]["extra_info"]["entropy_error"]
    assert bars(axis) == pytest.approx({name: error for name, error in written.items() if error})
    assert lines(axis) == [1e-5]
    assert bars(axis)["cer_ext"] < 1e-5 < bars(axis)["plain torch"]


def with_variants(committed, *variants: Variant) -> Results:
    """One record of the file, from_logits forward, with these peers."""
    results = read(committed)
    record = dataclasses.replace(results.operations()["from_logits forward"][0], peers=variants)
    return dataclasses.replace(results, records=(record,))


def test_memory_is_drawn_where_it_was_measured(committed):
    assert not [name for name in plots.figures(read(committed)) if "-memory-from_logits" in name]
    results = with_variants(committed, Variant("a", 1.0, peak_bytes=3 * 2**20), Variant("b", 1.0))
    (axis,) = plots.figures(results)["cpu-epyc-zen4-memory-from_logits-forward"].axes
    assert bars(axis) == {"a": pytest.approx(3 * 2**20)}
    assert texts(axis) == ["3 MiB"]


def test_what_a_logarithm_cannot_show_is_written(committed):
    errors = {"nothing": 0.0, "not a number": float("nan"), "small": 2e-7}
    results = with_variants(committed, *(Variant(name, 1.0, entropy_error=e) for name, e in errors.items()))
    record = dataclasses.replace(results.records[0], ours=Variant("cer_ext", 1.0, entropy_error=1e-7))
    (panel,) = plots.error_panels((record,))
    assert [(bar.value, bar.text) for bar in panel.bars] == [
        (1e-7, "1.0e-07"),
        (None, "0.0e+00"),
        (None, "nan"),
        (2e-7, "2.0e-07"),
    ]


def test_a_variant_that_failed_has_its_reason_and_no_bar(committed):
    results = with_variants(committed, Variant("quack", None, failure="OutOfMemoryError: too much"))
    (axis,) = plots.figures(results)["cpu-epyc-zen4-time-from_logits-forward"].axes
    assert list(bars(axis)) == ["cer_ext"]
    assert texts(axis)[1] == "failed: OutOfMemoryError: too much"


def test_many_cases_go_to_several_figures(committed):
    results = with_variants(
        committed, *(Variant(f"peer {number}", 1.0) for number in range(13))
    )  # and ours, and a limit
    made = plots.figures(dataclasses.replace(results, records=results.records * 5))
    name = "cpu-epyc-zen4-time-from_logits-forward"
    assert [len(made[name + part].axes) for part in ("", "-2")] == [4, 1]
    made = plots.figures(dataclasses.replace(results, records=results.records * 30))
    assert [len(made["cpu-epyc-zen4-share" + part].axes[0].patches) for part in ("", "-2")] == [24, 6]


def test_command_writes_small_files_and_the_same_bytes_again(committed, tmp_path, capsys):
    content = json.loads(committed.read_text())
    content["benchmarks"] = content["benchmarks"][:2]
    file, output = tmp_path / "two.json", tmp_path / "new" / "figures"
    file.write_text(json.dumps(content))
    assert plots.main([str(file), "--output", str(output)]) == 0
    written = {path: path.read_bytes() for path in output.iterdir()}
    assert set(capsys.readouterr().out.split()) == {str(path) for path in written}
    assert {path.stem for path in written} == set(plots.figures(read(file)))
    for png in written.values():
        assert png.startswith(b"\x89PNG")
        assert len(png) < 150_000
    plots.main([str(file), "--output", str(output)])
    assert {path: path.read_bytes() for path in output.iterdir()} == written


def test_a_failure_while_drawing_leaves_the_old_figures(committed, tmp_path, monkeypatch):
    old = tmp_path / "cpu-epyc-zen4-share.png"
    old.write_bytes(b"old")
    drawn = []

    def full_disk(made, directory, name, formats):
        drawn.append(directory / f"{name}.png")
        if len(drawn) == 2:
            raise OSError(28, "No space left on device")
        drawn[0].write_bytes(b"new")
        return drawn[:1]

    monkeypatch.setattr(plots, "save", full_disk)
    assert "No space left" in plots.main([str(committed), "--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"


def test_bad_files_are_named_and_nothing_is_written(committed, tmp_path):
    empty = tmp_path / "empty.json"
    empty.touch()
    assert f"{empty}: is empty" in plots.main([str(empty), "--output", str(tmp_path / "out")])
    assert "No such file" in plots.main([str(tmp_path / "absent.json"), "--output", str(tmp_path / "out")])
    same = tmp_path / committed.name
    same.write_bytes(committed.read_bytes())
    message = plots.main([str(committed), str(same), "--output", str(tmp_path / "out")])
    assert "two files are called cpu-epyc-zen4" in message
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "bench.plots")
    with pytest.raises(ModuleNotFoundError, match=r"matplotlib is not installed: pip install '\.\[train\]'"):
        importlib.import_module("bench.plots")
