"""`python -m tests.service.console.picture`: write docs/console.png for the README."""

from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.support.server import running

ROOT = Path(__file__).parents[3]


def main() -> None:
    """Serve the shipped models and look at the Try page."""
    with (
        running(ROOT / "models", default_model="fashion") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(
            viewport={"width": 1280, "height": 900}, device_scale_factor=2, color_scheme="light"
        )
        page.goto(f"{server.url}/#/try?model=fashion")
        page.wait_for_selector(".verdict .changed")
        page.screenshot(path=ROOT / "docs" / "console.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
