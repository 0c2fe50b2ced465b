"""One module per family of routes; ``api/routers.py`` lists them."""
