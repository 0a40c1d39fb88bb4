"""A headless Chromium for tests of pages; nothing it does leaves the machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def browser_is_here() -> bool:
    """Whether Chromium, its driver and selenium are installed."""
    return bool(_program() and shutil.which("chromedriver") and find_spec("selenium"))


def _program() -> str | None:
    """Chromium, or the browser that is built from it."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@contextlib.contextmanager
def browser() -> Iterator[Chrome]:
    """A driven Chromium with a profile of its own, that logs its console and its requests."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = _program()
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = Chrome(options, Service(shutil.which("chromedriver")))  # named, so that selenium looks for none
        try:
            yield driver
        finally:
            driver.quit()


def open_page(driver: Chrome, path: Path) -> list[str]:
    """Show a file; returns the addresses that the browser asked for on the way.

    Data URIs are left out, what the page's own policy kept from being asked for, and what the browser's own first page,
    which may still be loading, asks the browser itself for.
    """
    driver.get_log("performance")  # empties it
    driver.get(path.resolve().as_uri())
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls, blocked = {}, set()
    for method, params in ((event["method"], event["params"]) for event in events):
        if method == "Network.requestWillBeSent":
            urls[params["requestId"]] = params["request"]["url"]
        elif method == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            blocked.add(params["requestId"])
    own = ("data:", "chrome:", "chrome-untrusted:")
    return [url for request, url in urls.items() if request not in blocked and not url.startswith(own)]


def show_scheme(driver: Chrome, scheme: str) -> None:
    """Prefer colour scheme "light" or "dark"."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def show_width(driver: Chrome, width: int) -> None:
    """A viewport of so many CSS pixels, also below the least width of a window."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
