"""The web application: who may ask, what every answer carries, and the pages."""

from __future__ import annotations

import html
import ipaddress
import os
from http.cookies import SimpleCookie
from typing import Annotated
from urllib.parse import urlsplit

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI, Form, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.records import InputError
from labeler import auth, conversations, invitations, jobs, packages, run_comparison, ui
from labeler.api import PATH as API
from labeler.api import create_api
from labeler.store import one, scalar
from labeler.ui import theme
from labeler.ui.data import KEEPERS
from labeler.users import MIN_PASSWORD, User, needs_login
from labeler.workspace import Workspace

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/login", "/healthz", "/favicon.ico")
INVITE_PATH = "/invite/"  # open as well: the token in the address is the key
MAX_UPLOAD = "500mb"

# Gradio builds functions from strings (a widget's js_on_load) and writes inline scripts and styles. What is left to
# forbid: scripts from elsewhere, scripts in attributes, connections to elsewhere, and being framed.
PAGE_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "script-src-attr 'none'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
LOGIN_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def is_loopback(host: str) -> bool:
    """Whether a server bound to this name or address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(workspace: Workspace, host: str) -> None:
    """Raises InputError where `host` would show the workspace to others without a login."""
    if not is_loopback(host) and not needs_login(workspace.store):
        raise InputError(
            f"HOST={host} would let everybody in; first make a user with a password: "
            "python -m labeler user add NAME --role owner"
        )


def create_app(workspace: Workspace, host: str = "127.0.0.1") -> FastAPI:
    """The application for this workspace, to be served on `host`."""
    app = FastAPI(title="Preference Loop", docs_url=None, redoc_url=None, openapi_url=None)
    # with a CORS policy of our own Gradio adds none: off localhost its default echoes foreign origins
    app.add_middleware(CORSMiddleware, allow_origins=[])
    app.add_middleware(Guard, workspace=workspace, host=host)
    app.mount(API, create_api(workspace))  # first: programs ask more often than people
    _add_routes(app, workspace)
    packages.add_routes(app, workspace)
    gr.mount_gradio_app(
        app,
        ui.build(workspace),
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[],
        blocked_paths=[str(workspace.folder)],
        theme=theme.make(),
        css=theme.css(),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return app


def _add_routes(app: FastAPI, workspace: Workspace) -> None:
    gate = auth.LoginGate()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        scalar(workspace.store.db, "SELECT 1 FROM users LIMIT 1")
        return {"status": "ok"}

    @app.get("/status")
    def status(request: Request) -> JSONResponse:
        """What the page's header shows, asked for every few seconds."""
        user = auth.user_of(workspace.store, request.cookies)
        assert user is not None  # Guard
        view = {
            "user": user.name,
            "login": needs_login(workspace.store),
            "running": jobs.running_line(workspace.store),
            "hidden_tabs": ui.HIDDEN_TABS.get(user.role, ()),
        }
        return JSONResponse(view, headers={"Cache-Control": "no-store"})

    @app.get("/snapshots/{snapshot_id}")
    def snapshot(snapshot_id: int, request: Request) -> Response:
        """An export made in the Data tab."""
        user = auth.user_of(workspace.store, request.cookies)
        found = one(workspace.store.db, "SELECT path FROM snapshots WHERE id = ?", [snapshot_id])
        path = (workspace.folder / found["path"]).resolve() if found else None
        if path is not None and path.is_dir():  # a datasets folder, zipped beside it
            path = path.with_name(f"{path.name}.zip")
        if user is None or user.role not in KEEPERS or path is None or not path.is_file():
            return JSONResponse({"detail": "there is no such export"}, 404)
        kinds = {".csv": "text/csv", ".zip": "application/zip"}
        return FileResponse(path, media_type=kinds.get(path.suffix, "application/jsonl"), filename=path.name)

    @app.get("/runs.{suffix}")
    def compared(suffix: str, request: Request, run: Annotated[list[str], Query()], metric: str = "") -> Response:
        """Runs that are compared in the Runs tab, as CSV or as a picture of one metric."""
        user = auth.user_of(workspace.store, request.cookies)
        if user is None or user.role not in KEEPERS or suffix not in ("csv", "png"):
            return JSONResponse({"detail": "there is no such file"}, 404)
        try:
            chosen = run_comparison.chosen(workspace, run)
            made: str | bytes = run_comparison.as_csv(workspace, chosen)
            if suffix == "png":
                made = run_comparison.as_png(workspace, chosen, metric)
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 404)
        name = run_comparison.file_name(chosen, f".{suffix}")
        kind = "text/csv; charset=utf-8" if suffix == "csv" else "image/png"
        return Response(made, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})

    @app.get("/conversations/{conversation_id}")
    def conversation(conversation_id: int, request: Request) -> Response:
        """One of this person's conversations, as a file."""
        user = auth.user_of(workspace.store, request.cookies)
        assert user is not None  # Guard
        try:
            found = conversations.export(workspace.store, user, conversation_id)
        except InputError as error:
            return JSONResponse({"detail": str(error)}, 404)
        name = f'attachment; filename="conversation-{conversation_id}.json"'
        return JSONResponse(found, headers={"Content-Disposition": name, "Cache-Control": "no-store"})

    @app.get("/login")
    def login_page(request: Request) -> Response:
        if auth.user_of(workspace.store, request.cookies) is not None:
            return RedirectResponse("/", status_code=303)
        return _login_page()

    @app.post("/login")
    def login(request: Request, name: str = Form(""), password: str = Form("")) -> Response:
        try:
            user = gate.check(workspace.store, name, password)
        except InputError as error:
            return _login_page(str(error), 429)
        if user is None:
            return _login_page("Name or password is wrong.", 401)
        return _logged_in(workspace, request, user)

    @app.get(INVITE_PATH + "{token}")
    def invite_page(token: str) -> Response:
        try:
            return _invite_page(invitations.find(workspace.store.db, token))
        except InputError as error:
            return _form_page("Invitation", "", str(error), 404)

    @app.post(INVITE_PATH + "{token}")
    def accept(
        token: str, request: Request, name: str = Form(""), password: str = Form(""), again: str = Form("")
    ) -> Response:
        try:
            invitation = invitations.find(workspace.store.db, token)
        except InputError as error:
            return _form_page("Invitation", "", str(error), 404)
        try:
            if password != again:
                raise InputError("the two passwords differ; type them again")
            user = invitations.accept(workspace.store, token, name, password)
        except InputError as error:
            return _invite_page(invitation, name, str(error), 400)
        return _logged_in(workspace, request, user)

    @app.post("/logout")
    def logout(request: Request) -> Response:
        auth.end_session(workspace.store, request.cookies.get(auth.COOKIE, ""))
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(auth.COOKIE)
        return response


