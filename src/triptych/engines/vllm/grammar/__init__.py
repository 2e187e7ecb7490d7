"""Grammars that answers must follow: tried out in processes of their own before vLLM's engine gets them.

``grammars.py`` is what the engine asks, and ``checker.py`` remembers verdicts for it. Its child (``process.py``,
``template.py``) stands ready with the grammar library and the model's vocabulary, and forks a process for each trial
(``trial.py``).
"""
