"""A library and a command: files in, a run folder out. Imports neither gradio nor a database."""
