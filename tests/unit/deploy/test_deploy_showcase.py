"""The texts that `triptych demo` shows."""

from __future__ import annotations

from pathlib import Path

from triptych.contracts.spans import Mode
from triptych.deploy.client import Answer, ServingReport
from triptych.deploy.local import Deployment
from triptych.deploy.showcase import Exhibit, examples, timing_table


def test_the_timing_table_omits_unreported_stages() -> None:
    report = ServingReport(timing={"prefill_s": 0.0123, "queue_s": None, "total_s": 1.5}, plan="epd@epd-0")

    assert timing_table(Answer(choices=(), triptych=report)).splitlines() == [
        "Time by stage (epd@epd-0):",
        "  encode + prefill       12.3 ms",
        "  total                1500.0 ms",
    ]


def test_prefill_has_its_own_line_beside_a_separate_encode() -> None:
    report = ServingReport(timing={"encode_s": 0.001, "prefill_s": 0.002})

    table = timing_table(Answer(choices=(), triptych=report))

    assert "  prefill  " in table
    assert "encode + prefill" not in table


def test_examples_never_show_the_api_key() -> None:
    deployment = Deployment(url="http://h:1", models=("m",), modes=(Mode.EPD,), api_key="geheim")

    exhibit = Exhibit(file=Path("/p.png"), medium="image", media_type="image/png", question="Q?", expected="A.")
    text = examples(deployment, exhibit)

    assert "geheim" not in text
    assert "Bearer YOUR KEY" in text
    assert 'api_key="YOUR KEY"' in text


def test_examples_name_the_medium() -> None:
    deployment = Deployment(url="http://h:1", models=("m",), modes=(Mode.EPD,), api_key=None)
    exhibit = Exhibit(file=Path("/f.mp4"), medium="video", media_type="video/mp4", question="Q?", expected="A.")

    text = examples(deployment, exhibit)

    assert text.count('"type": "video_url", "video_url": {"url": ') == 2
    assert "data:video/mp4;base64,$(base64 -w0 /f.mp4)" in text
