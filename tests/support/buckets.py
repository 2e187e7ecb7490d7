"""The bucket of shared state that contract tests use."""

from triptych.planes.state.base import Bucket

BUCKET = Bucket(name="things", max_entry_bytes=1000, max_bytes=20_000)
