"""Configuration of the two long-running processes, frontend and worker, and what both share."""

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
    """How processes of one deployment find each other, and whom they trust."""

    plane: Annotated[
        str,
        Meta(
            description="By what processes find each other, and frontends share what all must know: `local` (files "
            "under the run directory), `nats://host:4222`, `nats://user@host:4222` or `tls://host:4222` (several of a "
            "cluster separated by commas), or, for `triptych up` only, `nats`: a server that is started and stopped "
            "with the deployment."
        ),
    ] = "local"
    run_dir: Annotated[
        str,
        Meta(
            description="Run directory: files by which processes of one machine find and trust each other (default: "
            "TRIPTYCH_RUN_DIR; else `triptych up` makes one of its own, and other commands have one per user)."
        ),
    ] = ""
    nats_credentials: Annotated[
        str,
        Meta(
            description="File with what NATS is to know us by: a `.creds` file, or one line, `user:password` or a "
            "token (default: TRIPTYCH_NATS_PASSWORD or TRIPTYCH_NATS_TOKEN, else nothing)."
        ),
    ] = ""
    nats_ca: Annotated[
        str, Meta(description="Certificates of who may vouch for the NATS server (default: the system's).")
    ] = ""
    nats_cert: Annotated[str, Meta(description="Our own certificate, where the NATS server asks for one.")] = ""
    nats_key: Annotated[str, Meta(description="Key of `--nats-cert`, where it is in a file of its own.")] = ""
    namespace: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_-]{1,64}$",
            description="Deployments of different namespaces do not see each other.",
        ),
    ] = "default"
    tls_cert: Annotated[
        str,
        Meta(
            description="Our own certificate on the request plane: a worker that has one speaks TLS only, a frontend "
            "shows it to workers (default: none)."
        ),
    ] = ""
    tls_key: Annotated[str, Meta(description="Key of `--tls-cert`, where it is in a file of its own.")] = ""
    tls_ca: Annotated[
        str,
        Meta(
            description="Certificates of who may vouch for peers on the request plane: a frontend that has this speaks "
            "TLS only, a worker lets in nobody without such a certificate (default: none)."
        ),
    ] = ""
    events: Annotated[
        Literal["request", "zmq", "jetstream"],
        Meta(
            description="How workers tell frontends what their KV caches hold: `request` (a stream to each frontend), "
            "`zmq` (published, to a port of the worker that frontends connect to) or `jetstream` (published, over the "
            "NATS server of `--plane`). A frontend follows workers that publish otherwise by `request`."
        ),
    ] = "request"

    def check(self) -> None:
        """Raises ConfigError where a setting needs another one."""
        if self.events == "jetstream" and self.plane == "local":
            raise ConfigError("--events jetstream needs a NATS server to publish by: --plane nats://host:4222")


class JoinConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a process that is started by hand comes to a deployment."""

    join: Annotated[
        bool,
        Meta(
            description="Belong to the deployment that `triptych up` has started: on its plane, with its token. Where "
            "several are up, `--run-dir` and `--namespace` say which."
        ),
    ] = False


class FrontendConfig(RequestLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server and the processor in it."""

    enable_multimodal: Annotated[bool, Meta(description="Accept media in requests.")] = False
    enable_mm_embeds: Annotated[
        bool, Meta(description="Accept media as precomputed embeddings too; needs `--enable-multimodal`.")
    ] = False
    allowed_local_media_path: Annotated[
        str | None,
        Meta(description="Folder whose files clients may name by `file:` URL; whatever lies in it they can have read."),
    ] = None
    media_allowed_domains: Annotated[
        str,
        Meta(
            description="Hosts that media may be fetched from, redirects included, separated by commas: `a.example`, "
            "or `*.b.example` for all below it (default: every public host)."
        ),
    ] = ""
    media_cache_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="Most bytes of fetched media kept, for as long as HTTP's rules allow, and of what was read "
            "from `.pt` files; 0: none.",
        ),
    ] = 128 * MIB
    video_frames: Annotated[
        int, Meta(ge=0, description="Frames that a model sees of each video, spread evenly; 0: by its own settings.")
    ] = 0
    video_fps: Annotated[
        float,
        Meta(
            ge=0,
            description="Frames a second that a model sees of a video, within its own bounds; 0: by its own settings.",
        ),
    ] = 0.0
    model_files_cache: Annotated[
        str,
        Meta(
            description="Folder for tokenizers, templates and configs that workers give to a frontend without the "
            "checkpoint (default: `triptych/model-files` in this user's cache)."
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
    max_body_bytes: Annotated[int, Meta(gt=0, description="Most bytes of a request body.")] = 64 * MIB
    max_held_bytes: Annotated[
        int,
        Meta(
            gt=0,
            description="Most bytes of bodies, their texts and tokens, and fetched media that requests hold at once; "
            "more get 429.",
        ),
    ] = 4096 * MIB
    max_choices: Annotated[int, Meta(gt=0, description="Largest `n` of a request.")] = 16
    max_stop_strings: Annotated[int, Meta(gt=0, description="Most stop strings in a request.")] = 16
    max_in_flight: Annotated[
        int,
        Meta(
            gt=0,
            description="Most generations (each choice of each prompt of a request) at once; more get 429, and a "
            "request that is more by itself 400.",
        ),
    ] = 4096
    max_running: Annotated[
        int,
        Meta(
            ge=0,
            description="Most generations that are at workers at once. Others wait: requests take turns, each with one "
            "generation a round, and those with media have a line of their own; 0: no bound.",
        ),
    ] = 0
    max_waiting: Annotated[int, Meta(ge=0, description="Most generations that wait for that; more get 429.")] = 1024
    max_wait_s: Annotated[
        float, Meta(gt=0, description="Time limit for a request's first generation to wait for that; then 503.")
    ] = 30.0
    local_prefill_tokens: Annotated[
        int,
        Meta(
            ge=0,
            description="Prompts with at most so many tokens left to prefill (those the decode worker has seen "
            "before do not count) stay at the decode worker, if it can prefill; 0: none do.",
        ),
    ] = 0
    expected_models: Annotated[
        str,
        Meta(
            description="Names of models that exist although their workers may not be there yet, separated by commas: "
            "503 until they are, and not 404. `triptych up` gives those of its graph."
        ),
    ] = ""
    plan_header: Annotated[bool, Meta(description="Say in the header `x-triptych-plan` which workers answered.")] = (
        False
    )
    response_timeout_s: Annotated[
        float, Meta(gt=0, description="Longest silence of a worker within one answer before it is given up.")
    ] = 300.0
    resume_timeout_s: Annotated[
        float,
        Meta(ge=0, description="Longest wait of an answer whose worker was lost midway for another one to go on."),
    ] = 30.0
    quarantine_s: Annotated[
        float,
        Meta(
            ge=0,
            description="How long a request under which two workers fell before they had answered it, alone of all, is "
            "refused by its content; 0: none is.",
        ),
    ] = 600.0
    max_quarantined: Annotated[
        int, Meta(gt=0, description="Most requests remembered for that; the oldest is forgotten.")
    ] = 1024
    suspect_wait_s: Annotated[
        float,
        Meta(
            ge=0,
            description="Longest wait of a request that a worker fell under for a worker at which no other such "
            "request waits for its first token.",
        ),
    ] = 5.0
    drain_timeout_s: Annotated[float, Meta(ge=0, description="On SIGTERM, time for requests in flight to finish.")] = (
        8.0
    )


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker: a span of one model on one engine."""

    model: Annotated[
        str,
        Meta(description="Folder, id of a model in Hugging Face's cache, or `demo` or `demo-audio` (shipped)."),
    ]
    span: Annotated[Span, Meta(description="Stages hosted: e, p, d, ep, pd or epd.")] = Span.EPD
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
            description="Name of this one worker, refused where one alive has it (default: `--name` and more).",
        ),
    ] = ""
    fallback: Annotated[
        bool,
        Meta(description="Run stages outside of the span, too, if the engine can and no other worker can."),
    ] = True
    embedding_cache_bytes: Annotated[
        int, Meta(ge=0, description="Most bytes of embeddings kept, by content; 0 keeps none.")
    ] = 256 * MIB
    host: Annotated[
        str, Meta(description="Address that the request plane listens on; `localhost`: 127.0.0.1 and ::1.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the request plane; 0 takes a free one.")] = 0
    drain_timeout_s: Annotated[float, Meta(ge=0, description="On SIGTERM, time for requests in flight to finish.")] = (
        8.0
    )
    max_in_flight: Annotated[
        int, Meta(gt=0, description="Most requests that this worker holds at once; more get 429.")
    ] = 4096
    verbose: Annotated[
        bool,
        Meta(
            description="Show what the engine writes on the terminal, too; it is kept in a file of the run directory."
        ),
    ] = False


__all__ = ["DEFAULT_PORT", "FrontendConfig", "JoinConfig", "MediaLimits", "PlaneConfig", "WorkerConfig"]
