"""One module per family of routes; ``api/areas.py`` lists them."""
