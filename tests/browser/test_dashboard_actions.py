"""What people do in the dashboard: sign in and out, make and revoke tokens, start and stop jobs; and what they may not do."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.cookiejar import CookieJar
from typing import TYPE_CHECKING, Any

import pytest
from dashboard_store import MARKUP
from signing_in import sign_in

pytest.importorskip("starlette", reason="the extra server is not installed")
if TYPE_CHECKING:
    from leptonstore.testing.daemon import Served


def make_token(page: Any, name: str, scope: str = "read", datasets: str = "") -> str:
    """Through the form; its text."""
    page.goto("/ui/tokens")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label(re.compile(f"^{scope}")).check()
    if datasets:
        page.get_by_label("these datasets").check()
        page.get_by_label("Names of datasets").fill(datasets)
    page.get_by_role("button", name="Make token").click()
    return str(page.get_by_label("The new token").input_value())


# -- signing in and out --------------------------------------------------------------------------------------------


def test_the_printed_url_signs_in_once(visit: Callable[..., Any], served: Served) -> None:
    url = served.daemon.login_url()  # type: ignore[union-attr]
    with visit(token="") as page:
        page.goto(url)
        page.wait_for_url("**/ui")
        page.goto("/ui/tokens")
        assert page.title().startswith("Tokens")
    with visit(token="", expected=("401",)) as page:
        assert page.goto(url).status == 401
        assert "used before" in page.locator("main").inner_text()
        page.goto("/ui/tokens")
        assert "/ui/login" in page.url


def test_who_is_not_signed_in_sees_nothing_and_comes_back(visit: Callable[..., Any], served: Served) -> None:
    with visit(token="", expected=("401",)) as page:
        page.goto("/ui/dataset/digits")
        assert (
            page.url.endswith("/ui/login?next=%2Fui%2Fdataset%2Fdigits")
            and "digits" not in page.locator("main").inner_text()
        )
        page.get_by_label("Token").fill("lepton_wrong")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        page.get_by_label("Token").fill(served.token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/ui/dataset/digits")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/ui/login?out=1")
        page.go_back()
        page.goto("/ui/dataset/digits")
        assert "/ui/login" in page.url


def test_the_cookie_is_kept_from_scripts_and_other_sites(visit: Callable[..., Any]) -> None:
    with visit() as page:
        cookies = [one for one in page.context.cookies() if not one["name"].endswith("-form")]
        assert [(one["httpOnly"], one["sameSite"], one["path"]) for one in cookies] == [(True, "Strict", "/")]
        assert page.evaluate("document.cookie") == ""


# -- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_is_made_used_and_revoked_and_its_session_is_out(visit: Callable[..., Any]) -> None:
    with visit() as admin, visit(token="", expected=("401",)) as reader:
        text = make_token(admin, "for ci")
        admin.goto("/ui/tokens")
        assert text not in admin.content() and "for ci" in admin.locator("main").inner_text()
        sign_in(reader, text)
        reader.goto("/ui/dataset/digits")
        assert reader.get_by_role("heading", name="digits", exact=True).count()
        assert reader.get_by_role("link", name="Tokens").count() == 0
        admin.get_by_text("Revoke for ci").click()
        admin.get_by_role("row").filter(has_text="for ci").get_by_role("button").click()
        admin.wait_for_url("**/ui/tokens?revoked=*")
        assert "for ci" not in admin.locator("main").inner_text()
        reader.goto("/ui/dataset/digits")
        assert "/ui/login" in reader.url
        reader.get_by_label("Token").fill(text)
        reader.keyboard.press("Enter")
        reader.get_by_role("alert").wait_for()


def test_a_token_of_some_datasets_sees_these_alone(visit: Callable[..., Any]) -> None:
    with visit() as admin:
        text = make_token(admin, "of reviews", datasets="reviews")
        admin.goto("/ui/dataset/digits/main")
        foreign = re.search("[0-9a-f]{64}", admin.locator("main").inner_html())
    assert foreign is not None
    with visit(token=text, expected=("403", "404")) as page:
        page.goto("/ui/dataset")
        assert page.locator("tbody th").all_inner_texts() == ["reviews"]
        page.goto("/ui")
        seen = page.locator("main").inner_text()
        assert "digits" not in seen and "Tiers" not in seen and "Clients" not in seen
        hidden = {
            "/ui/dataset/digits": 404, "/ui/dataset/digits/main": 404, "/ui/dataset/digits/main/rows/1": 404,
            "/ui/dataset/digits/diff": 404, "/ui/model/digits-model/main/value/0/1": 404,
            f"/ui/dataset/reviews/{foreign[0]}": 404, f"/ui/dataset/reviews/{foreign[0]}/rows": 404,
            f"/ui/dataset/reviews/diff?before={foreign[0]}&after=main": 404,
            "/ui/tokens": 403, "/ui/jobs": 403, "/ui/audit": 403, "/ui/cluster": 403,
        }  # fmt: skip
        for path, status in hidden.items():
            assert page.goto(path).status == status, path
            said = page.locator("main").inner_text()
            assert "wide" not in said and "photographs" not in said
            assert "Request" in said and page.locator("main code").inner_text().strip()


def test_lineage_does_not_tell_of_what_is_not_yours(visit: Callable[..., Any]) -> None:
    """A checkpoint names the version that it was trained on; who may not read that dataset learns nothing of it from the picture."""
    with visit() as page:
        page.goto("/ui/checkpoint/digits-run/step-000000200")
        assert "two hundred more" not in page.content() and "1,0" in page.locator("#main").inner_text()
        whole = page.locator(".graph").first.inner_html()
        text = make_token(page, "of the run", datasets="digits-run")
    assert "digits@main" in whole
    with visit(token=text) as page:
        page.goto("/ui/checkpoint/digits-run/step-000000200")
        seen = page.locator(".graph").first.inner_html()
        assert "digits-run" in seen and "1 earlier" in seen
        assert "digits@" not in seen and "idx" not in seen


def test_a_name_with_markup_is_text(visit: Callable[..., Any], served: Served) -> None:
    with visit(expected=("400",)) as page:
        name = MARKUP[:60]
        make_token(page, name)
        page.goto("/ui/tokens")
        assert name in page.locator("tbody").inner_text()
        page.goto("/ui/audit")
        assert name in page.locator("main").inner_text()
        assert page.evaluate("document.querySelectorAll('main script, img[src=x]').length") == 0
        make_token_fails(page, name)
        said = page.get_by_role("alert").inner_text()
        assert "has a token" in said and served.told["store"] not in said
        assert page.get_by_label("Name", exact=True).input_value() == name


def make_token_fails(page: Any, name: str) -> None:
    """A second one of a name."""
    page.goto("/ui/tokens")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Make token").click()
    page.get_by_role("alert").wait_for()


# -- jobs ----------------------------------------------------------------------------------------------------------


def test_a_job_is_started_followed_and_stopped(visit: Callable[..., Any]) -> None:
    """A scrub at a pace that would take hours; the page follows it by itself, and stops it."""
    with visit() as page:
        page.goto("/ui/jobs")
        card = page.locator("form.card", has=page.get_by_role("heading", name="scrub"))
        card.locator("input[name=bytes_per_s]").fill("1000")
        card.get_by_role("button").click()
        page.wait_for_url("**/ui/jobs?began=*")
        row = page.get_by_role("row").filter(has_text="scrub").first
        assert row.locator(".state").inner_text() in ("running", "done")
        page.get_by_role("button", name="Stop scrub").click()
        page.wait_for_url("**/ui/jobs?stopped=*")
        page.locator("tr", has_text="scrub").locator(".state.stopped").wait_for()
        page.goto("/ui/audit")
        said = page.locator("tbody").inner_text()
        assert "scrub" in said and "stop" in said


def test_a_job_that_cannot_begin_says_why(visit: Callable[..., Any]) -> None:
    with visit(expected=("400",)) as page:
        page.goto("/ui/jobs")
        card = page.locator("form.card", has=page.get_by_role("heading", name="check"))
        card.locator("input[name=read_data]").fill("7")
        card.get_by_role("button").click()
        assert "must be from 0 to 1" in page.locator("main").inner_text()


def test_live_figures_are_refreshed_until_paused(visit: Callable[..., Any], served: Served) -> None:
    with visit() as page:
        page.clock.install()
        page.goto("/ui")
        served.daemon.metrics.count("get", bytes_out=5 << 20, client="somebody <b>new</b>")  # type: ignore[union-attr]
        with page.expect_response("**/ui/live") as answer:
            page.clock.run_for(5_100)
        assert set(answer.value.json()) == {"parts", "said"}
        page.locator("#live-clients th", has_text="somebody <b>new</b>").wait_for()
        toggle = page.get_by_role("button", name="Pause updates")
        toggle.focus()
        page.keyboard.press("Enter")
        assert toggle.get_attribute("aria-pressed") == "true"
        asked: list[str] = []
        page.on("request", lambda one: asked.append(one.url))
        page.clock.run_for(60_000)
        page.reload()
        page.clock.run_for(60_000)
        assert page.get_by_role("button", name="Pause updates").get_attribute("aria-pressed") == "true"
        assert not any(url.endswith("/ui/live") for url in asked)
        page.get_by_role("button", name="Pause updates").click()
        with page.expect_response("**/ui/live"):
            page.clock.run_for(5_100)


# -- forms that are not ours ---------------------------------------------------------------------------------------


class Client:
    """A browser without its manners: sends what it is told to."""

    def __init__(self, url: str) -> None:
        self.url, self.jar = url, CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar), _Stay())

    def ask(self, path: str, form: dict[str, str] | bytes | None = None, **headers: str) -> tuple[int, str, Any]:
        data = form if isinstance(form, bytes) or form is None else urllib.parse.urlencode(form).encode()
        request = urllib.request.Request(
            self.url + path, data, {key.replace("_", "-"): value for key, value in headers.items()}
        )
        try:
            with self._opener.open(request) as answer:
                return answer.status, answer.read().decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def signed_in(self, token: str) -> str:
        """The form token of a session."""
        made = _form_token(self.ask("/ui/login")[1])
        assert self.ask("/ui/login", {"form_token": made, "token": token})[0] == 303
        return _form_token(self.ask("/ui")[1])


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *of: Any) -> None:
        return None


def _form_token(html: str) -> str:
    found = re.search('name="form_token" value="([^"]+)"', html)
    assert found is not None
    return found[1]


def test_a_form_needs_the_token_of_its_session(served: Served) -> None:
    mine, other = Client(served.http_url), Client(served.http_url)
    own, foreign = mine.signed_in(served.token), other.signed_in(served.token)
    assert own != foreign
    form = {"name": "stolen", "scope": "admin", "of": "all", "days": "1"}
    for token in ({}, {"form_token": ""}, {"form_token": foreign}, {"form_token": own + "x"}):
        assert mine.ask("/ui/tokens", {**form, **token})[0] == 403
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
        assert mine.ask("/ui/tokens", {**form, "form_token": own}, **headers)[0] == 403
    assert mine.ask("/ui/logout", {"form_token": foreign})[0] == 403
    assert "stolen" not in mine.ask("/ui/tokens")[1]
    assert mine.ask("/ui/logout", {"form_token": own})[0] == 303
    assert mine.ask("/ui/tokens")[0] == 303


def test_signing_in_needs_the_form_of_this_browser(served: Served) -> None:
    client = Client(served.http_url)
    assert client.ask("/ui/login", {"token": served.token})[0] == 403
    foreign = _form_token(Client(served.http_url).ask("/ui/login")[1])
    client.ask("/ui/login")
    assert client.ask("/ui/login", {"token": served.token, "form_token": foreign})[0] == 403


@pytest.mark.parametrize(
    "path",
    ["https://evil.example", "//evil.example", "/ui//evil.example", "/\\evil.example", "/ui/../../x", "/ui/a\r\nX: y"],
)
def test_signing_in_never_leads_elsewhere(served: Served, path: str) -> None:
    client = Client(served.http_url)
    made = _form_token(client.ask("/ui/login")[1])
    status, _, headers = client.ask("/ui/login", {"form_token": made, "token": served.token, "next": path})
    assert status == 303 and headers["location"] == "/ui"


def test_every_answer_forbids_what_pages_do_not_need(served: Served) -> None:
    client = Client(served.http_url)
    client.signed_in(served.token)
    for path in (
        "/ui",
        "/ui/live",
        "/ui/nothing",
        "/ui/dataset/digits/main/value/0/1",
        "/ui/model/digits-model/main/value/0/1",
    ):
        _, _, headers = client.ask(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert (
        headers["content-disposition"].startswith("attachment")
        and headers["content-type"] == "application/octet-stream"
    )
    assert client.ask("/ui/static/x/style.css")[2]["cache-control"].endswith("immutable")
    assert client.ask("/ui/static/x/..%2fpages.py")[0] == 404


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/nothing", 404), ("/ui/dataset/no-such", 404), ("/ui/dataset/digits/no-such", 404), ("/ui/dataset/digits/@", 400),
        ("/ui/dataset/digits/main/rows/999999", 404), ("/ui/dataset/digits/main/rows?from=-1", 400),
        ("/ui/dataset/digits/main/rows?from=99999", 200), ("/ui/dataset/digits/main/rows?where=((((", 200),
        ("/ui/dataset/digits/main/value/0/99", 404), ("/ui/dataset/digits/main/value/0/0", 400),
        ("/ui/dataset/photographs/main/value/61/1", 400), ("/ui/dataset/digits/diff?before=x&after=y", 404),
        ("/ui/dataset/%2e%2e/main", 404), ("/ui/dataset/digits/" + "a" * 3000, 400), ("/ui/dataset/digits/main~99", 404),
    ],
)  # fmt: skip
def test_addresses_that_lead_nowhere_are_told_so(served: Served, path: str, status: int) -> None:
    client = Client(served.http_url)
    client.signed_in(served.token)
    found, body, _ = client.ask(path)
    assert found == status
    assert served.told["store"] not in body and "Traceback" not in body


def test_a_form_that_is_too_large_or_none_is_refused(served: Served) -> None:
    client = Client(served.http_url)
    own = client.signed_in(served.token)
    assert client.ask("/ui/tokens", {"form_token": own, "name": "x" * 20_000})[0] == 400
    assert client.ask("/ui/tokens", {"form_token": own, **{f"f{at}": "" for at in range(100)}})[0] == 400
    assert client.ask("/ui/tokens", b"\xff\xfe=1")[0] == 400
    assert client.ask("/ui/tokens", json.dumps({"name": "x"}).encode(), Content_Type="application/json")[0] == 400


def test_programs_may_use_their_header(served: Served) -> None:
    client = Client(served.http_url)
    bearer = f"Bearer {served.token}"
    assert client.ask("/ui/dataset", Authorization=bearer)[0] == 200
    status, body, _ = client.ask("/ui/live", Authorization="Bearer wrong", Accept="application/json")
    assert status == 401 and json.loads(body)["request_id"]
