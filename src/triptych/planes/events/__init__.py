"""What workers tell frontends of themselves. ``base`` is the port; ``request`` needs nothing but the request plane,
``zeromq`` and ``jetstream`` carry what ``publish`` numbers and ``subscribe`` puts together again."""
