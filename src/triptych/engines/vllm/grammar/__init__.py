"""Tries grammars, which answers must follow, in processes of their own before vLLM's engine gets them.

The engine uses ``grammars.py``; ``checker.py`` caches the verdicts. A child process (``process.py``, ``template.py``)
has loaded the grammar library and the model's vocabulary, and forks a process for each trial (``trial.py``).
"""