def _logged_in(workspace: Workspace, request: Request, user: User) -> Response:
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        auth.COOKIE,
        auth.start_session(workspace.store, user),
        max_age=int(auth.SESSION_SECONDS),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


def _login_page(error: str = "", status: int = 200) -> HTMLResponse:
    fields = """<label>Name <input name="name" autocomplete="username" required autofocus></label>
      <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
      <button>Log in</button>"""
    return _form_page("Log in", fields, error, status)


def _invite_page(
    invitation: invitations.Invitation, name: str = "", error: str = "", status: int = 200
) -> HTMLResponse:
    if invitation.name is None:
        intro = f"You are invited to work here as {invitation.role}. Choose a name and a password to log in with."
        named = f'value="{html.escape(name, quote=True)}" required autofocus maxlength="100"'
    else:
        intro = "Choose a password to log in with."
        named = f'value="{html.escape(invitation.name, quote=True)}" readonly'
    secret = f'type="password" autocomplete="new-password" required minlength="{MIN_PASSWORD}"'
    fields = f"""<p>{html.escape(intro)}</p>
      <label>Name <input name="name" autocomplete="username" {named}></label>
      <label>Password <input name="password" {secret}></label>
      <label>Password again <input name="again" {secret}></label>
      <button>Save and log in</button>"""
    return _form_page("Invitation" if invitation.name is None else "New password", fields, error, status)


def _form_page(title: str, fields: str, error: str, status: int) -> HTMLResponse:
    """A page with one form, posted to its own address. `fields` is HTML of ours."""
    alert = f'<p class="error" role="alert">{html.escape(error[:1].upper() + error[1:])}</p>' if error else ""
    page = theme.form_page().replace("<!-- title -->", html.escape(title))
    page = page.replace("<!-- fields -->", alert + fields)
    return HTMLResponse(page, status, {"Content-Security-Policy": LOGIN_POLICY, "Cache-Control": "no-store"})


class Guard:
    """Stands before everything: Host and origin of the request, the session, and the headers of the answer."""

    def __init__(self, app: ASGIApp, workspace: Workspace, host: str) -> None:
        self.app = app
        self.store = workspace.store
        self.names = {*LOOPBACK_NAMES, host.lower().strip("[]")}
        self.loopback = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # Gradio 6 needs no WebSocket; nothing here checks the origin of one
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", PAGE_POLICY)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        login = needs_login(self.store)
        # Without a login the address is the only key, so a foreign name that points here (DNS rebinding, a proxy)
        # is refused. With one, the session cookie belongs to the name it was given under.
        if not login and (not self.loopback or _hostname(host) not in self.names):
            return JSONResponse({"detail": "without a login only this machine's own names are answered"}, 421)
        navigation = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if not _same_origin(headers, host) and not (navigation and headers.get("sec-fetch-dest") == "document"):
            return JSONResponse({"detail": "requests from other sites are refused"}, 403)
        # the API asks for a token or a session itself
        if not login or path in OPEN_PATHS or path.startswith((INVITE_PATH, f"{API}/")):
            return None
        cookies = {key: morsel.value for key, morsel in SimpleCookie(headers.get("cookie", "")).items()}
        if auth.user_of(self.store, cookies) is not None:
            return None
        if scope["method"] == "GET" and path == "/":
            return RedirectResponse("/login", status_code=303)
        return JSONResponse({"detail": "log in first"}, 401)


def _hostname(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(headers: Headers, host: str) -> bool:
    """Whether the request comes from a page of ours or from no page at all (a script, the address bar)."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()
