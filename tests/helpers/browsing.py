"""Chromium, driven by Playwright: what the tests of pages share."""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager, suppress

import pytest

# What Chromium would like to tell its maker.
QUIET = 'no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync'


@contextmanager
def launched():
    """The browser that is installed; the test is skipped where there is none."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    path = next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip(f'needs a browser: {", ".join(names)}')
    reason = 'needs playwright: pip install -r requirements/dev.txt'
    sync = pytest.importorskip('playwright.sync_api', reason=reason)
    with sync.sync_playwright() as playwright:
        flags = [f'--{flag}' for flag in QUIET.split()]
        yield playwright.chromium.launch(executable_path=path, args=flags)


class Seen:
    """A page in the browser, whose network is cut: its text, and what it did."""

    def __init__(self, browser, path, screenshot=None):
        self.asked, self.dialogs, self.console = [], [], []
        context = browser.new_context()
        # What the page's own policy forbids never reaches the network.
        context.on('request', lambda request: self.asked.append(request.url))
        forbidden = []
        context.on(
            'requestfailed', lambda r: forbidden.append(r.url) if r.failure == 'csp' else None
        )
        context.route(
            lambda url: not url.startswith('file://'),
            lambda route, _: route.abort('blockedbyclient'),
        )
        page = context.new_page()
        page.on('dialog', lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on('console', lambda message: self.console.append((message.type, message.text)))
        page.on('pageerror', lambda error: self.console.append(('error', str(error))))
        page.goto(path.as_uri(), wait_until='load')
        fold = page.locator('#fold')
        if fold.count() and fold.is_visible():
            fold.click()
        # A page may lead elsewhere at this moment: `at` and `asked` tell.
        with suppress(sys.modules['playwright.sync_api'].Error):
            page.eval_on_selector_all('details', 'all => all.forEach((d) => { d.open = true; })')
            links = 'a[href^="javascript:"]'
            page.eval_on_selector_all(links, 'all => all.forEach((a) => a.click())')
        page.wait_for_timeout(400)  # where a page leads elsewhere, it is there by then
        page.wait_for_load_state()
        self.url, self.at = path.as_uri(), page.url
        self.hit = page.evaluate('window.hit')
        alts = page.eval_on_selector_all('img', 'images => images.map((image) => image.alt)')
        self.text = '\n'.join([page.text_content('body'), *alts])
        self.links = page.eval_on_selector_all('a', 'anchors => anchors.map((a) => a.href)')
        self.attributes = page.evaluate(
            "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
        )
        if screenshot:
            page.screenshot(path=screenshot, full_page=True)
        self.elsewhere = page.locator('base, link, meta[http-equiv=refresh]').count()
        self.asked = [url for url in self.asked if url not in forbidden]
        self.forbidden = forbidden
        context.close()

    def did_nothing(self) -> None:
        assert self.hit is None and self.dialogs == []
        assert self.asked == [self.url] and self.at == self.url and not self.elsewhere

    def is_text(self, *texts: str) -> None:
        self.did_nothing()
        # An address in plain sight may be followed; nothing is loaded for it.
        assert {link.split(':')[0] for link in self.links} <= {'file', 'https'}
        assert not [name for name in self.attributes if name.startswith('on')]
        assert self.forbidden == []
        assert [entry for entry in self.console if entry[0] in ('error', 'warning')] == []
        for text in texts:
            assert text in self.text, text
