"""Limits on media: what may be fetched, and how large it may be."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

MIB = 1 << 20


class MediaLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on one medium and on fetching it. Every one is a flag of the frontend and of workers."""

    media_max_bytes: Annotated[int, Meta(gt=0, description="Most bytes of one medium as fetched (file size).")] = (
        20 * MIB
    )
    media_max_pixels: Annotated[
        int, Meta(gt=0, description="Most pixels of a picture or of a frame, read from the header before decoding.")
    ] = 50_000_000
    media_min_side_px: Annotated[int, Meta(gt=0, description="Fewest pixels a side of a picture or video.")] = 4
    media_max_video_bytes: Annotated[int, Meta(gt=0, description="Most bytes of one video as fetched (file size).")] = (
        100 * MIB
    )
    media_max_video_s: Annotated[float, Meta(gt=0, description="Longest video.")] = 600.0
    media_max_video_frames: Annotated[int, Meta(gt=0, description="Most frames in a video's file.")] = 36_000
    media_max_video_work: Annotated[
        int, Meta(gt=0, description="Most pixels of a video over all frames of its file: what decoding it costs.")
    ] = 40_000_000_000
    media_max_video_pixels: Annotated[
        int, Meta(gt=0, description="Most pixels of a video, over all frames that the model sees.")
    ] = 500_000_000
    media_max_audio_s: Annotated[float, Meta(gt=0, description="Longest sound, in seconds.")] = 600.0
    media_max_embedding_bytes: Annotated[
        int, Meta(gt=0, description="Most bytes of one precomputed embedding as fetched (file size).")
    ] = 64 * MIB
    media_pt_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for reading a `.pt` file, in a process of its own that loads torch.")
    ] = 60.0
    media_decode_workers: Annotated[
        int,
        Meta(
            ge=0,
            description="Most child processes that read and decode media, of each frontend and worker; 0: one a core, "
            "at most 8. They start when they are needed.",
        ),
    ] = 0
    media_decode_memory_mib: Annotated[
        int,
        Meta(
            ge=128,
            description="Most memory (address space) of such a process, in MiB; the libraries for sounds and videos "
            "take some 300.",
        ),
    ] = 3072
    media_decode_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for reading or decoding one medium; what takes longer is killed.")
    ] = 120.0
    media_require_sandbox: Annotated[
        bool,
        Meta(
            description="Refuse to start where the system cannot keep such a process from files, the network and other "
            "processes, and decode nothing in one that it does not.",
        ),
    ] = False
    media_decoded_bytes: Annotated[
        int,
        Meta(
            gt=0,
            description="Most bytes of decoded media that the requests of a worker hold at once; more requests wait, "
            "and one whose media are larger by themselves gets 413.",
        ),
    ] = 2048 * MIB
    media_decoded_cache_bytes: Annotated[
        int, Meta(ge=0, description="Most bytes of decoded media that a worker keeps for requests to come; 0: none.")
    ] = 256 * MIB
    media_max_items: Annotated[int, Meta(gt=0, description="Most media in one request.")] = 16
    media_max_request_bytes: Annotated[
        int,
        Meta(
            gt=0,
            le=448 * MIB,
            description="Most bytes of all media of a request as fetched; at most 448 MiB, which a worker takes in one "
            "message.",
        ),
    ] = 384 * MIB
    media_connect_timeout_s: Annotated[float, Meta(gt=0, description="Time limit for connecting to a media host.")] = (
        5.0
    )
    media_read_timeout_s: Annotated[
        float, Meta(gt=0, description="Longest silence of a media host that is being read from.")
    ] = 10.0
    media_total_timeout_s: Annotated[
        float, Meta(gt=0, description="Time limit for fetching one medium, redirects included.")
    ] = 20.0
    media_max_redirects: Annotated[int, Meta(ge=0, description="Most redirects followed for one medium.")] = 4
    media_max_fetches: Annotated[int, Meta(gt=0, description="Most media fetched at the same time.")] = 32
    media_max_fetches_per_host: Annotated[
        int, Meta(gt=0, description="Most media fetched from one host at the same time.")
    ] = 8
    media_allow_private: Annotated[
        bool,
        Meta(
            description="Let media URLs reach private and loopback addresses (for tests and intranets). Link-local "
            "ones, and others at which clouds give credentials out, stay refused."
        ),
    ] = False
