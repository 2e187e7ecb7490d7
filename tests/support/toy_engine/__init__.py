"""An engine that is not in the package: it says the prompt backwards. It shows what adding an engine takes."""
