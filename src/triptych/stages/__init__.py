"""From a request to its tokens: compose (plan), request_state (decide), attempt (do), media_dispatch and calls."""
