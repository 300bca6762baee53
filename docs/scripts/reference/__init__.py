"""Reference pages, made from the code when the site is built."""

from . import api, commands, keys, methods


def generated_pages() -> dict[str, str]:
    """Markdown of each page, by its path in the site."""
    return {
        **api.pages(),
        **commands.pages(),
        "reference/keys.md": keys.page(),
        "reference/methods.md": methods.page(),
    }
