"""Configures the limits on media: what may be fetched, and how large it may be."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1 << 20


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits on one medium and on fetching it. Each is a flag of the frontend and of workers."""

    media_max_bytes: Annotated[int, Meta(gt=0, description="Maximum bytes of one medium as fetched (file size).")] = (
        20 * MIB
    )
    media_max_pixels: Annotated[
        int,
        Meta(gt=0, description="Maximum pixels of a picture or of one frame, read from the header before decoding."),
    ] = 50_000_000
    media_min_side_px: Annotated[
        int, Meta(gt=0, description="Minimum width and height of a picture or video, in pixels.")
    ] = 4
    media_max_video_bytes: Annotated[
        int, Meta(gt=0, description="Maximum bytes of one video as fetched (file size).")
    ] = 100 * MIB
    media_max_video_s: Annotated[float, Meta(gt=0, description="Maximum length of a video, in seconds.")] = 600.0
    media_max_video_frames: Annotated[int, Meta(gt=0, description="Maximum number of frames in a video's file.")] = (
        36_000
    )
    media_max_video_work: Annotated[
        int,
        Meta(
            gt=0, description="Maximum pixels of a video over all frames in its file, which is the cost of decoding it."
        ),
    ] = 40_000_000_000
    media_max_video_pixels: Annotated[
        int, Meta(gt=0, description="Maximum pixels of a video over all frames that the model sees.")
    ] = 500_000_000
    media_max_audio_s: Annotated[float, Meta(gt=0, description="Maximum length of a sound, in seconds.")] = 600.0
    media_max_embedding_bytes: Annotated[
        int, Meta(gt=0, description="Maximum bytes of one precomputed embedding as fetched (file size).")
    ] = 64 * MIB
    media_pt_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for reading a `.pt` file, in a process of its own that loads torch.")
    ] = 60.0
    media_decode_workers: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of child processes that read and decode media, for each frontend and worker; "
            "0: one for each core, at most 8. They are started when they are needed.",
        ),
    ] = 0
    media_decode_memory_mib: Annotated[
        int,
        Meta(
            ge=128,
            description="Maximum memory (address space) of such a process, in MiB. The libraries for sounds and "
            "videos take some 300.",
        ),
    ] = 3072
    media_decode_timeout_s: Annotated[
        float,
        Meta(gt=0, description="Time limit for reading or decoding one medium; after that the process is killed."),
    ] = 120.0
    media_require_sandbox: Annotated[
        bool,
        Meta(
            description="Refuse to start if the system cannot confine such processes (no files, no network, no other "
            "processes), and decode nothing in one that is not confined.",
        ),
    ] = False
    media_decoded_bytes: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum bytes of decoded media that the requests of a worker hold at once. More requests "
            "wait; a request that needs more by itself gets 413.",
        ),
    ] = 2048 * MIB
    media_decoded_cache_bytes: Annotated[
        int, Meta(ge=0, description="Maximum bytes of decoded media that a worker keeps for later requests; 0: none.")
    ] = 256 * MIB
    media_max_items: Annotated[int, Meta(gt=0, description="Maximum number of media in one request.")] = 16
    media_max_request_bytes: Annotated[
        int,
        Meta(
            gt=0,
            le=448 * MIB,
            description="Maximum bytes of all media of a request as fetched. At most 448 MiB, which is what a worker "
            "accepts in one message.",
        ),
    ] = 384 * MIB
    media_connect_timeout_s: Annotated[float, Meta(gt=0, description="Time limit for connecting to a media host.")] = (
        5.0
    )
    media_read_timeout_s: Annotated[
        float, Meta(gt=0, description="Longest silence of a media host during an answer.")
    ] = 10.0
    media_total_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for fetching one medium, redirects included.")
    ] = 20.0
    media_max_redirects: Annotated[
        int, Meta(ge=0, description="Maximum number of redirects followed for one medium.")
    ] = 4
    media_max_fetches: Annotated[int, Meta(gt=0, description="Maximum number of media fetched at the same time.")] = 32
    media_max_fetches_per_host: Annotated[
        int, Meta(gt=0, description="Maximum number of media fetched from one host at the same time.")
    ] = 8
    media_allow_private: Annotated[
        bool,
        Meta(
            description="Allow media URLs with private and loopback addresses (for tests and intranets). Link-local "
            "addresses, and others at which clouds hand out credentials, are still refused."
        ),
    ] = False
