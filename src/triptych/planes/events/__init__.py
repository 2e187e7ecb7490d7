"""Reports workers' KV caches and loads to frontends.

``base`` is the port. ``request`` needs the request plane only. ``zeromq`` and ``jetstream`` carry the updates that
``publish`` numbers and ``subscribe`` assembles.
"""
