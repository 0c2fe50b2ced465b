"""The one-machine stack: what `make run` starts. Nothing outside this folder knows of it."""
