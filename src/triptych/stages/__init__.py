"""Which workers a request goes through (``compose``, pure) and going there (``dispatch``)."""
