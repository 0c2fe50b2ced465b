"""The API's documentation for people: Swagger UI and ReDoc, served from here alone, so that they also work offline."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

from api.errors import not_found_error

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}
CACHE_ONE_DAY = {"Cache-Control": "public, max-age=86400"}

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/docs/assets/favicon.png">
"""
SWAGGER = f"""{HEAD}<title>Berth: the API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""
SWAGGER_INIT_SCRIPT = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "none",
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
REDOC = f"""{HEAD}<title>Berth: the API</title>
<style>body {{ margin: 0; }}</style>
</head>
<body>
<redoc spec-url="/openapi.json" hide-hostname="true"></redoc>
<script src="/docs/assets/redoc.standalone.js"></script>
</body>
</html>
"""


@router.get("/docs")
async def swagger() -> Response:
    return HTMLResponse(SWAGGER)


@router.get("/redoc")
async def redoc() -> Response:
    return HTMLResponse(REDOC)


@router.get("/docs/assets/start.js")
async def start() -> Response:
    return Response(SWAGGER_INIT_SCRIPT, media_type="text/javascript")


@router.get("/docs/assets/{name}")
async def asset(name: str) -> Response:
    kind = ASSETS.get(name)
    # Only the files of the package are used: none of its code is imported.
    package = find_spec("fastapi_offline")
    if kind is None or package is None or package.origin is None:
        raise not_found_error("page")
    return FileResponse(Path(package.origin).parent / "static" / name, media_type=kind, headers=CACHE_ONE_DAY)
