"""The static gates of `make check`; each module is one gate and can be run alone."""
