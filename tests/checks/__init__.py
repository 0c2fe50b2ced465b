"""The static gates of `make check`; each module is a gate of its own and can be run alone."""
