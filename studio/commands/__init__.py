"""The commands of `lora-studio`, one file per subject. `studio.cli` puts them together; `ui.main` adds `serve`.

What is imported at the top of these files costs every call its time, `--help` too: only typer, the configs and errors.
The studio itself (SQLAlchemy and more) is imported when a command runs; torch never is.
"""
