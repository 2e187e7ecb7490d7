"""Back ends that host spans. ``base`` is the port; every other module or folder is one back end."""
