"""What a person sees: plain lines, now and then, or a bar on a terminal."""

import pytest
from rich.console import Console as RichConsole

from imgclf_jax.terminal import console as module
from imgclf_jax.terminal.console import Console, count, duration


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_plain_lines_keep_their_distance(clock, capsys):
    console = Console("lines", line_seconds=10.0)
    console.start(0)
    for step in range(1, 31):
        clock.now += 1
        console.train(step, 100, f"loss {step}", row=True)
    assert [line.split()[1] for line in lines(capsys)] == ["1/100", "11/100", "21/100"]


def test_the_last_step_always_has_a_line(clock, capsys):
    console = Console("lines", line_seconds=10.0)
    console.start(0)
    for step in (1, 2, 3):
        console.train(step, 3, "", row=True)
    assert [line.split()[1] for line in lines(capsys)] == ["1/3", "3/3"]


@pytest.mark.parametrize("mode", ["lines", "none", "bar"])
def test_every_row_has_a_line_where_no_distance_is_kept(clock, capsys, mode):
    console = Console(mode, line_seconds=0)
    console.start(0)
    for step in (1, 2, 3):
        console.train(step, 3, f"loss {step}", row=step != 2)
    console.finish()
    found = [line for line in lines(capsys) if line.startswith("step ")]
    assert len(found) == (0 if mode == "none" else 2)


def test_steps_between_rows_have_no_line(clock, capsys):
    console = Console("lines", line_seconds=10.0)
    console.start(0)
    clock.now += 60
    console.train(1, 100, "", row=False)
    assert lines(capsys) == []


def test_time_left_is_reckoned_from_where_training_went_on(clock, capsys):
    console = Console("lines", line_seconds=0)
    console.start(50)
    console.train(50, 100, "", row=True)
    clock.now += 10
    console.train(60, 100, "", row=True)
    first, second = lines(capsys)
    assert first.endswith("ETA ?")
    assert second.endswith("ETA 40.0 s")


@pytest.mark.parametrize(
    ("mode", "out", "warned"),
    [
        ("none", "accuracy 0.5\n", True),
        ("json", '{"loss": null, "of": {"steps": 2}}\n', True),
        ("silent", "", False),
    ],
)
def test_quiet_modes_print_results_or_objects_alone(capsys, mode, out, warned):
    console = Console(mode, line_seconds=0)
    console.print("text")
    console.table(("name", "size"), [("a", 1)], ("total", "1"))
    console.task("decoding", 1, 1)
    console.start(0)
    console.train(1, 2, "loss 1", row=True)
    console.result("accuracy 0.5")
    console.emit({"loss": float("nan"), "of": {"steps": 2}})
    console.finish()
    console.warn("careful")
    captured = capsys.readouterr()
    assert captured.out == out
    assert ("careful" in captured.err) == warned


def test_objects_are_for_other_programs_alone(capsys):
    console = Console("lines")
    console.result("accuracy 0.5")
    console.emit({"loss": 0.5})
    assert lines(capsys) == ["accuracy 0.5"]


def test_auto_means_lines_without_a_terminal(clock, capsys):
    console = Console("auto", line_seconds=0)
    console.start(0)
    console.train(1, 2, "loss 1", row=True)
    assert lines(capsys) == ["step 1/2  loss 1  ETA 0.0 s"]


def test_text_is_printed_as_it_is(capsys):
    console = Console("lines")
    long = "workdir /a[bold]/" + "x" * 300
    console.print(long)
    assert lines(capsys) == [long]


def test_table_aligns_numbers_and_adds_a_total(capsys):
    Console("lines").table(("name", "values"), [("a", 5), ("bcd", 12345)], ("total", "12350"))
    assert [line.rstrip() for line in lines(capsys)] == [
        "name   values",
        "a           5",
        "bcd     12345",
        "total   12350",
    ]


def test_task_prints_progress_in_plain_lines(clock, capsys):
    console = Console("lines", line_seconds=10.0)
    for done in (1, 2, 3, 4):
        console.task("decoding", done, 4)
        clock.now += 6
    console.task("nothing", 0, 0)
    said = ["decoding: 25%  ETA ?", "decoding: 75%  ETA 6.0 s", "decoding: 100%", "nothing: 0%"]
    assert lines(capsys) == said


def test_bar_on_a_terminal_shows_training_and_clears_away(monkeypatch, capsys):
    monkeypatch.setattr(module, "RichConsole", lambda **options: RichConsole(force_terminal=True, **options))
    monkeypatch.setenv("TERM", "xterm")
    console = Console("auto", line_seconds=10.0)
    console.task("decoding", 1, 2)
    console.task("decoding", 2, 2)
    console.start(0)
    for step in (1, 2, 3):
        console.train(step, 3, f"loss {step} [a/b]", row=step == 2)
        console.print(f"evaluated {step}")
    console.finish()
    console.finish()
    console.print("done")
    out = capsys.readouterr().out
    assert "evaluated 3" in out and out.rstrip().endswith("done")
    assert "loss 3" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.23, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00 min"),
        (60, "1:00 min"),
        (187, "3:07 min"),
        (3599.6, "1:00:00 h"),
        (7530, "2:05:30 h"),
        (100 * 3600, "100:00:00 h"),
    ],
)
def test_duration_for_people(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 "),
        (999, "999 "),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (999_999, "1 M"),
        (1_234_567, "1.23 M"),
        (45.6e9, "45.6 G"),
        (2e15, "2 P"),
    ],
)
def test_count_for_people(value, text):
    assert count(value) == text
