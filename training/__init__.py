"""A library and a command: files in, a run folder out. Imports neither gradio nor a database."""

import os

# Idle OpenMP threads spin for a while before they sleep. Beside one busy process, single runs of a forward and backward
# made 50 tokens/s with OMP_WAIT_POLICY=ACTIVE, 228 with PASSIVE, 512 with a limit of 20,000 turns and 528 with 300,000.
# Alone, 20,000 and 300,000 turns ran alike (545 and 558 against 538 and 550). GNU OpenMP reads it when torch is first
# imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

CHAT_LOCK = "PREFERENCE_LOOP_CHAT_LOCK"
"""The environment variable that names the file which is locked while an answer is written (`training.cores`)."""
