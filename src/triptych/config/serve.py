"""Configures the two long-running processes, frontend and worker, and what both share."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from triptych.config.http import DEFAULT_PORT
from triptych.config.media import MIB, MediaLimits
from triptych.config.requests import RequestLimits
from triptych.contracts.errors import ConfigError
from triptych.contracts.spans import Span

DEFAULT_ENGINE = "vllm"


class PlaneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The planes: how processes of one deployment find and trust each other."""

    plane: Annotated[
        str,
        Meta(
            description="How processes find each other, and where frontends keep shared state: `local` (files in the "
            "run directory); `nats://host:4222`, `nats://user@host:4222` or `tls://host:4222` (several "
            "servers of a cluster separated by commas); or, for `triptych up` only, `nats`: a server that "
            "is started and stopped with the deployment."
        ),
    ] = "local"
    run_dir: Annotated[
        str,
        Meta(
            description="Run directory: the folder of the files by which processes on one machine find and trust each "
            "other (default: TRIPTYCH_RUN_DIR; else a new one for `triptych up`, and one per user for "
            "other commands)."
        ),
    ] = ""
    nats_credentials: Annotated[
        str,
        Meta(
            description="File with the login at the NATS server: a `.creds` file, or one line with `user:password` or "
            "a token (default: TRIPTYCH_NATS_PASSWORD or TRIPTYCH_NATS_TOKEN, else none)."
        ),
    ] = ""
    nats_ca: Annotated[
        str, Meta(description="Certificate authorities that are trusted for the NATS server (default: the system's).")
    ] = ""
    nats_cert: Annotated[str, Meta(description="Client certificate, if the NATS server requires one.")] = ""
    nats_key: Annotated[str, Meta(description="Key of `--nats-cert`, if it is in a separate file.")] = ""
    namespace: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description="Deployments with different namespaces do not see each other.",
        ),
    ] = "default"
    tls_cert: Annotated[
        str,
        Meta(
            description="Own certificate on the request plane. A worker that has one speaks only TLS; a frontend "
            "shows it to workers (default: none)."
        ),
    ] = ""
    tls_key: Annotated[str, Meta(description="Key of `--tls-cert`, if it is in a separate file.")] = ""
    tls_ca: Annotated[
        str,
        Meta(
            description="Certificate authorities that are trusted on the request plane. A frontend that has this "
            "speaks only TLS; a worker refuses callers without a certificate from them (default: none)."
        ),
    ] = ""
    events: Annotated[
        Literal["request", "zmq", "jetstream"],
        Meta(
            description="How workers report the content of their KV caches to frontends: `request` (a stream to each "
            "frontend), `zmq` (published at a port of the worker) or `jetstream` (published over the NATS "
            "server of `--plane`). A frontend uses `request` for workers with another setting."
        ),
    ] = "request"

    def check(self) -> None:
        """Raises ConfigError where a setting needs another one."""
        if self.events == "jetstream" and self.plane == "local":
            raise ConfigError("--events jetstream needs a NATS server to publish by: --plane nats://host:4222")


class JoinConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Joining a running deployment."""

    join: Annotated[
        bool,
        Meta(
            description="Join the deployment that `triptych up` has started: on its plane, with its token. If several "
            "are up, `--run-dir` and `--namespace` choose one."
        ),
    ] = False


class FrontendConfig(RequestLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The frontend: an HTTP server and the processor in it."""

    enable_multimodal: Annotated[bool, Meta(description="Accept media in requests.")] = False
    enable_mm_embeds: Annotated[
        bool, Meta(description="Accept precomputed embeddings in place of media, too; needs `--enable-multimodal`.")
    ] = False
    allowed_local_media_path: Annotated[
        str | None,
        Meta(description="Folder whose files clients may name by `file:` URL. Clients can have every file in it read."),
    ] = None
    media_allowed_domains: Annotated[
        str,
        Meta(
            description="Hosts from which media may be fetched, also after redirects, separated by commas: "
            "`a.example`, or `*.b.example` for all names below it (default: every public host)."
        ),
    ] = ""
    media_cache_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum bytes of fetched media that are kept, as long as HTTP's rules allow, and of what was "
            "read from `.pt` files; 0: none.",
        ),
    ] = 128 * MIB
    video_frames: Annotated[
        int,
        Meta(
            ge=0,
            description="Number of frames of each video that the model sees, evenly spread; 0: by the model's own "
            "settings.",
        ),
    ] = 0
    video_fps: Annotated[
        float,
        Meta(
            ge=0,
            description="Frames of a video per second that the model sees, within its own limits; 0: by the model's "
            "own settings.",
        ),
    ] = 0.0
    model_files_cache: Annotated[
        str,
        Meta(
            description="Folder for tokenizers, templates and configs that a frontend without the checkpoint gets "
            "from workers (default: `triptych/model-files` in this user's cache)."
        ),
    ] = ""
    prompt_template: Annotated[
        str | None,
        Meta(description="Prompt for models without a chat template; must contain `<prompt>`."),
    ] = None
    chat_template_kwargs: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_, ]*$",
            description="Names that a request may set in `chat_template_kwargs`, separated by commas.",
        ),
    ] = "add_vision_id,documents,enable_thinking,thinking,tools"
    api_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(description="Key that clients must send as a bearer token (default: TRIPTYCH_API_KEY, else none)."),
    ] = None
    admin_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="Key that operators must send as a bearer token under `/admin/`, other than the API key "
            "(default: TRIPTYCH_ADMIN_KEY, else those routes are off)."
        ),
    ] = None
    max_body_bytes: Annotated[int, Meta(gt=0, description="Maximum bytes of a request body.")] = 64 * MIB
    max_held_bytes: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum bytes that requests hold at once: bodies, their texts and tokens, and fetched media. "
            "More get 429.",
        ),
    ] = 4096 * MIB
    max_choices: Annotated[int, Meta(gt=0, description="Largest `n` of a request.")] = 16
    max_stop_strings: Annotated[int, Meta(gt=0, description="Maximum number of stop strings in a request.")] = 16
    max_in_flight: Annotated[
        int,
        Meta(
            gt=0,
            description="Maximum number of generations (each choice of each prompt of a request) at once. More get "
            "429; a request with more than that gets 400.",
        ),
    ] = 4096
    max_running: Annotated[
        int,
        Meta(
            ge=0,
            description="Maximum number of generations at workers. Others wait: requests take turns, each with one "
            "generation a round, and requests with media have a queue of their own. 0: no limit.",
        ),
    ] = 0
    max_waiting: Annotated[
        int, Meta(ge=0, description="Maximum number of generations that wait for `--max-running`; more get 429.")
    ] = 1024
    max_wait_s: Annotated[
        float, Meta(gt=0, description="Longest wait of a request's first generation for `--max-running`; then 503.")
    ] = 30.0
    local_prefill_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="A prompt with at most this number of tokens left to prefill (tokens that the decode worker "
            "has seen before do not count) stays at the decode worker, if that can prefill; 0: none does.",
        ),
    ] = 0
    expected_models: Annotated[
        str,
        Meta(
            description="Names of models that exist although their workers may not be there yet, separated by commas: "
            "requests for them get 503 and not 404. `triptych up` sets this from its graph."
        ),
    ] = ""
    plan_header: Annotated[
        bool, Meta(description="Name the workers that answered in the header `x-triptych-plan`.")
    ] = False
    response_timeout_s: Annotated[
        float, Meta(gt=0, description="Longest silence of a worker within one answer; after that it is given up.")
    ] = 300.0
    resume_timeout_s: Annotated[
        float,
        Meta(ge=0, description="Longest time that an answer whose worker was lost waits for another worker."),
    ] = 30.0
    quarantine_s: Annotated[
        float,
        Meta(
            ge=0,
            description="How long a request is refused, by its content, after two workers were lost with it; 0: no "
            "request is.",
        ),
    ] = 600.0
    max_quarantined: Annotated[
        int, Meta(gt=0, description="Maximum number of requests in quarantine; above it the oldest is forgotten.")
    ] = 1024
    suspect_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            description="Longest time that a suspect request (a worker was lost with it) waits for a worker without "
            "another suspect.",
        ),
    ] = 5.0
    drain_timeout_s: Annotated[
        float, Meta(ge=0, description="Time for requests in flight to finish after SIGTERM.")
    ] = 8.0


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker: a span of one model on one engine."""

    model: Annotated[
        str,
        Meta(description="Folder of the model, its id in Hugging Face's cache, or `demo` or `demo-audio` (shipped)."),
    ]
    span: Annotated[Span, Meta(description="Stages that the worker hosts: e, p, d, ep, pd or epd.")] = Span.EPD
    engine: Annotated[str, Meta(description="Back end: vllm, encoder (span e only) or mock.")] = DEFAULT_ENGINE
    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.-]{0,64}$",
            description="Component name, shared by replicas (default: the span).",
        ),
    ] = ""
    served_model_name: Annotated[
        str | None, Meta(description="Name that clients use (default: the model's id, or its folder's name).")
    ] = None
    instance_name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.-]{0,64}$",
            description="Name of this worker; refused if a live worker has it (default: made from `--name`).",
        ),
    ] = ""
    fallback: Annotated[
        bool,
        Meta(description="Run stages outside of the span, too, if the engine can and no other worker can."),
    ] = True
    embedding_cache_bytes: Annotated[
        int, Meta(ge=0, description="Maximum bytes of embeddings that are kept, by content; 0: none.")
    ] = 256 * MIB
    host: Annotated[
        str, Meta(description="Address that the request plane listens on; `localhost`: 127.0.0.1 and ::1.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the request plane; 0 takes a free one.")] = 0
    drain_timeout_s: Annotated[
        float, Meta(ge=0, description="Time for requests in flight to finish after SIGTERM.")
    ] = 8.0
    max_in_flight: Annotated[
        int, Meta(gt=0, description="Maximum number of requests that this worker holds at once; more get 429.")
    ] = 4096
    verbose: Annotated[
        bool,
        Meta(
            description="Show the engine's output on the terminal, too. It is always kept in a file of the run "
            "directory."
        ),
    ] = False


__all__ = ["DEFAULT_PORT", "FrontendConfig", "JoinConfig", "MediaLimits", "PlaneConfig", "WorkerConfig"]
