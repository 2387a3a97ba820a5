"""A library and a command: files in, a run folder out. Imports neither gradio nor a database."""

import os

# Idle OpenMP threads spin for a while before they sleep. Without a limit two busy processes (chat beside training)
# collapse to a tenth of their speed; with OMP_WAIT_POLICY=PASSIVE a lone trainer loses half. This many turns cost
# neither. GNU OpenMP reads it when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
