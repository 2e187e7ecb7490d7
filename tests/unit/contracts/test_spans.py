import pytest

from triptych.contracts.spans import STAGES, Mode, Span, modes_of


@pytest.mark.parametrize("mode", Mode)
def test_the_spans_of_a_mode_cover_every_stage_once_in_order(mode):
    assert "".join(span.value for span in mode.spans) == STAGES


@pytest.mark.parametrize(
    ("spans", "modes"),
    [
        ("", ()),
        ("e", ()),
        ("pd", ()),
        ("e p", ()),
        ("epd", (Mode.EPD,)),
        ("e pd", (Mode.E_PD,)),
        ("ep d", (Mode.EP_D,)),
        ("e p d", (Mode.E_P_D,)),
        ("epd epd e", (Mode.EPD,)),
        ("epd e pd", (Mode.EPD, Mode.E_PD)),
        ("e p d ep pd epd", tuple(Mode)),
    ],
)
def test_modes_follow_from_the_live_workers(spans, modes):
    assert modes_of(Span(one) for one in spans.split()) == modes


@pytest.mark.parametrize("span", Span)
def test_a_span_covers_each_run_of_its_stages(span):
    assert span.first == span.value[0]
    assert span.last == span.value[-1]
    assert [stage for stage in STAGES if span.covers(stage)] == list(span.value)
    assert span.covers(span.value)
    assert span.covers("epd") == (span is Span.EPD)


def test_every_unbroken_run_of_stages_is_a_span():
    runs = {STAGES[i:j] for i in range(3) for j in range(i + 1, 4)}
    assert {span.value for span in Span} == runs
